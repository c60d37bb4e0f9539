"""Every scheme and attack of the registry, held to the house's rules; none is left out."""

from __future__ import annotations

import pytest

from earmark import registry
from earmark.testing import check_attack, check_scheme

# Settings that suit hosts of a few thousand weights; a scheme that is not named runs as it is.
SCHEMES: dict[str, dict[str, object]] = {
    "mtlsign": {"triggers": 128, "shards": 2, "directions": 1, "weight": 0.1, "settle": 0.0},
    "adi": {"count": 24, "every": 1},
    "deepsigns": {"bits": 64},
    "deepsigns-blackbox": {"count": 32, "every": 1},
    "deepsigns-blackbox-paper": {"every": 1, "oversample": 5},
}
# Where a published scheme has room for fewer bits on hosts so small.
BITS = {"deepmarks": 12.0, "deepsigns-paper": 12.0}
# Epochs of the embedding, where the usual twenty are too few or far more than are needed.
RECIPES: dict[str, dict[str, object]] = {
    "mtlsign": {"epochs": 30},
    "adi": {"epochs": 10},
    "deepsigns-blackbox": {"epochs": 12},
    "deepsigns-blackbox-paper": {"epochs": 10},
    "deepwater": {"epochs": 10},
}
ATTACKS: dict[str, dict[str, object]] = {
    "cleanse-patches": {"steps": 10},
    "jacobian-augmentation": {"rounds": 1, "epochs": 0.1},
    "knockoff": {"queries": 256},
    "launder": {"steps": 10},
    "prune-adversarially": {"steps": 20},
    "refit": {"epochs": 3},
    "overwrite": {
        "scheme": "mtlsign",
        "settings_of_scheme": SCHEMES["mtlsign"],
        "epochs": 1,
        "inputs": 200,
    },
}


@pytest.mark.parametrize("name", registry.names("scheme"))
def test_scheme(name):
    scheme = registry.scheme(name, **SCHEMES.get(name, {}))
    assert scheme.name == name
    check_scheme(scheme, keys=8, bits=BITS.get(name, 20.0), recipe=RECIPES.get(name))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", registry.names("scheme"))
def test_scheme_with_many_keys(name):
    scheme = registry.scheme(name, **SCHEMES.get(name, {}))
    check_scheme(scheme, keys=700, bits=BITS.get(name, 20.0), recipe=RECIPES.get(name))


@pytest.mark.parametrize("name", registry.names("attack"))
def test_attack(name):
    attack = registry.attack(name, **ATTACKS.get(name, {}))
    assert attack.name == name
    check_attack(attack)
