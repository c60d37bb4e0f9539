"""Executors: the same results inline and on processes, through crashes and interrupts."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from earmark.bench import rows
from earmark.bench.executor import Inline, Lost, Processes
from earmark.bench.plan import Plan
from earmark.bench.run import run_cells
from earmark.errors import UsageError

TOY = Path(__file__).parents[1] / "toy"


def values(results):
    return {index: r if isinstance(r, Lost) else r[0] for index, r in results}


def test_inline_and_processes_agree_and_failures_stop_nobody():
    from light_jobs import double

    jobs = [1, 2, -1, 4, 5]
    inline = values(Inline().run(double, jobs))
    found = list(Processes(2).run(double, jobs))
    assert values(found) == inline
    assert inline[2] == Lost("ValueError: negative")
    pids = {result[1] for _, result in found if not isinstance(result, Lost)}
    assert os.getpid() not in pids
    assert not multiprocessing.active_children()


def test_a_job_whose_worker_is_killed_is_tried_again(tmp_path):
    from light_jobs import die_once

    jobs = [(str(tmp_path), value) for value in range(4)]
    assert sorted(Processes(2).run(die_once, jobs)) == [(i, i) for i in range(4)]
    assert (tmp_path / "died").exists()


def test_a_job_that_kills_every_worker_is_given_up():
    from light_jobs import die

    found = dict(Processes(1, attempts=2).run(die, [0, 1, 2]))
    assert found[0] == 0
    assert found[2] == 2
    assert found[1] == Lost("The worker died 2 times, last with code 7.")


def test_leaving_early_leaves_no_process():
    from light_jobs import double

    results = Processes(2).run(double, list(range(50)))
    next(results)
    results.close()
    assert not multiprocessing.active_children()


def test_refuses_no_workers():
    with pytest.raises(UsageError):
        Processes(0)
    assert list(Processes(2).run(len, [])) == []


@pytest.fixture(scope="module")
def inline(tmp_path_factory):
    """The plan's rows, one after another in this process; and where they lie."""
    from toy_jobs import PLAN

    folder = tmp_path_factory.mktemp("inline")
    return folder, run_cells(Plan.of(PLAN).cells(folder / "a"), folder / "a.jsonl")


def kept(folder, new):
    """Put the plan's trained model into a new folder, so that nobody has to train it again."""
    for path in (folder / "a").iterdir():
        shutil.copy(path, new)


def comparable(found):
    from dataclasses import replace

    return [replace(row.trial, seconds=0.0, cost=None) for row in found]


def test_a_plan_gives_the_same_rows_inline_and_on_processes_and_runs_no_cell_twice(
    tmp_path, monkeypatch, inline
):
    from toy_jobs import PLAN

    import earmark.bench.run as running

    plan = Plan.of(PLAN)
    folder, alone = inline
    spread = run_cells(plan.cells(tmp_path / "b"), tmp_path / "b.jsonl", executor=Processes(2))
    assert comparable(alone) == comparable(spread)
    assert [row.trial.error for row in alone] == [None] * 6
    monkeypatch.setattr(running, "measure", None)
    again = run_cells(plan.cells(folder / "a"), folder / "a.jsonl")
    assert again == alone


@pytest.mark.slow  # the executor's own test above has a killed worker, too
def test_a_worker_killed_in_a_cell_costs_no_row(tmp_path, monkeypatch, inline):
    from toy_jobs import PLAN, killed_once

    import earmark.bench.run as running

    folder, alone = inline
    kept(folder, tmp_path)
    monkeypatch.setattr(running, "run_pair", killed_once)
    cells = Plan.of(PLAN).cells(tmp_path)
    found = run_cells(cells, tmp_path / "b.jsonl", executor=Processes(2))
    assert (tmp_path / "killed").exists()
    assert comparable(found) == comparable(alone)


def test_an_interrupt_keeps_finished_rows_and_the_next_run_does_the_others(
    tmp_path, monkeypatch, inline
):
    from toy_jobs import PLAN, slow_pair

    import earmark.bench.run as running

    kept(inline[0], tmp_path)
    command = [sys.executable, str(TOY / "toy_jobs.py"), str(tmp_path)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE)
    path = tmp_path / "rows.jsonl"
    deadline = time.monotonic() + 120
    while len(rows.read(path)) < 2 and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode in {130, -signal.SIGINT}  # the same to a shell
    done = rows.read(path)
    assert 2 <= len(done) < 6
    ran = (tmp_path / "ran").read_text().split()
    monkeypatch.setattr(running, "run_pair", slow_pair)
    run_cells(Plan.of(PLAN).cells(tmp_path), path)
    assert len(rows.read(path)) == 6
    later = (tmp_path / "ran").read_text().split()[len(ran) :]
    assert len(later) == 6 - len(done)
    assert not set(later) & set(done)


def test_a_subject_that_cannot_be_made_gives_rows_with_the_reason(tmp_path):
    from toy_jobs import GREEDY, PLAN

    plan = Plan.of(PLAN | {"schemes": [GREEDY], "attacks": ["none", "permute"]})
    found = run_cells(plan.cells(tmp_path), tmp_path / "rows.jsonl")
    assert all("could not be made" in str(row.trial.error) for row in found)
    assert [row.trial.attack for row in found] == ["none", "permute"]
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_plan_with_the_same_cell_twice_is_refused(tmp_path):
    from toy_jobs import PLAN

    pairs = Plan.of(PLAN).cells(tmp_path)
    with pytest.raises(UsageError, match="same cell twice"):
        run_cells(pairs + pairs[:1], tmp_path / "rows.jsonl")
