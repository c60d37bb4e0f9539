"""A vault names its keys: the one that is asked for, or those among which to choose."""

from __future__ import annotations

import pytest

from earmark.errors import UsageError
from earmark.keys.secret import Key
from earmark.records import Layout
from earmark.vault import Vault

WORD = "word"


@pytest.fixture
def vault(tmp_path):
    made = Vault.create(tmp_path / "vault", name="Owner", passphrase=WORD)
    yield made
    made.close()


def add(vault, scheme):
    key = Key.generate(Layout(scheme, 1, ("fc.weight",), 64, 1, {}))
    return vault.commit(key, WORD, note=f"a {scheme}")[1]


def test_only_the_keys_that_were_counted_are_listed(vault):
    add(vault, "tracing")
    with pytest.raises(UsageError, match=r"0 keys are in .* Keys here: none\."):
        vault.registration()
    first = add(vault, "deepwater")
    assert vault.registration() == first
    second = add(vault, "mtlsign")
    here = f"Keys here: {first.title}, {second.title}."
    with pytest.raises(UsageError, match="2 keys are in this vault") as error:
        vault.registration()
    assert error.value.expected == here
    with pytest.raises(UsageError, match="0 keys begin with 'x'") as error:
        vault.registration("x")
    assert error.value.expected == here


def test_a_tracing_key_is_no_mark_and_says_what_it_is_for(vault):
    traces = add(vault, "tracing")
    with pytest.raises(UsageError, match="traces copies") as error:
        vault.registration(traces.id)
    assert traces.title in error.value.what
    assert "earmark trace" in error.value.hint
    assert vault.key(traces.id, WORD).layout.scheme == "tracing"
