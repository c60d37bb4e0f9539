"""The protocol's messages on a chain: a vote's cheap half is enforced by the contract too.

Every message is entered in the contract's log, and `earmark.protocol.resolve` decides from there as
in every other tier. For claims and votes the contract enforces in addition what it can without
reading a record: one voter, one sealed ballot, in time, shown as it was sealed. Its count is of the
voters' own conclusions about the suspect; whoever wants to know whether these follow from what
they counted resolves the records.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark import codec
from earmark.errors import UsageError
from earmark.ledger.evm.ledger import EvmLedger, require_record
from earmark.ledger.service import Seen
from earmark.protocol import messages as m
from earmark.protocol.community import Community
from earmark.protocol.history import ClaimFile, History, entry_of
from earmark.protocol.party import Party
from earmark.protocol.voting import Count, questions
from earmark.records import Outcome, Receipt

NUMBERS = {Outcome.SHOWN: 1, Outcome.NOT_SHOWN: 2, Outcome.INCONCLUSIVE: 3}
"""How the contract numbers conclusions; 4 is no quorum."""


@dataclass(frozen=True, slots=True)
class Sealed:
    """What a voter must keep between sealing and showing a ballot.

    Args:
        docket: The case.
        outcome: The voter's conclusion about the suspect.
        report: Digest of the ballot.
        salt: 64 hexadecimal digits.
    """

    docket: str
    outcome: Outcome
    report: str
    salt: str


def docket(claim: m.Claim, record: bytes) -> str:
    """Return the number of a claim's case, 64 hexadecimal digits.

    Args:
        claim: The claim.
        record: Its envelope.
    """
    parts = (codec.digest(record), claim.opening.commitment(), claim.suspect, claim.disclosure)
    return hashlib.sha256(b"".join(bytes.fromhex(part) for part in parts)).hexdigest()


class OnChain:
    """Sends a community's messages to a contract.

    Args:
        ledger: The log, opened with an account; a voter's account must be in the electorate.
    """

    def __init__(self, ledger: EvmLedger) -> None:
        self.ledger = ledger

    def append(self, record: bytes, *, vote: Sealed | None = None) -> Receipt:
        """Enter a message by the contract's function for its kind and wait until it is final.

        Args:
            record: The signed envelope.
            vote: For ballots: what was, or is being, sealed.

        Raises:
            RecordError, SignatureError: No signed message.
            OutputError: The contract refuses: too late, no voter, voted before, ...
            UsageError: A ballot without `vote`.
        """
        require_record(record)
        message, _ = m.open_message(record)
        if isinstance(message, m.Claim):
            parts = (message.opening.commitment(), message.suspect, message.disclosure)
            self._send("open_claim", record, *map(bytes.fromhex, parts))
        elif isinstance(message, (m.VoteCommit, m.VoteReveal)):
            self._vote(message, record, vote)
        elif isinstance(message, m.Challenge):
            self._send("challenge", record, bytes.fromhex(self._docket(message.claim)))
        else:
            self.ledger.send(record)
        return self.ledger.settle(record)

    def seal(self, history: History, file: ClaimFile, ballot: m.Ballot, salt: str) -> Sealed:
        """Conclude from a ballot what the contract is to count.

        Args:
            history: The accepted messages.
            file: The claim.
            ballot: What the voter found.
            salt: 64 fresh hexadecimal digits.
        """
        count = Count(history, file)
        count.ballots = {"": ballot}
        outcome, _ = count.outcomes(questions(history, file)[0])[""]
        return Sealed(self._docket(file.id), outcome, ballot.sealed(), salt)

    def resolve(self, file: ClaimFile) -> int:
        """Have the contract close a case, if nobody has, and return its number for the outcome.

        Raises:
            OutputError: Voting goes on.
        """
        number = bytes.fromhex(self._docket(file.id))
        newest = self.ledger.chain.newest()
        outcome = self.ledger.chain.call("cases", number, at=newest)[-1]
        if not outcome:
            self._send("resolve", number)
            outcome = self.ledger.chain.call("cases", number, at=self.ledger.chain.newest())[-1]
        return int(outcome)

    def _vote(
        self, message: m.VoteCommit | m.VoteReveal, record: bytes, vote: Sealed | None
    ) -> None:
        if vote is None:
            raise UsageError("A ballot goes on the chain together with its seal.")
        number, report = bytes.fromhex(vote.docket), bytes.fromhex(vote.report)
        salt, verdict = bytes.fromhex(vote.salt), NUMBERS[vote.outcome]
        if isinstance(message, m.VoteReveal):
            self._send("vote_reveal", record, number, verdict, report, salt)
            return
        chain = self.ledger.chain
        seal = chain.call("ballot_seal", number, chain.account, verdict, report, salt)
        self._send("vote_commit", record, number, bytes(seal))

    def _docket(self, claim: str) -> str:
        for _, record in self.ledger.scan():
            if codec.digest(record) == claim:
                message, _ = m.open_message(record)
                if isinstance(message, m.Claim):
                    return docket(message, record)
        raise UsageError(f"The chain holds no claim {claim[:12]}.")

    def _send(self, function: str, *arguments: object) -> None:
        self.ledger.chain.send(function, *arguments)


class ChainParty(Party):
    """A reader of a community whose log is on a chain, who may also sign messages.

    Files still come from, and go to, the community's node: a chain keeps records only.

    Args:
        community: The community's file, from a source that you trust.
        ledger: The contract; opened with an account by who sends messages.
        key: Signs messages; null for somebody who only reads.
    """

    def __init__(
        self, community: Community, ledger: EvmLedger, key: Ed25519PrivateKey | None = None
    ) -> None:
        super().__init__(community, key)
        self.ledger = ledger
        self._seen: list[Seen] = []

    @property
    def entries(self) -> Sequence[Seen]:
        """The entries that were accepted."""
        return self._seen

    def sync(self) -> None:
        """Read what has become final; see `earmark.ledger.evm.ledger.EvmLedger.sync`."""
        for seen in self.ledger.seen(len(self._seen)):
            self.history.read(entry_of(seen))
            self._seen.append(seen)

    def _add(self, record: bytes) -> None:
        OnChain(self.ledger).append(record)
