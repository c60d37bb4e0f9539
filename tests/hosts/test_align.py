from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from earmark.attacks.base import Budget
from earmark.attacks.chain import Chain
from earmark.attacks.noise import Noise
from earmark.attacks.obfuscate import Dummies, FlipSigns, Obfuscate, Permute, Scale
from earmark.attacks.prune import PruneChannels
from earmark.attacks.refactor import Factor
from earmark.bench.zoo import ResNet, SmallCnn, TinyTransformer, image_task
from earmark.errors import HostError
from earmark.hosts.align import align, balance, orders
from earmark.hosts.arrays import ArrayHost
from earmark.hosts.graph import channels
from earmark.hosts.module import ModuleHost
from earmark.schemes.deepwater import DeepWater
from earmark.schemes.embedding import embed, fresh_model, starting_model
from earmark.task import Task
from earmark.training import train

SCHEME = DeepWater()


class Branches(nn.Module):
    """Fan-out, concatenation, a gate, a depthwise convolution and an odd activation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.left = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.right = nn.Conv2d(16, 20, 1)
        self.deep = nn.Conv2d(20, 20, 3, padding=1, groups=20)
        self.gate = nn.Conv2d(32, 32, 1)
        self.after = nn.Conv2d(44, 32, 3, padding=1)
        self.fc = nn.Linear(32 * 16, 64)
        self.head = nn.Linear(64, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        found = functional.relu(self.stem(inputs))
        one = functional.relu(self.norm(self.left(found)))
        two = functional.relu(self.deep(functional.relu(self.right(found))))
        both = torch.cat([one, two], dim=1)
        mixed = functional.relu(self.after(both))
        mixed = functional.max_pool2d(mixed * torch.sigmoid(self.gate(mixed)), 2)
        return self.head(torch.tanh(self.fc(mixed.flatten(1))))


def settle(model: nn.Module, seed: int) -> nn.Module:
    """Give norms statistics and gains, as if the model had been trained."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            size = module.num_features
            with torch.no_grad():
                module.weight.copy_(torch.rand(size, generator=generator) + 0.5)
                module.bias.copy_(0.3 * torch.randn(size, generator=generator))
                module.running_mean.copy_(0.3 * torch.randn(size, generator=generator))
                module.running_var.copy_(torch.rand(size, generator=generator) + 0.5)
    return model.eval()


MAKERS = {
    "cnn": lambda: SmallCnn((1, 8, 8), 10, width=16, hidden=48),
    "resnet": lambda: ResNet((1, 12, 12), 10, width=12),
    "branches": Branches,
}
INPUTS = {"cnn": (4, 1, 8, 8), "resnet": (4, 1, 12, 12), "branches": (4, 3, 8, 8)}


def make(kind: str, seed: int) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return settle(MAKERS[kind](), seed)


def mark(model: nn.Module, seed: int = 0):
    """Stamp a copy of a model."""
    key = SCHEME.new_key(ModuleHost(model), secret=bytes([seed + 1]) * 32)
    marked = copy.deepcopy(model)
    with SCHEME.attach(marked, key):
        pass
    return marked, key


def budget() -> Budget:
    return Budget(Task(nn.Module, None, None, None))  # type: ignore[arg-type]


def count(suspect: nn.Module, marked: nn.Module, key, *, naive: bool = False):
    released = ModuleHost(marked)
    reference = released if naive else SCHEME.reference(released, key)
    return SCHEME.measure(align(ModuleHost(suspect), reference, channels(marked)), key)


