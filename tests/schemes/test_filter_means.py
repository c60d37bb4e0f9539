from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from earmark.bench.zoo import SmallCnn
from earmark.errors import CapacityError, UsageError
from earmark.hosts.module import ModuleHost
from earmark.schemes import filter_means
from earmark.schemes.deepmarks import USERS, DeepMarks, word
from earmark.schemes.uchida import Uchida
from earmark.testing import check_scheme


@pytest.mark.parametrize("scheme", [Uchida(bits=24, weight=0.05), DeepMarks(weight=1.0)])
def test_the_house_rules(scheme):
    check_scheme(scheme, hosts=("cnn",), keys=20, recipe={"epochs": 12})


def embedded(scheme, key, *, steps: int = 400):
    torch.manual_seed(0)
    model = SmallCnn((1, 8, 8), 10, width=16, hidden=64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    with scheme.attach(model, key) as mark:
        for _ in range(steps):
            optimizer.zero_grad()
            mark.loss().backward()
            optimizer.step()
    return model


def host() -> ModuleHost:
    return ModuleHost(SmallCnn((1, 8, 8), 10, width=16, hidden=64))


def test_the_code_is_a_projective_plane():
    blocks = [set(np.flatnonzero(word(user) < 0)) for user in range(USERS)]
    for one, other in itertools.combinations(blocks, 2):
        assert len(one & other) == 1
    unions = {frozenset(a | b) for a, b in itertools.combinations(blocks, 2)}
    assert len(unions) == USERS * (USERS - 1) // 2
    with pytest.raises(UsageError, match="no user 31"):
        word(31)


def test_a_leaked_copy_and_two_colluders_are_named():
    keys = [DeepMarks(user=user).new_key(host(), secret=bytes(32)) for user in (4, 19)]
    copies = [embedded(DeepMarks(weight=1.0), key) for key in keys]
    scheme = DeepMarks()
    found = scheme.correlations(ModuleHost(copies[0]), keys[0])
    assert found.argmax() == 4
    assert scheme.measure(ModuleHost(copies[0]), keys[0]).hits > 85
    with torch.no_grad():
        for one, other in zip(copies[0].parameters(), copies[1].parameters(), strict=True):
            one.add_(other).div_(2)
    found = scheme.correlations(ModuleHost(copies[0]), keys[0])
    assert set(np.argsort(found)[-2:]) == {4, 19}


def test_directions_are_standard_normal():
    found = filter_means.gaussian(np.random.default_rng(0).bytes(8 * 100_000))
    assert abs(found.mean()) < 0.02
    assert abs(found.std() - 1) < 0.02
    assert np.isfinite(found).all()


def test_too_many_bits_are_refused():
    with pytest.raises(CapacityError, match="need filters"):
        Uchida(bits=1000).new_key(host())
    with pytest.raises(UsageError):
        Uchida(weight=0)
