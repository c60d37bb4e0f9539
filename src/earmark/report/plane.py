"""The picture of utility against bits of evidence: one point per model or attack."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from earmark.policy import LEVELS
from earmark.report.labels import Box, Placed, place, text_width
from earmark.report.markup import Markup, join, shorten, tag
from earmark.report.numbers import number

_FONT = 13.0
_LINE = 16.0
_MOST_NAMES = 16
_MOST_DOTS = 64


@dataclass(frozen=True, slots=True)
class Dot:
    """A point of the picture.

    Args:
        x: Utility in percent.
        y: Net bits of evidence.
        label: Its name.
        number: Its number in the table, which stands in for the name where it is crowded.
        kind: Shape of the marker: release, stolen, suspect or innocent.
        x_range: Lowest and highest utility, or null.
        y_range: Lowest and highest bits, or null.
    """

    x: float
    y: float
    label: str
    number: int
    kind: str
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class _Frame:
    """The plot area and its two scales."""

    box: Box
    x_ends: tuple[float, float]
    y_end: float

    def x(self, utility: float) -> float:
        low, high = self.x_ends
        return self.box.left + (utility - low) / (high - low) * (self.box.right - self.box.left)

    def y(self, bits: float) -> float:
        share = _squeeze(max(0.0, bits)) / _squeeze(self.y_end)
        return self.box.bottom - share * (self.box.bottom - self.box.top)


def _squeeze(bits: float) -> float:
    """Compress upwards, so that 20 bits and 2,000 bits fit one picture."""
    return math.log2(1.0 + bits / 16.0)


def plane(
    dots: Sequence[Dot], *, asked: float, x_name: str, title: str, narrow: bool = False
) -> Markup:
    """Draw the picture as inline SVG.

    Args:
        dots: The points; at least one.
        asked: Bits that the policy asks for; that line is drawn strong.
        x_name: What the utility is called.
        title: What the picture shows, for those who cannot see it.
        narrow: Draw it for a phone.
    """
    width, height = (340.0, 460.0) if narrow else (840.0, 480.0)
    frame = _frame(dots, Box(46.0, 30.0, width - 10.0, height - 46.0))
    lines, taken = _thresholds(frame, asked)
    labels = _labels(dots, frame, taken, 18 if narrow else 30)
    described = "; ".join(
        f"{dot.label}: {number(dot.x)} %, {number(dot.y)} bits" for dot in dots[:40]
    )
    return tag(
        "svg",
        tag("title", title),
        tag("desc", described),
        _axes(frame, x_name),
        lines,
        *(_whiskers(dot, frame) for dot in dots),
        labels,
        *(_marker(dot, frame) for dot in sorted(dots, key=lambda dot: dot.kind == "release")),
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        class_="plane",
    )


def _frame(dots: Sequence[Dot], box: Box) -> _Frame:
    xs = [x for dot in dots for x in (dot.x, *(dot.x_range or ()))]
    ys = [y for dot in dots for y in (dot.y, *(dot.y_range or ()))]
    low, high = min(xs), max(xs)
    room = max(1.0, 0.12 * (high - low))
    ends = (max(min(0.0, low), low - room), high + room)
    return _Frame(box, ends, 1.7 * max(128.0, *ys))


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round numbers within a range.

    Example:
        >>> ticks(83.2, 92.9)
        [84.0, 86.0, 88.0, 90.0, 92.0]
    """
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * part for part in (1, 2, 5, 10) if power * part >= rough * 0.999)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return [round((first + i) * step, 9) for i in range(count)]


def _axes(frame: _Frame, x_name: str) -> Markup:
    box = frame.box
    parts = [
        tag("line", x1=box.left, y1=box.bottom, x2=box.right, y2=box.bottom, class_="axis"),
        tag("text", "net bits of evidence", x=4, y=14, class_="name"),
        tag("text", f"{x_name}, %", x=box.right, y=box.bottom + 38, class_="name end"),
    ]
    narrow = box.right - box.left < 400
    for value in ticks(*frame.x_ends, most=4 if narrow else 8):
        x = frame.x(value)
        parts.append(tag("line", x1=x, y1=box.bottom, x2=x, y2=box.bottom + 5, class_="axis"))
        parts.append(tag("text", number(value), x=x, y=box.bottom + 19, class_="tick middle"))
    values = [0.0, *(bits for _, bits in LEVELS)]
    while values[-1] <= 128 and frame.y_end >= 256:
        values.append(256.0)
    while 2 * values[-1] <= frame.y_end and values[-1] >= 256:
        values.append(2 * values[-1])
    for value in values:
        y = frame.y(value)
        parts.append(tag("text", number(value), x=box.left - 7, y=y + 4, class_="tick end"))
        if value > 128:
            parts.append(tag("line", x1=box.left, y1=y, x2=box.right, y2=y, class_="grid"))
    return join(*parts)


