"""Put labels beside the points of a picture so that none covers another, or a point, or a line."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_NARROW = frozenset("iljtfrI.,:;'|!()[] ")
_WIDE = frozenset("mwMW%@—")
_GAP = 5.0
_ANGLES = 24
_MOST_TRIES = 8000
_MOST_POINTS = 20
_NEAT, _OVER_MARKERS, _OVER_LEADERS = range(3)


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle, in the picture's units, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Tell whether the two share some area."""
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )

    def within(self, other: Box) -> bool:
        """Tell whether this lies inside the other."""
        return (
            self.left >= other.left
            and self.right <= other.right
            and self.top >= other.top
            and self.bottom <= other.bottom
        )

    def crossed(self, start: tuple[float, float], end: tuple[float, float]) -> bool:
        """Tell whether a straight line passes through."""
        low, high = 0.0, 1.0
        for here, there, least, most in (
            (start[0], end[0], self.left, self.right),
            (start[1], end[1], self.top, self.bottom),
        ):
            step = there - here
            if step == 0:
                if not least <= here <= most:
                    return False
                continue
            first, last = sorted(((least - here) / step, (most - here) / step))
            low, high = max(low, first), min(high, last)
        return low <= high


@dataclass(frozen=True, slots=True)
class Placed:
    """Where a label goes, and where its leader line ends, if it needs one."""

    box: Box
    leader: tuple[float, float] | None


def text_width(text: str, size: float) -> float:
    """Estimate a text's width in a sans-serif font, rather too wide than too narrow.

    Args:
        text: One line.
        size: Font size in the picture's units.

    Example:
        >>> text_width("ill", 10.0) < text_width("mmm", 10.0)
        True
    """
    return size * sum(_char_width(char) for char in text)


def _char_width(char: str) -> float:
    if unicodedata.east_asian_width(char) in {"W", "F"}:
        return 1.05
    if char in _NARROW:
        return 0.4
    if char in _WIDE:
        return 1.0
    return 0.72 if char.isupper() else 0.63


def place(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    *,
    height: float,
    frame: Box,
    taken: Sequence[Box] = (),
    thin: Sequence[Box] = (),
    radius: float = 6.0,
) -> list[Placed | None]:
    """Find a place for the label of every point.

    Greedy: the most crowded point first; for each the nearest free place, right of the point if
    possible, farther away with a leader line if not.

    Args:
        points: Centres of the markers.
        widths: Widths of the labels.
        height: Height of a line.
        frame: Labels stay inside it.
        taken: What neither labels nor leader lines may cover.
        thin: What labels may not cover but leader lines may cross.
        radius: Half the size of a marker.

    Returns:
        A place for each point, or null where there is none.
    """
    best: list[Placed | None] = []
    for away in (0, 3, 6, 10) if len(points) <= _MOST_POINTS else (0,):
        budget = _Budget(_MOST_TRIES)
        found = _arrange(points, widths, height, frame, (taken, thin), radius, away, budget)
        if not best or found.count(None) < best.count(None):
            best = found
        if None not in best:
            break
    return best


class _Budget:
    """How many places may still be tried, so that no crowd keeps the page waiting."""

    def __init__(self, tries: int) -> None:
        self.left = tries

    def spend(self) -> bool:
        self.left -= 1
        return self.left >= 0


def _arrange(
    points: Sequence[tuple[float, float]],
    widths: Sequence[float],
    height: float,
    frame: Box,
    avoid: tuple[Sequence[Box], Sequence[Box]],
    radius: float,
    away: int,
    budget: _Budget,
) -> list[Placed | None]:
    """Place the labels one by one, none of them nearer to its point than so many rings."""
    markers = [Box(x - radius, y - radius, x + radius, y + radius) for x, y in points]
    blocks = [*markers, *avoid[0]]
    found: list[Placed | None] = [None] * len(points)
    order = sorted(range(len(points)), key=lambda i: -_crowd(points, i))
    for strictness in (_NEAT, _OVER_MARKERS, _OVER_LEADERS):
        for i in order:
            if found[i] is not None:
                continue
            settled = [(points[j], item) for j, item in enumerate(found) if item is not None]
            for candidate in _candidates(points[i], widths[i], height, radius, away):
                if not budget.spend():
                    return found
                if (
                    candidate.box.within(frame)
                    and not any(candidate.box.overlaps(item) for item in (*blocks, *avoid[1]))
                    and _free(points[i], candidate, settled, strictness)
                    and (strictness > _NEAT or _clear(points[i], candidate, blocks, markers[i]))
                ):
                    found[i] = candidate
                    break
    return found


def _crowd(points: Sequence[tuple[float, float]], i: int) -> float:
    """Tell how close the other points are, close ones counting most."""
    x, y = points[i]
    return sum(1.0 / (20.0 + math.hypot(x - a, y - b)) for j, (a, b) in enumerate(points) if j != i)


def _candidates(
    point: tuple[float, float], width: float, height: float, radius: float, away: int
) -> Iterator[Placed]:
    x, y = point
    near = radius + _GAP - 1
    half = height / 2
    if not away:
        yield Placed(Box(x + near, y - half, x + near + width, y + half), None)
        yield Placed(Box(x - near - width, y - half, x - near, y + half), None)
        yield Placed(Box(x - width / 2, y - near - height, x + width / 2, y - near), None)
        yield Placed(Box(x - width / 2, y + near, x + width / 2, y + near + height), None)
    for ring in range(1 + away, 34):
        reach = near + 7.0 * ring
        for turn in range(_ANGLES):
            angle = 2 * math.pi * turn / _ANGLES
            a, b = x + reach * math.cos(angle), y + reach * math.sin(angle)
            left = a if math.cos(angle) > 0.2 else a - width
            if abs(math.cos(angle)) <= 0.2:
                left = a - width / 2
            shift = half * (1 - math.sin(angle))
            yield Placed(Box(left, b - shift, left + width, b - shift + height), (a, b))


def _free(
    point: tuple[float, float],
    candidate: Placed,
    settled: Sequence[tuple[tuple[float, float], Placed]],
    strictness: int,
) -> bool:
    """Tell whether a label and its leader line spare the other labels and their lines."""
    box, end = candidate.box, candidate.leader
    for start, other in settled:
        if box.overlaps(other.box):
            return False
        if other.leader is not None and box.crossed(start, other.leader):
            return False
        if end is not None and other.box.crossed(point, end):
            return False
        if end is None or other.leader is None or strictness >= _OVER_LEADERS:
            continue
        if _cross(point, end, start, other.leader):
            return False
    return True


def _clear(point: tuple[float, float], candidate: Placed, blocks: Sequence[Box], own: Box) -> bool:
    """Tell whether a leader line spares what stands apart from its own point."""
    end = candidate.leader
    return end is None or not any(
        item.crossed(point, end) for item in blocks if not item.overlaps(own)
    )


def _cross(
    a: tuple[float, float], b: tuple[float, float], c: tuple[float, float], d: tuple[float, float]
) -> bool:
    """Tell whether the lines a-b and c-d cross."""

    def side(p: tuple[float, float], q: tuple[float, float], r: tuple[float, float]) -> float:
        return (q[0] - p[0]) * (r[1] - p[1]) - (q[1] - p[1]) * (r[0] - p[0])

    return side(a, b, c) * side(a, b, d) < 0 and side(c, d, a) * side(c, d, b) < 0
