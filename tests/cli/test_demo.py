"""The demo, whole, on the small digits: its outcomes, its files, and what Ctrl-C leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from earmark.cli.main import run
from earmark.demo.journey import ATTACKS, INNOCENTS
from earmark.errors import FileError

COMMAND = [sys.executable, "-m", "earmark", "demo", "--data", "digits", "--out"]
SHORT = [sys.executable, str(Path(__file__).parents[1] / "toy" / "short_demo.py")]


@pytest.fixture(scope="module")
def shown(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("demo") / "demo"
    done = subprocess.run([*COMMAND, str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_the_whole_journey(shown) -> None:
    folder, out = shown
    lines = {line.split("  ")[0]: line for line in out.splitlines() if line.strip()}
    for name, *_ in (("release",), *ATTACKS):
        assert lines[name].endswith("  shown"), out
    for name in INNOCENTS:
        assert lines[name].endswith("  not shown"), out
    assert "small CNN on digits" in out
    assert "earmark protect task.py" in out
    for name in ("release", *INNOCENTS, *(item[0] for item in ATTACKS)):
        assert (folder / "models" / f"{name}.safetensors").is_file()
    assert "svg" in (folder / "report.html").read_text()


def test_the_command_that_it_ends_with_works(shown, earmark_json) -> None:
    folder, out = shown
    line = next(line for line in out.splitlines() if line.startswith("Try it on the demo:"))
    code, document = earmark_json(*line.split("earmark ", 1)[1].split())
    assert (code, document["outcome"]) == (0, "shown")
    assert run(["report", str(folder / "dossier")]) == 0


def test_a_second_demo_replaces_only_a_demo(shown, tmp_path, earmark) -> None:
    folder, _ = shown
    code, _, err = earmark("demo", "--data", "digits", "--out", folder)
    assert code == 2
    assert "--force" in err
    own = tmp_path / "own"
    own.mkdir()
    (own / "thesis.txt").write_text("years")
    assert earmark("demo", "--data", "digits", "--out", own, "--force")[0] == 2
    assert (own / "thesis.txt").read_text() == "years"


def test_the_digits_stand_in_and_say_so(monkeypatch) -> None:
    from earmark.demo import journey

    def missing(name: str) -> object:
        if name != "digits":
            raise FileError(f"Data set '{name}' is not on this machine.")
        return None

    class Listener:
        heard = ""

        def note(self, text: str) -> None:
            self.heard += text

    listener = Listener()
    monkeypatch.setattr(journey, "load", missing)
    assert journey._data(None, listener) == "digits"
    assert "digits of scikit-learn stand in" in listener.heard
    with pytest.raises(FileError):
        journey._data("fashion-mnist", listener)


def _family(root: int) -> set[int]:
    """Return the processes of a session."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(fields[3]) == root and fields[0] != "Z":
            found.add(int(stat.parent.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.parametrize("until", ["#0", "#1"])
def test_an_interrupt_ends_it_at_once_and_keeps_what_is_finished(tmp_path, until) -> None:
    folder = tmp_path / "demo"
    command = COMMAND if until == "#0" else [*SHORT, str(tmp_path)]
    process = subprocess.Popen(
        [*command, str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if until in line:
            break
    time.sleep(1.0 if until == "#0" else 0.0)
    os.killpg(process.pid, signal.SIGINT)
    out, err = process.communicate(timeout=60)
    # CPython ends by the signal itself where it came inside exec(); a shell says 130 for both
    assert process.returncode in {130, -signal.SIGINT}, err
    assert not out
    assert err.rstrip().endswith("Interrupted. What was written before is whole and stays.")
    assert "Traceback" not in err
    for _ in range(100):  # the standard library's resource tracker leaves a moment later
        if not _family(process.pid):
            break
        time.sleep(0.1)
    assert not _family(process.pid)
    models = folder / "models"
    assert (models / "release.safetensors").exists() == (until == "#1")
    assert not list(models.glob(".*"))
    assert not (folder / "report.html").exists()
    check = ["ledger", "check", "--vault", str(folder / "vault"), "--json"]
    assert run(check) == 0
    shutil.rmtree(folder)


def test_json_is_one_document(shown, earmark_json) -> None:
    code, document = earmark_json("demo", "--data", "digits", "--out", shown[0])
    assert code == document["exit"] == 2
    assert json.dumps(document)
