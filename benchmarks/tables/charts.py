"""Line and dot charts as SVG files, of the same parts as the report's pictures."""

from collections.abc import Mapping, Sequence

from earmark.report.markup import Markup, join, tag
from earmark.report.numbers import number
from earmark.report.plane import ticks

Points = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 820.0, 380.0
LEFT, TOP, RIGHT, BOTTOM = 56.0, 34.0, 560.0, 320.0
INK, QUIET, RULE = "#1b1c1e", "#5b5f66", "#d5d1c7"
STYLES = (
    ("#0b5cad", ""),
    ("#b2461e", "7 3"),
    ("#2e7d4f", "2 3"),
    ("#7a4fa3", "9 3 2 3"),
    ("#8a6d00", "4 4"),
    ("#5b5f66", "1 3"),
    ("#b0307a", "12 4"),
    ("#00797c", "6 2 1 2"),
    ("#c2410c", "10 3 3 3"),
    ("#334155", "3 6"),
)


def chart(
    series: Mapping[str, Points], *, title: str, x_name: str, y_name: str, joined: bool = True
) -> str:
    """Return a picture of named series of points, as the text of an SVG file.

    Args:
        series: Name to points.
        title: What the picture shows, for those who cannot see it.
        x_name: What runs from left to right.
        y_name: What runs upwards.
        joined: Join the points of a series by lines.
    """
    xs = [x for points in series.values() for x, _ in points]
    ys = [y for points in series.values() for _, y in points]
    x_ends, y_ends = (min(xs), max(xs)), (min(0.0, *ys), max(ys) * 1.04)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ends[0]) / (x_ends[1] - x_ends[0])
        up = (y - y_ends[0]) / (y_ends[1] - y_ends[0])
        return LEFT + across * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)

    parts: list[Markup] = []
    for value in ticks(*y_ends):
        _, y = place(x_ends[0], value)
        parts.append(tag("line", x1=LEFT, y1=y, x2=RIGHT, y2=y, stroke=RULE))
        parts.append(_text(number(value), LEFT - 8, y + 4, "end", QUIET))
    for value in ticks(*x_ends, most=8):
        x, _ = place(value, y_ends[0])
        parts.append(tag("line", x1=x, y1=BOTTOM, x2=x, y2=BOTTOM + 5, stroke=INK))
        parts.append(_text(number(value), x, BOTTOM + 20, "middle", QUIET))
    parts.append(_text(y_name, 8, 18, "start", QUIET))
    parts.append(_text(x_name, RIGHT, BOTTOM + 42, "end", QUIET))
    for i, (name, points) in enumerate(series.items()):
        placed = [place(x, y) for x, y in points]
        parts += _series(name, placed, STYLES[i % len(STYLES)], TOP + 6 + 22 * i, joined=joined)
    svg = tag(
        "svg",
        tag("title", title),
        tag("rect", x=0, y=0, width=WIDTH, height=HEIGHT, fill="#fdfcf9"),
        *parts,
        xmlns="http://www.w3.org/2000/svg",
        viewBox=f"0 0 {WIDTH:g} {HEIGHT:g}",
        role="img",
        font_family="system-ui, sans-serif",
        font_size="13",
    )
    return f"{svg}\n"


def _series(
    name: str, placed: Points, style: tuple[str, str], y: float, *, joined: bool
) -> list[Markup]:
    color, dash = style
    dots = [tag("circle", cx=px, cy=py, r=3, fill=color) for px, py in placed]
    key = tag(
        "line",
        x1=RIGHT + 14,
        y1=y - 4,
        x2=RIGHT + 40,
        y2=y - 4,
        stroke=color,
        stroke_width=2,
        stroke_dasharray=dash or None,
    )
    parts = [join(*dots), key, _text(name, RIGHT + 46, y, "start", INK)]
    if joined:
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in placed)
        parts.append(
            tag(
                "polyline",
                points=path,
                fill="none",
                stroke=color,
                stroke_width=2,
                stroke_dasharray=dash or None,
            )
        )
    return parts


def _text(said: str, x: float, y: float, anchor: str, color: str) -> Markup:
    return tag("text", said, x=x, y=y, text_anchor=anchor, fill=color)
