from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earmark.errors import CapacityError, UsageError
from earmark.keys.codes import Code

SIZES = [(8, 24), (8, 30), (8, 100), (16, 77), (64, 80), (64, 333), (64, 1024), (128, 2000)]


def words(code, seed):
    """A payload of that code and its coded bits."""
    message = random.Random(seed).randbytes(code.message_bits // 8)
    return message, list(code.encode(message))


@pytest.mark.parametrize("check_bits", [16, 32])
@pytest.mark.parametrize(("message_bits", "capacity"), SIZES)
def test_best_is_the_order_of_greatest_distance(message_bits, capacity, check_bits):
    if message_bits + check_bits > capacity:
        with pytest.raises(CapacityError):
            Code.best(message_bits, capacity, check_bits=check_bits)
        return
    distances = []
    for order in range(11):
        try:
            distances.append(Code(message_bits, capacity, order, check_bits).distance)
        except CapacityError:
            distances.append(0)
    best = Code.best(message_bits, capacity, check_bits=check_bits)
    assert best.distance == max(distances)
    assert best.order == max(i for i, d in enumerate(distances) if d == best.distance)


@pytest.mark.parametrize(
    ("capacity", "order"), [(24, 0), (57, 0), (24, 1), (32, 2), (50, 2), (61, 3), (99, 4)]
)
def test_distance_is_the_least_weight_of_a_block(capacity, order):
    code = Code(8, capacity, order)
    blocks, length = code._blocks, code._length
    least = capacity
    for block, piece in itertools.product(range(blocks), range(1, 2 ** (order + 1))):
        word = code._spread(piece << (order + 1) * (blocks - 1 - block))
        assert all(i % length % blocks == block for i, bit in enumerate(word) if bit)
        least = min(least, sum(word))
    assert code.distance == least
    assert code.corrects == (least - 1) // 2


@given(st.sampled_from(SIZES), st.integers(0, 10), st.sampled_from([16, 32]), st.randoms())
@settings(max_examples=60, deadline=None)
def test_any_pattern_up_to_the_bound_is_repaired(size, order, check_bits, rng):
    try:
        code = Code(*size, order, check_bits)
    except CapacityError:
        return
    message, bits = words(code, rng.random())
    wrong = rng.sample(range(code.capacity), code.corrects)
    for place in wrong:
        bits[place] ^= 1
    assert code.decode(bits) == (message, len(wrong), True)


@pytest.mark.parametrize("order", [0, 2, 3, 5])
def test_the_worst_pattern_is_repaired_up_to_the_bound_and_not_beyond(order):
    code = Code(16, 400, order)
    message, bits = words(code, 4)
    other = list(code._spread(1))  # the lightest codewords change the last block
    weights = {sum(w): w for w in (list(code._spread(p)) for p in range(1, 2 ** (order + 1)))}
    other = weights[min(weights)]
    places = [i for i, bit in enumerate(other) if bit]
    assert len(places) == code.distance
    for place in places[: code.corrects]:
        bits[place] ^= 1
    assert code.decode(bits) == (message, code.corrects, True)
    for place in places[code.corrects : code.distance // 2 + 1]:
        bits[place] ^= 1
    decoded = code.decode(bits)
    assert not decoded.ok
    assert decoded.corrected <= code.corrects


def test_random_errors_far_beyond_the_bound():
    code = Code.best(64, 1024)
    rng, right = random.Random(1), 0
    for trial in range(40):
        message, bits = words(code, trial)
        decoded = code.decode([bit ^ (rng.random() < 0.15) for bit in bits])
        assert decoded.ok == (decoded.message == message)
        right += decoded.ok
    assert code.corrects == 15
    assert right >= 38  # some 154 wrong bits each


def test_soft_values_repair_more_than_hard_bits():
    code = Code.best(64, 512)
    rng = np.random.default_rng(3)
    hard = soft = 0
    for trial in range(30):
        _, bits = words(code, trial)
        noisy = (2 * np.array(bits) - 1) + rng.normal(0, 1.15, 512)
        soft += code.decode_soft(np.round(100 * noisy).astype(int)).ok
        hard += code.decode((noisy > 0).astype(int)).ok
    assert soft >= 27
    assert hard <= soft - 5


@pytest.mark.parametrize(("message_bits", "capacity"), SIZES[1:4])
def test_fewer_erasures_than_the_distance_are_filled(message_bits, capacity):
    code, rng = Code.best(message_bits, capacity), random.Random(5)
    for trial in range(20):
        message, bits = words(code, trial)
        for place in rng.sample(range(capacity), code.distance - 1):
            bits[place] = None
        assert code.decode(bits) == (message, 0, True)
    assert not code.decode([None] * capacity).ok


@pytest.mark.parametrize(("message_bits", "capacity"), SIZES)
def test_words_without_information_do_not_pass(message_bits, capacity):
    code = Code.best(message_bits, capacity)
    for constant in (0, 1):
        assert not code.decode([constant] * capacity).ok


def test_random_words_pass_as_seldom_as_the_checksum_says():
    code, rng = Code.best(8, 24), random.Random(2)
    passed = sum(code.decode([rng.getrandbits(1) for _ in range(24)]).ok for _ in range(2000))
    assert passed <= 3  # 0.05 expected


def test_fill_bits_are_checked():
    code = Code(8, 32, 2)  # 24 bits in 8 blocks of 3: none to fill
    assert code._spare == 0
    code = Code(8, 64, 3)  # 24 bits in 6 blocks of 4
    assert code._spare == 0
    code = Code(8, 80, 4)  # 24 bits in 5 blocks of 5: one to fill
    assert code._spare == 1
    word = int.from_bytes(b"A" + code._check(b"A"), "big") << 1
    assert code.decode(code._spread(word)).ok
    assert code.decode(code._spread(word | 1)) == (b"A", 0, False)


def test_frozen_vectors():
    assert "".join(map(str, Code(8, 32, 2).encode(b"A"))) == "00001101001111001011111110001110"
    assert Code(8, 40, 0, 32).encode(b"\0")[8:] == tuple(map(int, f"{0xD202EF8D:032b}"))


@pytest.mark.parametrize(
    "arguments", [(0, 99, 0), (9, 99, 0), (-8, 99, 0), (8, 99, 11), (8, 99, -1), (8, 99, 1, 8)]
)
def test_refuses_nonsense(arguments):
    with pytest.raises(UsageError):
        Code(*arguments)


def test_refuses_wrong_sizes_and_values():
    code = Code.best(16, 64)
    for action in (
        lambda: code.encode(b"abc"),
        lambda: code.decode([0] * 63),
        lambda: code.decode([2] * 64),
        lambda: code.decode([-1] * 64),
        lambda: code.decode([1.0] * 64),
        lambda: code.decode_soft([0.5] * 64),
        lambda: code.decode_soft([1] * 65),
    ):
        with pytest.raises(UsageError):
            action()
    with pytest.raises(CapacityError, match="80"):
        Code.best(64, 79)
