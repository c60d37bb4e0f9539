"""Keys: commitment binds, shards reveal one by one, seals hold, secrets stay secret."""

from __future__ import annotations

import dataclasses
import json
import logging
import traceback
from dataclasses import replace

import pytest

from earmark.errors import (
    EarmarkError,
    FileError,
    FormatError,
    KeyFileError,
    PassphraseError,
    UsageError,
)
from earmark.keys.secret import Disclosure, Key, RevealedShard
from earmark.ledger import merkle
from earmark.records import Layout

OWNER = "c" * 64
LAYOUT = Layout("demo", 1, ("fc",), 256, 5)
SECRET = bytes(range(32))


@pytest.fixture
def key() -> Key:
    return Key.generate(LAYOUT, secret=SECRET)


def test_fresh_keys_differ() -> None:
    assert Key.generate(LAYOUT).opening(OWNER) != Key.generate(LAYOUT).opening(OWNER)


def test_shards_belong_to_their_key_only(key) -> None:
    opening = key.opening(OWNER)
    for revealed in key.reveal(range(5)):
        assert revealed.belongs_to(opening)
        assert not revealed.belongs_to(Key.generate(LAYOUT).opening(OWNER))
        changed = dataclasses.replace(
            revealed, shard=dataclasses.replace(revealed.shard, secret=bytes(32))
        )
        assert not changed.belongs_to(opening)


def test_a_shard_cannot_take_anothers_place(key) -> None:
    first, second = key.reveal([0, 1])
    moved = RevealedShard(dataclasses.replace(first.shard, index=1), second.path)
    assert not moved.belongs_to(key.opening(OWNER))
    assert not RevealedShard(first.shard, ("zz",)).belongs_to(key.opening(OWNER))


def test_disclosure_checks_itself(key) -> None:
    opening = key.opening(OWNER)
    Disclosure(opening, key.reveal([1, 3])).check()
    with pytest.raises(KeyFileError, match="twice"):
        Disclosure(opening, key.reveal([1]) + key.reveal([1])).check()
    with pytest.raises(KeyFileError, match="does not belong"):
        Disclosure(opening, Key.generate(LAYOUT).reveal([2])).check()


def test_commitment_depends_on_everything(key) -> None:
    base = key.opening(OWNER).commitment()
    other_layout = Key.generate(dataclasses.replace(LAYOUT, message_bits=512), secret=SECRET)
    others = {
        key.opening("d" * 64).commitment(),
        other_layout.opening(OWNER).commitment(),
        Key.generate(LAYOUT, secret=bytes(32)).opening(OWNER).commitment(),
    }
    assert base not in others
    assert len(others) == 3
    assert key.commit(OWNER).commitment == base


def test_beacon_changes_messages_and_not_the_commitment(key) -> None:
    one, two = key.bind("1" * 64), key.bind("2" * 64)
    assert one.opening(OWNER) == key.opening(OWNER)
    messages = {item.shard(0).stream("labels").bytes(8) for item in (key, one, two)}
    assert len(messages) == 3
    early = {item.shard(0).early("partition").bytes(8) for item in (key, one, two)}
    assert len(early) == 1
    with pytest.raises(UsageError, match="another beacon"):
        one.bind("2" * 64)
    with pytest.raises(UsageError, match="hexadecimal"):
        key.bind("xyz")


def test_children_are_independent(key) -> None:
    secrets = {key.child(label).shard(0).secret for label in ("a", "b")} | {key.shard(0).secret}
    assert len(secrets) == 3
    assert key.child("a").shard(0).secret == key.child("a").shard(0).secret


def test_seal_and_open(key, tmp_path) -> None:
    bound = key.bind("1" * 64)
    path = tmp_path / "a.key"
    bound.seal(path, "open sesame")
    assert path.stat().st_mode & 0o777 == 0o600
    assert Key.open(path, "open sesame") == bound
    with pytest.raises(PassphraseError, match="wrong passphrase"):
        Key.open(path, "open says me")
    with pytest.raises(UsageError, match="exists"):
        bound.seal(path, "again")
    assert SECRET.hex() not in path.read_text()


