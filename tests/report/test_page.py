from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from html.parser import HTMLParser

import pytest

from earmark.errors import UsageError
from earmark.policy import Policy, judge
from earmark.report import Event, Subject, render, render_battery, write_page
from earmark.report.timeline import moments
from earmark.stats import one_in

VOID = {"meta", "br"}
ALLOWED = frozenset(
    [
        "html",
        "head",
        "meta",
        "title",
        "style",
        "body",
        "main",
        "header",
        "section",
        "p",
        "b",
        "bdi",
        "h1",
        "h2",
        "div",
        "span",
        "ul",
        "li",
        "dl",
        "dt",
        "dd",
        "code",
        "small",
        "figure",
        "figcaption",
        "table",
        "thead",
        "tbody",
        "tr",
        "th",
        "td",
        "svg",
        "desc",
        "text",
        "line",
        "rect",
        "circle",
        "path",
        "polygon",
    ]
)
EVIL = (
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style><script>alert(1)</script>",
    "]]><svg/onload=alert(1)>",
    "javascript:alert(1)\u202egnp.exe\x00",
    "&lt;script&gt;",
)


class Reader(HTMLParser):
    """Collects elements, attributes and visible text, and refuses what is not balanced."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.words: list[str] = []
        self.headings: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, key, value or "") for key, value in attrs]
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if "style" in self._open:
            return
        self.words.append(data)
        if self._open and self._open[-1] in {"h1", "h2"}:
            self.headings.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def read(html: str) -> Reader:
    found = Reader(html)
    assert set(found.tags) <= ALLOWED
    for element, key, value in found.attributes:
        assert not key.startswith("on"), (element, key)
        assert key not in {"href", "src", "srcset", "action", "xlink:href", "style", "formaction"}
        assert "http" not in value or element == "meta"
    assert "@import" not in html
    assert "url(" not in html
    assert "http:" not in html
    assert "https:" not in html
    assert not re.search(r"\b100(\.0)?\s*%", found.text)
    assert "nan" not in html
    return found


def test_the_order_of_the_page(case):
    found = read(render(case.report()))
    assert [item for item in found.headings if item in ORDER] == list(ORDER)
    text = found.text
    places = [
        text.index("The mark of Acme Research is shown in leak.safetensors"),
        text.index(one_in(-case.verdict.bits, plain=False).split("·")[0]),
        text.index("log₁₀ p ="),
        text.index("142 days before the suspect was first seen"),
    ]
    assert places == sorted(places)
    assert "Sample. Every name and number here is invented." in text


ORDER = (
    "The one number",
    "What was compared",
    "How chance is known",
    "Claim and suspect in time",
    "Utility against evidence",
    "Every model under test",
    "Robustness known beforehand",
    "What this does not say",
    "Digests",
)


def test_the_same_content_gives_the_same_bytes(case):
    assert render(case.report()) == render(
        type(case.report()).from_bytes(case.report().canonical())
    )


def test_every_subject_has_a_row_with_count_interval_bits_and_verdict(case):
    text = read(render(case.report())).text
    for subject in case.subjects:
        assert subject.name in text
        assert f"{subject.evidence.hits:,} / {subject.evidence.trials:,}" in text
    assert text.count("○ not shown") == 3
    assert "≥ 99.6" in text


@pytest.mark.parametrize(
    ("hits", "trials", "sentence"),
    [
        (1000, 1024, "is shown in"),
        (512, 1024, "is not shown in"),
        (9, 9, "This test cannot tell whether"),
        (0, 0, "This test cannot tell whether"),
    ],
)
def test_each_outcome_has_its_sentence(case, samples, hits, trials, sentence):
    subject = samples.subject("m", hits, trials, kind="suspect", utility=None)
    found = read(render(replace(case.report(), subjects=(subject,), robustness=())))
    assert sentence in found.text
    assert "Nothing was measured beforehand" in found.text


def test_a_page_without_ledger_or_records(samples, case):
    bare = case.report(commitment=None, release=None, claim=None, proof=None, first_seen=None)
    found = read(render(bare))
    assert "Claim and suspect in time" not in found.headings
    assert "QR code" not in render(bare)
    unlogged = read(render(case.report(proof=None)))
    assert "no ledger was given" in unlogged.text


def test_a_head_with_many_witnesses_still_has_a_code(case, samples):
    from earmark.ledger.checkpoint import SignedCheckpoint, cosign
    from earmark.ledger.note import COSIGNATURE, SignerKey

    head = SignedCheckpoint.parse(case.proof.checkpoint)
    for i in range(20):
        witness = SignerKey.generate(f"witness.example/{i}", kind=COSIGNATURE)
        head = cosign(head, witness, timestamp=1_800_000_000)
    html = render(case.report(proof=replace(case.proof, checkpoint=str(head)), robustness=()))
    read(html)
    assert "QR code" in html
    unreadable = replace(case.proof, checkpoint="x")
    assert "cannot be read" in read(render(case.report(proof=unreadable, robustness=()))).text


def test_a_soft_reading_is_explained(case, samples):
    subject = samples.subject(
        "m",
        600,
        kind="suspect",
        utility=90.0,
        weights=(1,) * 100,
        score=90,
        notes=("Read <twice>.",),
    )
    found = read(render(replace(case.report(), subjects=(subject,))))
    assert "weighted reading" in found.text
    assert "asked for:" not in found.text
    assert "Read <twice>." in found.text


def test_the_signs_behind_few_answers_are_counted_in_words(case, samples):
    few = samples.subject(
        "few", 28, 28, kind="suspect", utility=None, weights=(1,) * 900, score=800
    )
    found = read(render(replace(case.report(), subjects=(few,)))).text
    assert "The 900 keyed signs behind these answers were weighed by their sizes" in found
    assert "the answers give 28.0 bits" in found
    assert "weighted reading of 900 keyed signs" in found
    assert "by the count of its answers alone" in found
    assert "too small" not in found
    small = samples.subject("small", 2, 2, kind="suspect", utility=None)
    found = read(render(replace(case.report(), subjects=(small,)))).text
    assert "The mark is too small" in found
    assert "2.0 bits by count, of 64 asked for." in found


def test_other_chances_and_policies(case, samples):
    policy = Policy(bits=33.0, power_rate=Fraction(1))
    evidence = samples.evidence(31, 64, chance=Fraction(1, 10), queries=64)
    subject = Subject("m", evidence, judge(evidence, policy), utility=1e6, tested=None)
    found = read(render(replace(case.report(), policy=policy, subjects=(subject,))))
    assert "probability 1/10" in found.text
    assert "64 inputs sent" in found.text


@pytest.mark.parametrize("count", [1, 17, 120])
def test_many_subjects_are_drawn_with_numbers(case, count):
    many = tuple(replace(case.subjects[i % 10], name=f"copy {i}") for i in range(count))
    html = render(case.report(subjects=many, robustness=()))
    read(html)
    assert ("numbers are those of the table" in html) == (count > 16)


def test_nothing_untrusted_gets_in_as_markup(case, samples):
    clean = read(render(case.report(robustness=samples.trials())))
    for evil in (EVIL[0] + EVIL[1] + EVIL[2], EVIL[3] + EVIL[4], EVIL[5] + EVIL[6]):
        plain = evil.replace("\x00", "") if "\x00" in evil else evil
        subject = replace(case.subjects[1], name=evil, done=evil)
        evidence = replace(case.evidence, scheme=evil, notes=(evil,))
        main = Subject(evil, evidence, judge(evidence, samples.POLICY), utility=90.0, done=evil)
        trial = samples.trials()[0]
        failed = replace(
            trial, evidence=None, bits=None, utility=None, error=evil, attack=evil, host=evil,
            versions={plain: evil}, machine=evil, scheme=evil, data=evil,
        )  # fmt: skip
        trials = (replace(trial, attack=evil), failed)
        release = replace(case.release, files={evil: "ab" * 32})
        content = case.report(
            subjects=(main, subject), model=evil, owner=evil, notes=(evil,), utility_name=evil,
            events=(Event(samples.SEEN, evil),), robustness=trials, release=release, version=evil,
        )  # fmt: skip
        battery = samples.battery(
            model=evil, trials=trials, notes=(evil,), utility_name=evil, version=evil
        )
        for html in (render(content), render_battery(battery)):
            found = read(html)
            assert set(found.tags) <= set(clean.tags) | {"small"}
            assert "\x00" not in html
            assert "\u202e" not in html
        assert "script" not in found.tags


def test_the_timeline_is_in_order_and_tells_statements_from_entries(case, samples):
    found = moments(case.report(events=(Event("2027-03-01T00:00:00Z", "battery run"),)))
    assert [item.what for item in found] == [
        "key committed",
        "model released",
        "battery run",
        "suspect first seen",
        "claim made",
    ]
    assert [item.index for item in found] == [1, 2, None, None, 3]


@pytest.mark.parametrize("gap", ["00:00:00", "00:00:01", "23:59:59"])
def test_events_at_the_same_time_can_be_drawn(case, gap):
    events = tuple(Event(f"2027-02-11T{gap}Z", f"event {i}") for i in range(6))
    read(render(case.report(events=events)))


def test_content_that_makes_no_sense_is_refused(case, samples):
    subject = case.subjects[0]
    with pytest.raises(UsageError, match="subjects"):
        case.report(subjects=())
    with pytest.raises(UsageError, match="another policy"):
        case.report(policy=Policy(bits=20.0))
    with pytest.raises(UsageError, match="other evidence"):
        replace(subject, evidence=samples.evidence(1))
    with pytest.raises(UsageError, match="kind"):
        replace(subject, kind="friend")
    with pytest.raises(UsageError, match="samples"):
        replace(subject, tested=0)
    with pytest.raises(UsageError, match="utility"):
        replace(subject, utility=1e300)
    with pytest.raises(UsageError, match="no time"):
        Event("yesterday", "x")
    with pytest.raises(UsageError, match="no time"):
        case.report(first_seen="2027-13-01T00:00:00Z")
    with pytest.raises(UsageError, match="trials"):
        samples.battery(trials=())


def test_a_page_is_written_whole_and_not_over_another(tmp_path, case):
    target = tmp_path / "report.html"
    write_page(target, "<p>ü</p>")
    assert target.read_text(encoding="utf-8") == "<p>ü</p>"
    with pytest.raises(UsageError):
        write_page(target, "x")
    write_page(target, "x", overwrite=True)
    assert list(tmp_path.iterdir()) == [target]


def test_the_report_loads_neither_torch_nor_numpy():
    code = (
        "import sys, earmark.report as r; r.render; "
        "sys.exit(bool({'torch', 'numpy', 'scipy', 'segno'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
