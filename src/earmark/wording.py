"""Words that every part of the package writes alike."""

from __future__ import annotations


def counted(count: int, word: str, plural: str = "") -> str:
    """Write a number of things.

    Example:
        >>> counted(1, "key"), counted(1200, "entry", "entries")
        ('1 key', '1,200 entries')
    """
    return f"{count:,} {word if count == 1 else plural or f'{word}s'}"
