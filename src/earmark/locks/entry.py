"""How a serial number enters a network: as stamped pixels, as leading tokens, or as columns.

A serial number is first stretched by a keyed stream into a *code* of signs. Neighbouring numbers
give unrelated codes, so a nearly right number is as wrong as any other. The network sees only the
code; *values* between the signs are what an attacker may try, and what training must refuse.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from earmark.errors import CapacityError, HostError, KeyLayoutError
from earmark.hosts import batches, taps
from earmark.hosts.access import Forward
from earmark.keys.stream import KeyStream
from earmark.records import Layout

MIDDLE = 0.0
_AT_ONCE = 1024  # presented samples in one pass


def code_of(serial: bytes, bits: int) -> Tensor:
    """Stretch a serial number into signs.

    Returns:
        (bits,), float32, +1 or -1.

    Example:
        >>> code_of(bytes(16), 4).tolist()
        [-1.0, -1.0, 1.0, -1.0]
    """
    return torch.tensor(KeyStream(serial, "dsn/code").signs(bits), dtype=torch.float32)


class Entry(ABC):
    """The way in for one serial number.

    Args:
        bits: Size of the code.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits

    def present(self, batch: batches.Tree, values: Tensor) -> batches.Tree:
        """Return a batch with a code presented to every sample.

        Args:
            batch: A tensor, a tuple whose first part is the input, or a dict with one input.
            values: (bits,) or (samples, bits); signs, or anything an attacker may try.
        """
        given = inputs_of(batch)
        rows = values.expand(len(given), -1) if values.ndim == 1 else values
        return with_inputs(batch, self.enter(given, rows.to(given.device)))

    @abstractmethod
    def enter(self, inputs: Tensor, values: Tensor) -> Tensor:
        """Return inputs with values presented, row by row; the inputs are not changed."""

    @property
    @abstractmethod
    def needs(self) -> str:
        """What a model needs so that a number can be presented to it, for error texts."""

    @abstractmethod
    def absent(self, inputs: Tensor) -> Tensor:
        """Return the inputs as somebody without a number would enter them."""

    def scores(self, output: Any) -> Tensor:  # Any: the model's output
        """Return scores of the task's own samples, one row each.

        Raises:
            HostError: The output is no tensor of scores.
        """
        found = getattr(output, "logits", output)
        if not isinstance(found, Tensor) or found.ndim != 2:
            raise HostError(
                "A lock needs a model whose output is a (samples, classes) tensor.",
                hint="Give the task a `forward` that returns one.",
            )
        return found


class Pixels(Entry):
    """Code signs as dark and bright pixels at secret places, the same in all channels.

    Args:
        places: (bits * repeat,) places in the flattened image.
        bits: Size of the code.
        low: Value of a dark pixel.
        high: Value of a bright pixel.

    Example:
        >>> entry = Pixels(torch.tensor([0, 3]), bits=2, low=0.0, high=1.0)
        >>> entry.present(torch.full((1, 1, 2, 2), 0.5), torch.tensor([1.0, -1.0])).tolist()
        [[[[1.0, 0.5], [0.5, 0.0]]]]
    """

    def __init__(self, places: Tensor, *, bits: int, low: float, high: float) -> None:
        super().__init__(bits)
        self.places, self.low, self.high = places, low, high

    @property
    def needs(self) -> str:
        """Images as the task gives them."""
        return "A model of images (n, c, h, w), as the task gives them."

    def enter(self, inputs: Tensor, values: Tensor) -> Tensor:
        """Return stamped images; pixels elsewhere are untouched."""
        shade = (self.low + self.high) / 2 + (self.high - self.low) / 2 * values
        repeat = len(self.places) // self.bits
        flat = inputs.flatten(2).clone()
        spread = shade.repeat_interleave(repeat, dim=1)[:, None].expand(-1, flat.shape[1], -1)
        flat[:, :, self.places.to(flat.device)] = spread.to(flat.dtype)
        return flat.view_as(inputs)

    def absent(self, inputs: Tensor) -> Tensor:
        """Return the images as they are."""
        return inputs


