"""Every snippet of the documentation runs, in order, and the generated pages are not stale."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import pytest

from earmark.cli.main import run

ROOT = Path(__file__).parents[2]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PAGES = [
    "README.md",
    "docs/tutorial.md",
    "docs/tutorials/deepsigns.md",
    "docs/tutorials/licenses.md",
]


def _labels(lines: list[str]) -> list[str]:
    return [line.partition("  ")[0] for line in lines]


def _require_printed(shown: list[str], printed: str) -> None:
    """Compare the labels of what a page shows; a line of three dots stands for any lines."""
    wanted = "\n".join(".*" if line == "..." else re.escape(line) for line in _labels(shown))
    found = "\n".join(_labels(printed.splitlines()))
    assert not shown or re.fullmatch(wanted, found, re.DOTALL), f"shown:\n{shown}\nnow:\n{found}"


class Commands:
    """The command line; a model that one page protected is not trained again for the next one.

    Only the very same command in a folder of the very same files is taken from an earlier page.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.done: dict[tuple[object, ...], tuple[int, str, str]] = {}

    def run(self, words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
        """Return exit code, stdout and stderr."""
        files = {str(path): path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        about = (*words, os.environ["EARMARK_PASSPHRASE"], *sorted(files.items()))
        if about not in self.done or words[0] != "protect":
            capsys.readouterr()
            code = run(words)
            self.done[about] = (code, *capsys.readouterr())
            if words[0] == "protect":
                shutil.copytree(".", self._kept(about))
        else:
            shutil.copytree(self._kept(about), ".", dirs_exist_ok=True)
        return self.done[about]

    def _kept(self, about: tuple[object, ...]) -> Path:
        return self.folder / str(list(self.done).index(about))


@pytest.fixture(scope="module")
def commands(tmp_path_factory) -> Commands:
    return Commands(tmp_path_factory.mktemp("protected"))


def _console(text: str, commands: Commands, capsys: pytest.CaptureFixture[str]) -> None:
    last = 0
    lines = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    for place, line in enumerate(lines):
        if not line.startswith("$ "):
            continue
        said = list(takewhile(lambda later: not later.startswith("$ "), lines[place + 1 :]))
        words = [os.path.expandvars(word) for word in shlex.split(line[2:], comments=True)]
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            os.environ[name] = value
        elif words[:2] == ["echo", "$?"]:
            assert [str(last)] == said, f"exit code after: {text}"
        elif words[0] == "earmark" and words[1:2] != ["demo"]:
            cut = words.index(">") if ">" in words else len(words)
            last, printed, complained = commands.run(words[1:cut], capsys)
            if cut < len(words):
                Path(words[cut + 1]).write_text(printed)
            told = last in (0, 1, 3) or lines[place + 1 : place + 2] == ["$ echo $?"]
            assert told, f"{line}: exit {last}\n{complained}"
            _require_printed(said, printed)


@pytest.mark.parametrize("page", PAGES)
def test_every_snippet_runs(page, tmp_path, monkeypatch, capsys, commands) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EARMARK_PASSPHRASE", "docs")
    scope: dict[str, object] = {"__name__": "docs"}
    tutorial = (ROOT / "docs" / "tutorial.md").read_text()
    Path("task.py").write_text(
        next(c for _, about, c in FENCE.findall(tutorial) if "title=" in about)
    )
    for language, about, code in FENCE.findall((ROOT / page).read_text()):
        if "title=" in about:
            Path(about.split("title=")[1].strip()).write_text(code)
        elif language == "python":
            exec(compile(code, f"{page}:python", "exec"), scope)
        elif language == "console":
            _console(code, commands, capsys)


def test_generated_pages_are_fresh() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "docs"), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr + "run scripts/docs"


def test_every_command_and_error_code_is_documented() -> None:
    from earmark.cli.explain import catalogue

    errors = (ROOT / "docs" / "reference" / "errors.md").read_text()
    assert all(code in errors for code in catalogue())


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / target).exists(), f"{page}: {target}"