ATTACKS = {
    "permute": Permute(),
    "permute and scale": Chain((Permute(), Scale())),
    "flip signs": FlipSigns(),
    "zero": Dummies(kind="zero"),
    "clique": Dummies(kind="clique"),
    "split": Dummies(kind="split"),
    "active": Dummies(kind="active"),
    "all": Obfuscate(),
    "all, wide": Obfuscate.preset("wide"),
    "all, active, noise": Chain((Obfuscate.preset("active"), Noise(share=0.05))),
    "noise, then all": Chain((Noise(share=0.1), Obfuscate.preset("active"))),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("kind", ["cnn", "resnet"])
def test_every_bit_comes_back(kind, name):
    marked, key = mark(make(kind, 1))
    stolen = ATTACKS[name].run(marked, budget(), seed=3)
    exact = "noise" not in name and "active" not in name
    with torch.no_grad():
        inputs = torch.randn(INPUTS[kind])
        same = torch.allclose(stolen(inputs), marked(inputs), rtol=1e-2, atol=1e-3)
    assert same or not exact
    evidence = count(stolen, marked, key)
    assert evidence.hits == evidence.trials == key.layout.message_bits
    assert evidence.tried.forms == 2
    assert evidence.suspect == ModuleHost(stolen).digest()


@pytest.mark.parametrize("rank", [1.0, 0.7])
def test_a_factored_layer_is_multiplied_together(rank):
    marked, key = mark(make("cnn", 1))
    stolen = Chain((Permute(), Scale(), Factor(rank=rank))).run(marked, budget(), seed=3)
    assert "fc.weight" not in ModuleHost(stolen).tensor_names()
    evidence = count(stolen, marked, key)
    assert evidence.hits == evidence.trials == key.layout.message_bits


def test_two_tensors_that_are_no_factors_are_left_alone():
    marked, key = mark(make("cnn", 1))
    reference = SCHEME.reference(ModuleHost(marked), key)
    state = {name: tensor.numpy() for name, tensor in marked.state_dict().items() if tensor.ndim}
    weight = state.pop("fc.weight")
    for first, second in (
        (np.ones((4, weight.shape[1]), np.float32), np.ones((len(weight), 5), np.float32)),
        (np.ones((1, 1 << 14), np.float32), np.ones((1 << 14, 1), np.float32)),
    ):
        lying = ArrayHost(state | {"fc.0.weight": first, "fc.1.weight": second})
        with pytest.raises(HostError, match="lacks"):
            align(lying, reference, channels(marked))


def test_without_alignment_the_same_attacks_succeed():
    marked, key = mark(make("cnn", 1))
    stolen = Permute().run(marked, budget(), seed=3)
    evidence = SCHEME.measure(ModuleHost(stolen), key)
    assert evidence.hits < 0.75 * evidence.trials


def permute_by_hand(model: Branches, seed: int) -> Branches:
    """Reorder, rescale and flip every group of a network that the attacks do not follow."""
    model = copy.deepcopy(model)
    rng = torch.Generator().manual_seed(seed)

    def shuffle(size: int) -> Tensor:
        return torch.randperm(size, generator=rng)

    def rows(layer: nn.Module, order: Tensor) -> None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            value = getattr(layer, name, None)
            if value is not None:
                value.data = value.data[order]

    stem, left, right, after = shuffle(16), shuffle(24), shuffle(20), shuffle(32)
    both = torch.cat([left, right + 24])
    rows(model.stem, stem)
    for layer in (model.left, model.right):
        layer.weight.data = layer.weight.data[:, stem]
    for layer, order in (
        (model.left, left), (model.norm, left), (model.right, right), (model.deep, right),
        (model.gate, after), (model.after, after),
    ):  # fmt: skip
        rows(layer, order)
    model.gate.weight.data = model.gate.weight.data[:, after]
    model.after.weight.data = model.after.weight.data[:, both]
    wide = model.fc.weight.data.unflatten(1, (32, 16))[:, after].flatten(1)
    flips = torch.where(torch.rand(64, generator=rng) < 0.5, -1.0, 1.0)
    order = shuffle(64)
    model.fc.weight.data = (wide * flips[:, None])[order]
    model.fc.bias.data = (model.fc.bias.data * flips)[order]
    model.head.weight.data = (model.head.weight.data * flips)[:, order]
    scale = 4 * torch.rand(16, generator=rng) + 0.2
    model.stem.weight.data *= scale[:, None, None, None]
    model.stem.bias.data *= scale
    for layer in (model.left, model.right):
        layer.weight.data /= scale[None, :, None, None]
    return model


def test_branches_concatenation_gates_and_odd_activations():
    marked, key = mark(make("branches", 2))
    stolen = permute_by_hand(marked, 5)
    inputs = torch.randn(INPUTS["branches"])
    with torch.no_grad():
        torch.testing.assert_close(stolen(inputs), marked(inputs), rtol=1e-3, atol=1e-4)
    assert SCHEME.measure(ModuleHost(stolen), key).hits < key.layout.message_bits
    evidence = count(stolen, marked, key)
    assert evidence.hits == evidence.trials == key.layout.message_bits


TAPS = {
    "cnn": ("conv1", "bn1", "conv2", "conv3", "bn3", "fc", "head:in"),
    "resnet": ("stem", "bn", "stages.0", "stages.1", "stages.2", "stages.2.conv1", "stages.1:in"),
    "branches": ("stem", "left", "norm", "right", "deep", "after", "after:in", "fc"),
}


@pytest.mark.parametrize("kind", TAPS)
def test_activations_are_read_in_order_at_every_layer(kind):
    """Signs too: where a layer is read before its norm, which undoes them."""
    model = make(kind, 3)
    if kind == "branches":
        stolen = permute_by_hand(model, 5)
    else:
        stolen = Chain((Obfuscate(), FlipSigns())).run(model, budget(), seed=4)
    inputs = torch.randn(64, *INPUTS[kind][1:])
    own, moved = (ModuleHost(item) for item in (model, stolen))
    found = orders(moved, own, channels(model), TAPS[kind])
    assert set(found) == set(TAPS[kind])
    plain, read = own.features(inputs, TAPS[kind]), moved.features(inputs, TAPS[kind])
    for name, order in found.items():
        assert order.width == len(order.ours) == plain[name].shape[1]
        one = plain[name][:, order.ours]
        other = read[name][:, order.theirs] * order.signs
        for left, right in zip(one.T, other.T, strict=True):
            assert left.std() < 1e-6 or np.corrcoef(left, right)[0, 1] > 0.999, name


def test_layers_that_are_not_followed_have_no_order():
    model = make("cnn", 3)
    found = orders(ModuleHost(model), ModuleHost(model), channels(model), ("head", "nowhere"))
    assert found == {}


def test_folded_batch_norm():
    """The suspect's convolutions have swallowed their norms, whose tensors are gone."""
    marked, key = mark(make("resnet", 4))
    flipped = FlipSigns().run(marked, budget(), seed=1)
    state = {name: tensor.numpy() for name, tensor in flipped.state_dict().items()}
    folded = {}
    for layer in channels(marked).layers:
        if not layer.norm:
            continue
        factor = state[f"{layer.norm}.weight"] / np.sqrt(
            state[f"{layer.norm}.running_var"] + layer.eps
        )
        folded[layer.weight] = state[layer.weight] * factor[:, None, None, None]
    kept = {
        n: v
        for n, v in state.items()
        if not n.rpartition(".")[0].rpartition(".")[2].startswith("bn")
    }
    suspect = ArrayHost(kept | folded)
    reference = SCHEME.reference(ModuleHost(marked), key)
    evidence = SCHEME.measure(align(suspect, reference, channels(marked)), key)
    assert evidence.hits == evidence.trials == key.layout.message_bits


def test_removed_channels_leave_the_others():
    marked, key = mark(make("cnn", 1))
    stolen = PruneChannels(share=0.3, epochs=0).run(marked, budget(), seed=3)
    evidence = count(stolen, marked, key)
    assert evidence.trials == key.layout.message_bits
    assert evidence.hits >= evidence.trials - 1


def gauge(model: TinyTransformer, seed: int) -> TinyTransformer:
    """Reorder heads and inner units, and put invertible maps between Q and K, V and O."""
    model = copy.deepcopy(model)
    rng = torch.Generator().manual_seed(seed)
    for layer in model.encoder.layers:
        attention = layer.self_attn
        heads, width = attention.num_heads, attention.embed_dim
        size = width // heads
        order = torch.randperm(heads, generator=rng)
        q, k, v = (p.view(heads, size, -1)[order] for p in attention.in_proj_weight.data.chunk(3))
        out = attention.out_proj.weight.data.view(width, heads, size)[:, order]
        bias = [p.view(heads, size)[order] for p in attention.in_proj_bias.data.chunk(3)]
        for h in range(heads):
            a = torch.randn(size, size, generator=rng) + 2 * torch.eye(size)
            b = torch.randn(size, size, generator=rng) + 2 * torch.eye(size)
            q[h], k[h], v[h] = a @ q[h], torch.linalg.inv(a).T @ k[h], b @ v[h]
            bias[0][h], bias[1][h] = a @ bias[0][h], torch.linalg.inv(a).T @ bias[1][h]
            bias[2][h] = b @ bias[2][h]
            out[:, h] = out[:, h] @ torch.linalg.inv(b)
        attention.in_proj_weight.data = torch.cat([p.reshape(width, -1) for p in (q, k, v)])
        attention.in_proj_bias.data = torch.cat([p.reshape(-1) for p in bias])
        attention.out_proj.weight.data = out.reshape(width, width)
        inner = torch.randperm(layer.linear1.out_features, generator=rng)
        factor = 4 * torch.rand(len(inner), generator=rng) + 0.2
        layer.linear1.weight.data = layer.linear1.weight.data[inner] * factor[:, None]
        layer.linear1.bias.data = layer.linear1.bias.data[inner] * factor
        layer.linear2.weight.data = layer.linear2.weight.data[:, inner] / factor
    return model


def test_attention_heads_and_inner_layers():
    torch.manual_seed(3)
    base = TinyTransformer(width=64).eval()
    marked, key = mark(base)
    stolen = gauge(marked, 7)
    words = torch.randint(0, 50, (4, 12))
    with torch.no_grad():
        torch.testing.assert_close(stolen(words), marked(words), rtol=1e-2, atol=1e-3)
    raw = SCHEME.measure(ModuleHost(stolen), key)
    assert raw.hits < 0.8 * raw.trials
    evidence = count(stolen, marked, key)
    assert evidence.hits == evidence.trials == key.layout.message_bits


def rates(*, naive: bool, references: int, nulls: int, seed: int = 0) -> np.ndarray:
    """Bit error rates of independent models, aligned to marked ones."""
    found = np.empty((references, nulls))
    suspects = [make("cnn", 1000 + seed + i) for i in range(nulls)]
    for i in range(references):
        marked, key = mark(make("cnn", seed + i), i)
        for j, suspect in enumerate(suspects):
            stolen = Obfuscate().run(suspect, budget(), seed=j) if j % 2 else suspect
            evidence = count(stolen, marked, key, naive=naive)
            found[i, j] = 1 - evidence.hits / evidence.trials
    return found


def test_independent_models_stay_at_half_after_alignment():
    """S1: 8 marked references by 6 independent models, half of them obfuscated."""
    found = rates(naive=False, references=8, nulls=6)
    means = found.mean(axis=1)
    error = means.std(ddof=1) / np.sqrt(len(means))
    assert abs(means.mean() - 0.5) < 3 * max(error, 0.5 / np.sqrt(48 * 20))


def test_the_naive_aligner_fails_the_same_test():
    """Aligned to the marked weights themselves, the same innocent models look guilty."""
    found = rates(naive=True, references=3, nulls=5)
    assert found.mean() < 0.45


def trained(references: int, nulls: int) -> dict[str, np.ndarray]:
    """Standard scores of unmarked networks, aligned to marked ones; all were trained on digits."""
    task = image_task("small-cnn", "digits", batch=64, recipe={"epochs": 4, "lr": 0.05})
    innocents = [task.host(train(task, seed=100 + i).model) for i in range(nulls)]
    found: dict[str, list[float]] = {"naive": [], "released": [], "start": []}
    for i in range(references):
        key = SCHEME.new_key(task.host(fresh_model(task, i)), secret=bytes([i + 1]) * 32)
        marked = embed(task, SCHEME, key, seed=i).model
        start = starting_model(task, SCHEME, key, seed=i)
        release = task.host(marked)
        for how, reference in {
            "naive": release,
            "released": SCHEME.reference(release, key),
            "start": SCHEME.reference(task.host(start), key),
        }.items():
            for suspect in innocents:
                evidence = SCHEME.measure(align(suspect, reference, channels(marked)), key)
                size = np.sqrt(np.square(evidence.weights).sum())
                found[how].append(float(evidence.score) / size)
    return {how: np.reshape(values, (references, nulls)) for how, values in found.items()}


@pytest.mark.slow
def test_what_training_makes_of_a_mark_bends_no_innocent():
    """S1 on trained networks: their training answered to the flips, the reference does not."""
    found = trained(8, 8)
    for how in ("released", "start"):
        means = found[how].mean(axis=1)
        assert abs(means.mean()) < 3 * max(means.std(ddof=1), 0.5) / np.sqrt(len(means))
        assert found[how].max() < 4


def test_trained_innocents_look_guilty_to_the_naive_aligner_only():
    found = trained(2, 2)
    assert found["naive"].mean() > 4
    assert abs(found["released"].mean()) < 2
    assert abs(found["start"].mean()) < 2


def test_a_decoy_key_reads_the_same_after_alignment():
    """S3: the true key and a decoy are alike on innocent models, aligned for the true key."""
    true, decoys = [], []
    for i in range(6):
        marked, key = mark(make("cnn", i), i)
        decoy = SCHEME.new_key(ModuleHost(marked), secret=bytes([100 + i]) * 32)
        reference = SCHEME.reference(ModuleHost(marked), key)
        for j in range(4):
            aligned = align(ModuleHost(make("cnn", 500 + j)), reference, channels(marked))
            true.append(SCHEME.measure(aligned, key).hits)
            decoys.append(SCHEME.measure(aligned, decoy).hits)
    trials = key.layout.message_bits * len(true)
    assert abs(sum(true) - sum(decoys)) < 4 * np.sqrt(trials / 2)


def test_hostile_innocents():
    """S2: the very model before it was marked, a constant one, one with huge or missing weights."""
    base = make("cnn", 9)
    marked, key = mark(base)
    hostile = [copy.deepcopy(base) for _ in range(3)]
    with torch.no_grad():
        for parameter in hostile[1].parameters():
            parameter.fill_(0.1)
        hostile[2].conv2.weight.mul_(1e12)
        hostile[2].conv3.weight[0, 0] = float("nan")
    hits = [count(suspect, marked, key) for suspect in hostile]
    for evidence in hits:
        assert evidence.hits <= 0.8 * evidence.trials
        assert not evidence.weights or evidence.score < sum(evidence.weights)


def test_the_model_is_read_not_changed():
    model = make("cnn", 0).train()
    before = ModuleHost(model).digest()
    found = channels(model)
    assert model.training
    assert ModuleHost(model).digest() == before
    assert found.sizes == (16, 32, 64, 48, 10)
    assert found.frozen == {4}
    assert [layer.norm for layer in found.layers] == ["bn1", "bn2", "bn3", "", ""]


def test_models_of_another_kind_are_refused():
    marked, key = mark(make("cnn", 0))
    reference = SCHEME.reference(ModuleHost(marked), key)
    with pytest.raises(HostError, match="lacks"):
        align(ModuleHost(make("resnet", 0)), reference, channels(marked))
    other = SmallCnn((3, 8, 8), 10, width=16, hidden=48)
    with pytest.raises(HostError, match="more than channels"):
        align(ModuleHost(other), reference, channels(marked))
    state = {name: tensor.numpy() for name, tensor in marked.state_dict().items() if tensor.ndim}
    weight = next(name for name, tensor in state.items() if tensor.ndim == 4)
    bias = next(name for name in state if name.endswith("bias"))
    for name, shape in ((weight, ()), (weight, (0, 3, 3, 3)), (bias, ())):
        lying = ArrayHost(state | {name: np.zeros(shape, np.float32)})
        with pytest.raises(HostError, match="more than channels"):
            align(lying, reference, channels(marked))
    other = SmallCnn((1, 8, 8), 12, width=16, hidden=48)
    with pytest.raises(HostError, match="other numbers"):
        align(ModuleHost(other), reference, channels(marked))


def test_balancing_forgets_every_positive_factor():
    rng = np.random.default_rng(0)
    one = rng.normal(size=(20, 30, 9))
    left, right = rng.lognormal(0, 1, 20), rng.lognormal(0, 1, 30)
    two = one * left[:, None, None] * right[None, :, None]
    np.testing.assert_allclose(balance(one), balance(two), rtol=1e-3, atol=1e-4)
    rows = np.sqrt(np.square(one).sum((1, 2)))
    columns = np.sqrt(np.square(one).sum((0, 2)))
    np.testing.assert_allclose(balance(two, rows, columns), one, rtol=2e-2, atol=1e-3)


def test_the_reference_before_training_is_known_before_the_beacon():
    """It is what embedding starts from, whatever the flips that a beacon brings."""
    task = image_task("small-cnn", "digits", batch=64, recipe={"epochs": 0, "lr": 0.05})
    key = SCHEME.new_key(task.host(fresh_model(task, 4)), secret=bytes([7]) * 32)
    before = SCHEME.reference(task.host(starting_model(task, SCHEME, key, seed=4)), key)
    prepared = fresh_model(task, 4)
    SCHEME.prepare(prepared, key)
    unmarked = SCHEME.reference(task.host(prepared), key)
    for name in before.tensor_names():
        np.testing.assert_allclose(before.tensor(name), unmarked.tensor(name), atol=1e-4)
    for beacon in ("ab" * 32, "cd" * 32):
        bound = key.bind(beacon)
        started = task.host(embed(task, SCHEME, bound, seed=4).model)
        assert SCHEME.measure(started, bound).hits == bound.layout.message_bits
        reference = SCHEME.reference(started, bound)
        for name in before.tensor_names():
            np.testing.assert_allclose(before.tensor(name), reference.tensor(name), atol=1e-4)