def test_any_change_of_a_sealed_key_is_found(key, tmp_path) -> None:
    path = tmp_path / "a.key"
    key.seal(path, "p")
    body = json.loads(path.read_text())
    changes = [
        {"nonce": "00" * 12},
        {"sealed": "00" * 48},
        {"public": body["public"] | {"beacon": "1" * 64}},
        {"kdf": body["kdf"] | {"salt": "00" * 16}},
        {"kdf": body["kdf"] | {"n": 2}},
        {"format": "earmark/other"},
        {"nonce": "zz"},
        {"public": None},
    ]
    for change in changes:
        path.write_text(json.dumps(body | change))
        with pytest.raises((PassphraseError, FormatError)):
            Key.open(path, "p")


@pytest.mark.parametrize("content", [b"", b"not json", b"{}", b"[]", b"\x80\x02"])
def test_files_that_are_no_keys(content, tmp_path) -> None:
    path = tmp_path / "a.key"
    path.write_bytes(content)
    with pytest.raises(FormatError):
        Key.open(path, "p")
    with pytest.raises(FileError):
        Key.open(tmp_path / "missing", "p")


def test_bad_calls(key, tmp_path) -> None:
    with pytest.raises(UsageError):
        Key.generate(LAYOUT, secret=b"short")
    with pytest.raises(UsageError):
        key.shard(5)
    with pytest.raises(UsageError, match="empty passphrase"):
        key.seal(tmp_path / "a.key", "")
    assert not list(tmp_path.iterdir())


def test_secrets_reach_no_repr_log_or_error(key, tmp_path, caplog) -> None:
    caplog.set_level(logging.DEBUG)
    shown = [repr(key), str(key), repr(key.shard(0)), repr(key.reveal([0])), repr(key.child("x"))]
    shown.append(repr(Disclosure(key.opening(OWNER), key.reveal([0]))))
    shown.append(repr(key.shard(0).stream("x")))
    key.seal(tmp_path / "a.key", "passphrase")
    for act in (lambda: Key.open(tmp_path / "a.key", "wrong"), lambda: key.shard(9)):
        try:
            act()
        except EarmarkError as error:
            shown += [str(error), repr(error), "".join(traceback.format_exception(error))]
    shown.append(caplog.text)
    forbidden = [SECRET, key.shard(0).secret, key.shard(0).salt, key.child("x").shard(0).secret]
    for text in shown:
        for secret in forbidden:
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text


def test_one_coin_cannot_count_as_many() -> None:
    """Shards of one secret would have the same labels: whoever commits to them is refused."""
    layout = Layout("demo", 1, ("fc",), 64, 2)
    honest = Key.generate(layout, secret=bytes(32)).bind("0b" * 32)
    opening = honest.opening("0a" * 32)
    Disclosure(opening, honest.reveal((0, 1))).check()
    one = honest.shard(0)
    shards = (one, replace(honest.shard(1), secret=one.secret))
    leaves = [merkle.leaf_hash(shard.leaf()) for shard in shards]
    root = merkle.node_hash(*leaves)
    revealed = tuple(RevealedShard(shard, (leaves[1 - i].hex(),)) for i, shard in enumerate(shards))
    forged = replace(opening, shard_root=root.hex())
    assert all(item.belongs_to(forged) for item in revealed)
    with pytest.raises(KeyFileError, match="same secret"):
        Disclosure(forged, revealed).check()


def test_shards_of_one_disclosure_have_one_beacon() -> None:
    layout = Layout("demo", 1, ("fc",), 64, 2)
    key = Key.generate(layout, secret=bytes(32))
    first, second = key.bind("0b" * 32).reveal((0,)), key.bind("0c" * 32).reveal((1,))
    with pytest.raises(KeyFileError, match="different ledger values"):
        Disclosure(key.opening("0a" * 32), (*first, *second)).check()
