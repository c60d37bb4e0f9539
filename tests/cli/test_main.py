"""The command line as a newcomer meets it: fast, lazy, forgiving, honest about bugs."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import metadata

import click
import pytest

from earmark import registry
from earmark.cli import main as module
from earmark.cli.main import COMMANDS, cli, run

HEAVY = ("torch", "numpy", "scipy", "sklearn", "safetensors")


def _python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "code",
    [
        "import earmark",
        "import earmark; earmark.Policy; earmark.judge; earmark.Key; earmark.Vault",
        "import earmark.records, earmark.stats, earmark.policy, earmark.registry, earmark.vault",
        "import earmark.keys.secret, earmark.keys.codes, earmark.ledger.log",
        "import earmark.report.page, earmark.report.dossier, earmark.report.checks",
        "from earmark.cli.main import run; run(['--help'])",
        "from earmark.cli.main import run; run(['verify', '--help'])",
        "from earmark.cli.main import run; run(['explain'])",
    ],
)
def test_the_court_side_loads_nothing_heavy(code) -> None:
    check = f"\nimport sys; print('HEAVY', [m for m in {HEAVY!r} if m in sys.modules])"
    done = _python(code + check)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith("HEAVY []"), done.stdout[-300:]


@pytest.mark.parametrize(
    "arguments",
    [
        ["protect", "task.py", "-o", "r.safetensors", "--owner", "A"],
        ["stamp", "m.safetensors", "-o", "out", "--owner", "A"],
        ["metrics", "task.py"],
        ["trace", "m.safetensors"],
        ["demo"],
    ],
)
def test_without_the_lab_side_a_command_names_the_extra(arguments, tmp_path) -> None:
    code = (
        f"import os, sys; os.chdir({str(tmp_path)!r})\n"
        "for name in ('torch', 'numpy', 'scipy', 'sklearn', 'safetensors'):\n"
        "    sys.modules[name] = None\n"
        f"from earmark.cli.main import run; sys.exit(run({arguments!r}))"
    )
    done = _python(code)
    assert done.returncode == 5, done.stderr
    assert done.stderr.startswith("E501")
    assert 'pip install "earmark[torch]"' in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_extras_that_are_named_exist() -> None:
    from earmark.registry import EXTRAS

    assert set(EXTRAS) <= set(metadata("earmark").get_all("Provides-Extra") or ())


def test_help_costs_less_than_half_a_second_of_cpu() -> None:
    code = (
        "import resource, subprocess, sys\n"
        "subprocess.run([sys.executable, '-m', 'earmark', '--help'], "
        "check=True, capture_output=True)\n"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN)\n"
        "print(used.ru_utime + used.ru_stime)"
    )
    best = min(float(_python(code).stdout) for _ in range(3))
    assert best < 0.5


def test_alone_it_prints_the_help(earmark) -> None:
    code, out, err = earmark()
    assert code == 0
    assert "Prove which neural network is yours." in out
    assert "earmark demo" in out
    assert not err


@pytest.mark.parametrize("name", list(COMMANDS))
def test_every_command_has_help_with_an_example(name, earmark) -> None:
    found = cli.get_command(click.Context(cli), name)
    if found is None:
        pytest.skip(f"{name} is not in this version")
    code, out, _ = earmark(name, "--help")
    assert code == 0
    assert "Example:" in out
    if isinstance(found, click.Group):
        for inner in found.commands:
            code, out, _ = earmark(name, inner, "--help")
            assert code == 0
            assert "Example:" in out


def test_unknown_words_suggest_the_nearest(earmark) -> None:
    code, _, err = earmark("verfy")
    assert code == 2
    assert "Did you mean 'verify'?" in err
    code, _, err = earmark("verify", "x", "--lvel", "claim")
    assert code == 2
    assert "--level" in err
    code, _, err = earmark("xyzzy")
    assert code == 2


def test_a_group_alone_prints_its_help(earmark) -> None:
    for group in ("license", "ledger", "claim", "node"):
        code, out, err = earmark(group)
        assert (code, err) == (0, ""), group
        assert out.startswith(f"Usage: earmark {group}")


@pytest.mark.parametrize("code", ["E070", "E100", "E130", "E302"])
def test_every_code_is_explained(code, earmark) -> None:
    assert earmark("explain", code)[0] == 0


def test_errors_are_one_json_document(earmark) -> None:
    for arguments in (["verify"], ["verfy"], ["verify", "x", "--vault", "/nowhere"]):
        code, out, err = earmark(*arguments, "--json")
        document = json.loads(out)
        assert document["exit"] == code != 0
        assert document["error"]["message"]
        assert document["error"]["code"] not in document["error"]["message"]
        assert not err


def test_a_bug_says_that_it_is_one(monkeypatch, capsys) -> None:
    def broken(*_args: object, **_kwargs: object) -> int:
        raise ZeroDivisionError("oops")

    monkeypatch.setattr(module.cli, "main", broken)
    assert run(["schemes"]) == 70
    assert "A bug in earmark: ZeroDivisionError: oops" in capsys.readouterr().err
    assert run(["schemes", "--debug"]) == 70
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code"), [(KeyboardInterrupt(), 130), (click.Abort(), 130), (BrokenPipeError(), 5)]
)
def test_interruptions(monkeypatch, error, code) -> None:
    def stop(*_args: object, **_kwargs: object) -> int:
        raise error

    monkeypatch.setattr(module.cli, "main", stop)
    assert run(["schemes"]) == code


def test_lists(earmark, earmark_json) -> None:
    for kind in ("schemes", "attacks"):
        code, document = earmark_json(kind)
        assert code == 0
        assert all(item["summary"] for item in document[kind]), document[kind]
        assert earmark(kind)[0] == 0


def test_forgeries_are_told_from_attacks(earmark_json) -> None:
    rows = earmark_json("attacks")[1]["attacks"]
    forgeries = {item["name"] for item in rows if item["about"] == "forgery"}
    assert forgeries == set(registry.names("forgery"))
    assert forgeries < {item["name"] for item in rows}


def test_explain(earmark) -> None:
    code, out, _ = earmark("explain", "e302")
    assert code == 0
    assert "ledger" in out
    assert earmark("explain", "E999")[0] == 2
    assert len(earmark("explain")[1].splitlines()) > 15


def test_doctor_fails_when_a_vector_is_wrong(earmark, monkeypatch) -> None:
    assert earmark("doctor")[0] == 0
    from earmark.cli import doctor

    monkeypatch.setattr(doctor, "VECTOR", "00")
    code, _, err = earmark("doctor")
    assert code == 5
    assert "self-test failed" in err


def test_doctor_names_extras_and_devices(earmark, earmark_json, monkeypatch) -> None:
    from importlib import metadata as installed

    real = installed.version

    def version(name: str) -> str:
        if name == "scikit-learn":
            raise installed.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(installed, "version", version)
    code, out, _ = earmark("doctor")
    assert code == 0
    assert 'lacks scikit-learn   pip install "earmark[torch]"' in out
    found = earmark_json("doctor")[1]
    assert found["extras"]["torch"] is False
    assert {"data", "service", "weights"} <= set(found["extras"])
    assert found["devices"][0] == "cpu"
    monkeypatch.setitem(sys.modules, "torch", None)
    assert earmark_json("doctor")[1]["devices"] == []


def test_what_others_say_cannot_write_to_the_terminal(monkeypatch, earmark) -> None:
    from earmark.cli import main
    from earmark.errors import NetworkError

    def refuse(*_: object, **__: object) -> None:
        raise NetworkError("It answered 500: \x1b[2J\x1b[1;32mMARK SHOWN\r\nall good")

    monkeypatch.setattr(main.cli, "main", refuse)
    code, _, err = earmark("doctor")
    assert code == 5
    assert "\x1b" not in err
    assert "\r" not in err
    assert "\\x1b[2J" in err
