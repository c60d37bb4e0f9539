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
from world import Party

from earmark.errors import NetworkError
from earmark.hosts.arrays import ArrayHost
from earmark.hosts.files import write_tensors
from earmark.ledger.note import VerifierKey
from earmark.ledger.service import Mirror
from earmark.policy import Policy
from earmark.protocol import community as c
from earmark.protocol import messages as m
from earmark.protocol.client import Client
from earmark.protocol.disclosure import DisclosureFile
from earmark.protocol.history import History, entry_of, genesis_digest
from earmark.protocol.resolve import resolve_history
from earmark.protocol.rules import Rules
from earmark.protocol.verifier import code_digest
from earmark.schemes.deepwater import DeepWater

SCHEME = DeepWater(weights_per_bit=64, margin=3.5)


@functools.cache
def digits():
    from sklearn.datasets import load_digits

    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    return (data.data[order] / 16.0).astype(np.float32), data.target[order]


SIZES = (64, 128, 128, 128, 128, 10)
LAYERS = [*[f"fc{i}" for i in range(4)], "head"]


def _run(weights, inputs):
    """Return the input of every layer, and the scores."""
    seen = [inputs]
    for name in LAYERS:
        out = seen[-1] @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]
        seen.append(out if name == "head" else np.maximum(out, 0))
    return seen


def accuracy(weights):
    inputs, labels = digits()
    return float((_run(weights, inputs[1400:])[-1].argmax(1) == labels[1400:]).mean())


@functools.cache
def _trained(seed):
    """Train a perceptron of four hidden layers on the digits by plain gradient descent."""
    rng = np.random.default_rng(seed)
    inputs, labels = digits()
    weights = {}
    for name, ins, outs in zip(LAYERS, SIZES[:-1], SIZES[1:], strict=True):
        values = rng.normal(size=(outs, ins)) * np.sqrt(2 / ins)
        weights[f"{name}.weight"] = values.astype(np.float32)
        weights[f"{name}.bias"] = np.zeros(outs, np.float32)
    for step in range(300):
        at = rng.integers(0, 1400, 64)
        seen = _run(weights, inputs[at])
        scores = seen[-1]
        back = np.exp(scores - scores.max(1, keepdims=True))
        back /= back.sum(1, keepdims=True)
        back[np.arange(64), labels[at]] -= 1
        back /= 64
        rate = 0.1 if step < 220 else 0.03
        for i, name in reversed(list(enumerate(LAYERS))):
            below = (back @ weights[f"{name}.weight"]) * (seen[i] > 0)
            weights[f"{name}.weight"] -= rate * (back.T @ seen[i])
            weights[f"{name}.bias"] -= rate * back.sum(0)
            back = below
    return weights


def trained(seed=0):
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1):
        _trained(seed)
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
        self.opening, self.key_ = key.opening(self.public), key.bind(self.drawn())
        return self.key_

    def drawn(self):
        """Wait for the value that the community draws for the commitment."""

        def ready():
            self.town.sync()
            found = self.town.history.commits.get(self.commitment)
            return found and self.town.history.beacon(found[0])

        return self.town.wait(ready)

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
        settings = {"draw_seconds": 60, "verifiers": (code_digest(),), **settings}
        rules = Rules("example.org/town", members, Policy.at("trace"), **settings)
        self.community = c.found(self.folder / "n0", cards, rules)
        for i in range(count):
            c.join(self.folder / f"n{i}", self.community)
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
        self.wait(self.sealed)
        return self

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()

    def wait(self, question, seconds=600):
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

    def sealed(self):
        """Tell whether every node that will has sealed values to draw from."""
        self.sync()
        waiting = [self.history.draws.waiting(card.operator) for card in self.community.nodes]
        return sum(count > 0 for count in waiting) >= len(waiting) - self.how.count("mute")

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
