"""Positioned reads of a file, past the page cache where the file is large and the system allows it.

Reading through the page cache costs a copy of every byte, and drives out of memory what others need
there. A checkpoint of billions of parameters is read once: most of what a verification costs beside
hashing is that copy. Where the system or the file system knows no such reads, files are read the
usual way.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

PAGE = 4096
_DIRECT = getattr(os, "O_DIRECT", 0) if hasattr(os, "preadv") else 0


def buffer(size: int) -> NDArray[np.uint8]:
    """Return a buffer that any `size` bytes of a file can be read into.

    Example:
        >>> len(buffer(10)) >= 10, buffer(10).ctypes.data % PAGE
        (True, 0)
    """
    length = -(-size // PAGE) * PAGE + PAGE  # the bytes may begin and end within a page
    whole = np.empty(length + PAGE, np.uint8)
    skip = -whole.ctypes.data % PAGE
    return whole[skip : skip + length]


class Source:
    """A file that is read by position.

    Args:
        path: The file.
        past_cache: Whether to go past the page cache, if that is possible.

    Raises:
        OSError: The file cannot be opened.
    """

    def __init__(self, path: Path, *, past_cache: bool) -> None:
        self._path = path
        self._handle = -1
        if past_cache and _DIRECT:
            try:
                self._handle = os.open(path, os.O_RDONLY | _DIRECT)
            except OSError:
                self._handle = -1
        self._file = path.open("rb", buffering=0) if self._handle < 0 else None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        if self._handle >= 0:
            os.close(self._handle)

    def read(self, into: NDArray[np.uint8], offset: int, size: int) -> NDArray[np.uint8]:
        """Read bytes and return them, a part of the buffer; fewer than asked for if the file ends.

        Args:
            into: From :func:`buffer`.
            offset: Where the first byte stands in the file.
            size: How many.

        Raises:
            OSError: The disk failed.
        """
        if self._file is None:
            try:
                return self._past_cache(into, offset, size)
            except OSError:  # some file systems refuse at the first read only
                self._file = self._path.open("rb", buffering=0)
        self._file.seek(offset)
        done = 0
        while done < size:
            got = self._file.readinto(into[done:size].data)
            if not got:
                break
            done += got
        return into[:done]

    def _past_cache(self, into: NDArray[np.uint8], offset: int, size: int) -> NDArray[np.uint8]:
        first = offset // PAGE * PAGE
        skip = offset - first
        need = -(-(skip + size) // PAGE) * PAGE
        done = 0
        while done < skip + size:
            got = os.preadv(self._handle, [into[done:need].data], first + done)
            done += got
            if got == 0 or done % PAGE:  # the file ends here
                break
        return into[skip : max(skip, min(done, skip + size))]
