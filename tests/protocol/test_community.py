"""Nodes as separate processes on loopback, some of them Byzantine; real models, real verification."""

from __future__ import annotations

import pytest
from stories import TOLERATED, TOO_MANY, Story, check, tell


def name(story):
    return story.name


def test_four_nodes_one_of_them_lying(tmp_path):
    story = Story(4, ("lying",), false=False)
    check(story, tell(story, tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(900)  # seven processes on two cores; those that say nothing cost whole periods
@pytest.mark.parametrize("story", TOLERATED, ids=name)
def test_seven_nodes_two_of_them_byzantine(tmp_path, story):
    check(story, tell(story, tmp_path))


@pytest.mark.slow
@pytest.mark.timeout(900)  # seven processes on two cores; those that say nothing cost whole periods
@pytest.mark.parametrize("story", TOO_MANY, ids=name)
def test_with_three_of_seven_there_is_no_verdict(tmp_path, story):
    check(story, tell(story, tmp_path))
