"""Merkle trees against the definitions of RFC 6962, written as slowly and plainly as they read."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from earmark.errors import LedgerError, UsageError
from earmark.ledger import merkle

LIMIT = 64

# The test data of the Certificate Transparency reference implementation.
CT_LEAVES = [
    bytes.fromhex(item)
    for item in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
CT_ROOTS = (
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)
H96, H5F, H6B = (
    "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
    "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
    "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
)
HBC, HCA, H0E = (
    "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
    "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
    "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
)
CT_INCLUSION = {
    (0, 1): (),
    (0, 8): (H96, H5F, H6B),
    (5, 8): (HBC, HCA, CT_ROOTS[4]),
    (2, 3): (CT_ROOTS[2],),
    (1, 5): (CT_ROOTS[1], H5F, HBC),
}
CT_CONSISTENCY = {
    (1, 1): (),
    (1, 8): (H96, H5F, H6B),
    (6, 8): (H0E, HCA, CT_ROOTS[4]),
    (2, 5): (H5F, HBC),
}


def slow_split(count):
    k = 1
    while k * 2 < count:
        k *= 2
    return k


def slow_root(leaves):
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    k = slow_split(len(leaves))
    return hashlib.sha256(b"\x01" + slow_root(leaves[:k]) + slow_root(leaves[k:])).digest()


def slow_path(index, leaves):
    if len(leaves) == 1:
        return ()
    k = slow_split(len(leaves))
    if index < k:
        return (*slow_path(index, leaves[:k]), slow_root(leaves[k:]))
    return (*slow_path(index - k, leaves[k:]), slow_root(leaves[:k]))


def slow_subproof(old, leaves, whole):
    if old == len(leaves):
        return () if whole else (slow_root(leaves),)
    k = slow_split(len(leaves))
    if old <= k:
        return (*slow_subproof(old, leaves[:k], whole), slow_root(leaves[k:]))
    return (*slow_subproof(old - k, leaves[k:], False), slow_root(leaves[:k]))


def slow_consistency(old, leaves):
    return () if old == 0 else slow_subproof(old, leaves, True)


def planted(leaves):
    """Grow a tree leaf by leaf; return a reader of its nodes and the root at each size."""
    nodes, peaks, roots = {}, (), [merkle.EMPTY_ROOT]
    for index, leaf in enumerate(leaves):
        peaks, new = merkle.grow(peaks, index, merkle.leaf_hash(leaf))
        nodes.update(enumerate(new, start=merkle.node_count(index)))
        roots.append(merkle.fold(peaks))
    assert sorted(nodes) == list(range(merkle.node_count(len(leaves))))
    return (lambda level, index: nodes[merkle.address(level, index)]), roots


LEAVES = [b"entry %d" % number for number in range(LIMIT)]


@pytest.fixture(scope="module")
def tree():
    return planted(LEAVES)


def flips(data):
    for bit in range(len(data) * 8):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        yield bytes(changed)


def refused(check, *arguments):
    try:
        check(*arguments)
    except LedgerError:
        return True
    return False


def test_certificate_transparency_vectors():
    read, roots = planted(CT_LEAVES)
    assert [root.hex() for root in roots] == list(CT_ROOTS)
    for (index, size), path in CT_INCLUSION.items():
        proof = merkle.inclusion_proof(read, index, size)
        assert tuple(item.hex() for item in proof) == path
        leaf = merkle.leaf_hash(CT_LEAVES[index])
        merkle.verify_inclusion(leaf, index, size, proof, roots[size])
    for (old, new), path in CT_CONSISTENCY.items():
        proof = merkle.consistency_proof(read, old, new)
        assert tuple(item.hex() for item in proof) == path
        merkle.verify_consistency(old, new, roots[old], roots[new], proof)


def test_roots_of_every_size_match_the_definition(tree):
    read, roots = tree
    for size in range(LIMIT + 1):
        expected = slow_root(LEAVES[:size])
        assert roots[size] == expected
        assert merkle.root_at(read, size) == expected


def test_every_inclusion_proof_matches_the_definition_and_verifies(tree):
    read, roots = tree
    for size in range(1, LIMIT + 1):
        for index in range(size):
            proof = merkle.inclusion_proof(read, index, size)
            assert proof == slow_path(index, LEAVES[:size])
            leaf = merkle.leaf_hash(LEAVES[index])
            merkle.verify_inclusion(leaf, index, size, proof, roots[size])


def test_every_consistency_proof_matches_the_definition_and_verifies(tree):
    read, roots = tree
    for new in range(LIMIT + 1):
        for old in range(new + 1):
            proof = merkle.consistency_proof(read, old, new)
            assert proof == slow_consistency(old, LEAVES[:new])
            merkle.verify_consistency(old, new, roots[old], roots[new], proof)


def test_a_consistency_proof_holds_for_no_other_pair_of_sizes(tree):
    read, roots = tree
    for new in range(2, 18):
        for old in range(1, new):
            proof = merkle.consistency_proof(read, old, new)
            for other in range(new + 1):
                if other != old:
                    assert refused(
                        merkle.verify_consistency, other, new, roots[other], roots[new], proof
                    )


def mutations_accepted(read, root, leaf, index, size):
    """Count single-bit changes that the verifier lets pass; sizes are listed apart."""
    check, proof = merkle.verify_inclusion, merkle.inclusion_proof(read, index, size)
    accepted = sum(not refused(check, bad, index, size, proof, root) for bad in flips(leaf))
    accepted += sum(not refused(check, leaf, index, size, proof, bad) for bad in flips(root))
    for place in range(len(proof)):
        for bad in flips(proof[place]):
            changed = (*proof[:place], bad, *proof[place + 1 :])
            accepted += not refused(check, leaf, index, size, changed, root)
    for changed in (proof[:-1], proof[1:], (*proof, root), (leaf, *proof)):
        accepted += changed != proof and not refused(check, leaf, index, size, changed, root)
    for bit in range(64):
        accepted += not refused(check, leaf, index ^ (1 << bit), size, proof, root)
    sizes = [size ^ (1 << bit) for bit in range(64)]
    return accepted, [bad for bad in sizes if not refused(check, leaf, index, bad, proof, root)]


def shape(index, size):
    """Say at which steps of a path the sibling stands on the left."""
    steps, start, stop = [], 0, size
    while stop - start > 1:
        middle = start + slow_split(stop - start)
        steps.append(index >= middle)
        start, stop = (middle, stop) if index >= middle else (start, middle)
    return steps


def check_mutations(read, roots, leaves, size, indices):
    for index in indices:
        leaf = merkle.leaf_hash(leaves[index])
        accepted, sizes = mutations_accepted(read, roots[size], leaf, index, size)
        assert accepted == 0
        # A path alone does not fix the size; the signed checkpoint does. Nothing else may pass.
        assert all(shape(index, other) == shape(index, size) for other in sizes)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 8, 9, 16, 21, 33])
def test_every_single_bit_change_of_an_inclusion_proof_is_refused(tree, size):
    read, roots = tree
    check_mutations(read, roots, LEAVES, size, range(size))


@pytest.mark.slow
def test_every_single_bit_change_is_refused_up_to_3000_leaves():
    leaves = [b"entry %d" % number for number in range(3000)]
    read, roots = planted(leaves)
    check_mutations(read, roots, leaves, 3000, range(0, 3000, 7))
    check_mutations(read, roots, leaves, 3000, (2047, 2048, 2815, 2816, 2999))
    check_mutations(read, roots, leaves, 2049, (0, 2047, 2048))


@pytest.mark.parametrize(
    ("old", "new"), [(1, 2), (2, 3), (3, 7), (4, 7), (6, 8), (8, 21), (13, 21)]
)
def test_every_single_bit_change_of_a_consistency_proof_is_refused(tree, old, new):
    read, roots = tree
    check, proof = merkle.verify_consistency, merkle.consistency_proof(read, old, new)
    assert all(refused(check, old, new, bad, roots[new], proof) for bad in flips(roots[old]))
    assert all(refused(check, old, new, roots[old], bad, proof) for bad in flips(roots[new]))
    for place in range(len(proof)):
        for bad in flips(proof[place]):
            changed = (*proof[:place], bad, *proof[place + 1 :])
            assert refused(check, old, new, roots[old], roots[new], changed)
    for changed in (proof[:-1], proof[1:], (*proof, roots[old])):
        assert refused(check, old, new, roots[old], roots[new], changed)
    for bit in range(64):
        assert refused(check, old ^ (1 << bit), new, roots[old], roots[new], proof)


def test_trivial_consistency_needs_no_proof_and_allows_none(tree):
    _, roots = tree
    merkle.verify_consistency(0, 5, merkle.EMPTY_ROOT, roots[5], ())
    merkle.verify_consistency(5, 5, roots[5], roots[5], ())
    for old, new, first, second, proof in (
        (0, 5, roots[1], roots[5], ()),
        (0, 5, merkle.EMPTY_ROOT, roots[5], (roots[1],)),
        (5, 5, roots[5], roots[5], (roots[1],)),
        (5, 5, roots[4], roots[5], ()),
        (6, 5, roots[6], roots[5], ()),
        (3, 5, roots[3], roots[5], ()),
    ):
        assert refused(merkle.verify_consistency, old, new, first, second, proof)


def test_what_is_no_hash_is_refused(tree):
    _, roots = tree
    good = merkle.leaf_hash(LEAVES[0])
    for bad in (b"", good[:-1], good + b"\x00", good.hex(), None):
        assert refused(merkle.verify_inclusion, bad, 0, 1, (), roots[1])
        assert refused(merkle.verify_inclusion, good, 0, 1, (), bad)
        assert refused(merkle.verify_inclusion, good, 0, 2, (bad,), roots[2])


def test_positions_outside_the_tree_are_refused(tree):
    read, roots = tree
    good = merkle.leaf_hash(LEAVES[0])
    for index, size in ((0, 0), (-1, 1), (1, 1), (5, 4), (0, 2**63), (2**63, 2**64)):
        with pytest.raises(UsageError):
            merkle.inclusion_proof(read, index, size)
        assert refused(merkle.verify_inclusion, good, index, size, (), roots[1])
    for old, new in ((-1, 1), (2, 1), (1, 2**63)):
        with pytest.raises(UsageError):
            merkle.consistency_proof(read, old, new)


def test_addresses_number_the_nodes_without_gaps():
    places = [
        merkle.address(level, index)
        for level in range(LIMIT.bit_length())
        for index in range(LIMIT >> level)
    ]
    assert sorted(places) == list(range(merkle.node_count(LIMIT)))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.binary(max_size=8), min_size=1, max_size=40), st.data())
def test_random_trees_agree_with_the_definition(leaves, data):
    read, roots = planted(leaves)
    new = data.draw(st.integers(1, len(leaves)))
    old = data.draw(st.integers(0, new))
    index = data.draw(st.integers(0, new - 1))
    path = merkle.inclusion_proof(read, index, new)
    assert path == slow_path(index, leaves[:new])
    merkle.verify_inclusion(merkle.leaf_hash(leaves[index]), index, new, path, roots[new])
    steps = merkle.consistency_proof(read, old, new)
    assert steps == slow_consistency(old, leaves[:new])
    merkle.verify_consistency(old, new, roots[old], roots[new], steps)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(-1, 2**65),
    st.integers(-1, 2**65),
    st.lists(st.binary(min_size=32, max_size=32), max_size=70),
    st.binary(min_size=32, max_size=32),
)
def test_arbitrary_proofs_are_refused_and_nothing_worse(first, second, proof, root):
    nowhere = hashlib.sha256(b"the root of no tree").digest()
    assert refused(merkle.verify_inclusion, root, first, second, proof, nowhere)
    assert refused(merkle.verify_consistency, first, second, root, nowhere, [*proof, root])
