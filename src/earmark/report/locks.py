"""Pages about a locked parent and about a traced leak; each says what a lock does not do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from earmark import __version__
from earmark.errors import UsageError
from earmark.report import parts
from earmark.report.markup import Markup, join, name, tag
from earmark.report.numbers import chance, fixed, number
from earmark.wording import counted

NOT_BY_A_LOCK = (
    "A customer can always wrap his copy so that it presents his number by itself, or distil it "
    "into a model that needs none. No lock of this kind stops either.",
    "The lock in the weights is no cryptography. Whoever holds the weights can look for a number "
    "that opens them, and on some networks it is found in seconds; whoever holds data can train "
    "the lock away.",
    "What protects the file is the encryption around it, and only until a customer opens it.",
)
NOT_BY_A_TRACE = (
    "Nobody is cleared by not being named.",
    "A model that was distilled from a copy, or trained anew, bears no fingerprint.",
    "It says whose copy this was made from, not who passed it on: a copy can be stolen from a "
    "customer.",
)


@dataclass(frozen=True, slots=True)
class Locked:
    """What the page on a locked parent shows.

    Args:
        model: What readers call the model.
        lock: Name of the lock.
        created: When, as records write it.
        bits: Bits of the code that the network sees.
        unlocked: Utility of the private model.
        right: Utility with the number.
        absent: Utility without.
    """

    model: str
    lock: str
    created: str
    bits: int
    unlocked: float
    right: float
    absent: float


@dataclass(frozen=True, slots=True)
class Suspicion:
    """One customer's line on the page on a leak.

    Args:
        customer: Who.
        license: Number of his license.
        bits: Evidence against him, net of all customers.
        named: Whether he is named.
    """

    customer: str
    license: int
    bits: float
    named: bool


@dataclass(frozen=True, slots=True)
class Leak:
    """What the page on a leak shows.

    Args:
        suspect: What readers call the leaked model.
        created: When, as records write it.
        ranking: Customers, most suspicious first.
        threshold: Net bits that naming somebody takes.
        customers: Customers that were looked at.
        forms: Forms of the suspect that were tried.
        read: Bits of the code that could be read.
        length: Bits of the code.
        notes: What the reader should know besides.

    Raises:
        UsageError: Somebody is named below the threshold, or not named at it.
    """

    suspect: str
    created: str
    ranking: Sequence[Suspicion]
    threshold: float
    customers: int
    forms: int
    read: int
    length: int
    notes: Sequence[str] = ()

    def __post_init__(self) -> None:
        if any(item.named != (item.bits >= self.threshold) for item in self.ranking):
            raise UsageError("Customers are named at the threshold, and only there.")


def locked_page(content: Locked) -> str:
    """Write the page on a locked parent; the same content gives the same bytes.

    Example:
        >>> page = locked_page(Locked("net", "dsn", "2027-07-04T08:00:00Z", 64, 86.3, 85.7, 10.0))
        >>> "no cryptography" in page
        True
    """
    lost = content.unlocked - content.right
    pairs: list[tuple[object, object]] = [
        (fixed(content.unlocked, 2), "without a lock"),
        (fixed(content.right, 2), f"with the number: {fixed(lost, 2)} lost"),
        (fixed(content.absent, 2), "without a number"),
    ]
    return _page(
        "Locked model",
        content.model,
        content.created,
        tag("h1", "This model answers with its serial number, and refuses without."),
        parts.section("What it costs, and what it leaves", parts.facts(pairs)),
        parts.section(
            "How it is locked",
            parts.listing(
                [
                    ("Lock", name(content.lock)),
                    ("Code in the network", f"{content.bits} bits, stretched from 128"),
                ]
            ),
        ),
        parts.section("What this does not say", parts.bullets(NOT_BY_A_LOCK)),
    )


def leak_page(content: Leak) -> str:
    """Write the page on a leak; the same content gives the same bytes.

    Example:
        >>> line = Suspicion("acme", 1, 310.2, named=True)
        >>> page = leak_page(Leak("leak", "2027-07-04T08:00:00Z", [line], 20, 100, 1, 991, 991))
        >>> "Nobody is cleared" in page and "no cryptography" in page
        True
    """
    named = [item for item in content.ranking if item.named]
    columns = ("Customer", "License", "Bits", "Named")
    rows = [
        parts.row(
            columns,
            name(item.customer),
            [
                str(item.license),
                fixed(item.bits, 1),
                tag("b", "yes") if item.named else "no",
            ],
        )
        for item in content.ranking
    ]
    asked: list[tuple[str, object]] = [
        (
            "Asked for",
            f"{number(content.threshold)} bits, net of {counted(content.customers, 'customer')} "
            f"and {counted(content.forms, 'form')} of the suspect: some innocent is named with a "
            f"probability of at most {chance(content.threshold)}.",
        ),
        ("Read", f"{content.read:,} of {content.length:,} bits of the code"),
    ]
    notes = [name(item, longest=600) for item in content.notes]
    return _page(
        "Traced leak",
        content.suspect,
        content.created,
        tag("h1", _sentence(content.suspect, [item.customer for item in named])),
        parts.section("Who", parts.table(columns, rows), parts.listing(asked)),
        parts.section(
            "What this does not say",
            parts.bullets([*NOT_BY_A_TRACE, *NOT_BY_A_LOCK, *notes]),
        ),
    )


def _sentence(suspect: str, named: Sequence[str]) -> Markup:
    if not named:
        return join("It cannot be told from whose copy ", name(suspect), " was made.")
    people = join(*(join(", " if i else "", name(item)) for i, item in enumerate(named)))
    copies = "copy" if len(named) == 1 else "copies"
    return join(name(suspect), f" was made from the {copies} of ", people, ".")


def _page(kind: str, about: str, created: str, *inner: object) -> str:
    return parts.page(
        f"{kind}: {about}",
        parts.header(f"earmark, {kind.lower()}", about, created),
        *inner,
        tag("p", f"Written by earmark {__version__}.", class_="foot"),
    )
