"""Turn frozen dataclasses into canonical JSON and back, strictly.

The wire form is RFC 8785 (JSON canonicalization scheme), so that a record has exactly one byte
string and one digest. Reading is strict: an unknown field, a missing one, a wrong type or a
non-canonical document is refused, because a digest over something that can be written in two ways
fixes nothing. This module knows nothing of what the records mean.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import types
from collections.abc import Callable, Mapping
from enum import Enum
from fractions import Fraction
from functools import cache
from typing import Any, TypeAlias, TypeVar, Union, get_args, get_origin, get_type_hints

from earmark.errors import RecordError

# JSON has no better static type than this recursive one; mypy follows it.
Json: TypeAlias = Union[bool, int, float, str, list["Json"], dict[str, "Json"], None]  # noqa: UP007

T = TypeVar("T")

MAX_DEPTH = 32
_BRACKETS = re.compile(rb'[\[{]|[\]}]|"[^"\\]*(?:\\.[^"\\]*)*"?', re.DOTALL)
MAX_BYTES = 64 * 1024 * 1024


def canonical(value: Json) -> bytes:
    """Write a JSON value in RFC 8785 form.

    Args:
        value: Any JSON value; integers beyond 2^53 are refused.

    Returns:
        The one canonical byte string.

    Raises:
        RecordError: The value cannot be written canonically (NaN, huge integer, lone surrogate).

    Example:
        >>> canonical({"b": 1, "a": [True, None]})
        b'{"a":[true,null],"b":1}'
    """
    import rfc8785

    try:
        return bytes(rfc8785.dumps(value))
    except (rfc8785.CanonicalizationError, UnicodeEncodeError, RecursionError) as error:
        raise RecordError(
            f"A value cannot be written as canonical JSON: {error}.",
            expected="Finite numbers, integers below 2^53 and valid Unicode.",
        ) from error


def digest(data: bytes) -> str:
    """Return the SHA-256 of some bytes as 64 hexadecimal digits.

    Example:
        >>> digest(b"")[:8]
        'e3b0c442'
    """
    return hashlib.sha256(data).hexdigest()


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:  # Any: raw JSON values
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RecordError("A JSON object names the same field twice.")
    return found


def _depth(value: Json, level: int = 0) -> None:
    if level > MAX_DEPTH:
        raise RecordError(f"A JSON document is nested deeper than {MAX_DEPTH} levels.")
    if isinstance(value, dict):
        for inner in value.values():
            _depth(inner, level + 1)
    elif isinstance(value, list):
        for inner in value:
            _depth(inner, level + 1)


def _require_shallow(data: bytes) -> None:
    """Refuse deep nesting before the reader recurses: other packages raise its limit too far."""
    if data.count(b"[") + data.count(b"{") <= MAX_DEPTH:
        return
    level = 0
    for found in _BRACKETS.finditer(data):
        first = data[found.start()]
        level += (first in b"[{") - (first in b"]}")
        if level > MAX_DEPTH + 1:
            raise RecordError(f"A JSON document is nested deeper than {MAX_DEPTH} levels.")


def read_json(
    data: bytes,
    *,
    pairs: Callable[[list[tuple[str, Any]]], Any] | None = None,  # Any: JSON of a stranger
) -> Any:  # Any: as above
    """Read JSON that comes from outside and is no record; deep nesting does not reach the reader.

    Args:
        data: UTF-8 bytes.
        pairs: What to make of an object's fields; a dict if null.

    Raises:
        RecordError: Lists and objects are nested deeper than 32 levels.
        ValueError: Not JSON.

    Example:
        >>> read_json(b' {"a": [1]}')
        {'a': [1]}
    """
    _require_shallow(data)
    return json.loads(data.decode("utf-8"), object_pairs_hook=pairs)


def parse(data: bytes, *, strict: bool = True) -> Json:
    """Read a JSON document.

    Args:
        data: UTF-8 bytes.
        strict: Refuse a document that is not in canonical form.

    Returns:
        The JSON value.

    Raises:
        RecordError: Not JSON, a duplicate field, too deep or large, or not canonical.

    Example:
        >>> parse(b'{"a":1}')
        {'a': 1}
    """
    if len(data) > MAX_BYTES:
        raise RecordError(
            f"A JSON document has {len(data):,} bytes; at most {MAX_BYTES:,} are read."
        )
    try:
        value: Json = read_json(data, pairs=_no_duplicates)
    except ValueError as error:
        raise RecordError(f"This is not a JSON document: {error}.") from error
    _depth(value)
    if strict:
        require_canonical(value, data)
    return value


def require_canonical(value: Json, data: bytes) -> None:
    """Refuse bytes that are not the one way to write a value.

    Args:
        value: What was read.
        data: What it was read from.

    Raises:
        RecordError: They are not in canonical form.
    """
    if canonical(value) != data:
        raise RecordError(
            "A record is not in canonical form (RFC 8785).",
            hint="Write it with earmark; do not edit or re-indent it.",
        )


def encode(value: object) -> Json:
    """Turn a record, or a value inside one, into plain JSON."""
    if isinstance(value, Enum):
        return str(value.value)
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    if isinstance(value, (tuple, list)):
        return [encode(item) for item in value]
    if isinstance(value, Mapping):
        return {str(name): encode(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        body: dict[str, Json] = {}
        schema = getattr(value, "SCHEMA", None)
        if schema:
            body["schema"] = schema
        for field in dataclasses.fields(value):
            body[field.name] = encode(getattr(value, field.name))
        return body
    raise RecordError(f"A value of type {type(value).__name__} cannot stand in a record.")


@cache
def _hints(cls: type) -> dict[str, Any]:  # Any: run-time annotations
    return get_type_hints(cls)


def decode(cls: type[T], value: Json, *, where: str = "") -> T:
    """Build a record of a class from plain JSON, checking every field.

    Args:
        cls: A frozen dataclass of this project.
        value: The JSON object.
        where: A path for error messages.

    Raises:
        RecordError: Unknown or missing fields, wrong types, or a value the class refuses.
    """
    name = where or cls.__name__
    body = fields_of(cls, value, where=where)
    hints = _hints(cls)  # type: ignore[arg-type]
    made = {key: _decode_as(hints[key], body[key], f"{name}.{key}") for key in body}
    return cls(**made)


def fields_of(cls: type, value: Json, *, where: str = "") -> dict[str, Json]:
    """Return the fields of a record from plain JSON; what they hold is not looked at.

    Args:
        cls: A frozen dataclass of this project.
        value: The JSON object.
        where: A path for error messages.

    Raises:
        RecordError: No object, another schema, unknown or missing fields.
    """
    name = where or cls.__name__
    if not isinstance(value, dict):
        raise RecordError(f"{name} should be a JSON object, not {type(value).__name__}.")
    body = dict(value)
    schema = getattr(cls, "SCHEMA", None)
    if schema is not None:
        found = body.pop("schema", None)
        if found != schema:
            raise RecordError(
                f"{name} has schema {found!r}.", expected=f"This version reads {schema!r}."
            )
    fields = [field.name for field in dataclasses.fields(cls)]
    unknown = sorted(set(body) - set(fields))
    missing = sorted(set(fields) - set(body))
    if unknown or missing:
        raise RecordError(f"{name} has unknown fields {unknown} and lacks {missing}.")
    return {key: body[key] for key in fields}


def _decode_as(hint: Any, value: Json, where: str) -> Any:  # Any: driven by annotations
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if hint is Json or len(args) > 2:
            return value
        inner = next(arg for arg in args if arg is not type(None))
        return None if value is None else _decode_as(inner, value, where)
    if origin is tuple:
        if not isinstance(value, list):
            raise RecordError(f"{where} should be a list.")
        return tuple(_decode_as(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, dict):
            raise RecordError(f"{where} should be an object.")
        return {key: _decode_as(args[1], item, f"{where}.{key}") for key, item in value.items()}
    if dataclasses.is_dataclass(hint):
        return decode(hint, value, where=where)  # type: ignore[arg-type]
    return _decode_plain(hint, value, where)


def _decode_plain(hint: Any, value: Json, where: str) -> Any:  # Any: driven by annotations
    if hint is Fraction:
        parts = value.split("/") if isinstance(value, str) else []
        plain = all(part.isascii() and part.isdigit() and len(part) <= 400 for part in parts)
        if len(parts) == 2 and plain:
            made = Fraction(int(parts[0]), int(parts[1])) if int(parts[1]) else None
            if made is not None and encode(made) == value:
                return made
        raise RecordError(f"{where} should be a reduced fraction such as '1/2', not {value!r}.")
    if isinstance(hint, type) and issubclass(hint, Enum):
        try:
            return hint(value)
        except ValueError as error:
            allowed = ", ".join(str(item.value) for item in hint)
            raise RecordError(f"{where} is {value!r}; allowed are {allowed}.") from error
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and hint in (str, int, float, bool):
        if isinstance(value, hint) and (hint is bool or not isinstance(value, bool)):
            return value
        raise RecordError(f"{where} should be {hint.__name__}, not {type(value).__name__}.")
    return value


def json_schema(cls: type) -> dict[str, Json]:
    """Describe a record class as a JSON schema (draft 2020-12).

    Args:
        cls: A frozen dataclass with a ``SCHEMA`` name.

    Returns:
        A schema that accepts exactly the documents whose shape :func:`decode` accepts.
    """
    schema = _schema_of(cls)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": cls.__name__,
    } | schema


def _schema_of(hint: Any) -> dict[str, Json]:  # Any: driven by annotations
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if hint is Json or len(args) > 2:
            return {}
        inner = next(arg for arg in args if arg is not type(None))
        return {"anyOf": [_schema_of(inner), {"type": "null"}]}
    if origin is tuple:
        return {"type": "array", "items": _schema_of(args[0])}
    if origin is not None and issubclass(origin, Mapping):
        return {"type": "object", "additionalProperties": _schema_of(args[1])}
    if dataclasses.is_dataclass(hint):
        properties: dict[str, Json] = {}
        if getattr(hint, "SCHEMA", None):
            properties["schema"] = {"const": hint.SCHEMA}  # type: ignore[union-attr]
        hints = _hints(hint)  # type: ignore[arg-type]
        for field in dataclasses.fields(hint):
            properties[field.name] = _schema_of(hints[field.name])
        required: list[Json] = list(properties)
        return {
            "type": "object",
            "properties": properties,
            "required": required,
            "additionalProperties": False,
        }
    if hint is Fraction:
        return {"type": "string", "pattern": "^[0-9]+/[1-9][0-9]*$"}
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [str(item.value) for item in hint]}
    plain = {str: "string", int: "integer", float: "number", bool: "boolean"}
    return {"type": plain[hint]} if hint in plain else {}
