"""Build HTML and SVG so that nothing gets in unescaped.

A :class:`Markup` is text that this module made; everything else is text of somebody's, and
:func:`tag` escapes it. So escaping does not depend on remembering it.
"""

from __future__ import annotations

import re
import unicodedata
from html import escape

_VOID = frozenset({"meta", "br", "line", "rect", "circle", "path", "polygon", "use", "polyline"})
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Zl", "Zp"})
"""Not "Cn": which code points are unassigned changes with the version of Unicode."""


class Markup(str):
    """Text that is HTML already. Only this module and constants make it."""

    __slots__ = ()

    def __add__(self, other: str) -> Markup:
        return Markup(str(self) + str(text(other)))


def visible(value: str) -> str:
    r"""Show what would be invisible or turn the reading direction as its code point.

    Example:
        >>> visible("a\u202eb\x00")
        'a\\u202eb\\u0000'
    """
    return "".join(
        f"\\u{ord(char):04x}" if unicodedata.category(char) in _HIDDEN else char for char in value
    )


def text(value: object) -> Markup:
    """Return a value as markup: as it is if it is markup, else escaped.

    Example:
        >>> text("<script>")
        '&lt;script&gt;'
    """
    if isinstance(value, Markup):
        return value
    return Markup(escape(visible(str(value)), quote=True))


def tag(element: str, /, *inner: object, **attributes: object) -> Markup:
    """Write one element.

    Args:
        element: Name of the element.
        inner: Its content; what is no markup is escaped.
        attributes: Its attributes; ``class_`` and ``for_`` lose the underscore, other underscores
            become hyphens, null and false leave the attribute out, floats are rounded to 0.01.

    Example:
        >>> tag("p", "1 < 2", tag("b", "so"), class_="note")
        '<p class="note">1 &lt; 2<b>so</b></p>'
    """
    parts = [element]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        plain = key.rstrip("_").replace("_", "-")
        if not _NAME.fullmatch(plain):
            raise ValueError(f"'{plain}' is no attribute name.")  # a slip in our own code
        parts.append(f'{plain}="{text(_rounded(value))}"')
    opening = f"<{' '.join(parts)}>"
    if element in _VOID and not inner:
        return Markup(opening if element in {"meta", "br"} else opening[:-1] + "/>")
    return Markup(f"{opening}{join(*inner)}</{element}>")


def _rounded(value: object) -> object:
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return value


def join(*parts: object) -> Markup:
    """Put pieces one after the other, escaping those that are no markup."""
    return Markup("".join(text(part) for part in parts))


def name(value: object, *, longest: int = 120) -> Markup:
    """Write a name that somebody chose: escaped, its direction isolated, cut if it is very long."""
    return tag("bdi", shorten(str(value), longest))


def shorten(value: str, longest: int) -> str:
    """Cut a text, with an ellipsis, to at most so many characters.

    Example:
        >>> shorten("abcdefgh", 5)
        'abcd…'
    """
    plain = visible(value)
    return plain if len(plain) <= longest else plain[: longest - 1].rstrip() + "…"
