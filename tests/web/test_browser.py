"""The page in a real Chromium: what it shows, what it finds out by itself, keyboard and phone."""

from __future__ import annotations

import json
import shutil
import socket
import threading
import time

import pytest
from village import NAMES, Person, Village

from earmark.protocol import messages as m
from earmark.web.server import Server
from earmark.web.service import create_app

selenium = pytest.importorskip("selenium")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    BROWSER is None or DRIVER is None,
    reason="needs Chromium and its driver: apt-get install chromium chromium-driver",
)

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@pytest.fixture(scope="module")
def village(tmp_path_factory):
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    made = Village(tmp_path_factory.mktemp("village"), port).story()
    server = Server(create_app(made.nodes[0]), made.address)
    thread = threading.Thread(target=server.run)
    thread.start()
    yield made
    server.should_exit = True
    thread.join()
    made.close()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    made = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield made
    made.quit()


class Page:
    def __init__(self, driver, url, width=1280, height=900):
        self.driver = driver
        about = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", about)
        driver.get(url)
        self.until("document.documentElement.dataset.ready === 'yes'")

    def js(self, script, *arguments):
        return self.driver.execute_script("return " + script, *arguments)

    def until(self, script, seconds=30):
        end = time.monotonic() + seconds
        while not self.js(script):
            assert time.monotonic() < end, script
            time.sleep(0.05)

    def text(self, css):
        return self.driver.find_element("css selector", css).text

    def all(self, css):
        return self.driver.find_elements("css selector", css)

    def press(self, *keys):
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def focused(self):
        return self.driver.switch_to.active_element


@pytest.fixture
def page(driver, village):
    return Page(driver, village.url)


def test_it_shows_claims_votes_timelines_and_registrations(page):
    assert "entries hold" in page.text("#checked")
    assert "at least 3 of 4 witnesses" in page.text("#checked")
    cards = page.all("#claims article")
    stamps = [card.find_element("css selector", ".stamp").text.lower() for card in cards]
    assert stamps == ["mark shown", "mark shown", "mark not shown"]
    assert "this claim prevails" in cards[0].text
    assert "that claim prevails" in cards[1].text
    votes = [item.text for item in cards[0].find_elements("css selector", ".votes li")]
    assert len(votes) == 4
    assert all("251 of 256" in vote for vote in votes[:3])
    assert NAMES[3] in votes[3]
    assert "found the opposite" in votes[3]
    assert "131 of 256" in votes[3]
    cards[0].find_element("css selector", "summary").click()
    steps = [item.text for item in cards[0].find_elements("css selector", "ol.timeline li")]
    told = [
        next(i for i, step in enumerate(steps) if words in step)
        for words in ("committed", "published", "claimed", "draw", "sealed", "showed the ballot")
    ]
    assert told == sorted(told)
    assert len(page.all("#registrations tbody tr")) == 2
    assert "prevails by containment" in page.text("#disputes")
    assert "refused: replay" in page.js("document.getElementById('log').textContent")


def test_a_proof_is_checked_and_saved(page, village):
    button = page.driver.find_element("css selector", "#claims article .row button")
    page.js("(window.saved = null, URL.createObjectURL = (blob) => (window.saved = blob, '#'), 1)")
    button.click()
    page.until("document.querySelector('#claims article .row .good') !== null")
    assert "holds: entry" in page.text("#claims article .row .good")
    saved = page.driver.execute_async_script("window.saved.text().then(arguments[0])")
    proof = json.loads(saved)
    from earmark.ledger.checkpoint import SignedCheckpoint
    from earmark.ledger.merkle import leaf_hash, verify_inclusion
    from earmark.ledger.note import VerifierKey

    head = SignedCheckpoint.open(
        proof["checkpoint"], VerifierKey.parse(village.nodes[0].community.log)
    )
    hashes = [bytes.fromhex(item) for item in proof["proof"]]
    leaf = leaf_hash(proof["record"].encode())
    verify_inclusion(leaf, proof["index"], head.size, hashes, head.root)


def test_it_can_be_used_with_the_keyboard_alone(page, village):
    page.press("\ue004")  # Tab
    assert page.focused().text == "Skip to content"
    page.press("\ue004")
    assert page.focused().get_attribute("id") == "digest"
    page.press(village.nodes[0].community.digest(), "\ue007")  # Enter
    page.until("document.getElementById('pinned').classList.contains('good')")
    page.press("\ue004")
    assert page.focused().text == "Compare"
    outline = page.js("getComputedStyle(document.activeElement).outlineStyle")
    assert outline != "none", "where the focus is can be seen"
    opened = pressed = False
    for _ in range(20):
        page.press("\ue004")
        tag, kind = page.focused().tag_name, page.focused().get_attribute("class")
        if tag == "summary" and not opened:
            page.press("\ue007")
            opened = page.js("document.activeElement.parentElement.open")
        elif kind == "digest":
            page.press(" ")
            assert len(page.focused().text) == 64
        elif tag == "button" and "proof" in page.focused().text:
            page.press("\ue007")
            pressed = True
            break
    assert opened
    assert pressed
    page.until("document.querySelector('#claims .good') !== null")


