"""A protected model on the smallest real data, made once for all command-line tests."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest

from earmark.cli.main import run

TASK = """
from earmark.bench import zoo
from earmark.bench.data import load

data = load("digits")
work = zoo.image_task("small-cnn", data)
recipe = {"epochs": 20, "lr": 0.05}
model, loss, evaluate = work.model, work.loss, work.evaluate


def batches(split, seed=0):
    return data.batches(split, size=64, seed=seed)
"""

WORD = "correct horse battery staple"


@dataclass
class Desk:
    """A folder with a task, a vault and a release."""

    folder: Path

    @property
    def task(self) -> str:
        return str(self.folder / "task.py")

    @property
    def release(self) -> str:
        return str(self.folder / "release.safetensors")

    @property
    def vault(self) -> str:
        return str(self.folder / "vault")


@pytest.fixture(autouse=True)
def _passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EARMARK_PASSPHRASE", WORD)


@pytest.fixture
def earmark(capsys: pytest.CaptureFixture[str]):
    """Run the command line as `main` does; give exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = run([str(item) for item in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture
def earmark_json(earmark):
    """Run with --json: exit code and the one document."""

    def call(*arguments: str) -> tuple[int, dict]:
        code, out, _ = earmark(*arguments, "--json")
        document = json.loads(out)
        assert document["exit"] == code
        assert {"schema", "command", "outcome", "error"} <= set(document)
        return code, document

    return call


@pytest.fixture(scope="session")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Desk:
    """Protect the task once a session."""
    import os

    made = Desk(tmp_path_factory.mktemp("desk"))
    Path(made.task).write_text(TASK)
    old = os.environ.get("EARMARK_PASSPHRASE")
    os.environ["EARMARK_PASSPHRASE"] = WORD
    try:
        code = run(
            [
                "protect",
                made.task,
                "-o",
                made.release,
                "--vault",
                made.vault,
                "--seed",
                "1",
                "--set",
                "triggers=512",
                "--set",
                "share=0.25",
                "--set",
                "weight=0.5",
                "--set",
                "settle=0",
                "--owner",
                "Test",
                "--quiet",
            ]
        )
    finally:
        if old is None:
            del os.environ["EARMARK_PASSPHRASE"]
        else:
            os.environ["EARMARK_PASSPHRASE"] = old
    assert code == 0
    return made
