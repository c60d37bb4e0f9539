"""A node that misbehaves, as a program: ``python byzantine.py FOLDER HOW``. For tests only."""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from urllib.parse import urlsplit

from earmark.protocol import messages as m
from earmark.protocol.node import Node
from earmark.web.server import Server
from earmark.web.service import create_app


class Lying(Node):
    def findings(self, file):
        return tuple(
            replace(item, hits=item.trials // 2 if item.hits == item.trials else item.trials)
            for item in super().findings(file)
        )


class Silent(Node):
    def duty(self, file, count):
        pass


class Mute(Silent):
    def draw(self):
        pass


class Copying(Node):
    """Measures nothing: sends another voter's digest, later the other's ballot."""

    def commit(self, file):
        other = next((i for i in file.commits if i.message.sender != self.public), None)
        if other is not None and (file.id, "commit") not in self._sent:
            self._sent.add((file.id, "commit"))
            self.send(
                m.VoteCommit,
                claim=file.id,
                suspect=file.claim.suspect,
                ballot=other.message.ballot,
            )

    def reveal(self, file):
        if file.reveals and (file.id, "reveal") not in self._sent:
            self._sent.add((file.id, "reveal"))
            self.send(
                m.VoteReveal,
                claim=file.id,
                suspect=file.claim.suspect,
                ballot=file.reveals[0].message.ballot,
            )


class Equivocating(Lying):
    def commit(self, file):
        if (file.id, "commit") in self._sent:
            return
        super().commit(file)
        if (file.id, "commit") not in self._sent:
            return  # it is still measured
        other = m.Ballot(self.public, file.id, (), "0" * 64)
        self.send(m.VoteCommit, claim=file.id, suspect=file.claim.suspect, ballot=other.sealed())


HOW = {
    "honest": Node,
    "lying": Lying,
    "silent": Silent,
    "mute": Mute,
    "copying": Copying,
    "equivocating": Equivocating,
}


def main(folder, how):
    node = HOW[how](folder)
    server = Server(create_app(node), ("127.0.0.1", urlsplit(node.card.url).port))
    stop = threading.Event()
    worker = threading.Thread(target=node.run, args=(stop,), kwargs={"seconds": 0.2}, daemon=True)
    worker.start()
    server.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
