"""A claim's dossier: written from a community's log, checked from the files alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from village import Village, Wire

from earmark.cli.main import run
from earmark.errors import DossierError, IntegrityError, UsageError
from earmark.protocol.case import check_case, check_case_files, write_case
from earmark.protocol.party import Party
from earmark.records import Outcome
from earmark.report import archive
from earmark.report.dossier import Manifest


@pytest.fixture(scope="module")
def town(tmp_path_factory):
    made = Village(tmp_path_factory.mktemp("village"), 8710).story()
    yield made
    made.close()


@pytest.fixture(scope="module")
def party(town):
    made = Party(town.nodes[0].community)
    made.client = Wire(town.nodes[0])
    made.sync()
    return made


@pytest.fixture(scope="module")
def case(party, tmp_path_factory):
    folder = tmp_path_factory.mktemp("case") / "case"
    claim = party.resolution().claims[-1].claim
    write_case(party, claim, folder)
    return folder


def resealed(contents, **changes):
    """What a forger does: changes files, and writes a manifest that fits."""
    made = {**contents, **changes}
    made = {name: data for name, data in made.items() if name != archive.MANIFEST and data}
    return {**made, archive.MANIFEST: Manifest.of(made).canonical()}


def test_it_proves_the_verdict_from_files_alone(case, party):
    digest = party.community.digest()
    result, checks = check_case(case, digest)
    assert result.outcome is Outcome.SHOWN
    assert result == party.resolution().claims[-1]
    said = {item.name: item.status for item in checks}
    assert said == {
        "manifest": "verified",
        "community": "verified",
        "log": "verified",
        "verdict": "verified",
        "disclosure": "verified",
        "models": "note",
        "page": "verified",
    }
    _, unpinned = check_case(case)
    assert {item.name: item.status for item in unpinned}["community"] == "note"
    page = (case / "report.html").read_text()
    assert "Mark shown" in page
    assert "this claim prevails by containment" in page
    assert "<script" not in page


def test_it_packs_into_one_file(case, tmp_path):
    archive.pack(case, tmp_path / "case.zip")
    assert check_case(tmp_path / "case.zip")[0].outcome is Outcome.SHOWN


def test_it_can_be_written_as_one_file(party, tmp_path):
    claim = party.resolution().claims[0].claim
    write_case(party, claim, tmp_path / "case.zip")
    assert check_case(tmp_path / "case.zip")[0].outcome is Outcome.NOT_SHOWN
    with pytest.raises(UsageError):
        write_case(party, claim, tmp_path / "case.zip")


def test_the_court_side_alone_checks_it(case, party):
    """No NumPy, no torch, no web framework, and no network: sockets are taken away."""
    program = """
import socket, sys
for name in ("numpy", "torch", "scipy", "fastapi", "uvicorn", "safetensors", "psycopg", "web3"):
    sys.modules[name] = None
def refuse(*_): raise OSError("no network here")
socket.socket.connect = refuse
from earmark.cli.main import run
sys.exit(run(["claim", "check", sys.argv[1], "--digest", sys.argv[2]]))
"""
    command = [sys.executable, "-c", program, str(case), party.community.digest()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "verified" in done.stdout


def test_the_command_line_checks_it(case, party, capsys):
    assert run(["claim", "check", str(case), "--digest", party.community.digest(), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert body["result"]["outcome"] == "shown"
    assert run(["claim", "check", str(case), "--digest", "00" * 32]) == 4


def test_every_changed_byte_is_found(case):
    contents = archive.read(case)
    for name, data in contents.items():
        for place in {0, len(data) // 2, len(data) - 1}:
            bad = bytearray(data)
            bad[place] ^= 1
            with pytest.raises(IntegrityError):
                check_case_files({**contents, name: bytes(bad)})
        with pytest.raises(IntegrityError):
            check_case_files({key: value for key, value in contents.items() if key != name})


def changed(contents, name, old, new):
    assert old in contents[name]
    return {name: contents[name].replace(old, new, 1)}


def test_a_forger_who_writes_a_new_manifest_is_found(case, party):
    contents = archive.read(case)
    log = json.loads(contents["log/0000.json"])
    other = party.resolution().claims[0]
    forgeries = [
        changed(contents, "resolution.json", b'"shown"', b'"not shown"'),
        changed(contents, "report.html", b"Mark shown", b"Mark not shown"),
        {"claim.txt": b"00" * 32},
        {"log/0000.json": json.dumps(log[:-1], separators=(",", ":")).encode()},
        {"log/0000.json": json.dumps(log[1:], separators=(",", ":")).encode()},
        {"log/0001.json": b"[]", "log/0000.json": None},
        {name: b"{}" for name in contents if name.startswith("evidence/")},
        {name: None for name in contents if name.startswith("evidence/")},
        changed(contents, "community.json", b'"draw_seconds":60', b'"draw_seconds":61'),
        changed(contents, "community.json", b'"guard":2', b'"guard":0'),
        {"claim.txt": other.claim.encode() + b"\n"},  # another claim than the page is about
    ]
    for forgery in forgeries:
        with pytest.raises(IntegrityError):
            check_case_files(resealed(contents, **forgery), party.community.digest())


def test_files_that_nothing_looks_at_are_refused(case):
    contents = archive.read(case)
    for name in ("summary.html", "manifest.sig", "records/verdict.json"):
        with pytest.raises(DossierError, match=name):
            check_case_files(resealed(contents, **{name: b"<script>"}))
    _, checks = check_case_files(resealed(contents, **{"README.txt": b"Send money."}))
    assert "readme" in {item.name for item in checks}


def test_what_is_not_there_cannot_be_written(party, tmp_path):
    with pytest.raises(UsageError, match="No accepted claim"):
        write_case(party, "00" * 32, tmp_path / "x")
    with pytest.raises(DossierError):
        check_case_files({})
    assert not (tmp_path / "x").exists()
