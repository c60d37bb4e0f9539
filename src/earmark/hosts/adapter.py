"""How to talk to a remote classifier: a small TOML file, no code.

::

    url = "https://api.example/v1/classify"
    body = "json"  # "json" or "png" (the picture itself is the body)
    field = "instances"  # JSON: where samples go; dots step into objects
    encoding = "array"  # JSON: "array" of numbers, or "png" as base64
    batch = 1  # JSON: samples a request; above 1 the answer is a list
    scale = 0.3  # a number is sent as number * scale + offset ...
    offset = 0.45  # ... for PNG, 0 is black and 1 is white
    answer = "predictions"  # where the answer is; dots and indices step in: "results.0.label"
    kind = "label"  # "label", "ranked" (best first) or "scores"
    names = ["cat", "dog"]  # classes in the model's order, if answers are words

    [headers]
    Authorization = "env:API_TOKEN"  # read from the environment, never recorded

    [limits]
    budget = 200  # different inputs that may be asked in all
    per_second = 5  # requests a second at most
    retries = 5  # tries after a refusal or a failure
    timeout = 30  # seconds a request

Whoever orders the names after the answers are drawn chooses which answer is which. So every order
of them is charged (ten names cost 22 bits), unless the key was made with them: then no others do.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import importlib
import math
import os
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from earmark import codec, files
from earmark.errors import ExtraError, FormatError, NetworkError, UsageError


@dataclass(frozen=True)
class Limits:
    """How much and how fast may be asked; see the module's text.

    Raises:
        UsageError: A value out of range.
    """

    budget: int | None = None
    per_second: float = 5.0
    retries: int = 5
    timeout: float = 30.0

    def __post_init__(self) -> None:
        _require_types(self)
        if self.budget is not None and self.budget < 1:
            raise UsageError(f"A budget of {self.budget} questions asks nothing.")
        if not self.per_second > 0 or not self.timeout > 0 or self.retries < 0:
            raise UsageError("Limits per_second and timeout are above 0, retries at least 0.")


@dataclass(frozen=True)
class Adapter:
    """How to put a question and where to find the answer; see the module's text.

    Raises:
        UsageError: A value out of range, or an URL that is no http(s) address.

    Example:
        >>> adapter = Adapter("http://127.0.0.1:8000/classify", answer="label")
        >>> adapter.read({"label": 3})
        3
    """

    url: str
    body: str = "json"
    field: str = "instances"
    encoding: str = "array"
    batch: int = 1
    scale: float = 1.0
    offset: float = 0.0
    answer: str = "predictions"
    kind: str = "label"
    names: tuple[str, ...] = ()
    headers: Mapping[str, str] = dataclasses.field(default_factory=dict, repr=False)
    limits: Limits = dataclasses.field(default_factory=Limits)

    def __post_init__(self) -> None:
        _require_types(self)
        _require_address(self.url)
        for name, known in (
            ("body", ("json", "png")),
            ("encoding", ("array", "png")),
            ("kind", ("label", "ranked", "scores")),
        ):
            if getattr(self, name) not in known:
                raise UsageError(
                    f"The adapter's {name} is '{getattr(self, name)}'.",
                    expected=f"One of {', '.join(known)}.",
                )
        if self.batch < 1 or (self.body == "png" and self.batch != 1):
            raise UsageError(f"A batch of {self.batch} does not go with body '{self.body}'.")

    @classmethod
    def load(cls, path: str | Path, **changes: Any) -> Adapter:  # Any: own fields
        """Read an adapter file.

        Args:
            path: The file.
            changes: Fields that replace the file's, for example `url`.

        Raises:
            FileError: Missing or unreadable.
            FormatError: No TOML, or fields that no adapter has.
            UsageError: Values out of range.
        """
        try:
            toml: Any = importlib.import_module("tomllib")  # Any: of Python 3.11
        except ModuleNotFoundError:
            try:
                toml = importlib.import_module("tomli")
            except ModuleNotFoundError as error:
                raise ExtraError(
                    "Reading an adapter needs Python 3.11 or the package 'tomli'.",
                    hint="Install it with:  pip install tomli",
                ) from error
        try:
            body = toml.loads(files.read_bytes(path, limit=1 << 16).decode())
        except ValueError as error:
            raise FormatError(f"Adapter '{path}' is no TOML: {error}.") from error
        return cls.of(body | changes, source=str(path))

    @classmethod
    def of(cls, body: Mapping[str, Any], *, source: str = "adapter") -> Adapter:  # Any: TOML
        """Build an adapter from plain values; raises as :meth:`load`."""
        limits, headers = body.get("limits", {}), body.get("headers", {})
        for name, table in (("limits", limits), ("headers", headers)):
            if not isinstance(table, Mapping):
                raise FormatError(f"'{source}' has {name} that are no table.")
        unknown = set(body) - {item.name for item in fields(cls)}
        unknown |= {f"limits.{name}" for name in set(limits) - {i.name for i in fields(Limits)}}
        if unknown or "url" not in body:
            raise FormatError(
                f"'{source}' has fields that no adapter has: {', '.join(sorted(unknown))}."
                if unknown
                else f"'{source}' names no url.",
                expected=f"Fields: {', '.join(item.name for item in fields(cls))}.",
            )
        try:
            return cls(
                **{
                    **body,
                    "names": tuple(body.get("names", ())),
                    "limits": Limits(**limits),
                    "headers": {str(name): str(value) for name, value in headers.items()},
                }
            )
        except TypeError as error:
            raise FormatError(f"'{source}' has a value of the wrong type: {error}.") from error

    def digest(self) -> str:
        """Return a digest of all that bears on the answers; headers and limits do not."""
        plain = {
            item.name: getattr(self, item.name)
            for item in fields(self)
            if item.name not in ("headers", "limits")
        }
        plain["names"] = list(self.names)
        return hashlib.sha256(codec.canonical(plain)).hexdigest()

    def within(self, budget: int) -> Adapter:
        """Return the adapter with another budget of questions.

        Raises:
            UsageError: The budget asks nothing.
        """
        return dataclasses.replace(self, limits=dataclasses.replace(self.limits, budget=budget))

    def place(self) -> str:
        """Return the address without credentials or query: what others may see of it.

        Example:
            >>> Adapter("https://me:secret@api.example/v1?token=secret").place()
            'https://api.example/v1'
        """
        address = urlsplit(self.url)
        return f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"

    def variables(self) -> list[str]:
        """Return the environment variables whose values the service will be sent.

        Example:
            >>> Adapter("https://api.example/v1", headers={"X-Key": "env:API_TOKEN"}).variables()
            ['API_TOKEN']
        """
        asked = (value for value in self.headers.values() if value.startswith("env:"))
        return sorted({value.removeprefix("env:") for value in asked})

    def exposed(self) -> bool:
        """Tell whether secrets of the headers would cross a network unencrypted.

        Example:
            >>> secret = {"Authorization": "env:API_TOKEN"}
            >>> Adapter("http://api.example/v1", headers=secret).exposed()
            True
            >>> Adapter("http://127.0.0.1:8000/v1", headers=secret).exposed()
            False
        """
        address = urlsplit(self.url)
        near = address.hostname in ("localhost", "127.0.0.1", "::1")
        secret = bool(self.variables())
        return address.scheme == "http" and secret and not near

    def source(self) -> str:
        """Return what is asked, without credentials or query, and the adapter's digest."""
        return f"{self.place()} {self.digest()}"

    def request(self, samples: NDArray[Any]) -> tuple[bytes, dict[str, str]]:  # Any: real numbers
        """Return the body and headers of a request for some samples.

        Raises:
            UsageError: A header asks for an environment variable that is not set.
        """
        import json

        headers = {name: _secret(name, value) for name, value in self.headers.items()}
        sent = samples.astype(np.float64) * self.scale + self.offset
        if samples.dtype.kind in "iu" and (self.scale, self.offset) == (1.0, 0.0):
            sent = samples
        if self.body == "png":
            return png(sent[0]), {
                "Content-Type": "image/png",
                "Accept": "application/json",
            } | headers
        rows: list[Any] = (  # Any: JSON
            [base64.b64encode(png(row)).decode() for row in sent]
            if self.encoding == "png"
            else sent.tolist()
        )
        value: Any = rows if self.batch > 1 else rows[0]  # Any: JSON
        for name in reversed(self.field.split(".") if self.field else []):
            value = {name: value}
        return json.dumps(value).encode(), {
            "Content-Type": "application/json",
            "Accept": "application/json",
        } | headers

    def read_all(self, reply: Any, count: int) -> list[int]:  # Any: JSON of a stranger
        """Return the labels of a reply to `count` samples.

        Raises:
            NetworkError: The reply is not of the agreed form.
        """
        if self.batch == 1:
            return [self.read(reply)]
        found = _step(reply, self.answer)
        if not isinstance(found, list) or len(found) != count:
            raise NetworkError(
                f"The answer at '{self.answer}' is no list of {count}.", expected="One a sample."
            )
        return [self._label(item) for item in found]

    def read(self, reply: Any) -> int:  # Any: JSON of a stranger
        """Return the label of a reply to one sample; raises as :meth:`read_all`."""
        return self._label(_step(reply, self.answer))

    def _label(self, found: Any) -> int:  # Any: JSON of a stranger
        if self.kind == "ranked":
            if not isinstance(found, list) or not found:
                raise NetworkError("The ranked answer is no list.")
            found = found[0]
        if self.kind == "scores":
            good = isinstance(found, list) and len(found) > 1
            if not good or not all(_is_number(item) for item in found):
                raise NetworkError("The answer is no list of finite scores.")
            return int(np.argmax(found))
        if isinstance(found, str) and found in self.names:
            return self.names.index(found)
        if isinstance(found, int) and not isinstance(found, bool) and 0 <= found < 1 << 31:
            return found
        raise NetworkError(
            f"The answer {str(found)[:80]!r} is no label.",
            expected="A class number, or one of the adapter's names.",
        )


