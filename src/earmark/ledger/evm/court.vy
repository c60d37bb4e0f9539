# pragma version 0.4.3
"""
@title Order and time for records, and the cheap half of a vote
@license Apache-2.0
@notice Nobody owns this contract, nobody can pause, change or empty it, and it holds no value.
        Records are bytes that it does not read. They stand in one RFC 6962 Merkle tree, so that
        whoever has an inclusion proof from any other kind of log can compare roots. A record or
        digest that is here already is not entered twice, and nobody gains from entering another
        one's: what belongs to whom is inside the records.
"""

MAX_RECORD: constant(uint256) = 32768
MAX_VOTERS: constant(uint256) = 64
DOMAIN: constant(bytes32) = sha256("earmark/ballot/evm/1")

SHOWN: constant(uint256) = 1
NOT_SHOWN: constant(uint256) = 2
INCONCLUSIVE: constant(uint256) = 3
NO_QUORUM: constant(uint256) = 4

struct Case:
    seal_until: uint256
    challenged: bool
    sealed: uint256
    revealed: uint256
    outcome: uint256

event Posted:
    index: indexed(uint256)
    leaf: indexed(bytes32)
    record: Bytes[MAX_RECORD]

event Stamped:
    digest: indexed(bytes32)

event Opened:
    docket: indexed(bytes32)
    claim: indexed(bytes32)
    commitment: bytes32
    suspect: bytes32
    evidence: bytes32

event Challenged:
    docket: indexed(bytes32)
    challenger: indexed(address)

event Sealed:
    docket: indexed(bytes32)
    voter: indexed(address)
    seal: bytes32

event Revealed:
    docket: indexed(bytes32)
    voter: indexed(address)
    verdict: uint256
    report: bytes32

event Resolved:
    docket: indexed(bytes32)
    outcome: uint256

name: public(immutable(String[255]))
commit_seconds: public(immutable(uint256))
extension_seconds: public(immutable(uint256))
reveal_seconds: public(immutable(uint256))
quorum: public(immutable(uint256))
voters: public(DynArray[address, MAX_VOTERS])
seat: public(HashMap[address, bool])

size: public(uint256)
places: public(HashMap[bytes32, uint256])  # leaf -> index + 1 | time << 64 | block << 128
stamps: public(HashMap[bytes32, uint256])  # digest -> 1 | time << 64 | block << 128
cases: public(HashMap[bytes32, Case])
seals: public(HashMap[bytes32, HashMap[address, bytes32]])
shown: HashMap[bytes32, HashMap[address, bool]]
counts: public(HashMap[bytes32, HashMap[uint256, uint256]])
peaks: bytes32[64]


@deploy
def __init__(
    log_name: String[255],
    electorate: DynArray[address, MAX_VOTERS],
    commit_window: uint256,
    extension: uint256,
    reveal_window: uint256,
):
    """
    @param log_name Name of the log, as it stands in checkpoints
    @param electorate The voters; another electorate takes another contract
    @param commit_window Seconds from a claim in which voters may seal a ballot
    @param extension Seconds that a challenge in time adds to that, once
    @param reveal_window Seconds after that in which they may show it
    """
    name = log_name
    commit_seconds = commit_window
    extension_seconds = extension
    reveal_seconds = reveal_window
    for voter: address in electorate:
        assert not self.seat[voter], "a voter is named twice"
        self.seat[voter] = True
    self.voters = electorate
    n: uint256 = len(electorate)
    faulty: uint256 = 0
    if n > 0:
        faulty = (n - 1) // 3
    quorum = max(1, n - faulty)


@internal
def _post(record: Bytes[MAX_RECORD]):
    leaf: bytes32 = sha256(concat(b"\x00", record))
    if self.places[leaf] != 0:
        return
    index: uint256 = self.size
    self.places[leaf] = (index + 1) | (block.timestamp << 64) | (block.number << 128)
    self.size = index + 1
    log Posted(index=index, leaf=leaf, record=record)
    node: bytes32 = leaf
    for level: uint256 in range(64):
        if index & 1 == 0:
            self.peaks[level] = node
            break
        node = sha256(concat(b"\x01", self.peaks[level], node))
        index = index >> 1


@external
def post(record: Bytes[MAX_RECORD]):
    """
    @notice Enter a record
    """
    self._post(record)


@external
def stamp(digest: bytes32):
    """
    @notice Keep when a digest was first seen; not an entry of the log
    """
    if self.stamps[digest] == 0:
        self.stamps[digest] = 1 | (block.timestamp << 64) | (block.number << 128)
        log Stamped(digest=digest)


