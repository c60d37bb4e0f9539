"""A community of node processes on loopback, real models, and parties who talk to it."""

from __future__ import annotations

import contextlib
import functools
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from earmark import files
from earmark.errors import NetworkError
from earmark.hosts.arrays import ArrayHost
from earmark.hosts.files import write_tensors
from earmark.keys.secret import Key
from earmark.ledger.note import VerifierKey
from earmark.ledger.service import Mirror
from earmark.protocol import community as c
from earmark.protocol import messages as m
from earmark.protocol.client import Client
from earmark.protocol.disclosure import DisclosureFile
from earmark.protocol.history import History, genesis_digest
from earmark.protocol.node import entry_of
from earmark.protocol.resolve import resolve_history
from earmark.protocol.rules import Rules
from earmark.schemes.deepwater import DeepWater
from world import Party

SCHEME = DeepWater(weights_per_bit=64)


@functools.cache
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return (data.data[order] / 16.0).astype(np.float32), data.target[order]


def accuracy(weights):
    inputs, labels = digits()
    hidden = np.maximum(inputs @ weights["fc1.weight"].T + weights["fc1.bias"], 0)
    scores = hidden @ weights["head.weight"].T + weights["head.bias"]
    return float((scores.argmax(1)[1400:] == labels[1400:]).mean())


@functools.cache
def _trained(seed):
    """Train 64-256-10 on the digits by plain gradient descent."""
    rng = np.random.default_rng(seed)
    inputs, labels = digits()
    weights = {
        "fc1.weight": rng.normal(size=(256, 64)).astype(np.float32) * 0.15,
        "fc1.bias": np.zeros(256, np.float32),
        "head.weight": rng.normal(size=(10, 256)).astype(np.float32) * 0.08,
        "head.bias": np.zeros(10, np.float32),
    }
    for step in range(400):
        at = rng.integers(0, 1400, 64)
        x, y = inputs[at], labels[at]
        hidden = np.maximum(x @ weights["fc1.weight"].T + weights["fc1.bias"], 0)
        scores = hidden @ weights["head.weight"].T + weights["head.bias"]
        p = np.exp(scores - scores.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        p[np.arange(64), y] -= 1
        p /= 64
        back = (p @ weights["head.weight"]) * (hidden > 0)
        rate = 0.5 if step < 300 else 0.1
        weights["head.weight"] -= rate * (p.T @ hidden)
        weights["head.bias"] -= rate * p.sum(0)
        weights["fc1.weight"] -= rate * (back.T @ x)
        weights["fc1.bias"] -= rate * back.sum(0)
    return weights


def trained(seed=0):
    return {name: value.copy() for name, value in _trained(seed).items()}


def stamped(weights, key):
    return dict(SCHEME.stamp(ArrayHost(weights), key).tensors)


def packed(weights, folder, name):
    path = Path(folder) / f"{name}.safetensors"
    write_tensors(path, weights)
    return path.read_bytes()


def ports(count):
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            one = stack.enter_context(socket.socket())
            one.bind(("127.0.0.1", 0))
            found.append(one.getsockname()[1])
        return found


class Owner(Party):
    """A party with a key and a model, talking to a node."""

    def __init__(self, name, town):
        super().__init__(name)
        self.town = town

    def send(self, cls, **body):
        head = {
            "domain": self.town.community.rules.domain,
            "sender": self.public,
            "nonce": m.fresh_nonce(),
            "after": self.town.after(),
        }
        envelope = cls(**head, **body).sign(self.key)
        self.town.client.append(envelope.encode())
        return envelope.digest()

    def commit(self, weights):
        key = SCHEME.new_key(ArrayHost(weights))
        self.commitment = key.opening(self.public).commitment()
        self.send(m.Commit, commitment=self.commitment, recovery=None)
        self.town.sync()
        logged = self.town.history.commits[self.commitment][0]
        self.opening, self.key_ = key.opening(self.public), key.bind(logged.entry.beacon)
        return self.key_

    def publish(self, data):
        self.release = self.town.client.put(data)
        self.send(
            m.Publish,
            commitment=self.commitment,
            model=self.release,
            files={"model.safetensors": self.release},
            beacon=self.key_.beacon,
            license="none",
            where="here",
        )

    def claim(self, data, shards=(0, 1, 2, 3)):
        disclosure = DisclosureFile.of(self.key_, shards).canonical()
        return self.send(
            m.Claim,
            opening=self.opening,
            suspect=self.town.client.put(data),
            shards=shards,
            disclosure=self.town.client.put(disclosure),
            inputs=None,
        )


class Town:
    """Nodes as processes; `how` names what each of the faulty ones does."""

    def __init__(self, folder, count, how=(), **settings):
        self.folder = Path(folder)
        self.how = [*how, *["honest"] * (count - len(how))][::-1]  # the first keeps the log
        cards = [
            c.init_node(self.folder / f"n{i}", operator=f"node {i}", url=f"http://127.0.0.1:{port}")
            for i, port in enumerate(ports(count))
        ]
        members = tuple(m.Member(card.operator, card.member) for card in cards)
        rules = Rules("example.org/town", members, **settings)
        self.community = c.found(self.folder / "n0", cards, rules)
        for i in range(count):
            files.write_bytes(self.folder / f"n{i}" / c.COMMUNITY, self.community.canonical())
        self.client = Client(self.community.url)
        self.mirror = Mirror(VerifierKey.parse(self.community.log), self.community.quorum)
        self.history = History((), rules)
        self.processes = []

    def __enter__(self):
        program = str(Path(__file__).parent / "byzantine.py")
        for i, how in enumerate(self.how):
            command = [sys.executable, program, str(self.folder / f"n{i}"), how]
            log = (self.folder / f"n{i}.log").open("w")
            self.processes.append(subprocess.Popen(command, stderr=log, stdout=log))
            log.close()
        for card in self.community.nodes:
            self.wait(lambda card=card: Client(card.url).json("/api/status"))
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def wait(self, question, seconds=90):
        until = time.monotonic() + seconds
        while True:
            try:
                answer = question()
            except NetworkError:
                answer = None
            if answer:
                return answer
            if time.monotonic() > until:
                logs = [path.read_text()[-2000:] for path in sorted(self.folder.glob("*.log"))]
                raise TimeoutError("\n".join(logs))
            time.sleep(0.1)

    def sync(self):
        for seen in self.mirror.take(self.client.page(self.mirror.size)):
            self.history.read(entry_of(seen))

    def after(self):
        self.sync()
        if not self.mirror.entries:
            return genesis_digest(self.community.rules.domain)
        return m.checkpoint_digest(self.mirror.entries[-1].checkpoint.body.text)

    def result(self, claim):
        """Wait until a claim is closed, by a reader's own mirror."""

        def closed():
            self.sync()
            found = resolve_history(self.history).claim(claim)
            return found if found is not None and found.closed else None

        return self.wait(closed)

    def resolution(self):
        self.sync()
        return resolve_history(self.history)


def key_of(weights):
    return Key.generate(SCHEME.new_key(ArrayHost(weights)).layout)
