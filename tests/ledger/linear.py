"""Is a history of appends and reads of one log linearizable? For a log there is a direct test."""

from __future__ import annotations

import itertools


def check(appends, reads):
    """Assert that some order of all operations, each within its own interval, explains what they saw.

    An append is the only operation that takes a place, and a read of the head sees a size. So the
    order is the order of places, and it is possible exactly if

    * places are unique and without gaps,
    * no append ended before another one with a smaller place began,
    * a read sees all that was acknowledged before it began, and nothing that began after it ended,
    * a read that began after another one ended sees no less.

    Args:
        appends: (place, begun, ended) of every acknowledged append.
        reads: (size, begun, ended) of every read.
    """
    appends = sorted(appends)
    assert [place for place, _, _ in appends] == list(range(len(appends)))
    soonest = float("inf")  # the earliest end of all later places
    for _, begun, ended in reversed(appends):
        assert begun < soonest, "a later place was acknowledged before this one was asked for"
        soonest = min(soonest, ended)
    for size, begun, ended in reads:
        assert size >= sum(done < begun for _, _, done in appends), "an acknowledged entry is seen"
        assert size <= sum(asked < ended for _, asked, _ in appends), "nothing is seen too early"
    for (size, _, ended), (other, begun, _) in itertools.permutations(reads, 2):
        if ended < begun:
            assert other >= size, "what was seen once stays"
