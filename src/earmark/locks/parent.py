"""The file beside a locked parent: what making further copies from it takes, its number included.

The parent is the one copy that is trained in full; customers' copies are made from it. Its own
number opens it and is nobody's license, so the file is as secret as the parent itself.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from earmark import codec, files
from earmark.codec import Json
from earmark.errors import FormatError
from earmark.locks.serial import format_serial, parse_serial
from earmark.records import Layout

_FORMAT = "earmark/locked-parent/2"


@dataclass(frozen=True, slots=True)
class Parent:
    """A locked parent's way in, number and weights.

    Args:
        lock: Name of the lock in the registry.
        layout: The lock's layout; public.
        serial: The parent's number, 16 secret bytes.
        weights: Digest of its weights, as :meth:`earmark.hosts.files.FilesHost.digest` gives it.

    Example:
        >>> layout = Layout("dsn", 1, ("columns",), 64, 1, {})
        >>> parent = Parent("dsn", layout, bytes(16), "ab" * 32)
        >>> Parent.parse(parent.encode()) == parent
        True
    """

    lock: str
    layout: Layout
    serial: bytes = field(repr=False)
    weights: str

    def encode(self) -> bytes:
        """Write the parent's file, canonically."""
        body: Json = {
            "format": _FORMAT,
            "lock": self.lock,
            "layout": self.layout.to_json(),
            "serial": format_serial(self.serial),
            "weights": self.weights,
        }
        return codec.canonical(body)

    @classmethod
    def parse(cls, data: bytes) -> Parent:
        """Read a parent's file.

        Raises:
            FormatError: Not one.
            LicenseError: Its number is mistyped.
            RecordError: Its layout breaks its schema.
        """
        body = codec.parse(data)
        if not isinstance(body, dict) or body.get("format") != _FORMAT or len(body) != 5:
            raise FormatError("This is no locked parent's file.", expected=f"Format {_FORMAT}.")
        lock, serial, weights = (body.get(name) for name in ("lock", "serial", "weights"))
        if not (isinstance(lock, str) and isinstance(serial, str) and isinstance(weights, str)):
            raise FormatError("A locked parent's file names its lock, its number and its weights.")
        return cls(lock, Layout.from_json(body.get("layout")), parse_serial(serial), weights)

    @classmethod
    def read(cls, path: Path) -> Parent:
        """Read a parent's file; raises as :meth:`parse`, and `FileError`."""
        return files.read_as(
            path, cls.parse, kind="locked parent's file", sign=_FORMAT, limit=1 << 20
        )
