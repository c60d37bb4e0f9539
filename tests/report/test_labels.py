from __future__ import annotations

from itertools import combinations

from hypothesis import given, settings
from hypothesis import strategies as st

from earmark.report.labels import Box, place, text_width

FRAME = Box(0, 0, 700, 400)
points = st.tuples(st.floats(8, 692), st.floats(8, 392))
clusters = st.tuples(st.floats(100, 600), st.floats(50, 350)).flatmap(
    lambda c: st.lists(
        st.tuples(st.floats(c[0] - 25, c[0] + 25), st.floats(c[1] - 25, c[1] + 25)),
        min_size=1,
        max_size=9,
    )
)


@settings(max_examples=40, deadline=None)
@given(st.one_of(clusters, st.lists(points, min_size=1, max_size=14)), st.randoms())
def test_labels_cover_nothing(where, random):
    widths = [random.uniform(10, 130) for _ in where]
    taken = [Box(560, 60, 700, 75), Box(560, 150, 700, 165)]
    thin = [Box(0, 199, 700, 201)]
    found = [
        item
        for item in place(where, widths, height=16, frame=FRAME, taken=taken, thin=thin)
        if item
    ]
    for one, other in combinations(found, 2):
        assert not one.box.overlaps(other.box)
    for item in found:
        assert item.box.within(FRAME)
        assert not any(item.box.overlaps(box) for box in (*taken, *thin))
        assert not any(item.box.overlaps(Box(x - 6, y - 6, x + 6, y + 6)) for x, y in where)


def test_a_crowd_finds_room_for_all():
    where = [(300 + 4 * i, 200 + 3 * (i % 3)) for i in range(10)]
    assert all(place(where, [90.0] * 10, height=16, frame=FRAME))


def test_there_may_be_no_room():
    assert place([(5, 5)], [50.0], height=16, frame=Box(0, 0, 20, 20)) == [None]


def test_a_line_through_a_box_is_seen():
    box = Box(10, 10, 20, 20)
    assert box.crossed((0, 15), (30, 15))
    assert box.crossed((15, 0), (15, 30))
    assert not box.crossed((0, 0), (30, 5))
    assert not box.crossed((0, 25), (9, 25))


def test_wide_letters_are_wider():
    assert text_width("漢字", 10) > text_width("ab", 10)
