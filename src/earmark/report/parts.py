"""Pieces that both pages share: the frame, tables, keys to markers, the QR code."""

from __future__ import annotations

import io
from collections.abc import Sequence

from earmark.report.markup import Markup, join, tag
from earmark.report.numbers import day, fixed, interval, rate_interval
from earmark.report.plane import marker
from earmark.report.style import CSS

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

MARKS = {"shown": "●", "not shown": "○", "inconclusive": "◐"}
"""A sign beside each outcome, so that colour is never the only one."""


def page(title: str, *inner: object) -> str:
    """Put a body into the frame of a self-contained page."""
    head = join(
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", title),
        tag("style", Markup(CSS)),
    )
    body = tag("body", tag("main", *inner))
    return str(
        join(
            Markup("<!doctype html>\n"),
            tag("html", tag("head", head), body, lang="en"),
            Markup("\n"),
        )
    )


def header(kind: str, model: str, created: str) -> Markup:
    """Write the line at the top: what this is, about which model, when."""
    return tag(
        "header",
        tag("p", tag("b", kind), " · ", tag("bdi", model)),
        tag("p", day(created)),
    )


def sample_note() -> Markup:
    """Write the warning of a page with invented content."""
    return tag(
        "p", tag("b", "Sample."), " Every name and number here is invented.", class_="sample"
    )


def section(title: str, *inner: object) -> Markup:
    """Write a section with its heading."""
    return tag("section", tag("h2", title), *inner)


def figure(caption: object, large: Markup, small: Markup, *more: object) -> Markup:
    """Write a figure that is drawn twice: for wide pages and paper, and for phones."""
    return tag(
        "figure",
        Markup(large.replace('class="', 'class="large ', 1)),
        Markup(small.replace('class="', 'class="small ', 1)),
        *more,
        tag("figcaption", caption),
    )


def facts(pairs: Sequence[tuple[object, object]]) -> Markup:
    """Write a few short facts side by side: the figure, and what it means."""
    return tag("ul", *(tag("li", tag("b", top), low) for top, low in pairs), class_="facts")


def listing(pairs: Sequence[tuple[str, object]]) -> Markup:
    """Write names with their values."""
    return tag("dl", *(join(tag("dt", name), tag("dd", value)) for name, value in pairs))


def digest(value: str) -> Markup:
    """Write a digest in full; it wraps where it must."""
    return tag("code", value)


def bullets(sentences: Sequence[object]) -> Markup:
    """Write sentences as a list."""
    return tag("ul", *(tag("li", item) for item in sentences), class_="plain")


def key(kinds: Sequence[tuple[str, str]]) -> Markup:
    """Explain markers: pairs of kind and meaning."""
    return tag(
        "ul",
        *(
            tag(
                "li",
                tag("svg", marker(kind, 10, 10), viewBox="0 0 20 20", aria_hidden="true"),
                said,
            )
            for kind, said in kinds
        ),
        class_="key",
    )


def table(columns: Sequence[str], rows: Sequence[Markup], *, left: Sequence[int] = (0,)) -> Markup:
    """Write a table; rows come from :func:`row`."""
    heads = (
        tag("th", name, scope="col", class_="left" if i in left else None)
        for i, name in enumerate(columns)
    )
    body = tag("table", tag("thead", tag("tr", *heads)), tag("tbody", *rows))
    return tag("div", body, class_="tablebox")


def row(
    columns: Sequence[str], head: object, cells: Sequence[object], *, kind: str | None = None
) -> Markup:
    """Write a row: its name, then cells that carry their column's name for narrow pages."""
    made = (
        cell if isinstance(cell, Markup) and cell.startswith("<td") else td(cell, label)
        for cell, label in zip(cells, columns[1:], strict=True)
    )
    return tag("tr", tag("th", head, scope="row"), *made, class_=kind)


def td(value: object, label: str, *, under: object = "", kind: str | None = None) -> Markup:
    """Write a cell with a smaller second line."""
    inner = tag("span", value, tag("small", under) if under else "")
    return tag("td", inner, data_label=label, class_=kind)


def outcome_cell(outcome: str, label: str, under: object = "") -> Markup:
    """Write an outcome with its sign."""
    return td(f"{MARKS[outcome]} {outcome}", label, under=under, kind="verdict")


def hits_cell(hits: int, trials: int, label: str) -> Markup:
    """Write a count with the interval of its rate."""
    return td(f"{hits:,} / {trials:,}", label, under=rate_interval(hits, trials))


def utility_range(value: float, tested: int | None) -> tuple[float, float] | None:
    """Return the 95 % interval of an accuracy in percent that was measured on so many samples."""
    if tested is None or not 0 <= value <= 100:
        return None
    low, high = interval(round(value / 100 * tested), tested)
    return 100 * low, 100 * high


def ends(low: float, high: float) -> str:
    """Write a range of utilities."""
    return f"{fixed(low, 1)} to {fixed(high, 1)}"


def qr(words: str) -> Markup:
    """Draw a text as a QR code, inline SVG, black on white whatever the theme.

    Raises:
        ValueError: The text is longer than a code holds.
    """
    import segno

    made = segno.make(words, error="m", micro=False)
    out = io.BytesIO()
    made.save(out, kind="svg", xmldecl=False, svgns=False, nl=False, border=0, omitsize=True)
    return tag(
        "div", Markup(out.getvalue().decode()), class_="qr", role="img", aria_label="QR code"
    )
