"""Time: intervals that may overlap, clocks that may lie, and a real local time-stamping authority."""

from __future__ import annotations

import base64
import datetime as dt
import itertools
import random
import shutil
import subprocess

import pytest
from authority import Authority
from hypothesis import given
from hypothesis import strategies as st

from earmark import codec
from earmark.errors import FormatError, LedgerError, NetworkError, RecordError, UsageError
from earmark.ledger.log import SqliteLedger
from earmark.ledger.note import COSIGNATURE, SignerKey, VerifierKey
from earmark.ledger.service import LogService
from earmark.ledger.timeproof import Moment, TimeProof, WitnessTime, agreed, earlier
from earmark.ledger.tsa import Rfc3161Time, over_http
from earmark.ledger.witness import Quorum, Witness

from .conftest import ORIGIN

DIGEST = codec.digest(b"something")
YEARS = 10 * 365 * 86400


def test_order_is_told_only_where_intervals_do_not_overlap():
    base = Moment("a", 1000, 10)
    for time, wanted in ((1021, True), (1020, None), (1000, None), (980, None), (979, False)):
        assert earlier(base, Moment("b", time, 10)) is wanted
    assert earlier(base, base) is None


@given(st.data())
def test_a_lying_minority_moves_no_claim_before_the_honest_clocks(data):
    honest = data.draw(st.lists(st.integers(1000, 1100), min_size=1, max_size=5))
    lies = data.draw(st.lists(st.integers(0, 10**10), max_size=4))
    moments = [Moment(f"honest {i}", time, 5) for i, time in enumerate(honest)]
    moments += [Moment(f"liar {i}", time, 5) for i, time in enumerate(lies)]
    random.Random(0).shuffle(moments)
    found = agreed(moments, faulty=len(lies))
    assert found.latest >= min(honest) + 5, "nobody dates back"
    if len(honest) > len(lies):
        assert found.latest <= max(honest) + 5, "nobody delays a quorum"


def test_what_the_clocks_together_cannot_say():
    one, two = Moment("a", 1000, 5), Moment("b", 1010, 5)
    assert agreed([one, two], faulty=0) == one
    assert agreed([one, two], faulty=1) == two
    for moments, faulty in (([], 0), ([one], 1), ([one, two], 2), ([one, two], -1)):
        with pytest.raises(UsageError):
            agreed(moments, faulty=faulty)
    with pytest.raises(UsageError, match="one source"):
        agreed([one, one], faulty=0)
    with pytest.raises(LedgerError, match="before 2000"):
        agreed([one, two], faulty=1, not_before=2000)
    assert agreed([one, two], faulty=1, not_before=1015) == two
    for bad in ((-1, 5), (5, -1)):
        with pytest.raises(RecordError):
            Moment("a", *bad)
    for digest in ("", "0" * 63, "G" * 64, "A" * 64):
        with pytest.raises(RecordError):
            TimeProof("block", digest, "")


@pytest.fixture
def service(tmp_path):
    """A log behind four witnesses, the first of which is ten years off."""
    with SqliteLedger.create(tmp_path / "l.sqlite", ORIGIN) as ledger:
        log = VerifierKey.parse(ledger.vkey)
        keys = [SignerKey.generate(f"w{i}/w", kind=COSIGNATURE) for i in range(4)]
        skews = (YEARS, 0, 1, 2)
        witnesses = [
            Witness.create(tmp_path / f"{i}.w", key, [log], clock=lambda i=i: 5000 + skews[i])
            for i, key in enumerate(keys)
        ]
        quorum = Quorum.of([key.verifier for key in keys])
        asks = {str(one.verifier): one.add for one in witnesses}
        made = LogService(ledger, tmp_path / "notes", quorum, asks)
        yield made, log, quorum
        made.close()
        for one in witnesses:
            one.close()


def test_witnesses_prove_a_digest_and_one_clock_does_not_count(service, tmp_path):
    made, log, quorum = service
    source = WitnessTime(log, quorum, made.append)
    proof = source.stamp(DIGEST)
    found = WitnessTime(log, quorum).verify(TimeProof.from_bytes(proof.canonical()))
    assert found.time in {5001, 5002}
    assert found.source == f"witnesses of {ORIGIN}"
    with pytest.raises(UsageError):
        WitnessTime(log, quorum).stamp(DIGEST)
    other = TimeProof(proof.kind, codec.digest(b"else"), proof.data)
    with pytest.raises(LedgerError, match="another record"):
        source.verify(other)
    with pytest.raises(LedgerError, match="kind"):
        source.verify(TimeProof("block", DIGEST, proof.data))
    alone = made.ledger.append(b'{"digest":"%s","schema":"earmark/stamp/1"}' % DIGEST.encode())
    with pytest.raises(LedgerError, match="0 of 4"):
        source.verify(TimeProof(proof.kind, DIGEST, alone.canonical().decode()))


needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl")


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("tsa") / "a")


@pytest.fixture(scope="module")
def token(authority):
    return Rfc3161Time([authority.pem], authority.ask).stamp(DIGEST)


@needs_openssl
def test_an_authority_stamps_a_digest(authority, token):
    before = int(dt.datetime.now(dt.timezone.utc).timestamp())
    source = Rfc3161Time([authority.pem], authority.ask)
    found = source.verify(source.stamp(DIGEST))
    assert abs(found.time - before) < 60
    assert found.uncertainty == 2, "one and a half seconds, rounded up"
    again = Rfc3161Time([authority.pem]).verify(TimeProof.from_bytes(token.canonical()))
    assert again.time <= found.time + 1
    with pytest.raises(UsageError):
        Rfc3161Time([authority.pem]).stamp(DIGEST)


@needs_openssl
def test_a_token_holds_for_nothing_else(authority, token, tmp_path):
    source = Rfc3161Time([authority.pem])
    with pytest.raises(LedgerError, match="does not hold"):
        source.verify(TimeProof(token.kind, codec.digest(b"else"), token.data))
    other = Authority(tmp_path / "b")
    with pytest.raises(LedgerError, match="does not hold"):
        Rfc3161Time([other.pem]).verify(token)
    with pytest.raises(LedgerError, match="kind"):
        source.verify(TimeProof("witnesses", DIGEST, token.data))
    for bad in ("", "x", "AAAA", base64.b64encode(b"x" * 70000).decode()):
        with pytest.raises(LedgerError):
            source.verify(TimeProof(token.kind, DIGEST, bad))
    with pytest.raises(UsageError):
        Rfc3161Time([])
    with pytest.raises(FormatError):
        Rfc3161Time([b"no certificate"])


@needs_openssl
def test_a_changed_byte_of_a_token_is_refused_or_says_the_same(authority, token):
    source = Rfc3161Time([authority.pem])
    data, wanted = base64.b64decode(token.data), source.verify(token)
    refused = 0
    for at in range(0, len(data), 3):
        changed = bytearray(data)
        changed[at] ^= 1 << at % 8
        proof = TimeProof(token.kind, DIGEST, base64.b64encode(changed).decode())
        try:
            assert source.verify(proof) == wanted, at
        except LedgerError:
            refused += 1
    assert refused > 0.95 * len(range(0, len(data), 3))


@needs_openssl
@pytest.mark.parametrize("how", [{"purpose": False}, {"valid": (-20, -10)}, {"valid": (10, 20)}])
def test_an_authority_whose_certificate_does_not_allow_it(tmp_path, how):
    made = Authority(tmp_path / "c", **how)
    with pytest.raises((LedgerError, subprocess.CalledProcessError)):
        Rfc3161Time([made.pem], made.ask).stamp(DIGEST)


@needs_openssl
def test_an_answer_to_another_request_is_refused(authority):
    from rfc3161_client import TimestampRequestBuilder

    old = authority.ask(TimestampRequestBuilder().data(bytes.fromhex(DIGEST)).build().as_bytes())
    with pytest.raises(LedgerError, match="another request"):
        Rfc3161Time([authority.pem], lambda _: old).stamp(DIGEST)


def test_an_authority_that_does_not_answer():
    with pytest.raises(NetworkError):
        over_http("http://127.0.0.1:1", seconds=1)(b"")
    with pytest.raises(UsageError):
        over_http("file:///etc/passwd")


@pytest.mark.parametrize("skew", [-YEARS, -86400, 1, YEARS])
def test_three_kinds_of_clock_of_which_one_lies(skew):
    """Of witnesses, an authority and a chain, any one may be off by years: the claim's time holds."""
    honest = {"witnesses": 5000, "authority": 5003, "chain": 5010}
    for liar in honest:
        moments = [
            Moment(name, max(0, time + (skew if name == liar else 0)), 15)
            for name, time in honest.items()
        ]
        found = agreed(moments, faulty=1)
        others = [time for name, time in honest.items() if name != liar]
        assert min(others) + 15 <= found.latest <= max(others) + 15
    for first, second in itertools.pairwise(sorted(honest.values())):
        assert earlier(Moment("a", first, 15), Moment("b", second, 15)) is None