def _is_number(item: object) -> bool:
    if not isinstance(item, (int, float)) or isinstance(item, bool):
        return False
    try:
        return math.isfinite(item)
    except OverflowError:
        return False


_TYPES: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "int | None": (int, type(None)),
}


def _require_types(made: Adapter | Limits) -> None:
    """Refuse values of another type than their field's, and no finite ones; a file holds any."""
    for item in fields(made):
        value, wanted = getattr(made, item.name), _TYPES.get(str(item.type))
        if wanted is None:
            continue
        strange = isinstance(value, float) and not math.isfinite(value)
        if strange or isinstance(value, bool) or not isinstance(value, wanted):
            raise TypeError(f"{item.name} is {value!r}")


def _require_address(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # no port, or no address in brackets
        good = False
    plain = _printable(url) and " " not in url
    if not good or not plain:
        wanted = "http(s)://HOST[:PORT]/..., with a PORT from 1 to 65535."
        others = "Printable ASCII without spaces; write others as %20 and xn--..."
        raise UsageError(
            f"'{url}' is no http or https address.", expected=wanted if plain else others
        )


def _printable(text: str) -> bool:
    return text.isascii() and text.isprintable()


def _secret(name: str, value: str) -> str:
    """Return a header's value, from the environment if it says so; errors never quote it."""
    variable = value.removeprefix("env:")
    if variable != value and variable.upper().startswith("EARMARK_"):
        raise UsageError(
            f"Header {name} asks for the environment variable {variable}, which is earmark's own.",
            expected="A variable with the service's own secret.",
        )
    found = os.environ.get(variable) if variable != value else value
    if found is None:
        raise UsageError(
            f"Header {name} is taken from the environment variable {variable}, which is not set."
        )
    if not _printable(found.strip()):
        raise UsageError(f"Header {name} has a value that is no line of printable ASCII.")
    return found.strip()


def _step(value: Any, path: str) -> Any:  # Any: JSON of a stranger
    for name in path.split(".") if path else []:
        try:
            value = value[int(name)] if isinstance(value, list) else value[name]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise NetworkError(
                f"The reply has nothing at '{path}'.",
                hint="Correct the adapter's `answer`.",
            ) from error
    return value


def png(image: NDArray[np.float64]) -> bytes:
    r"""Write a picture as PNG, 8 bits a channel.

    Args:
        image: (1 or 3, height, width) or (height, width), 0 black to 1 white; clipped.

    Raises:
        UsageError: Another shape.

    Example:
        >>> png(np.zeros((1, 2, 2)))[:4]
        b'\x89PNG'
    """
    planes = image[None] if image.ndim == 2 else image
    if planes.ndim != 3 or len(planes) not in (1, 3):
        raise UsageError(
            f"A sample of shape {image.shape} is no picture.",
            expected="(height, width), (1, height, width) or (3, height, width).",
        )
    pixels = np.clip(np.rint(planes * 255), 0, 255).astype(np.uint8).transpose(1, 2, 0)
    height, width, channels = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(name: bytes, data: bytes) -> bytes:
        sum_ = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + sum_

    head = struct.pack(">IIBBBBB", width, height, 8, 0 if channels == 1 else 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", head)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )
