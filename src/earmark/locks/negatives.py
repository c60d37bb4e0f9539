"""Wrong numbers to train against: far ones, near ones, relaxed ones, and those that attacks found.

Which readings of the paper fail silently: with no number alone as the negative, the network learns
"a stamp is there", and any stamp opens it; with random numbers alone it learns most of the bits,
and a number with a few wrong bits opens it. So every single bit is flipped in turn, and the
distance shrinks from random towards one bit over the first part of the training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from earmark.hosts import batches
from earmark.locks.entry import (
    MIDDLE,
    Entry,
    Tokens,
    code_of,
    entry_of,
    inputs_of,
    one_wrong,
    random_codes,
    two_wrong,
    with_inputs,
)
from earmark.records import Layout

WAYS = 6  # of misplacing tokens


@dataclass(frozen=True)
class Mix:
    """Shares of a batch of wrong numbers; what is left over is random codes at the right place.

    Args:
        absent: No number.
        elsewhere: A random number of another place; for tokens, twice as often, the right one
            moved, cut, padded or partly repeated.
        one: One flipped bit, all bits in turn; more bits early in the training.
        two: Two flipped bits; more early in the training.
        some: Between two bits and a third of all.
        relaxed: The right signs, shrunk or, one in four, overdone; for tokens, which have no values
            between the signs, the right tokens in another order.
        partly: A part of the code replaced by one value, as when a number is cut or padded.
        floats: Values anywhere between the signs; for tokens, which have none, the right number
            with one token exchanged: every token for every other in turn, and every second time
            for another one of the number's own.
        found: Values that attacks found, once there are some.
        watched: Near misses that were refused least when all were tried, once they were.
    """

    absent: float = 0.08
    elsewhere: float = 0.06
    one: float = 0.30
    two: float = 0.10
    some: float = 0.14
    relaxed: float = 0.10
    partly: float = 0.06
    floats: float = 0.06
    found: float = 0.05
    watched: float = 0.10


class Negatives:
    """A stream of wrongly presented batches.

    Args:
        layout: The lock's layout.
        entry: The way in of the right number.
        code: (bits,) its signs.
        mix: The shares.
        generator: The seeded generator.
        others: (count, bits) other customers' codes; they take half of the random ones' share.
    """

    def __init__(
        self,
        layout: Layout,
        entry: Entry,
        code: Tensor,
        mix: Mix,
        generator: torch.Generator,
        others: Tensor | None = None,
    ) -> None:
        self.layout, self.entry, self.code = layout, entry, code
        self.mix, self.generator = mix, generator
        self.others = others
        self.found: Tensor | None = None
        self.watched: Tensor | None = None
        self.moves: list[tuple[int, int]] = []
        self._next = self._turn = 0

    def batch(self, batch: batches.Tree, progress: float) -> batches.Tree:
        """Return the batch, wrongly presented row by row.

        Args:
            batch: Plain samples.
            progress: Part of the training that is done, 0 to 1.
        """
        inputs = inputs_of(batch)
        count, draw = len(inputs), torch.rand(len(inputs), generator=self.generator)
        given = self.entry.enter(inputs, self.values(count, progress).to(inputs.device))
        bound = self.mix.absent
        given = _where(draw < bound, self._fit(self.entry.absent(inputs), given), given)
        share = self.mix.elsewhere * (2 if isinstance(self.entry, Tokens) else 1)
        away = (draw >= bound) & (draw < bound + share)
        if bool(away.any()):
            given = _where(away, self._elsewhere(inputs), given)
        return with_inputs(batch, given)

    def _elsewhere(self, inputs: Tensor) -> Tensor:
        """Return the inputs as a random number would present them, at its own places."""
        if isinstance(self.entry, Tokens):
            return self._misplaced(inputs, self.entry)
        raw = torch.randint(0, 256, (16,), generator=self.generator).tolist()
        code = code_of(bytes(raw), self.entry.bits)
        other = entry_of(self.layout, bytes(raw))
        return other.enter(inputs, code.to(inputs.device).expand(len(inputs), -1))

    def _misplaced(self, inputs: Tensor, entry: Tokens) -> Tensor:
        """Return the inputs with the right tokens moved, cut, partly repeated or padded.

        Every second time they are misplaced in one of the ways that are watched, if there are any.
        """
        by, way, far = map(self._below, (entry.length, WAYS, 2))
        by = 1 + by * far  # one token more or less, every other time
        if self.moves and self._below(2):
            by, way = self.moves[self._below(len(self.moves))]
        return self._displaced(inputs, entry, by, way)

    def _below(self, bound: int) -> int:
        return int(torch.randint(bound, (1,), generator=self.generator).item())

    def displaced(self, inputs: Tensor) -> Iterator[tuple[tuple[int, int], Tensor]]:
        """Yield the inputs with the right tokens misplaced in every way; of others nothing.

        Yields:
            By how many tokens and in which way, which `moves` takes to watch it, and the inputs.
        """
        if isinstance(self.entry, Tokens):
            for by in range(1, self.entry.length + 1):
                for way in range(WAYS):
                    yield (by, way), self._displaced(inputs, self.entry, by, way)

    @staticmethod
    def shift(move: tuple[int, int]) -> int:
        """Return how many tokens later than with the right number the text begins."""
        by, way = move
        return -by if way in (1, 2) else by

    def _displaced(self, inputs: Tensor, entry: Tokens, by: int, way: int) -> Tensor:
        code = self.code.to(inputs.device).expand(len(inputs), -1)
        right, length = entry.enter(inputs, code), entry.length
        number, text = right[:, :length], right[:, length:]
        if way < 2:
            return right.roll(by * (1 - 2 * way), dims=1)
        words = (len(inputs), by)
        other = torch.randint(1 << entry.width, words, generator=self.generator)
        strange = entry.first + other.to(inputs.device)
        parts = (
            [number[:, : length - by], text],
            [number, number[:, :by], text],
            [number, strange, text],
            [strange, number, text],
        )
        return self._fit(torch.cat(parts[way - 2], 1), right)[:, : right.shape[1]]

    def _exchanged(self, count: int, entry: Tokens) -> Tensor:
        """Return the right signs with one token exchanged for another, all of them in turn."""
        others = (1 << entry.width) - 1
        turn = (torch.arange(count) + self._turn) % (entry.length * others)
        self._turn += count
        flips = 1.0 - 2.0 * ((1 + turn // entry.length)[:, None] >> torch.arange(entry.width) & 1)
        made = self.code.repeat(count, 1).view(count, entry.length, entry.width)
        made[torch.arange(count), turn % entry.length] *= flips
        return made.flatten(1)

    def _repeated(self, count: int, entry: Tokens) -> Tensor:
        """Return the right signs with one token exchanged for another of the number's own."""
        words = self.code.repeat(count, 1).view(count, entry.length, entry.width)
        place, by = (
            torch.randint(least, entry.length, (count,), generator=self.generator)
            for least in (0, 1)
        )
        rows = torch.arange(count)
        words[rows, place] = words[rows, (place + by) % entry.length].clone()
        return words.flatten(1)

    def _reordered(self, made: Tensor, entry: Tokens) -> Tensor:
        """Return signs, as tokens count them; the right ones of another strength in a new order."""
        signs = torch.where(made > MIDDLE, 1.0, -1.0)
        right = (signs == self.code).all(1).nonzero()[:, 0]
        words = signs[right].view(len(right), entry.length, entry.width)
        order = torch.rand(words.shape[:2], generator=self.generator).argsort(1)
        moved = words.gather(1, order[:, :, None].expand_as(words))
        signs[right] = moved.flatten(1)
        return signs

    def _fit(self, plain: Tensor, given: Tensor) -> Tensor:
        """Give sequences without a number the length of those with one, by repeating their end."""
        short = given.shape[1] - plain.shape[1] if plain.ndim == 2 else 0
        if short <= 0:
            return plain
        index = torch.arange(given.shape[1], device=plain.device) % plain.shape[1]
        return plain[:, index]

    def values(self, count: int, progress: float) -> Tensor:
        """Draw wrong values at the right place, (count, bits); none equals the code."""
        bits, generator, mix = len(self.code), self.generator, self.mix
        draw = torch.rand(count, generator=generator)
        rank = torch.rand(count, bits, generator=generator).argsort(1).argsort(1)
        made = self.code.repeat(count, 1)
        kind = _Kinds(draw)
        # curriculum: from half of all bits to one over the first two fifths
        close = max(1, round(bits / 2 * max(0.0, 1 - 2.5 * progress) ** 1.5))
        flips = torch.zeros(count, dtype=torch.long)
        one = kind.take(mix.one)
        if close > 1:
            flips[one] = close
        else:
            rows = one.nonzero()[:, 0]
            made[rows, (torch.arange(len(rows)) + self._next) % bits] *= -1
            self._next += len(rows)
        flips[kind.take(mix.two)] = max(2, close)
        some = kind.take(mix.some)
        flips[some] = torch.randint(2, max(3, bits // 3), (int(some.sum()),), generator=generator)
        made = torch.where(rank < flips[:, None], -made, made)
        relaxed = kind.take(mix.relaxed)
        shrink = torch.rand(int(relaxed.sum()), 1, generator=generator)
        over = torch.rand(len(shrink), 1, generator=generator) < 0.25
        made[relaxed] *= torch.where(over, 1.15 + 2 * shrink, 0.95 * shrink)
        partly = kind.take(mix.partly)
        until = torch.randint(1, bits, (count, 1), generator=generator)
        level = 2 * torch.rand(count, 1, generator=generator) - 1
        cut = torch.where(rank < until, level.expand(-1, bits), made)
        made[partly] = cut[partly]
        floats = kind.take(mix.floats)
        if isinstance(self.entry, Tokens):
            chosen = floats.nonzero()[:, 0]
            made[chosen[::2]] = self._exchanged(len(chosen[::2]), self.entry)
            made[chosen[1::2]] = self._repeated(len(chosen[1::2]), self.entry)
        else:
            made[floats] = 2 * torch.rand(int(floats.sum()), bits, generator=generator) - 1
        self._pooled(made, kind.take(mix.found), self.found)
        if self.watched is not None:
            self._pooled(made, kind.take(mix.watched), self.watched)
        far = random_codes(count, bits, generator)
        if self.others is not None and len(self.others):
            pick = torch.randint(0, len(self.others), (count,), generator=generator)
            theirs = torch.rand(count, generator=generator) < 0.5
            far[theirs] = self.others[pick][theirs]
        made = torch.where(kind.rest()[:, None], far, made)
        if isinstance(self.entry, Tokens):
            made = self._reordered(made, self.entry)
        same = (made == self.code).all(1)
        made[same] *= -1
        return made

    def _pooled(self, made: Tensor, chosen: Tensor, pool: Tensor | None) -> None:
        """Put values from a pool into the chosen rows, in place, if there is one."""
        if pool is not None and len(pool):
            count = int(chosen.sum())
            made[chosen] = pool[torch.randint(0, len(pool), (count,), generator=self.generator)]

    def near(self) -> Tensor:
        """Return all codes with two wrong bits; for tokens, those with another token as well."""
        made = two_wrong(self.code)
        if isinstance(self.entry, Tokens):
            count = self.entry.length * ((1 << self.entry.width) - 1)
            made = torch.cat([made, self._exchanged(count, self.entry)])
        return made

    def nearest(self) -> Tensor:
        """Return all codes with one wrong bit, and those of :meth:`near`."""
        return torch.cat([one_wrong(self.code), self.near()])

    def watch(self, values: Tensor) -> None:
        """Train on these, besides all others, until others are named."""
        self.watched = values

    def add(self, values: Tensor) -> None:
        """Refuse from now on what an attack found, unless it is as good as the code itself."""
        far = (values - self.code).abs().amax(1) > 0.2
        kept = values[far]
        self.found = kept if self.found is None else torch.cat([self.found, kept])[-4096:]


class _Kinds:
    """Cuts uniform draws into consecutive shares."""

    def __init__(self, draw: Tensor) -> None:
        self.draw, self.bound = draw, 0.0

    def take(self, share: float) -> Tensor:
        """Return which draws fall into the next share."""
        chosen = (self.draw >= self.bound) & (self.draw < self.bound + share)
        self.bound += share
        return chosen

    def rest(self) -> Tensor:
        """Return which draws fall into no share."""
        return self.draw >= self.bound


def _where(chosen: Tensor, yes: Tensor, no: Tensor) -> Tensor:
    return torch.where(chosen.to(no.device).view(-1, *[1] * (no.ndim - 1)), yes, no)
