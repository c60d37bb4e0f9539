"""RFC 6962 Merkle trees: hashing, growing, proving, verifying. Pure functions, no storage.

A log's tree is kept as its *complete* subtrees: the node ``(level, index)`` covers the leaves
``index * 2**level`` up to ``(index + 1) * 2**level``. Such a node never changes once its last leaf
is there, so whoever stores a log only ever adds nodes. Everything else (roots, proofs) is put
together from complete nodes through a `Reader`.

Verifiers return nothing and raise, so that a forgotten result cannot pass for a success.

Source: Laurie, Langley, Kasper, "Certificate Transparency", RFC 6962, section 2.1 (tree, proofs);
Laurie, Messeri, Stradling, RFC 9162, sections 2.1.3.2 and 2.1.4.2 (verifiers). Proofs are built
without recursion here, sizes are bounded by 2**63, and consistency is also defined from size 0.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TypeAlias

from earmark.errors import LedgerError, UsageError

Reader: TypeAlias = Callable[[int, int], bytes]
"""Gives the hash of the complete node (level, index)."""

HASH_BYTES = 32
MAX_SIZE = 2**63 - 1
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(record: bytes) -> bytes:
    """Hash the bytes of one entry.

    Example:
        >>> leaf_hash(b"").hex()[:16]
        '6e340b9cffb37a98'
    """
    return hashlib.sha256(b"\x00" + record).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash two children into their parent."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def address(level: int, index: int) -> int:
    """Number the complete nodes in the order in which a growing tree completes them.

    The nodes of a tree with n leaves have exactly the addresses 0 .. `node_count(n)` - 1, so a
    store that appends them in order needs no index.

    Args:
        level: Height above the leaves, 0 for a leaf.
        index: Position within the level.

    Example:
        >>> [address(0, 0), address(0, 1), address(1, 0), address(0, 2)]
        [0, 1, 2, 3]
    """
    last = ((index + 1) << level) - 1
    return 2 * last - last.bit_count() + level


def node_count(size: int) -> int:
    """Count the complete nodes of a tree with `size` leaves."""
    return 2 * size - size.bit_count()


def _largest_power_below(span: int) -> int:
    """Return the largest power of two strictly below a span of at least 2."""
    return 1 << ((span - 1).bit_length() - 1)


def _spans(start: int, stop: int) -> list[tuple[int, int]]:
    """Cut leaves start .. stop into complete nodes, left to right; start is aligned."""
    nodes = []
    while start < stop:
        level = (stop - start).bit_length() - 1
        nodes.append((level, start >> level))
        start += 1 << level
    return nodes


def fold(peaks: Sequence[bytes]) -> bytes:
    """Hash the peaks of a tree, left to right and largest first, into its root.

    Example:
        >>> fold([]) == EMPTY_ROOT
        True
    """
    if not peaks:
        return EMPTY_ROOT
    root = peaks[-1]
    for peak in reversed(peaks[:-1]):
        root = node_hash(peak, root)
    return root


def peak_nodes(size: int) -> list[tuple[int, int]]:
    """Name the complete subtrees, as (level, index), that make up a tree of `size` leaves.

    Example:
        >>> peak_nodes(6)
        [(2, 0), (1, 2)]
    """
    return _spans(0, size)


def peaks_at(read: Reader, size: int) -> tuple[bytes, ...]:
    """Read the roots of the complete subtrees that make up a tree of `size` leaves."""
    return tuple(read(level, index) for level, index in _spans(0, size))


def root_at(read: Reader, size: int) -> bytes:
    """Compute the root that the tree had, or has, at `size` leaves."""
    return fold(peaks_at(read, size))


def grow(
    peaks: tuple[bytes, ...], size: int, leaf: bytes
) -> tuple[tuple[bytes, ...], tuple[bytes, ...]]:
    """Add one leaf to a tree that is known by its peaks.

    Args:
        peaks: The peaks at `size` leaves, left to right.
        size: Number of leaves so far.
        leaf: The new leaf's hash.

    Returns:
        The peaks at ``size + 1``, and the new complete nodes in the order of their addresses
        (which start at ``node_count(size)``).

    Example:
        >>> peaks, new = grow((), 0, leaf_hash(b"a"))
        >>> peaks, new = grow(peaks, 1, leaf_hash(b"b"))
        >>> len(peaks), len(new), fold(peaks) == new[-1]
        (1, 2, True)
    """
    rest, new = list(peaks), [leaf]
    while size & 1:
        leaf = node_hash(rest.pop(), leaf)
        new.append(leaf)
        size >>= 1
    return (*rest, leaf), tuple(new)


def _range_root(read: Reader, start: int, stop: int) -> bytes:
    return fold([read(level, index) for level, index in _spans(start, stop)])


def inclusion_proof(read: Reader, index: int, size: int) -> tuple[bytes, ...]:
    """Build the path from leaf `index` to the root of the first `size` leaves.

    Returns:
        Sibling hashes, from the leaf upwards; at most 63.

    Raises:
        UsageError: The index lies outside the tree.
    """
    if not 0 <= index < size <= MAX_SIZE:
        raise UsageError(
            f"A tree of {size} entries has no entry {index}.", expected="0 <= index < size."
        )
    path, start, stop = [], 0, size
    while stop - start > 1:
        middle = start + _largest_power_below(stop - start)
        if index < middle:
            path.append(_range_root(read, middle, stop))
            stop = middle
        else:
            path.append(_range_root(read, start, middle))
            start = middle
    return tuple(reversed(path))


def consistency_proof(read: Reader, old: int, new: int) -> tuple[bytes, ...]:
    """Prove that the first `old` leaves of the tree at `new` are those of the tree at `old`.

    Returns:
        Hashes as RFC 6962 orders them; empty if `old` is 0 or equal to `new`.

    Raises:
        UsageError: Not ``0 <= old <= new``.
    """
    if not 0 <= old <= new <= MAX_SIZE:
        raise UsageError(
            f"Nothing leads from a tree of {old} entries to one of {new}.",
            expected="0 <= old <= new.",
        )
    if old in (0, new):
        return ()
    path, start, stop, known = [], 0, new, True
    while old != stop:
        middle = start + _largest_power_below(stop - start)
        if old <= middle:
            path.append(_range_root(read, middle, stop))
            stop = middle
        else:
            path.append(_range_root(read, start, middle))
            start, known = middle, False
    if not known:
        path.append(_range_root(read, start, stop))
    return tuple(reversed(path))


def _require_hashes(*hashes: bytes) -> None:
    for item in hashes:
        if not isinstance(item, bytes) or len(item) != HASH_BYTES:
            raise LedgerError("A proof holds something that is no SHA-256 hash.")


def _refuse(what: str) -> LedgerError:
    return LedgerError(what, hint="Fetch the receipt or proof again; do not rely on this one.")


def root_from_inclusion(leaf: bytes, index: int, size: int, proof: Sequence[bytes]) -> bytes:
    """Compute the only root for which an inclusion proof holds.

    Args:
        leaf: The entry's leaf hash, 32 bytes.
        index: Position of the entry.
        size: Number of entries in the tree.
        proof: Sibling hashes from the leaf upwards.

    Raises:
        LedgerError: Index, size and length of the proof do not fit together.
    """
    _require_hashes(leaf, *proof)
    if not 0 <= index < size <= MAX_SIZE:
        raise _refuse(f"Entry {index} cannot be in a ledger of {size} entries.")
    node, last, root = index, size - 1, leaf
    for sibling in proof:
        if last == 0:
            raise _refuse("The inclusion proof is too long.")
        if node & 1 or node == last:
            root = node_hash(sibling, root)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            root = node_hash(root, sibling)
        node, last = node >> 1, last >> 1
    if last:
        raise _refuse("The inclusion proof is too short.")
    return root


def verify_inclusion(
    leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that an entry stands at `index` in the tree of `size` entries with this root.

    The size has to come from the same signed checkpoint as the root: for a few neighbouring sizes
    the shape of a path is the same, so a path alone does not fix the size.

    Raises:
        LedgerError: The proof does not hold.

    Source: RFC 9162, section 2.1.3.2.

    Example:
        >>> left, right = leaf_hash(b"a"), leaf_hash(b"b")
        >>> verify_inclusion(left, 0, 2, [right], node_hash(left, right))
    """
    _require_hashes(root)
    if root_from_inclusion(leaf, index, size, proof) != root:
        raise _refuse(f"The proof does not lead from entry {index} to the signed root.")