class Tokens(Entry):
    """Code signs as leading tokens of a reserved part of the vocabulary.

    Args:
        first: First reserved token; 2^width of them are used.
        width: Bits a token.
        bits: Size of the code, a multiple of `width`.

    Example:
        >>> entry = Tokens(first=100, width=2, bits=4)
        >>> entry.present(torch.tensor([[7, 8]]), torch.tensor([1.0, -1.0, 1.0, 1.0])).tolist()
        [[101, 103, 7, 8]]
    """

    def __init__(self, *, first: int, width: int, bits: int) -> None:
        super().__init__(bits)
        self.first, self.width = first, width

    @property
    def length(self) -> int:
        """Number of leading tokens."""
        return self.bits // self.width

    @property
    def needs(self) -> str:
        """Tokens that no text uses, and longer sequences."""
        return (
            f"A vocabulary with tokens {self.first} to {self.first + (1 << self.width) - 1}, which "
            f"no text uses, and room for {self.length} more tokens in a sequence."
        )

    def enter(self, inputs: Tensor, values: Tensor) -> Tensor:
        """Return sequences with leading tokens; values count by their sign."""
        bits = (values > MIDDLE).long().view(len(values), -1, self.width)
        weights = 1 << torch.arange(self.width, device=bits.device)
        return torch.cat([self.first + (bits * weights).sum(2), inputs], dim=1)

    def absent(self, inputs: Tensor) -> Tensor:
        """Return the sequences as they are."""
        return inputs

    def scores(self, output: Any) -> Tensor:  # Any: the model's output
        """Return scores; for a generator, those of the positions after the number, one row each."""
        found = getattr(output, "logits", output)
        if isinstance(found, Tensor) and found.ndim == 3:
            return found[:, self.length :].flatten(0, 1)
        return super().scores(output)


class Columns(Entry):
    """Code signs as extra columns of a table, which the model must have room for.

    Args:
        bits: Size of the code, and number of extra columns.

    Example:
        >>> Columns(2).present(torch.tensor([[5.0]]), torch.tensor([1.0, -1.0])).tolist()
        [[5.0, 1.0, -1.0]]
    """

    @property
    def needs(self) -> str:
        """More columns, or none."""
        return (
            f"A model that takes {self.bits} more columns than a row has, and pads rows that come "
            "without them with zeros: the unlocked weights are of the same class."
        )

    def enter(self, inputs: Tensor, values: Tensor) -> Tensor:
        """Return rows with the code appended."""
        return torch.cat([inputs, values.to(inputs.dtype)], dim=1)

    def absent(self, inputs: Tensor) -> Tensor:
        """Return rows with the middle value, which is no sign, in all extra columns."""
        return self.enter(inputs, inputs.new_full((len(inputs), self.bits), MIDDLE))


def one_wrong(code: Tensor) -> Tensor:
    """Return all codes with one wrong bit, (bits, bits)."""
    return code * (1 - 2 * torch.eye(len(code)))


def two_wrong(code: Tensor) -> Tensor:
    """Return all codes with two wrong bits, (pairs, bits)."""
    pairs = torch.combinations(torch.arange(len(code)))
    return code * torch.ones(len(pairs), len(code)).scatter_(1, pairs, -1.0)