@external
@view
def head() -> (uint256, bytes32):
    """
    @return Number of entries, and the RFC 6962 root over them
    """
    count: uint256 = self.size
    if count == 0:
        return 0, sha256(b"")
    root: bytes32 = empty(bytes32)
    started: bool = False
    rest: uint256 = count
    for level: uint256 in range(64):
        if rest == 0:
            break
        if rest & 1 == 1:
            if started:
                root = sha256(concat(b"\x01", self.peaks[level], root))
            else:
                root = self.peaks[level]
                started = True
        rest = rest >> 1
    return count, root


@external
def open_claim(
    record: Bytes[MAX_RECORD], commitment: bytes32, suspect: bytes32, evidence: bytes32
) -> bytes32:
    """
    @notice Enter a claim and open its case
    @return The case's docket: who copies the record with other digests opens another case
    """
    self._post(record)
    claim: bytes32 = sha256(record)
    docket: bytes32 = sha256(concat(claim, commitment, suspect, evidence))
    assert self.cases[docket].seal_until == 0, "this case is open already"
    self.cases[docket].seal_until = block.timestamp + commit_seconds
    log Opened(
        docket=docket, claim=claim, commitment=commitment, suspect=suspect, evidence=evidence
    )
    return docket


@external
def challenge(record: Bytes[MAX_RECORD], docket: bytes32):
    """
    @notice Enter an objection; the first one in time gives everybody more time, once
    """
    case: Case = self.cases[docket]
    assert case.seal_until != 0, "there is no such case"
    assert block.timestamp <= case.seal_until, "too late"
    self._post(record)
    if not case.challenged:
        self.cases[docket].challenged = True
        self.cases[docket].seal_until = case.seal_until + extension_seconds
    log Challenged(docket=docket, challenger=msg.sender)


@external
def vote_commit(record: Bytes[MAX_RECORD], docket: bytes32, seal: bytes32):
    """
    @notice Enter a sealed ballot; see `ballot_seal`
    """
    until: uint256 = self.cases[docket].seal_until
    assert until != 0, "there is no such case"
    assert self.seat[msg.sender], "no voter"
    assert block.timestamp <= until, "too late"
    assert self.seals[docket][msg.sender] == empty(bytes32), "voted before"
    assert seal != empty(bytes32), "no seal"
    self._post(record)
    self.seals[docket][msg.sender] = seal
    self.cases[docket].sealed += 1
    log Sealed(docket=docket, voter=msg.sender, seal=seal)


@external
@view
def ballot_seal(
    docket: bytes32, voter: address, verdict: uint256, report: bytes32, salt: bytes32
) -> bytes32:
    """
    @return What a voter commits to: bound to the chain, this contract, the case and the voter
    """
    return self._seal(docket, voter, verdict, report, salt)


@internal
@view
def _seal(
    docket: bytes32, voter: address, verdict: uint256, report: bytes32, salt: bytes32
) -> bytes32:
    return sha256(
        concat(
            DOMAIN,
            convert(chain.id, bytes32),
            convert(self, bytes32),
            docket,
            convert(voter, bytes32),
            convert(verdict, bytes32),
            report,
            salt,
        )
    )


@external
def vote_reveal(
    record: Bytes[MAX_RECORD], docket: bytes32, verdict: uint256, report: bytes32, salt: bytes32
):
    """
    @notice Show a sealed ballot, once all are sealed or the time for sealing is over
    """
    case: Case = self.cases[docket]
    over: uint256 = case.seal_until
    assert over != 0, "there is no such case"
    assert case.sealed == len(self.voters) or block.timestamp > over, "too early"
    assert block.timestamp <= over + reveal_seconds, "too late"
    assert verdict >= SHOWN and verdict <= INCONCLUSIVE, "no verdict"
    assert not self.shown[docket][msg.sender], "shown before"
    seal: bytes32 = self._seal(docket, msg.sender, verdict, report, salt)
    assert self.seals[docket][msg.sender] == seal, "not what was sealed"
    self._post(record)
    self.shown[docket][msg.sender] = True
    self.cases[docket].revealed = case.revealed + 1
    self.counts[docket][verdict] += 1
    log Revealed(docket=docket, voter=msg.sender, verdict=verdict, report=report)


@external
def resolve(docket: bytes32) -> uint256:
    """
    @notice Close a case, once a quorum agrees, all have voted, or the time is over
    @return 1 shown, 2 not shown, 3 inconclusive, 4 no quorum
    """
    case: Case = self.cases[docket]
    assert case.seal_until != 0, "there is no such case"
    assert case.outcome == 0, "resolved before"
    found: uint256 = NO_QUORUM
    for verdict: uint256 in range(1, 4):
        if self.counts[docket][verdict] >= quorum:
            found = verdict
    if found == NO_QUORUM:
        over: bool = block.timestamp > case.seal_until + reveal_seconds
        assert over or case.revealed == len(self.voters), "voting goes on"
    self.cases[docket].outcome = found
    log Resolved(docket=docket, outcome=found)
    return found