def verify_consistency(
    old: int, new: int, old_root: bytes, new_root: bytes, proof: Sequence[bytes]
) -> None:
    """Check that the tree of `new` entries only adds to the tree of `old` entries.

    Raises:
        LedgerError: The proof does not hold: entries were changed, dropped or reordered.

    Source: RFC 9162, section 2.1.4.2; here also for ``old == 0``, where the proof is empty.
    """
    _require_hashes(old_root, new_root, *proof)
    if not 0 <= old <= new <= MAX_SIZE:
        raise _refuse(f"A ledger cannot have gone from {old} to {new} entries.")
    if old in (0, new):
        expected = EMPTY_ROOT if old == 0 else new_root
        if proof or old_root != expected:
            raise _refuse(f"Two different histories are claimed for {old} entries.")
        return
    if not proof:
        raise _refuse("The consistency proof is empty.")
    path = [old_root, *proof] if old & (old - 1) == 0 else list(proof)
    node, last = old - 1, new - 1
    while node & 1:
        node, last = node >> 1, last >> 1
    first = second = path[0]
    for item in path[1:]:
        if last == 0:
            raise _refuse("The consistency proof is too long.")
        if node & 1 or node == last:
            first, second = node_hash(item, first), node_hash(item, second)
            while not node & 1 and node:
                node, last = node >> 1, last >> 1
        else:
            second = node_hash(second, item)
        node, last = node >> 1, last >> 1
    if last or first != old_root or second != new_root:
        raise _refuse(f"The ledger of {new} entries does not continue the one of {old}.")