def try_codes(
    model: nn.Module,
    entry: Entry,
    codes: Tensor,
    samples: batches.Tree,
    *,
    forward: Forward,
    read: Callable[[Tensor], Tensor],
) -> Tensor:
    """Present each of many codes to the same samples; the model is left in the mode that it was in.

    Args:
        model: The network.
        entry: The way in.
        codes: (codes, bits).
        samples: What every code is presented to.
        forward: How the model is run.
        read: Makes of scores, (codes, answers, classes), what is kept of each code.

    Returns:
        What was read, one row a code, on the CPU.
    """
    count, found = batches.size(samples), []
    with taps.frozen_forward(model):
        for part in torch.split(codes, max(1, _AT_ONCE // count)):
            rows = batches.take(samples, torch.arange(count).repeat(len(part)))
            given = entry.present(rows, part.repeat_interleave(count, 0))
            scores = entry.scores(forward(model, given)).float()
            found.append(read(scores.view(len(part), -1, scores.shape[1])).cpu())
    return torch.cat(found)


def require_unused(inputs: Tensor, first: int, width: int) -> None:
    """Refuse texts that use the tokens of which numbers are made.

    Raises:
        CapacityError: One does; names the token.
    """
    used = inputs[(inputs >= first) & (inputs < first + (1 << width))]
    if used.numel():
        raise CapacityError(
            f"The task's texts use token {int(used[0])}, which the number needs for itself.",
            expected=f"{1 << width} tokens that no text uses; here from {first} on.",
            hint="Say where such tokens begin: first=N, or --set first=N.",
        )


def require_taken(
    model: nn.Module, entry: Entry, batch: batches.Tree, forward: Forward, *, number: bool = True
) -> None:
    """Refuse a model that cannot be presented a number, before anything is done with it.

    Args:
        model: The locked model, or the unlocked one.
        entry: The way in.
        batch: Some of the task's samples.
        forward: How the model is run.
        number: Whether a number is presented; the unlocked model takes samples as they are.

    Raises:
        HostError: The model fails on them; says what it needs.
    """
    few = batches.take(batch, torch.arange(min(2, batches.size(batch))))
    try:
        with taps.frozen_forward(model):
            forward(model, entry.present(few, torch.ones(entry.bits)) if number else few)
    except Exception as error:
        name = (
            "model does not take an input that carries"
            if number
            else "unlocked model fails without"
        )
        raise HostError(f"The {name} a number: {error}.", expected=entry.needs) from error


def random_codes(count: int, bits: int, generator: torch.Generator) -> Tensor:
    """Draw uniform codes for training and tests, (count, bits), +1 or -1."""
    return 2.0 * torch.randint(0, 2, (count, bits), generator=generator) - 1.0


def layout_of(
    batch: batches.Tree, *, bits: int, repeat: int, place: str, tokens: tuple[int, int]
) -> Layout:
    """Describe the way in that fits a task, from one of its batches.

    Args:
        batch: Training samples; images (n, c, h, w), token sequences (n, steps) of integers, or
            rows (n, columns).
        bits: Size of the code.
        repeat: Pixels a bit, for images.
        place: "patch", "spread" or "corner", for images.
        tokens: For sequences, the first reserved token and the bits a token.

    Raises:
        CapacityError: The images have too few pixels, or the bits do not fill whole tokens.
        HostError: Inputs of another kind.
    """
    inputs = inputs_of(batch)
    if inputs.is_floating_point() and inputs.ndim == 4:
        area, side = inputs[0, 0].numel(), math.isqrt(bits * repeat - 1) + 1
        if bits * repeat > area // 4 or side > min(inputs.shape[2:]):
            raise CapacityError(
                f"{bits} bits of {repeat} pixels do not fit images of {area} pixels.",
                expected=f"At most a quarter of them: {area // 4}.",
                hint="Take a shorter code with the setting bits, at least 16, or larger images.",
            )
        low, high = float(inputs.min()), float(inputs.max())
        shape = list(inputs.shape[2:])
        kind: dict[str, Any] = {"shape": shape, "repeat": repeat, "low": low, "high": high}
        kind["place"] = place
        return Layout("dsn", 1, ("pixels",), bits, 1, kind)
    if not inputs.is_floating_point() and inputs.ndim == 2:
        first, width = tokens
        if width < 1 or bits % width:
            raise CapacityError(f"{bits} bits do not fill tokens of {width} bits.")
        return Layout("dsn", 1, ("tokens",), bits, 1, {"first": first, "width": width})
    if inputs.is_floating_point() and inputs.ndim == 2:
        return Layout("dsn", 1, ("columns",), bits, 1, {})
    raise HostError(
        f"A lock has no way into inputs of shape {tuple(inputs.shape)} and type {inputs.dtype}.",
        expected="Images (n, c, h, w), token sequences (n, steps), or rows (n, columns).",
    )


def entry_of(layout: Layout, serial: bytes) -> Entry:
    """Build the way in for one serial number.

    Raises:
        KeyLayoutError: The layout is not one that :func:`layout_of` makes.
    """
    params: Mapping[str, Any] = layout.params  # Any: JSON values, checked when used
    bits = layout.message_bits
    try:
        if layout.carrier == ("pixels",):
            places = _places(params, bits, KeyStream(serial, "dsn/places"))
            low, high = float(params["low"]), float(params["high"])
            return Pixels(places, bits=bits, low=low, high=high)
        if layout.carrier == ("tokens",):
            return Tokens(first=int(params["first"]), width=int(params["width"]), bits=bits)
    except (KeyError, TypeError, ValueError) as error:
        raise KeyLayoutError(f"The lock's layout lacks or breaks {error}.") from error
    if layout.carrier == ("columns",):
        return Columns(bits)
    raise KeyLayoutError(f"This version knows no lock with the way in {layout.carrier}.")


def _places(params: Mapping[str, Any], bits: int, stream: KeyStream) -> Tensor:  # Any: JSON
    """Draw the places of a code: anywhere, or permuted within a square in a secret corner."""
    height, width = (int(size) for size in params["shape"])
    count = bits * int(params["repeat"])
    if params["place"] == "spread":
        return torch.tensor(stream.sample(count, height * width))
    side = math.isqrt(count - 1) + 1
    if params["place"] == "corner":  # as published: bottom right, bits in order
        inside = torch.arange(count)
        return (height - side + inside // side) * width + width - side + inside % side
    top, left = (stream.integer(2) * (size - side) for size in (height, width))
    inside = torch.tensor(stream.sample(count, side * side))
    return (top + inside // side) * width + left + inside % side


def inputs_of(batch: batches.Tree) -> Tensor:
    """Return the tensor that a batch feeds to the model.

    Raises:
        HostError: There is no single one.
    """
    found = batches.input_of(batch)
    if found is None:
        raise HostError("A lock needs batches whose first part is one input tensor.")
    return found


def with_inputs(batch: batches.Tree, inputs: Tensor) -> batches.Tree:
    """Return the batch with its input tensor exchanged."""
    if isinstance(batch, Tensor):
        return inputs
    if isinstance(batch, dict):
        name = next(name for name in batches.INPUT_NAMES if name in batch)
        return {**batch, name: inputs}
    return type(batch)([with_inputs(batch[0], inputs), *batch[1:]])


class Opened(nn.Module):
    """A locked model with its number built in: takes plain inputs and presents the number itself.

    This is how a licensee uses his copy, and at the same time the proof that no lock of this kind
    binds him: whoever holds a number can build this and pass it on.

    Args:
        inner: The locked model; it is not copied.
        entry: The way in.
        values: (bits,) what is presented.
    """

    def __init__(self, inner: nn.Module, entry: Entry, values: Tensor) -> None:
        super().__init__()
        self.inner, self.entry, self.values = inner, entry, values

    def forward(self, inputs: Tensor) -> Any:  # Any: the inner model's output
        """Run the inner model on inputs with the number presented."""
        output = self.inner(self.entry.present(inputs, self.values))
        if isinstance(self.entry, Tokens) and isinstance(output, Tensor) and output.ndim == 3:
            return output[:, self.entry.length :]
        return output
