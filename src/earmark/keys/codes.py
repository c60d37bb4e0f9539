"""A code that lets a payload survive wrong and missing bits.

First-order Reed-Muller blocks, decoded softly, under a checksum; integers throughout. It is neither
a secret nor a proof of ownership. Codes that trace leaked copies are in ``earmark.keys.tracing``.
"""

from __future__ import annotations

import binascii
import operator
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from earmark.errors import CapacityError, UsageError

_MOST_ORDER = 10  # blocks of 1,024 positions for 11 bits; beyond, decoding costs more than it gains


class Decoded(NamedTuple):
    """What came out of a received word.

    Attributes:
        message: The payload, right if ``ok``.
        corrected: Positions whose sign disagrees with the codeword that was decided on.
        ok: Whether the checksum fits; random words pass with probability 2^-check_bits.
    """

    message: bytes
    corrected: int
    ok: bool


@dataclass(frozen=True, slots=True)
class Code:
    """A payload code: checksum, Reed-Muller blocks RM(1, order), and repetition of the whole.

    Message and checksum are cut into pieces of ``order + 1`` bits. Each becomes a block of
    2^order bits, any two of which differ in at least half of their places. Blocks are interleaved
    and the whole is repeated over all positions there are. Decoding adds up what the repetitions
    say and finds the nearest codeword of each block by a fast Walsh-Hadamard transform. Any
    pattern of at most ``corrects`` wrong bits is repaired; random ones are, mostly, far beyond.

    The coded bits depend on each other. Where a scheme counts hits as evidence, it must first add
    keyed pad bits and then count against those it wrote, not against what was decoded.

    Args:
        message_bits: Payload size; a multiple of 8.
        capacity: Positions that the carrier offers, all of which are used.
        order: The m of RM(1, m), 0 to 10; 0 is plain repetition.
        check_bits: Size of the checksum, 16 or 32.

    Raises:
        UsageError: A size makes no sense.
        CapacityError: The carrier is too small.

    Source:
        Reed 1954, Muller 1954; decoding after Green 1966. Changed: soft sums over an uneven
        repetition, with the exact minimum distance of the whole.

    Example:
        >>> code = Code.best(64, 1024)
        >>> code.order, code.corrects
        (6, 15)
        >>> received = list(code.encode(b"customer"))
        >>> received[:15] = [1 - bit for bit in received[:15]]
        >>> code.decode(received)
        Decoded(message=b'customer', corrected=15, ok=True)
    """

    message_bits: int
    capacity: int
    order: int
    check_bits: int = 16

    def __post_init__(self) -> None:
        if self.message_bits < 8 or self.message_bits % 8:
            raise UsageError(
                f"A payload of {self.message_bits} bits was asked for.",
                expected="It must be a positive multiple of 8.",
            )
        if self.check_bits not in {16, 32}:
            raise UsageError(f"The checksum has {self.check_bits} bits.", expected="16 or 32.")
        if not 0 <= self.order <= _MOST_ORDER:
            raise UsageError(f"The order is {self.order}.", expected=f"0 to {_MOST_ORDER}.")
        if self.capacity < self._length:
            raise CapacityError(
                f"{self.message_bits} bits need {self._length} positions at order {self.order}; "
                f"the carrier has {self.capacity}.",
                hint="Use fewer bits or a wider carrier.",
            )

    @classmethod
    def best(cls, message_bits: int, capacity: int, *, check_bits: int = 16) -> Code:
        """Return the code that repairs most errors in that capacity.

        Args:
            message_bits: Payload size; a multiple of 8.
            capacity: Positions that the carrier offers.
            check_bits: Size of the checksum, 16 or 32.

        Raises:
            UsageError: A size makes no sense.
            CapacityError: Not even the bare bits fit.

        Example:
            >>> Code.best(64, 90)
            Code(message_bits=64, capacity=90, order=1, check_bits=16)
        """
        chosen = cls(message_bits, capacity, 0, check_bits)
        for order in range(1, _MOST_ORDER + 1):
            if -((message_bits + check_bits) // -(order + 1)) << order <= capacity:
                rival = cls(message_bits, capacity, order, check_bits)
                chosen = max(chosen, rival, key=lambda code: (code.distance, code.order))
        return chosen

    @property
    def distance(self) -> int:
        """Positions in which any two codewords differ at least."""
        repeats, extra = divmod(self.capacity, self._length)
        counts = [
            repeats + (place * self._blocks + self._blocks - 1 < extra)
            for place in range(1 << self.order)
        ]  # of the last block, which is the one repeated least
        total = sum(counts)
        return min([total] + [(total - abs(value)) // 2 for value in _transform(counts)[1:]])

    @property
    def corrects(self) -> int:
        """Wrong bits, wherever they are, that decoding always repairs."""
        return (self.distance - 1) // 2

    @property
    def _blocks(self) -> int:
        """How many blocks the message and its checksum fill."""
        return -((self.message_bits + self.check_bits) // -(self.order + 1))

    @property
    def _length(self) -> int:
        """Positions of all blocks, once."""
        return self._blocks << self.order

    def encode(self, message: bytes) -> tuple[int, ...]:
        """Turn a payload into one bit per position.

        Args:
            message: ``message_bits / 8`` bytes.

        Raises:
            UsageError: The payload has another size.

        Example:
            >>> sum(Code(8, 96, order=2).encode(b"A"))
            54
        """
        if 8 * len(message) != self.message_bits:
            raise UsageError(
                f"The payload has {8 * len(message)} bits.", expected=f"{self.message_bits} bits."
            )
        return self._spread(int.from_bytes(message + self._check(message), "big") << self._spare)

    def decode(self, bits: Sequence[int | None]) -> Decoded:
        """Recover the payload from hard bits.

        Args:
            bits: 0, 1, or None where nothing could be read; one per position.

        Raises:
            UsageError: Their number or a value is wrong.

        Example:
            >>> code = Code(8, 96, order=2)
            >>> code.decode([None] * 50 + list(code.encode(b"A")[50:])).message
            b'A'
        """
        strange = [bit for bit in bits if bit not in {0, 1, None}]
        if strange:
            raise UsageError(
                f"A bit is {strange[0]!r}.",
                expected="Bits are 0, 1 or None.",
                hint="Signed strengths go to decode_soft.",
            )
        return self.decode_soft([0 if bit is None else 2 * bit - 1 for bit in bits])

    def decode_soft(self, values: Sequence[int]) -> Decoded:
        """Recover the payload from signed strengths.

        Args:
            values: One integer per position: positive for 1, negative for 0, zero for unknown;
                the size says how sure the reading is.

        Raises:
            UsageError: Their number or a value is wrong.

        Example:
            >>> code = Code(8, 96, order=2)
            >>> code.decode_soft([5 if bit else -5 for bit in code.encode(b"A")]).ok
            True
        """
        if len(values) != self.capacity:
            raise UsageError(f"{len(values)} positions came.", expected=f"{self.capacity}.")
        sums = [0] * self._length
        for place, value in enumerate(values):
            sums[place % self._length] += _whole(value)
        word = 0
        for block in range(self._blocks):
            spectrum = _transform(sums[block :: self._blocks])
            mask = max(range(len(spectrum)), key=lambda a: abs(spectrum[a]))
            word = word << (self.order + 1) | (spectrum[mask] > 0) << self.order | mask
        size = (self.message_bits + self.check_bits) // 8
        text = (word >> self._spare).to_bytes(size, "big")
        message = text[: self.message_bits // 8]
        corrected = sum(
            value * (1 if bit else -1) < 0
            for value, bit in zip(values, self._spread(word), strict=True)
        )
        clean = word == word >> self._spare << self._spare
        return Decoded(message, corrected, clean and text == message + self._check(message))

    @property
    def _spare(self) -> int:
        """Zero bits that fill up the last block."""
        return self._blocks * (self.order + 1) - self.message_bits - self.check_bits

    def _check(self, message: bytes) -> bytes:
        """Return the checksum; that of zeros is not zero."""
        if self.check_bits == 16:
            return binascii.crc_hqx(message, 0xFFFF).to_bytes(2, "big")
        return zlib.crc32(message).to_bytes(4, "big")

    def _spread(self, word: int) -> tuple[int, ...]:
        """Encode the bits of all blocks and repeat them over the positions."""
        width = self.order + 1
        pieces = [
            word >> (width * (self._blocks - 1 - block)) & ((1 << width) - 1)
            for block in range(self._blocks)
        ]
        places = [place | 1 << self.order for place in range(1 << self.order)]
        once = [(piece & place).bit_count() & 1 for place in places for piece in pieces]
        return tuple(once[i % self._length] for i in range(self.capacity))


def _transform(values: Sequence[int]) -> list[int]:
    """Return the Walsh-Hadamard transform of 2^m integers."""
    out, half = list(values), 1
    while half < len(out):
        for start in range(0, len(out), 2 * half):
            for i in range(start, start + half):
                out[i], out[i + half] = out[i] + out[i + half], out[i] - out[i + half]
        half *= 2
    return out


def _whole(value: int) -> int:
    """Return an integer of any integral type as int, or refuse it."""
    try:
        return operator.index(value)
    except TypeError:
        raise UsageError(f"A value is {value!r}.", expected="It must be an integer.") from None
