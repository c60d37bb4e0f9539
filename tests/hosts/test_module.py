"""Hosts of torch modules: batches as trees, taps by name, suspects with other widths."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from earmark.bench import zoo
from earmark.errors import AccessError, CarrierError, FileError, FormatError, HostError
from earmark.hosts import batches, taps
from earmark.hosts.access import Host
from earmark.hosts.files import FilesHost, save_release
from earmark.hosts.module import ModuleHost, plain_forward, state_digest
from earmark.hosts.suspects import load_suspect
from earmark.records import Access

TREES = (
    torch.arange(12.0).view(4, 3),
    (torch.arange(8).view(4, 2), torch.tensor([1, 0, 1, 1])),
    {"ids": torch.ones(4, 2, dtype=torch.long), "deep": [torch.zeros(4, 1), (torch.ones(4),)]},
    (torch.zeros(4, 0), torch.tensor([True, False, True, True])),
)


@pytest.mark.parametrize("tree", TREES, ids=["tensor", "pair", "deep", "empty"])
def test_trees_survive_the_disk(tree, tmp_path) -> None:
    path = tmp_path / "inputs.safetensors"
    value = batches.save(tree, path)
    again = batches.load(path)
    assert batches.tree_digest(again) == value == batches.tree_digest(tree)
    assert type(again) is type(tree)
    halves = [batches.take(tree, slice(0, 2)), batches.take(tree, [2, 3])]
    assert batches.tree_digest(batches.join(halves)) == value
    assert batches.size(tree) == 4


def test_sample_digests_see_every_bit_and_the_type() -> None:
    base = torch.zeros(3, 2)
    values = {batches.tree_digest(base), batches.tree_digest(base.double())}
    values.add(batches.tree_digest({"0": base + 0, "1": base}))
    changed = base.clone()
    changed[2, 1] = -0.0
    values.add(batches.tree_digest(changed))
    assert len(values) == 4
    assert batches.sample_digests(base)[0] == batches.sample_digests(base)[1]


@pytest.mark.parametrize(
    "act",
    [
        lambda: batches.leaves(("text",)),
        lambda: batches.size((torch.zeros(2), torch.zeros(3))),
        lambda: batches.join([torch.zeros(2, 3), torch.zeros(2, 4)]),
        lambda: batches.join([torch.zeros(2, 3), (torch.zeros(2, 3), torch.zeros(2))]),
        lambda: batches.join([{"x": torch.zeros(2)}, {"y": torch.zeros(2)}]),
        lambda: batches.transform(3, torch.neg),
    ],
)
def test_bad_batches(act) -> None:
    with pytest.raises(HostError):
        act()


def test_files_that_hold_no_inputs(tmp_path) -> None:
    with pytest.raises((FileError, FormatError)):
        batches.load(tmp_path / "none")
    (tmp_path / "a").write_bytes(b"garbage")
    with pytest.raises(FormatError):
        batches.load(tmp_path / "a")
    save_release(nn.Linear(2, 2), tmp_path / "b")
    with pytest.raises(FormatError):
        batches.load(tmp_path / "b")


def test_taps_are_chosen_by_glob_and_suggested() -> None:
    model = zoo.SmallCnn((1, 8, 8), 10)
    names = [name for name, _ in model.named_modules()]
    assert taps.choose(names, ["conv*"], what="tap") == ("conv1", "conv2", "conv3")
    with pytest.raises(CarrierError, match=r"Nearest names: .*conv1"):
        taps.choose(names, ["convv1"], what="tap")
    assert taps.default_taps(model)[-1] == "fc"
    with pytest.raises(HostError):
        taps.default_taps(nn.Sequential(nn.Linear(2, 2)))
    assert taps.last_features(model) == ("fc",)
    residual = zoo.ResNet((1, 8, 8), 10, width=4)
    assert taps.last_features(residual) == ("stages.2",)
    assert taps.last_features(nn.Sequential(residual)) == ("0.stages.2",)
    flat = nn.Sequential(*residual.stages, nn.Flatten(), nn.Linear(16, 2))
    assert taps.last_features(flat) == ("2",)
    bare = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    assert taps.last_features(bare) == ("3:in",)
    single = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert taps.last_features(single) == ("2:in",)  # layer 0 is linear in the inputs
    with pytest.raises(HostError):
        taps.last_features(nn.Sequential(nn.Linear(2, 2)))


def test_padded_sequences_are_read_as_in_training() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2)
    inputs, padded = torch.randn(3, 5, 8), torch.arange(5) > torch.tensor([[4], [2], [3]])
    found = []
    for mode in (True, False):
        with torch.no_grad(), taps.reading(encoder.train(mode), ["layers.0", "layers.1"]) as seen:
            encoder(inputs, src_key_padding_mask=padded)
        found.append(seen)
    for name, value in found[0].items():
        torch.testing.assert_close(found[1][name], value)


@pytest.mark.parametrize("name", ["mlp", "cnn", "transformer"])
def test_features_are_pooled_and_nothing_is_left_behind(name) -> None:
    model, inputs = zoo.tiny_hosts()[name]
    model.train()
    before = copy.deepcopy(model.state_dict())
    host = ModuleHost(model, batch_size=100)
    found = host.features(inputs, taps.default_taps(model))
    for value in found.values():
        assert value.shape[0] == 256
        assert value.dtype == np.float64
    assert model.training
    assert state_digest(model.state_dict()) == state_digest(before)
    assert not any(module._forward_hooks for module in model.modules())
    whole = ModuleHost(model, batch_size=256).scores(inputs)
    assert np.allclose(host.scores(inputs), whole, atol=1e-5)
    assert (host.labels(inputs) == whole.argmax(1)).all()


def test_nan_scores_are_no_label() -> None:
    class Broken(nn.Module):
        def forward(self, x):
            return torch.stack([x[:, 0], x[:, 1] * float("nan")], 1)

    assert (ModuleHost(Broken()).labels(torch.ones(3, 2)) == -1).all()


def test_a_layer_that_does_not_run_is_named() -> None:
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x):
            return self.used(x)

    with pytest.raises(HostError, match="idle"):
        ModuleHost(Idle()).features(torch.zeros(2, 2), ["idle"])


def test_plain_forward_knows_pairs_and_dicts() -> None:
    class Named(nn.Module):
        def forward(self, a):
            return a * 2

    assert plain_forward(Named(), (torch.ones(1), torch.zeros(1))) == 2
    assert plain_forward(Named(), {"a": torch.ones(1), "labels": torch.zeros(1)}) == 2


def test_a_host_without_access_says_what_is_missing() -> None:
    host = Host()
    for act in (
        host.tensor_names,
        lambda: host.tensor("a"),
        lambda: host.features(None, []),
        lambda: host.scores(None),
        lambda: host.labels(None),
        lambda: host.require(Access.WEIGHTS, by="demo"),
    ):
        with pytest.raises(AccessError, match="nothing"):
            act()


def test_digest_is_the_same_on_disk_and_ignores_order(tmp_path) -> None:
    model = zoo.SmallCnn((1, 8, 8), 10)
    save_release(model, tmp_path / "a")
    assert FilesHost(tmp_path / "a").digest() == ModuleHost(model).digest()
    state = model.state_dict()
    assert state_digest(dict(reversed(state.items()))) == state_digest(state)
    state["fc.bias"][0] += 1
    assert FilesHost(tmp_path / "a").digest() != ModuleHost(model).digest()


def test_suspects_with_other_widths_are_loaded(tmp_path) -> None:
    wide = zoo.SmallCnn((1, 8, 8), 10, width=20, hidden=50).eval()
    save_release(wide, tmp_path / "wide")
    loaded = load_suspect(zoo.SmallCnn((1, 8, 8), 10), tmp_path / "wide").eval()
    inputs = torch.randn(5, 1, 8, 8)
    assert torch.allclose(loaded(inputs), wide(inputs))
    assert (loaded.conv1.out_channels, loaded.fc.out_features) == (20, 50)
    assert loaded.bn1.num_features == 20


def test_suspects_of_another_kind_are_refused(tmp_path) -> None:
    save_release(zoo.Mlp((1, 8, 8), 10), tmp_path / "mlp")
    with pytest.raises(HostError, match="lacks"):
        load_suspect(zoo.SmallCnn((1, 8, 8), 10), tmp_path / "mlp")
    huge = nn.Linear(3000, 3000)
    save_release(huge, tmp_path / "huge")
    with pytest.raises(HostError, match="far larger"):
        load_suspect(nn.Linear(4, 4), tmp_path / "huge")


@given(st.integers(1, 5), st.integers(1, 4))
def test_pool_always_gives_vectors(dims, size) -> None:
    pooled = taps.pool(torch.zeros([3] + [size] * (dims - 1)))
    assert pooled.shape[0] == 3
    assert pooled.ndim == 2
