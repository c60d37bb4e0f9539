"""The picture of when: commitment, release, claim, and the suspect's first appearance."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from earmark.report.content import ReportContent
from earmark.report.labels import text_width
from earmark.report.markup import Markup, join, shorten, tag
from earmark.report.numbers import day, duration, seconds_of

_FONT = 13.0


@dataclass(frozen=True, slots=True)
class Moment:
    """A point of the timeline.

    Args:
        when: UTC time as records write it.
        what: A few words.
        index: Place in the ledger, or null if the ledger does not hold it.
        suspect: Whether it is the suspect's appearance.
    """

    when: str
    what: str
    index: int | None = None
    suspect: bool = False

    @property
    def title(self) -> str:
        """What happened, with its place in the ledger."""
        return self.what if self.index is None else f"{self.what}, entry {self.index}"


def moments(content: ReportContent) -> tuple[Moment, ...]:
    """Gather the points of the timeline in the order of their stated times."""
    found: list[Moment] = []
    for name, words, record in (
        ("commitment", "key committed", content.commitment),
        ("release", "model released", content.release),
        ("claim", "claim made", content.claim),
    ):
        if record is not None:
            index = None if content.proof is None else content.proof.index(name)
            found.append(Moment(record.created, words, index))
    if content.first_seen is not None:
        found.append(Moment(content.first_seen, "suspect first seen", suspect=True))
    found += [Moment(event.when, event.what) for event in content.events]
    return tuple(sorted(found, key=lambda item: seconds_of(item.when)))


def precedence(content: ReportContent) -> str:
    """Say in one sentence how registration and suspect lie in time, or nothing."""
    if content.commitment is None:
        return ""
    parts = [f"The key was committed on {day(content.commitment.created)}"]
    if content.first_seen is not None:
        gap = seconds_of(content.first_seen) - seconds_of(content.commitment.created)
        side = "before" if gap >= 0 else "after"
        parts.append(f", {duration(abs(gap))} {side} the suspect was first seen")
    return "".join(parts) + "."


def timeline(found: tuple[Moment, ...], *, narrow: bool = False) -> Markup:
    """Draw the timeline as inline SVG, to scale where there is room.

    Args:
        found: At least one point, in order.
        narrow: Draw it for a phone, from top to bottom.
    """
    return _upright(found) if narrow else _level(found)


def _svg(found: tuple[Moment, ...], width: float, height: float, *parts: Markup) -> Markup:
    said = "; ".join(f"{day(item.when)}: {item.title}" for item in found)
    return tag(
        "svg",
        tag("title", "Timeline"),
        tag("desc", said),
        *parts,
        viewBox=f"0 0 {width:g} {height:g}",
        role="img",
        class_="timeline",
    )


def _level(found: tuple[Moment, ...]) -> Markup:
    """Draw from left to right, to scale: labels that reach right above the line, others below."""
    width, left, row = 840.0, 12.0, 42.0
    times = [seconds_of(item.when) for item in found]
    span = max(times[-1] - times[0], 1.0)
    labels = [
        _Label(item, left + (time - times[0]) / span * (width - 2 * left))
        for item, time in zip(found, times, strict=True)
    ]
    above = [label for label in labels if label.x + label.width <= width]
    below = [label for label in labels if label.x + label.width > width]
    _stack(above, sign=1.0)
    _stack(below, sign=-1.0)
    base = row * (1 + max((label.level for label in above), default=-1)) + 16
    foot = base + 30 + row * (1 + max((label.level for label in below), default=-1))
    parts = [tag("line", x1=0.0, y1=base, x2=width, y2=base, class_="axis")]
    for label in above:
        parts.append(label.draw(base - 16 - row * (label.level + 1) + 14, base, " "))
    for label in below:
        parts.append(label.draw(base + 40 + row * label.level, base, " end"))
    parts.append(_gaps(labels, base))
    parts += [_knot(label.item, label.x, base) for label in labels]
    return _svg(found, width, foot, *parts)


class _Label:
    """A label of the horizontal timeline: where its stem stands, and on which level it lies."""

    def __init__(self, item: Moment, x: float) -> None:
        self.item, self.x, self.level = item, x, 0
        self.words = shorten(item.title, 44)
        self.width = 14 + max(text_width(self.words, _FONT), text_width(day(item.when), _FONT))

    def draw(self, y: float, base: float, side: str) -> Markup:
        """Write the label with its first line at `y`, and its stem to the axis."""
        x = self.x + (-6 if "end" in side else 6)
        far = y + 16 if y > base else y - 10
        return join(
            tag("line", x1=self.x, y1=far, x2=self.x, y2=base, class_="stem"),
            tag("text", self.words, x=x, y=y, class_="label strong" + side),
            tag("text", day(self.item.when), x=x, y=y + 16, class_="tick" + side),
        )


def _stack(labels: list[_Label], *, sign: float) -> None:
    """Give each label the lowest level on which it covers no other label and no other's stem.

    Args:
        labels: Labels on one side of the line.
        sign: 1 if they reach to the right of their stems, -1 if to the left.
    """
    done: list[_Label] = []
    for label in sorted(labels, key=lambda item: -sign * item.x):
        while any(_clash(label, other, sign) for other in done):
            label.level += 1
        done.append(label)


def _clash(label: _Label, other: _Label, sign: float) -> bool:
    """Tell whether a label runs into one that stands farther along: its text or its stem."""
    reaches = sign * label.x + label.width > sign * other.x
    return reaches and label.level <= other.level


def _gaps(labels: list[_Label], base: float) -> Markup:
    """Write how long lies between two points, where there is room below the line."""
    parts = []
    for first, second in pairwise(labels):
        words = _gap(first.item, second.item)
        if second.x - first.x > text_width(words, _FONT) + 24:
            middle = (first.x + second.x) / 2
            parts.append(tag("text", words, x=middle, y=base + 18, class_="tick middle"))
    return join(*parts)


def _gap(first: Moment, second: Moment) -> str:
    return duration(seconds_of(second.when) - seconds_of(first.when))


def _upright(found: tuple[Moment, ...]) -> Markup:
    """Draw from top to bottom; long gaps are cut short and written out."""
    width, x, y = 340.0, 12.0, 20.0
    parts: list[Markup] = []
    ys: list[float] = []
    for i, item in enumerate(found):
        if i:
            wait = seconds_of(item.when) - seconds_of(found[i - 1].when)
            step = 54.0 if wait < 3600 else 74.0
            if wait >= 3600:
                words = f"{_gap(found[i - 1], item)} later"
                parts.append(tag("text", words, x=x + 18, y=y + 49, class_="tick quiet"))
            y += step
        ys.append(y)
        parts += [
            tag("text", shorten(item.title, 38), x=x + 18, y=y + 4, class_="label strong"),
            tag("text", day(item.when), x=x + 18, y=y + 21, class_="tick"),
        ]
    spine = tag("line", x1=x, y1=ys[0], x2=x, y2=ys[-1], class_="axis")
    knots = [_knot(item, x, at) for item, at in zip(found, ys, strict=True)]
    return _svg(found, width, y + 34, spine, *parts, *knots)


def _knot(item: Moment, x: float, y: float) -> Markup:
    """Mark a point: filled if the ledger fixes it, hollow if it is only stated."""
    if item.suspect:
        points = f"{x:.1f},{y - 8:.1f} {x + 8:.1f},{y:.1f} {x:.1f},{y + 8:.1f} {x - 8:.1f},{y:.1f}"
        return tag("polygon", points=points, class_="dot accent")
    kind = "dot hollow" if item.index is None else "dot ink"
    return tag("circle", cx=x, cy=y, r=6, class_=kind)
