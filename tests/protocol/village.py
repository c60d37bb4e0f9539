"""Four nodes in one process, with a story told: what a page has to show. Counts are set, not measured.

``python tests/protocol/village.py FOLDER PORT`` serves it, to look at.
"""

from __future__ import annotations

import sys
import threading
from fractions import Fraction
from pathlib import Path
from typing import ClassVar

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from earmark import codec
from earmark.keys.secret import Key
from earmark.protocol import community as c
from earmark.protocol import messages as m
from earmark.protocol.disclosure import DisclosureFile
from earmark.protocol.history import genesis_digest
from earmark.protocol.node import Node
from earmark.protocol.rules import Rules
from earmark.records import Layout
from earmark.web.server import Server
from earmark.web.service import create_app

DOMAIN = "labs.example/models"
LAYOUT = Layout("deepwater", 1, ("fc",), 256, 8)
NAMES = ("Helsinki Lab", "Nagoya Vision", "Quito Robotics", "Tromsø Speech")


def sha(*parts):
    return codec.digest("/".join(str(part) for part in parts).encode())


class Villager(Node):
    """A node that knows the truth instead of measuring it; one of them lies."""

    truth: ClassVar[set] = set()

    def measure(self, question):
        marked = (question.commitment, question.model) in self.truth
        if self.card.operator == NAMES[3]:
            marked = not marked
        hits = 251 if marked else 131
        return m.Finding(question.commitment, question.model, hits, 256, Fraction(1, 2), 1)


class Wire:
    """Stands in for the network: hands everything to the keeper."""

    def __init__(self, keeper):
        self.keeper = keeper

    def page(self, since):
        return self.keeper.service.page(since)

    def append(self, record):
        return self.keeper.append(record)

    def blob(self, digest, *, limit=0):
        return self.keeper.blobs.path(digest).read_bytes()


class Person:
    def __init__(self, name, village):
        self.key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(sha(name)))
        self.public = self.key.public_key().public_bytes_raw().hex()
        self.name, self.village, self.shards = name, village, 0
        self.secret = Key.generate(LAYOUT, secret=bytes.fromhex(sha("secret", name)))
        self.opening = self.secret.opening(self.public)

    def tell(self, cls, **body):
        keeper = self.village.nodes[0]
        after = genesis_digest(DOMAIN)
        if keeper.mirror.entries:
            after = m.checkpoint_digest(keeper.mirror.entries[-1].checkpoint.body.text)
        head = {"domain": DOMAIN, "sender": self.public, "nonce": m.fresh_nonce(), "after": after}
        envelope = cls(**head, **body).sign(self.key)
        keeper.append(envelope.encode())
        self.village.step()
        return envelope.digest()

    def register(self, model):
        commitment = self.opening.commitment()
        self.tell(m.Commit, commitment=commitment, recovery=None)
        history = self.village.nodes[0].history
        value = history.beacon(history.commits[commitment][0])
        self.secret = self.secret.bind(value)
        Villager.truth.add((commitment, sha(model)))
        self.tell(
            m.Publish,
            commitment=commitment,
            model=sha(model),
            files={"model.safetensors": sha(model)},
            beacon=value,
            license="CC-BY-4.0",
            where="https://models.example",
        )

    def marks(self, model):
        Villager.truth.add((self.opening.commitment(), sha(model)))

    def claim(self, suspect):
        self.shards += 1
        disclosure = DisclosureFile.of(self.secret, (self.shards,)).canonical()
        return self.tell(
            m.Claim,
            opening=self.opening,
            suspect=sha(suspect),
            shards=(self.shards,),
            disclosure=self.village.nodes[0].blobs.put(disclosure),
            inputs=None,
        )


class Village:
    def __init__(self, folder, port):
        cards = [
            c.init_node(Path(folder) / f"n{i}", operator=name, url=f"http://127.0.0.1:{port + i}")
            for i, name in enumerate(NAMES)
        ]
        members = tuple(m.Member(card.operator, card.member) for card in cards)
        rules = Rules(DOMAIN, members, draw_seconds=60)
        made = c.found(Path(folder) / "n0", cards, rules)
        self.nodes = []
        for i in range(len(NAMES)):
            c.join(Path(folder) / f"n{i}", made)
            self.nodes.append(Villager(Path(folder) / f"n{i}"))
        keeper = self.nodes[0]
        keeper.service._asks = {
            card.witness: node.witness.add for card, node in zip(cards, self.nodes, strict=True)
        }
        for node in self.nodes[1:]:
            node.source = Wire(keeper)
        self.address = ("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{port}"

    def step(self, rounds=3):
        for _ in range(rounds):
            for node in self.nodes:
                node.step()
                node.work()

    def story(self):
        """An owner, a thief who overwrites, a false claim, a stranger's refused record."""
        self.step()
        owner, thief = Person("owner", self), Person("thief", self)
        owner.register("original")
        owner.marks("stolen")
        thief.register("stolen")
        owner.claim("innocent")
        thief.claim("stolen")
        owner.claim("stolen")
        self.nodes[0].append(self.nodes[0].mirror.entries[-1].record)  # a replay, refused
        self.step()
        return self

    def close(self):
        for node in self.nodes:
            node.close()


def main(folder, port):
    village = Village(folder, int(port)).story()
    server = Server(create_app(village.nodes[0]), village.address)
    threading.Thread(target=village.step).start()
    server.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
