"""The tutorial's commands, run as they stand in the page."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest
from town import ports

PAGE = Path(__file__).parents[2] / "docs" / "tutorials" / "three-organizations.md"


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.slow
def test_the_tutorial_runs_as_it_is_written(tmp_path):
    free = iter(ports(3))
    moved = {str(8711 + i): str(next(free)) for i in range(3)}
    (task,) = blocks("python")
    (tmp_path / "task.py").write_text(task)
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    servers = []
    said = ""
    try:
        script = "\n".join(blocks("bash")).replace("\\\n", " ")
        for old, new in moved.items():
            script = script.replace(old, new)
        for text in script.split("\n"):
            if text.startswith("export "):
                name, _, value = text.removeprefix("export ").partition("=")
                value = value.strip("'\"")
                env[name] = claim_of(said)[: len(value)] if name == "CLAIM" else value
            elif text.startswith("earmark "):
                words = shlex.split(text.split("  #")[0].replace("$CLAIM", env.get("CLAIM", "")))
                command = [sys.executable, "-m", "earmark", *words[1:]]
                if words[-1] == "&":
                    servers.append(
                        subprocess.Popen(
                            command[:-1], cwd=tmp_path, env=env, stderr=subprocess.DEVNULL
                        )
                    )
                    time.sleep(6)
                    continue
                said += run(command, tmp_path, env)
            else:
                assert not text or text.startswith("#"), text
    finally:
        for server in servers:
            server.kill()
            server.wait()
    assert re.search(r"^outcome +shown \(quorum\)", said, re.MULTILINE)
    assert re.search(r"^outcome +not shown \(quorum\)", said, re.MULTILINE)
    assert re.search(r"^verified +verdict +not shown \(quorum\)", said, re.MULTILINE)


def claim_of(said):
    """Return what a reader copies: the name that the newest `claim open` printed."""
    return re.findall(r"^claim +([0-9a-f]{64})$", said, re.MULTILINE)[-1]


def run(command, folder, env):
    """Run one command; a claim's status is asked for until it is final."""
    for _ in range(60):
        done = subprocess.run(
            command, cwd=folder, env=env, capture_output=True, text=True, timeout=280, check=False
        )
        if "status" not in command or "voting goes on" not in done.stdout:
            break
        time.sleep(2)
    assert done.returncode in (0, 1), (command, done.stdout, done.stderr)
    return done.stdout