def test_another_community_is_told(page):
    field = page.driver.find_element("id", "digest")
    field.send_keys("00" * 32, "\ue007")
    page.until("document.getElementById('pinned').classList.contains('bad')")
    assert "Another community" in page.text("#pinned")


def test_it_fits_a_phone(driver, village):
    page = Page(driver, village.url, 390, 844)
    assert page.js("document.documentElement.scrollWidth") <= 390
    for details in page.all("details"):
        page.js("(arguments[0].open = true, 1)", details)
    assert page.js("document.documentElement.scrollWidth") <= 390
    heights = page.js(
        "[...document.querySelectorAll('button:not(.digest)')].map(b => b.getBoundingClientRect().height)"
    )
    assert min(heights) >= 44
    assert page.js("parseFloat(getComputedStyle(document.body).fontSize)") >= 16


def test_names_contrast_and_origin(page):
    nameless = page.js(
        "[...document.querySelectorAll('button, a, input, summary')].filter(e =>"
        " !(e.getAttribute('aria-label') || e.textContent.trim() || e.labels?.length)).length"
    )
    assert nameless == 0
    assert page.js("document.querySelectorAll('h1').length") == 1
    assert page.js("document.documentElement.lang") == "en"
    origins = page.js(
        "[...new Set(performance.getEntriesByType('resource').map(e => new URL(e.name).origin))]"
    )
    assert origins == [page.js("location.origin")]
    for scheme in ("light", "dark"):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        paper, *inks = page.js(
            "['paper','ink','quiet','accent','bad'].map(n => "
            "getComputedStyle(document.documentElement).getPropertyValue('--' + n).trim())"
        )
        assert all(contrast(paper, ink) >= 4.5 for ink in inks), scheme
    page.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


# -- a node that lies ----------------------------------------------------------------------------


def forged(rows):
    """Another record than was logged, validly signed by somebody."""
    person = Person("forger", None)
    head = {"domain": "labs.example/models", "nonce": m.fresh_nonce(), "after": "0" * 64}
    record = m.Commit(**head, sender=person.public, commitment="ef" * 32, recovery=None)
    return [type(rows[0])(record.sign(person.key).encode().decode(), rows[0].checkpoint), *rows[1:]]


def unwitnessed(rows):
    def strip(note):
        head, _, tail = note.rpartition("\n\n")
        kept = [line for line in tail.split("\n") if "/witness" not in line]
        return head + "\n\n" + "\n".join(kept)

    return [type(row)(row.record, strip(row.checkpoint)) for row in rows]


def shortened(rows):
    return [*rows[:10], *rows[11:]]


@pytest.mark.parametrize(
    ("lie", "said"),
    [
        (forged, "the log signed another history up to entry 0"),
        (unwitnessed, "only 0 of 4 witnesses"),
        (shortened, "the log signed another history up to entry 10"),
    ],
)
def test_the_browser_finds_a_lying_node(driver, village, monkeypatch, lie, said):
    honest = village.nodes[0].page

    def lying(since):
        rows = honest(since)
        return lie(rows) if rows and since == 0 else rows

    monkeypatch.setattr(village.nodes[0], "page", lying)
    page = Page(driver, village.url)
    assert "Do not rely on this log" in page.text("#checked")
    assert said in page.text("#checked")
    assert page.all("#claims article") == [], "nothing is shown of a log that does not hold"


def test_the_browser_finds_a_wrong_proof(driver, village, monkeypatch):
    honest = village.nodes[0].prove
    monkeypatch.setattr(
        village.nodes[0], "prove", lambda index, size: ("00" * 32, *honest(index, size)[1:])
    )
    page = Page(driver, village.url)
    page.driver.find_element("css selector", "#claims article .row button").click()
    page.until("document.querySelector('#claims article .row .bad') !== null")
    assert "does not hold" in page.text("#claims article .row .bad")


def test_a_ballot_that_does_not_fit_its_seal_is_not_counted(page, village):
    """The page's own function, given another ballot than was sealed."""
    said = page.driver.execute_async_script(
        """
        const done = arguments[0];
        (async () => {
          const { checkLog, ballotOf } = await import('/check.js');
          const community = await (await fetch('/api/community')).json();
          const rows = (await (await fetch('/api/log')).json()).rows;
          const { entries } = await checkLog(rows, community);
          const { claims } = await (await fetch('/api/resolution')).json();
          const keys = new Set([community.rules.members[0].key]);
          const { claim, suspect } = claims[0];
          const { hits } = await ballotOf(entries, claim, suspect, keys);
          const reveal = entries.find((e) => e.kind === 'vote-reveal' && e.message.claim === claim
            && keys.has(e.message.sender));
          reveal.message.ballot.findings[0].hits = 200;
          done([hits, await ballotOf(entries, claim, suspect, keys) ?? null]);
        })();
        """
    )
    assert said == [131, None]
