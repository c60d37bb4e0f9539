from __future__ import annotations

import copy
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from earmark import stats
from earmark.bench.zoo import SmallCnn, tiny_hosts
from earmark.errors import AccessError, CapacityError, CarrierError, KeyLayoutError, UsageError
from earmark.hosts.access import Host
from earmark.hosts.arrays import ArrayHost
from earmark.hosts.files import FilesHost, save_release, write_tensors
from earmark.hosts.module import ModuleHost
from earmark.keys.secret import Disclosure
from earmark.policy import log2_p
from earmark.schemes import cells as cells_of
from earmark.schemes.deepwater import DeepWater, stamp_files
from earmark.schemes.deepwater_torch import settle
from earmark.testing import check_scheme, null_excess

SECRET = bytes(range(32))
KEYS = 40


def arrays(seed: int = 0, *, width: int = 64, law: str = "normal") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    draw = rng.standard_normal if law == "normal" else lambda s: rng.standard_t(3, s)
    shapes = {
        "conv1.weight": (16, 1, 3, 3),
        "conv2.weight": (width, 32, 3, 3),
        "fc.weight": (96, 128),
        "fc.bias": (96,),
        "head.weight": (10, 128),
    }
    return {name: draw(shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def marked():
    scheme = DeepWater(margin=8)
    host = ArrayHost(arrays())
    key = scheme.new_key(host, secret=SECRET)
    return scheme, key, host, scheme.stamp(host, key)


def test_the_house_rules():
    check_scheme(DeepWater(), hosts=("cnn",), keys=20, recipe={"epochs": 2})


@pytest.mark.slow
def test_the_house_rules_on_every_tiny_host():
    check_scheme(DeepWater())


def test_only_weights_that_stay_are_carriers(marked):
    _, key, _, _ = marked
    assert key.layout.carrier == ("conv2.weight", "fc.weight")
    assert key.layout.message_bits == 16 + 11


def test_tiny_hosts_leave_out_heads_embeddings_and_places():
    for model, _ in tiny_hosts().values():
        names = cells_of.eligible(ModuleHost(model))
        assert names
        assert not [n for n in names if "head" in n or "embed" in n or "norm" in n or "bias" in n]


def test_stamping_keeps_the_values_of_every_filter_and_touches_nothing_else(marked):
    _, key, host, stamped = marked
    for name, values in host.tensors.items():
        other = stamped.tensor(name)
        if name in key.layout.carrier:
            rows = [np.sort(v.reshape(len(v), -1), axis=1) for v in (values, other)]
            np.testing.assert_array_equal(*rows)
            assert np.corrcoef(values.ravel(), other.ravel())[0, 1] > 0.95
        else:
            np.testing.assert_array_equal(other, values)


def test_a_stamp_is_as_strong_as_stays_unseen():
    rng = np.random.default_rng(2)
    for size, per_bit, margin in (
        (4608, 1152, 4.07),
        (65536, 4096, 7.68),
        (65536, 16384, 8),
        (4096, 64, 4),
    ):
        host = ArrayHost({"w.weight": rng.normal(size=(64, size // 64)).astype(np.float32)})
        scheme = DeepWater(weights_per_bit=per_bit, carrier=("*",))
        key = scheme.new_key(host, secret=SECRET)
        assert scheme.margin_of(cells_of.layers(key.layout)[0]) == pytest.approx(margin, abs=0.02)
        rows = scheme.measure(scheme.stamp(host, key), key).details["layers"]
        assert 0.8 * margin < rows["w.weight"]["least_z"] < 1.03 * margin


def planted(model: nn.Module, key, *, fresh: bool = True) -> dict[str, np.ndarray]:
    DeepWater().begin(model, key, fresh=fresh)
    return {n: p.detach().numpy().copy() for n, p in model.named_parameters()}


def test_fresh_weights_bear_every_bit_and_keep_every_size():
    torch.manual_seed(0)
    model = SmallCnn((1, 28, 28), 10).to(memory_format=torch.channels_last)
    before = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    scheme = DeepWater()
    key = scheme.new_key(ModuleHost(model), secret=SECRET)
    after = planted(model, key)
    evidence = scheme.measure(ModuleHost(model), key)
    assert evidence.hits == evidence.trials
    assert min(row["least_z"] for row in evidence.details["layers"].values()) > 13
    for name, values in before.items():
        one, two = (np.sort(np.abs(v), None) for v in (values, after[name]))
        np.testing.assert_array_equal(one, two)
        if values.std() > 0 and "bn" not in name:
            assert (values != after[name]).mean() > 0.8
            assert abs(np.corrcoef(values.ravel(), after[name].ravel())[0, 1]) < 4 / math.sqrt(
                values.size
            )


def test_planting_leaves_the_law_of_fresh_weights_as_it_is():
    """Over keys, planted pairs are as independent and as symmetric as honest ones."""
    rng = np.random.default_rng(1)
    scheme, shape = DeepWater(carrier=("*",)), (64, 32, 3, 3)
    pairs = []
    for seed in range(60):
        host = ArrayHost({"w.weight": rng.uniform(-1, 1, shape).astype(np.float32)})
        key = scheme.new_key(host, secret=seed.to_bytes(32, "big"))
        (layer,) = cells_of.layers(key.layout)
        cells = cells_of.reveal(layer, key.shards, key.layout.shards)
        made = scheme.plant_tensor(host.tensor("w.weight"), cells, cells.pads)
        pairs.append(made.ravel()[cells.positions()].reshape(-1, 2))
        assert scheme.measure(ArrayHost({"w.weight": made}), key).hits == layer.cells
    one, two = np.concatenate(pairs).T
    error = 1 / math.sqrt(one.size)
    for odd in (one, two, one**3, one * two, one**3 * two, np.sign(one) * np.sign(two)):
        assert abs(odd.mean()) < 4 * error
    even = (one**2 - 1 / 3) * (two**2 - 1 / 3)
    assert abs(even.mean()) < 4 * error
    grid = np.histogram2d(one, two, bins=8, range=[[-1, 1]] * 2)[0].ravel()
    chi = ((grid - one.size / 64) ** 2).sum() / (one.size / 64)
    assert chi < 63 + 4 * math.sqrt(2 * 63)


def test_planting_moves_nothing_that_alignment_sees():
    """The same start, planted for two sets of flips."""
    found = []
    for beacon in ("ab" * 32, "cd" * 32):
        torch.manual_seed(3)
        model = SmallCnn((1, 8, 8), 10)
        scheme = DeepWater()
        key = scheme.new_key(ModuleHost(model), secret=SECRET).bind(beacon)
        weights = planted(model, key)["fc.weight"]
        found.append((weights, scheme.reference(ModuleHost(model), key)))
    (one, left), (two, right) = found
    assert 0.4 < (one != two).mean() < 0.6
    for name in left.tensor_names():
        np.testing.assert_allclose(left.tensor(name), right.tensor(name), atol=1e-5)


def test_a_seed_that_is_guessed_tells_nothing():
    """What the seed gives, and what is planted, are unrelated; only zeros stay in their place."""
    torch.manual_seed(5)
    model = SmallCnn((1, 8, 8), 10)
    with torch.no_grad():
        model.head.weight[3] = 0
    scheme = DeepWater()
    key = scheme.new_key(ModuleHost(model), secret=SECRET)
    given = {n: p.detach().numpy().copy() for n, p in model.named_parameters()}
    after = planted(model, key)
    assert (after["head.weight"][3] == 0).all()
    for name in ("conv1.weight", "head.weight", "fc.bias", *key.layout.carrier):
        rest = given[name].size - given[name].size * ("head.w" in name) // 10
        assert abs((given[name] * after[name]).sum()) < 4 * (given[name] ** 2).sum() / rest**0.5


def test_the_guard_lets_what_is_strong_be_and_lifts_what_is_weak():
    torch.manual_seed(2)
    model = SmallCnn((1, 8, 8), 10)
    scheme = DeepWater(margin=6)
    key = scheme.new_key(ModuleHost(model), secret=SECRET)
    strong = planted(model, key)
    with scheme.attach(model, key) as mark:
        for _ in range(80):
            mark.after_step(0.1)
        np.testing.assert_array_equal(model.fc.weight.detach().numpy(), strong["fc.weight"])
        with torch.no_grad():
            model.conv3.weight.normal_(0, 0.1)
        for _ in range(80):
            mark.after_step(0.1)
        rows = scheme.measure(ModuleHost(model), key).details["layers"]
        assert rows["conv3.weight"]["least_z"] > 5.5
    np.testing.assert_array_equal(model.fc.weight.detach().numpy(), strong["fc.weight"])


def test_finished_weights_are_stamped_before_they_are_tuned():
    torch.manual_seed(4)
    model = SmallCnn((1, 8, 8), 10)
    scheme = DeepWater()
    key = scheme.new_key(ModuleHost(model), secret=SECRET)
    stamped = scheme.stamp(ModuleHost(model), key)
    assert "conv2.weight" in key.layout.carrier
    found = planted(model, key, fresh=False)
    for name in key.layout.carrier:
        np.testing.assert_array_equal(found[name], stamped.tensor(name))
    DeepWater(planted=False).begin(model, scheme.new_key(ModuleHost(model)), fresh=True)
    np.testing.assert_array_equal(model.conv2.weight.detach().numpy(), found["conv2.weight"])
    with pytest.raises(CarrierError, match="lacks"):
        scheme.begin(nn.Linear(2, 2), key, fresh=True)


def test_settling_renews_norms_and_nothing_else():
    torch.manual_seed(0)
    model = SmallCnn((1, 8, 8), 10).eval()
    images = 3 + torch.randn(256, 1, 8, 8)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    settle(model, images.split(64))
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed
    assert all("running" in name or "batches" in name for name in changed)
    assert not model.training
    with torch.no_grad():
        maps = model.conv1(images)
    torch.testing.assert_close(model.bn1.running_mean, maps.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
    assert model.bn1.momentum == 0.1


def test_thirty_thousand_weights_reach_a_claim_by_the_soft_reading(marked):
    scheme, key, _, stamped = marked
    evidence = scheme.measure(stamped, key)
    assert evidence.hits == evidence.trials == key.layout.message_bits < 30
    hard = stats.log2_binomial_tail(evidence.hits, evidence.trials, evidence.chance)
    assert hard > -30
    assert log2_p(evidence) < -400
    assert {row["hits"] for row in evidence.details["layers"].values()} == {16, 11}


def test_an_unmarked_host_shows_nothing(marked):
    scheme, key, host, _ = marked
    assert -log2_p(scheme.measure(host, key)) < 12


@pytest.mark.parametrize(
    "kind", ["normal", "heavy", "constant", "ramp", "half zero", "signs", "marked"]
)
def test_null_calibration_whatever_the_suspect(kind, marked):
    """Many keys against hostile suspects, a model marked with another key among them."""
    scheme, _, host, stamped = marked
    tensors = arrays(3, law="heavy" if kind == "heavy" else "normal")
    for name, values in tensors.items():
        if kind == "constant":
            tensors[name] = np.full_like(values, 0.3)
        elif kind == "ramp":
            tensors[name] = np.linspace(-1, 1, values.size, dtype=np.float32).reshape(values.shape)
        elif kind == "signs":
            tensors[name] = np.sign(tensors[name])
        elif kind == "half zero":
            values[np.abs(values) < 0.67] = 0
    suspect = stamped if kind == "marked" else ArrayHost(tensors)
    found = []
    hits = trials = 0
    for seed in range(KEYS):
        key = scheme.new_key(host, secret=seed.to_bytes(32, "big"))
        evidence = scheme.measure(suspect, key)
        found.append(log2_p(evidence))
        hits, trials = hits + evidence.hits, trials + evidence.trials
    assert not null_excess(found)
    if kind != "constant":
        assert abs(hits - trials / 2) < 4 * math.sqrt(trials) / 2
    else:
        assert hits == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_null_calibration_at_length(seed):
    scheme, host = DeepWater(), ArrayHost(arrays(seed))
    suspect = scheme.stamp(host, scheme.new_key(host, secret=bytes([7]) * 32))
    keys = (scheme.new_key(host, secret=i.to_bytes(32, "big")) for i in range(500))
    assert not null_excess([log2_p(scheme.measure(suspect, key)) for key in keys])


def test_group_signs_are_fair_and_independent_of_their_sizes(marked):
    """The soft reading's variables: over many keys, sign and size of a step are unrelated."""
    scheme, _, host, _ = marked
    sums, products, count = 0, 0.0, 0
    for seed in range(50):
        key = scheme.new_key(host, secret=seed.to_bytes(32, "little"))
        evidence = scheme.measure(host, key)
        layer = cells_of.layers(key.layout)[0]
        cells = cells_of.reveal(layer, key.shards, key.layout.shards)
        steps = cells.pads[:, None] * cells_of.read(cells, cells.take(host)).steps
        signs, sizes = np.sign(steps), np.abs(steps)
        sums += signs.sum()
        products += (signs * (sizes - sizes.mean()) / sizes.std()).sum()
        count += steps.size
        assert sum(evidence.weights) >= abs(evidence.score)
        assert list(evidence.weights) == sorted(evidence.weights)  # no place shows its pattern
    assert abs(sums) < 4 * math.sqrt(count)
    assert abs(products) < 4 * math.sqrt(count)


def test_the_beacon_decides_every_bit_and_flip(marked):
    """A key chosen to suit a suspect is worth nothing once its message is bound to a beacon."""
    scheme, key, _, stamped = marked
    bound = key.bind("ab" * 32)
    evidence = scheme.measure(stamped, bound)
    assert -log2_p(evidence) < 12
    one, other = (
        cells_of.reveal(cells_of.layers(k.layout)[0], k.shards, k.layout.shards)
        for k in (key, bound)
    )
    np.testing.assert_array_equal(one.signs, other.signs)
    assert (one.flips != other.flips).mean() == pytest.approx(0.5, abs=0.02)
    assert -log2_p(scheme.measure(scheme.stamp(stamped, bound), bound)) > 400


def test_a_revealed_shard_shows_its_own_cells_and_no_others(marked):
    scheme, key, _, stamped = marked
    owner = "11" * 32
    shown = Disclosure(key.opening(owner), key.reveal([1, 4]))
    evidence = scheme.measure(stamped, shown)
    assert evidence.shards == (1, 4)
    assert evidence.hits == evidence.trials == 4 + 3
    assert evidence.commitment == key.opening(owner).commitment()
    assert -log2_p(evidence) > 64
    taken = {}
    for layer in cells_of.layers(key.layout):
        for index in range(8):
            part = cells_of.reveal(layer, [key.shard(index)], 8)
            if part is not None:
                taken.setdefault(layer.name, []).append(part.positions().ravel())
    for parts in taken.values():
        joined = np.concatenate(parts)
        assert len(np.unique(joined)) == len(joined)


def test_the_reference_does_not_depend_on_the_flips(marked):
    scheme, key, _, stamped = marked
    one, other = (scheme.reference(stamped, k) for k in (key, key.bind("cd" * 32)))
    for name in one.tensor_names():
        np.testing.assert_array_equal(one.tensor(name), other.tensor(name))
    assert scheme.measure(one, key).hits < 27
    assert -log2_p(scheme.measure(one, key)) < 12


def damage(kind: str, values: np.ndarray) -> np.ndarray:
    rng = np.random.default_rng(5)
    out = values.copy()
    if kind == "prune 65":
        out[np.abs(out) < np.quantile(np.abs(out), 0.65)] = 0
    elif kind == "prune 80":
        out[np.abs(out) < np.quantile(np.abs(out), 0.8)] = 0
    elif kind == "noise":
        out += 0.5 * out.std() * rng.standard_normal(out.shape).astype(np.float32)
    elif kind == "int4":
        step = np.abs(out).max() / 7
        out = np.round(out / step) * step
    elif kind == "three values":
        out = np.sign(out) * (np.abs(out) > out.std()).astype(np.float32)
    elif kind == "one huge weight":
        out.flat[7] = 1e12
    elif kind == "nan":
        out.flat[:: out.size // 50] = np.nan
    elif kind == "scaled and shifted":
        out = 3 * out + 0.5
    elif kind == "half":
        out = out.astype(np.float16).astype(np.float32)
    return out


DAMAGE = ["prune 65", "prune 80", "noise", "int4", "three values", "one huge weight", "nan", "half"]


@pytest.mark.parametrize("kind", [*DAMAGE, "scaled and shifted"])
def test_every_bit_survives(kind, marked):
    scheme, key, _, stamped = marked
    hurt = {
        n: damage(kind, v) if n in key.layout.carrier else v for n, v in stamped.tensors.items()
    }
    evidence = scheme.measure(ArrayHost(hurt), key)
    assert evidence.hits == evidence.trials
    assert -log2_p(evidence) > 100


def test_nothing_but_nan_or_zero_is_no_hit(marked):
    scheme, key, host, _ = marked
    for fill in (np.nan, 0.0, np.inf):
        empty = {name: np.full_like(values, fill) for name, values in host.tensors.items()}
        evidence = scheme.measure(ArrayHost(empty), key)
        assert (evidence.hits, evidence.score) == (0, 0)
        assert log2_p(evidence) == 0


def test_overwriting_five_times_leaves_every_bit(marked):
    scheme, key, _, stamped = marked
    for seed in range(5):
        stamped = scheme.stamp(stamped, scheme.new_key(stamped, secret=bytes([seed + 1]) * 32))
    evidence = scheme.measure(stamped, key)
    assert evidence.hits == evidence.trials


def test_a_missing_tensor_is_left_out_and_noted(marked):
    scheme, key, _, stamped = marked
    part = {name: values for name, values in stamped.tensors.items() if name != "fc.weight"}
    evidence = scheme.measure(ArrayHost(part), key)
    assert evidence.hits == evidence.trials == 16
    assert "fc.weight" in evidence.notes[0]
    with pytest.raises(CarrierError, match="none of the key's tensors"):
        scheme.measure(ArrayHost({"x": np.zeros((2, 2), np.float32)}), key)


def test_the_identifier_is_read_back(marked):
    _, _, host, _ = marked
    scheme = DeepWater(weights_per_bit=200, payload=b"acme-17".hex())
    key = scheme.new_key(host, secret=SECRET)
    stamped = scheme.stamp(host, key)
    found = scheme.read_payload(stamped, key)
    assert (found.message, found.corrected, found.ok) == (b"acme-17", 0, True)
    evidence = scheme.measure(stamped, key)
    assert evidence.hits == evidence.trials
    hurt = {n: damage("prune 80", v) + damage("noise", v) for n, v in stamped.tensors.items()}
    assert scheme.read_payload(ArrayHost(hurt), key).message == b"acme-17"
    assert not scheme.read_payload(host, key).ok
    with pytest.raises(UsageError, match="no identifier"):
        DeepWater().read_payload(stamped, DeepWater().new_key(host, secret=SECRET))
    with pytest.raises(CapacityError):
        DeepWater(payload="00" * 100).new_key(host)


def test_files_are_measured_without_torch(tmp_path, marked):
    scheme, key, _, stamped = marked
    path = write_tensors(tmp_path / "x.safetensors", stamped.tensors, dtype="BF16")
    key.seal(tmp_path / "key.json", "word")
    code = (
        "import sys; sys.modules['torch'] = None; sys.modules['scipy'] = None\n"
        "from earmark.schemes.deepwater import DeepWater\n"
        "from earmark.hosts.files import FilesHost\n"
        "from earmark.keys.secret import Key\n"
        f"key = Key.open({str(tmp_path / 'key.json')!r}, 'word')\n"
        f"evidence = DeepWater().measure(FilesHost({str(path)!r}), key)\n"
        "print(evidence.hits, evidence.trials, evidence.digest())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split()[:2] == ["27", "27"], done.stderr
    assert done.stdout.split()[2] == scheme.measure(FilesHost(path), key).digest()


@pytest.mark.slow
def test_memory_does_not_grow_with_the_file(tmp_path):
    rng = np.random.default_rng(0)
    block = rng.standard_normal((4096, 8192)).astype(np.float32)
    tensors = {f"layers.{i}.up_proj.weight": block for i in range(8)}
    tensors["lm_head.weight"] = block[:16]
    path = write_tensors(tmp_path / "big.safetensors", tensors, dtype="BF16")
    assert path.stat().st_size > 500_000_000
    code = (
        "import re, pathlib\n"
        "from earmark.schemes.deepwater import DeepWater\n"
        "from earmark.hosts.files import FilesHost\n"
        f"host = FilesHost({str(path)!r})\n"
        "scheme = DeepWater()\n"
        "evidence = scheme.measure(host, scheme.new_key(host, secret=bytes(32)))\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) // 1024, evidence.trials)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    peak, trials = map(int, done.stdout.split())
    assert trials == 512
    assert peak < 200


def test_checkpoints_are_stamped_shard_by_shard(tmp_path, marked):
    scheme, key, host, _ = marked
    names = sorted(host.tensors)
    source = tmp_path / "source"
    source.mkdir()
    index = {}
    for number, held in enumerate((names[:2], names[2:])):
        file = f"model-{number}.safetensors"
        write_tensors(source / file, {n: host.tensors[n] for n in held}, dtype="BF16")
        index |= dict.fromkeys(held, file)
    (source / "model.safetensors.index.json").write_text(
        __import__("json").dumps({"weight_map": index})
    )
    stamp_files(scheme, source, tmp_path / "target", key)
    suspect = FilesHost(tmp_path / "target")
    evidence = scheme.measure(suspect, key)
    assert evidence.hits == evidence.trials
    np.testing.assert_array_equal(
        suspect.tensor("head.weight"), FilesHost(source).tensor("head.weight")
    )
    with pytest.raises(UsageError, match="exists already"):
        stamp_files(scheme, source, tmp_path / "target", key)


def test_large_tensors_use_blocks_and_a_secret_part(monkeypatch):
    """The geometry of huge tensors, at a small size."""
    monkeypatch.setattr(cells_of, "MOST_POSITIONS", 1 << 12)
    monkeypatch.setattr(cells_of, "MOST_BLOCKS", 1 << 9)
    monkeypatch.setattr(cells_of, "MOST_USED", 1 << 14)
    host = ArrayHost(arrays(width=128) | {"up.weight": arrays(1)["conv2.weight"].reshape(96, 192)})
    scheme = DeepWater(carrier=("conv2.weight", "up.weight"))
    key = scheme.new_key(host, secret=SECRET)
    layer = cells_of.layers(key.layout)[0]
    assert layer.block > 1
    assert layer.weights * layer.cells < layer.entries / 2
    one, other = (
        cells_of.reveal(layer, k.shards, 8).positions().ravel()
        for k in (key, scheme.new_key(host, secret=bytes(32)))
    )
    assert len(np.unique(one)) == len(one)
    assert 0.2 < np.isin(one, other).mean() < 0.8
    stamped = scheme.stamp(host, key)
    evidence = scheme.measure(stamped, key)
    assert evidence.hits == evidence.trials


def test_attach_leaves_no_trace_and_works_in_any_memory_order():
    torch.manual_seed(0)
    scheme = DeepWater(margin=8)
    model = SmallCnn((1, 28, 28), 10).to(memory_format=torch.channels_last)
    key = scheme.new_key(ModuleHost(model), secret=SECRET)
    names = list(model.state_dict())
    with scheme.attach(model, key) as mark:
        assert mark.loss().item() == 0
        before = scheme.measure(ModuleHost(model), key)
        for _ in range(30):
            mark.after_step(0.1)
        inside = scheme.measure(ModuleHost(model), key)
    after = scheme.measure(ModuleHost(model), key)
    assert list(model.state_dict()) == names
    assert not any(m._forward_hooks for m in model.modules())
    least = [
        min(r["least_z"] for r in e.details["layers"].values()) for e in (before, inside, after)
    ]
    # The margin is in standard deviations, the reading in robust ones: 0.77 of it if uniform.
    assert least[0] < 0 < 5.5 < least[1] < least[2] < 7
    twin = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    assert scheme.measure(ModuleHost(twin), key).hits == after.hits == after.trials


def test_attaching_and_stamping_agree(tmp_path):
    torch.manual_seed(1)
    model = SmallCnn((1, 28, 28), 10)
    scheme = DeepWater()
    key = scheme.new_key(ModuleHost(model), secret=SECRET)
    stamped = scheme.stamp(ModuleHost(model), key)
    with scheme.attach(model, key):
        pass
    for name in key.layout.carrier:
        np.testing.assert_array_equal(model.state_dict()[name].numpy(), stamped.tensor(name))
    save_release(model, tmp_path / "x.safetensors")
    assert scheme.measure(FilesHost(tmp_path / "x.safetensors"), key) == scheme.measure(
        ModuleHost(model), key
    )


def test_wrong_models_and_keys_are_refused(marked):
    scheme, key, host, _ = marked
    with (
        pytest.raises(CarrierError, match="lacks the key's tensor"),
        scheme.attach(nn.Linear(2, 2), key),
    ):
        pass
    with pytest.raises(CapacityError, match="no carrier"):
        scheme.new_key(ArrayHost({"w": np.zeros((4, 4), np.float32)}))
    with pytest.raises(CarrierError, match="matches none"):
        DeepWater(carrier=("nothing.*",)).new_key(host)
    with pytest.raises(AccessError):
        scheme.measure(Host(), key)
    for settings in ({"margin": -1.0}, {"rate": 2.0}, {"weights_per_bit": 3}, {"payload": "xyz"}):
        with pytest.raises(UsageError):
            DeepWater(**settings)
    layout = copy.copy(key.layout)
    broken = type(layout)("deepwater", 2, layout.carrier, 27, 8, {"groups": 0, "layers": [[1, 2]]})
    with pytest.raises(KeyLayoutError):
        cells_of.layers(broken)