def _thresholds(frame: _Frame, asked: float) -> tuple[Markup, list[Box]]:
    """Draw the lines of the named levels, and of the policy if it is none of them."""
    levels = [(name, bits) for name, bits in LEVELS if bits <= frame.y_end]
    if asked not in {bits for _, bits in levels} and asked <= frame.y_end:
        levels.append(("asked for", asked))
    parts, taken, right = [], [], frame.box.right
    for name, bits in levels:
        strong = bits == asked
        said = f"{name}, {number(bits)} bits" + (": asked for" if strong else "")
        y = frame.y(bits)
        parts.append(
            tag(
                "line",
                x1=frame.box.left,
                y1=y,
                x2=right,
                y2=y,
                class_="asked" if strong else "level",
            )
        )
        kind = "levelname asked end" if strong else "levelname end"
        parts.append(tag("text", said, x=right, y=y - 4, class_=kind))
        taken.append(Box(right - text_width(said, 12.0) - 10, y - 15, right, y - 1))
    return join(*parts), taken


def _labels(dots: Sequence[Dot], frame: _Frame, taken: Sequence[Box], longest: int) -> Markup:
    """Write names beside the points, or numbers where names do not fit."""
    points = [(frame.x(dot.x), frame.y(dot.y)) for dot in dots]
    names = [shorten(dot.label, longest) for dot in dots]
    space = Box(frame.box.left + 2, frame.box.top - 12, frame.box.right, frame.box.bottom - 1)

    thin = [box for dot in dots for box in _whisker_boxes(dot, frame)]

    def attempt(texts: Sequence[str], avoid: Sequence[Box]) -> list[Placed | None]:
        widths = [text_width(item, _FONT) for item in texts]
        return place(points, widths, height=_LINE, frame=space, taken=taken, thin=avoid)

    box = frame.box
    rules = [
        Box(box.left, frame.y(bits) - 1, box.right, frame.y(bits) + 1)
        for bits in (0.0, *(bits for _, bits in LEVELS))
    ]
    numbers = [str(dot.number) for dot in dots]
    attempts: list[tuple[list[str], list[Box]]] = [(numbers, [])]
    if len(dots) <= _MOST_NAMES:
        ways: list[list[Box]] = [[*thin, *rules], thin, []]
        attempts = [(words, avoid) for words in (names, numbers) for avoid in ways]
    texts, placed = numbers, []
    for texts, avoid in attempts:
        placed = attempt(texts, avoid)
        if None not in placed:
            break
    parts = []
    if texts is numbers:
        words = "numbers are those of the table"
        parts.append(tag("text", words, x=box.right, y=14, class_="tick end"))
    for point, item, written, dot in zip(points, placed, texts, dots, strict=True):
        if item is None:
            continue
        if item.leader is not None:
            (x1, y1), (x2, y2) = point, item.leader
            parts.append(tag("line", x1=x1, y1=y1, x2=x2, y2=y2, class_="leader"))
        kind = "label quiet" if dot.kind == "innocent" else "label"
        x, end = item.box.left, ""
        if item.box.right <= point[0]:
            x, end = item.box.right, " end"
        elif item.box.left < point[0]:
            x, end = (item.box.left + item.box.right) / 2, " middle"
        parts.append(tag("text", written, x=x, y=item.box.bottom - 4, class_=kind + end))
    return join(*parts)


def _whisker_boxes(dot: Dot, frame: _Frame) -> list[Box]:
    """Return what the whiskers of a point cover."""
    x, y = frame.x(dot.x), frame.y(dot.y)
    boxes = []
    if dot.x_range is not None:
        boxes.append(Box(frame.x(dot.x_range[0]), y - 1, frame.x(dot.x_range[1]), y + 1))
    if dot.y_range is not None:
        boxes.append(Box(x - 1, frame.y(dot.y_range[1]), x + 1, frame.y(dot.y_range[0])))
    return boxes


def _whiskers(dot: Dot, frame: _Frame) -> Markup:
    x, y = frame.x(dot.x), frame.y(dot.y)
    parts = []
    if dot.x_range is not None:
        low, high = (frame.x(value) for value in dot.x_range)
        parts.append(tag("line", x1=low, y1=y, x2=high, y2=y, class_="whisker"))
    if dot.y_range is not None:
        low, high = (frame.y(value) for value in dot.y_range)
        parts.append(tag("line", x1=x, y1=low, x2=x, y2=high, class_="whisker"))
    return join(*parts)


def _marker(dot: Dot, frame: _Frame) -> Markup:
    return marker(dot.kind, frame.x(dot.x), frame.y(dot.y))


def marker(kind: str, x: float, y: float) -> Markup:
    """Draw a marker: kinds differ in shape and filling, not only in colour."""
    return _SHAPES.get(kind, _suspect)(x, y)


def _release(x: float, y: float) -> Markup:
    return tag("rect", x=x - 7, y=y - 7, width=14, height=14, class_="dot frame")


def _stolen(x: float, y: float) -> Markup:
    return tag("circle", cx=x, cy=y, r=5.5, class_="dot accent")


def _suspect(x: float, y: float) -> Markup:
    ring = tag("circle", cx=x, cy=y, r=8.5, class_="dot ring")
    return join(ring, tag("circle", cx=x, cy=y, r=4.5, class_="dot accent"))


def _innocent(x: float, y: float) -> Markup:
    return tag("circle", cx=x, cy=y, r=5, class_="dot hollow")


_SHAPES: dict[str, Callable[[float, float], Markup]] = {
    "release": _release,
    "stolen": _stolen,
    "suspect": _suspect,
    "innocent": _innocent,
}
