"""Trees and proofs against an implementation by others, on random trees."""

from __future__ import annotations

import random

import pytest

from earmark.ledger import merkle

pymerkle = pytest.importorskip("pymerkle", reason="the oracle is a tool for tests only")


def test_roots_and_proofs_are_those_of_pymerkle():
    chance = random.Random(3)
    tree = pymerkle.InmemoryTree(algorithm="sha256")
    nodes, peaks = [], ()
    for size in range(1, 301):
        leaf = chance.randbytes(chance.randrange(1, 40))
        tree.append_entry(leaf)
        peaks, fresh = merkle.grow(peaks, size - 1, merkle.leaf_hash(leaf))
        nodes += fresh
        assert merkle.fold(peaks) == tree.get_root()

        def read(level, index, known=nodes):
            return known[merkle.address(level, index)]

        for _ in range(4):
            index, old = chance.randrange(size), chance.randrange(1, size + 1)
            theirs = tree.prove_inclusion(index + 1, size)
            ours = merkle.inclusion_proof(read, index, size)
            assert list(ours) == list(theirs.path[1:]), (index, size)
            first, second = merkle.root_at(read, old), tree.get_root()
            proof = tree.prove_consistency(old, size)
            pymerkle.verify_consistency(first, second, proof)
            made = merkle.consistency_proof(read, old, size)
            merkle.verify_consistency(old, size, first, second, made)
