from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from earmark.errors import (
    CarrierError,
    EarmarkError,
    FileError,
    FormatError,
    HostError,
    UsageError,
)
from earmark.hosts import tensorfile
from earmark.hosts.files import FilesHost, load_state, save_release, write_tensors
from earmark.hosts.module import ModuleHost


def raw_file(header: object, data: bytes = b"") -> bytes:
    body = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(body).to_bytes(8, "little") + body + data


def spec(begin: int, end: int, *, dtype: str = "F32", shape: list[int] | None = None) -> dict:
    size = {"F32": 4, "I8": 1}.get(dtype, 4)
    return {
        "dtype": dtype,
        "shape": [(end - begin) // size] if shape is None else shape,
        "data_offsets": [begin, end],
    }


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 8).to(torch.bfloat16)
    )


DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn,
    torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_type_reads_as_torch_reads_it(tmp_path, dtype):
    raw = torch.arange(256).to(torch.uint8).repeat(8)
    values = raw.view(dtype) if dtype.is_floating_point else torch.arange(-64, 64).to(dtype)
    values = values.reshape(2, -1)
    save_file({"x": values}, tmp_path / "x.safetensors")
    got = FilesHost(tmp_path / "x.safetensors").tensor("x")
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, values.to(torch.float32).numpy())


def test_bfloat16_is_written_as_torch_rounds_it(tmp_path):
    values = torch.randn(4096)
    path = write_tensors(tmp_path / "x.safetensors", {"x": values.numpy()}, dtype="BF16")
    want = values.to(torch.bfloat16).to(torch.float32).numpy()
    np.testing.assert_array_equal(FilesHost(path).tensor("x"), want)


def test_digest_is_that_of_the_module_whatever_the_sharding(tmp_path):
    net = small_net()
    digest = save_release(net, tmp_path / "whole.safetensors", metadata={"by": "us"})
    assert digest == ModuleHost(net).digest()
    assert FilesHost(tmp_path / "whole.safetensors").metadata["by"] == "us"
    state = {name: tensor.contiguous() for name, tensor in net.state_dict().items()}
    shards = tmp_path / "shards"
    shards.mkdir()
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, held in parts.items():
        save_file({name: state[name] for name in held}, shards / file)
    assert FilesHost(shards).digest() == digest
    weight_map = {name: file for file, held in parts.items() for name in held}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    (shards / "model.safetensors.index.json").write_text(json.dumps(index))
    assert FilesHost(shards).digest() == digest
    assert FilesHost(shards / "model.safetensors.index.json").digest() == digest
    assert FilesHost(shards).tensor_names() == tuple(names)
    state["0.weight"] = state["0.weight"] + 1e-6
    save_file(state, tmp_path / "other.safetensors")
    assert FilesHost(tmp_path / "other.safetensors").digest() != digest


def test_chunks_blocks_and_digest_agree_with_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr("earmark.hosts.files.CHUNK", 1 << 12)
    monkeypatch.setattr("earmark.hosts.files._INLINE", 1 << 10)
    values = np.random.default_rng(0).normal(size=(64, 257)).astype(np.float32)
    path = write_tensors(tmp_path / "x.safetensors", {"x": values, "y": values[:2]}, dtype="BF16")
    host = FilesHost(path)
    whole = host.tensor("x").reshape(-1)
    np.testing.assert_array_equal(np.concatenate(list(host.chunks("x", entries=1000))), whole)
    index = np.random.default_rng(1).permutation(len(whole) // 16)[:700]
    fresh = FilesHost(path)
    np.testing.assert_array_equal(
        fresh.blocks("x", 16, index), whole[: -(len(whole) % 16) or None].reshape(-1, 16)[index]
    )
    assert fresh.digest() == host.digest() == FilesHost(path).digest()


def test_the_state_comes_back_exactly(tmp_path):
    net, other = small_net(), small_net()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    digest = save_release(net, tmp_path / "x.safetensors")
    load_state(other, tmp_path / "x.safetensors")
    assert ModuleHost(other).digest() == digest
    with pytest.raises(UsageError, match="exists already"):
        save_release(net, tmp_path / "x.safetensors")


def test_shared_and_channels_last_tensors_are_saved(tmp_path):
    net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Conv2d(3, 4, 3)).to(
        memory_format=torch.channels_last
    )
    net[1].weight = net[0].weight
    digest = save_release(net, tmp_path / "x.safetensors")
    assert digest == ModuleHost(net).digest()


def test_a_release_of_another_model_names_the_differences(tmp_path):
    save_release(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), tmp_path / "x.safetensors")
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    before = ModuleHost(model).digest()
    with pytest.raises(HostError) as caught:
        load_state(model, tmp_path / "x.safetensors")
    assert "lacks 2.bias" in str(caught.value)
    assert "0.weight (4, 3) instead of (5, 3)" in str(caught.value)
    assert "1.weight that the model has not" in str(caught.value)
    assert ModuleHost(model).digest() == before


GOOD = {"a": spec(0, 8), "b": spec(8, 12)}
LIES = {
    "empty": (b"", FileError, "at least 10"),
    "seven bytes": (b"\x01" * 7, FileError, "at least 10"),
    "large header": (raw_file(b"{" + b" " * (1 << 24) + b"}"), FormatError, "state a header"),
    "many lists": (
        raw_file(b'{"a":[' + b"[]," * (1 << 20) + b"[]]}"),
        FormatError,
        "lists and objects",
    ),
    "huge header": (b"\xff" * 8 + b"{}", FormatError, "state a header"),
    "header beyond the file": (raw_file(GOOD)[:20], FileError, "ends inside its header"),
    "truncated data": (raw_file(GOOD, bytes(11)), FileError, "its header needs"),
    "bytes after the end": (raw_file(GOOD, bytes(13)), FormatError, "after its last tensor"),
    "no object": (raw_file([1, 2]), FormatError, "no JSON object"),
    "no JSON": (raw_file(b"{ nothing }"), FormatError, "no JSON"),
    "not UTF-8": (raw_file(b'{"\xff": 1}'), FormatError, "no JSON"),
    "nested too deeply": (raw_file(b"{" + b'"a":{' * 100_000), FormatError, "no JSON"),
    "a name twice": (
        raw_file(b'{"a":{"dtype":"I8","shape":[0],"data_offsets":[0,0]},"a":{}}'),
        FormatError,
        "names 'a' twice",
    ),
    "overlap": (raw_file({"a": spec(0, 8), "b": spec(4, 12)}, bytes(12)), FormatError, "overlaps"),
    "gap": (raw_file({"a": spec(0, 4), "b": spec(8, 12)}, bytes(12)), FormatError, "belong to no"),
    "length": (raw_file({"a": spec(0, 8, shape=[3])}, bytes(8)), FormatError, "entries of F32"),
    "unknown type": (raw_file({"a": spec(0, 8, dtype="F7")}, bytes(8)), FormatError, "has type"),
    "negative size": (raw_file({"a": spec(0, 8, shape=[-2])}, bytes(8)), FormatError, "has shape"),
    "endless size": (
        raw_file({"a": spec(0, 8, shape=[2**40, 2**40])}, bytes(8)),
        FormatError,
        "2\\^48",
    ),
    "sizes as floats": (
        raw_file({"a": spec(0, 8, shape=[2.0])}, bytes(8)),  # type: ignore[list-item]
        FormatError,
        "has shape",
    ),
    "backward offsets": (
        raw_file({"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}, bytes(8)),
        FormatError,
        "data_offsets",
    ),
    "more fields": (raw_file({"a": spec(0, 8) | {"x": 1}}, bytes(8)), FormatError, "exactly"),
    "odd metadata": (
        raw_file({"__metadata__": {"a": 1}, "a": spec(0, 8)}, bytes(8)),
        FormatError,
        "metadata",
    ),
    "pickle": (pickle.dumps({"a": 1}), FormatError, "pickle"),
    "gguf": (b"GGUF" + bytes(40), FormatError, "GGUF"),
}


@pytest.mark.parametrize("name", LIES)
def test_every_lie_gets_its_own_error(tmp_path, name):
    content, kind, words = LIES[name]
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(kind, match=words):
        FilesHost(tmp_path / "x.safetensors")


def test_deep_nesting_is_refused_where_another_package_has_raised_the_limit(tmp_path):
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(100_000)
    try:
        test_every_lie_gets_its_own_error(tmp_path, "nested too deeply")
        (tmp_path / "model.safetensors.index.json").write_bytes(b'{"weight_map":' + b"[" * 200_000)
        with pytest.raises(FormatError, match="nested deeper"):
            FilesHost(tmp_path / "model.safetensors.index.json")
    finally:
        sys.setrecursionlimit(limit)


def test_an_honest_file_passes_where_the_lies_fail(tmp_path):
    (tmp_path / "x.safetensors").write_bytes(raw_file(GOOD, bytes(12)))
    assert FilesHost(tmp_path / "x.safetensors").tensor_names() == ("a", "b")


def test_a_torch_archive_is_named_and_not_unpickled(tmp_path):
    torch.save({"a": torch.ones(3)}, tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match="zip archive"):
        FilesHost(tmp_path / "x.safetensors")


def test_missing_files_and_folders(tmp_path):
    with pytest.raises(FileError, match="does not exist"):
        FilesHost(tmp_path / "none.safetensors")
    (tmp_path / "model.pt").write_bytes(b"x")
    with pytest.raises(FileError, match=r"model\.pt"):
        FilesHost(tmp_path)


def test_a_tensor_that_stands_in_two_files_is_refused(tmp_path):
    for file in "ab":
        write_tensors(tmp_path / f"{file}.safetensors", {"x": np.zeros(3, np.float32)})
    with pytest.raises(FormatError, match="and again"):
        FilesHost(tmp_path)


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ({"weight_map": {"x": "../secret.safetensors"}}, "plain name"),
        ({"weight_map": {"x": "/etc/passwd"}}, "plain name"),
        ({"weight_map": {"x": "sub/a.safetensors"}}, "plain name"),
        ({"weight_map": {"x": 3}}, "plain name"),
        ({"weight_map": {}}, "no weight_map"),
        ([], "no weight_map"),
        ({"weight_map": {"x": "a.safetensors", "y": "a.safetensors"}}, "disagree"),
        ({"weight_map": {"z": "a.safetensors"}}, "disagree"),
    ],
)
def test_an_index_that_lies_is_refused(tmp_path, index, words):
    write_tensors(tmp_path / "a.safetensors", {"x": np.zeros(3, np.float32)})
    (tmp_path / "m.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(FormatError, match=words):
        FilesHost(tmp_path)
    with pytest.raises(FormatError):
        FilesHost(tmp_path / "m.safetensors.index.json")


def test_an_index_that_names_a_missing_file(tmp_path):
    (tmp_path / "m.safetensors.index.json").write_text('{"weight_map": {"x": "b.safetensors"}}')
    with pytest.raises(FileError, match=r"b\.safetensors"):
        FilesHost(tmp_path)


def test_an_unknown_tensor_gets_near_names(tmp_path):
    write_tensors(tmp_path / "a.safetensors", {"conv1.weight": np.zeros(3, np.float32)})
    with pytest.raises(CarrierError, match=r"Nearest names: conv1\.weight"):
        FilesHost(tmp_path / "a.safetensors").tensor("conv2.weight")


def test_a_file_that_shrinks_while_it_is_read(tmp_path):
    path = write_tensors(tmp_path / "a.safetensors", {"x": np.ones(1000, np.float32)})
    host = FilesHost(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(FileError, match="ended inside"):
        host.tensor("x")


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_crash_the_parser(tmp_path_factory, data):
    """Mutate an honest file, or invent one: the reader answers or raises our own errors."""
    folder = tmp_path_factory.getbasetemp()
    honest = raw_file({"__metadata__": {"k": "v"}} | GOOD, bytes(12))
    content = bytearray(
        data.draw(st.one_of(st.just(honest), st.binary(max_size=200).map(raw_file)))
    )
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    content = (
        content[: data.draw(st.integers(0, len(content)))] if data.draw(st.booleans()) else content
    )
    path = folder / "fuzz.safetensors"
    path.write_bytes(bytes(content))
    try:
        host = FilesHost(path)
    except EarmarkError:
        return
    for name in host.tensor_names():
        assert host.tensor(name).shape == host.tensor_shape(name)
    assert len(host.digest()) == 64


def test_scaled_layouts(tmp_path):
    torch.manual_seed(0)
    codes = torch.randint(-127, 128, (6, 8), dtype=torch.int8)
    rows, whole, blocks = torch.rand(6, 1), torch.rand(()), torch.rand(3, 2)
    fp8 = torch.randn(6, 8).to(torch.float8_e4m3fn)
    save_file(
        {
            "a.weight": codes, "a.weight_scale": rows,
            "b.weight": codes.clone(), "b.SCB": rows[:, 0].clone(),
            "c.weight": fp8, "c.weight_scale": whole,
            "d.weight": fp8.clone(), "d.weight_scale_inv": blocks,
            "e.weight": codes.clone(),
        },
        tmp_path / "q.safetensors",
    )  # fmt: skip
    host = FilesHost(tmp_path / "q.safetensors")
    assert host.tensor_names() == tuple(f"{name}.weight" for name in "abcde")
    want = codes.float()
    np.testing.assert_allclose(host.tensor("a.weight"), (want * rows).numpy())
    np.testing.assert_allclose(host.tensor("b.weight"), (want * rows / 127).numpy(), rtol=1e-6)
    np.testing.assert_allclose(host.tensor("c.weight"), (fp8.float() * whole).numpy())
    spread = blocks.repeat_interleave(2, 0).repeat_interleave(4, 1)
    np.testing.assert_allclose(host.tensor("d.weight"), (fp8.float() * spread).numpy())
    np.testing.assert_array_equal(host.tensor("e.weight"), want.numpy())


def test_a_scale_that_fits_nothing_is_refused(tmp_path):
    save_file(
        {"a.weight": torch.ones(6, 8, dtype=torch.int8), "a.weight_scale": torch.ones(5)},
        tmp_path / "q.safetensors",
    )
    with pytest.raises(FormatError, match="fits no rows"):
        FilesHost(tmp_path / "q.safetensors").tensor("a.weight")


def test_a_scalar_with_an_empty_scale_is_refused(tmp_path):
    for kind in ("weight_scale", "SCB"):
        tensors = {"a.weight": torch.ones((), dtype=torch.int8), f"a.{kind}": torch.ones(0)}
        save_file(tensors, tmp_path / "q.safetensors")
        with pytest.raises(FormatError, match="fits no rows"):
            FilesHost(tmp_path / "q.safetensors").tensor("a.weight")


def book(path, count, scales, state):
    """Write a tensor of `count` four-bit codes with some scales and a state."""
    stated = np.frombuffer(json.dumps(state).encode(), np.uint8).copy()
    tensors = {
        "w": torch.zeros(count // 2, dtype=torch.uint8),
        "w.absmax": torch.ones(scales),
        "w.quant_map": torch.zeros(16),
        "w.quant_state.bitsandbytes__nf4": torch.from_numpy(stated),
    }
    save_file(tensors, path)
    return path


def test_a_small_file_does_not_ask_for_more_memory_than_its_tensor(tmp_path):
    path = book(tmp_path / "q.safetensors", 8000, 20_000, {"shape": [8000], "blocksize": 8000})
    host = FilesHost(path)
    tracemalloc.start()
    assert host.tensor("w").shape == (8000,)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


def test_a_state_whose_sizes_are_truths_is_refused(tmp_path):
    for state in ({"shape": [True], "blocksize": 1}, {"shape": [2], "blocksize": True}):
        with pytest.raises(FormatError, match="its state is no JSON object"):
            FilesHost(book(tmp_path / "q.safetensors", 2, 2, state)).tensor("w")


def pack(codes: np.ndarray, order: tuple[int, ...]) -> np.ndarray:
    """Pack nibbles along the last axis, nibble i of a word holding column order[i]."""
    blocks = codes.reshape(*codes.shape[:-1], -1, 8).astype(np.uint64)
    words = sum(blocks[..., column] << (4 * i) for i, column in enumerate(order))
    return words.astype(np.uint32).view(np.int32)


@pytest.mark.parametrize("kind", ["gptq", "awq"])
def test_four_bit_words(tmp_path, kind):
    rng = np.random.default_rng(0)
    inputs, outputs, group = 32, 16, 8
    codes = rng.integers(0, 16, (inputs, outputs))
    zeros = rng.integers(0, 15, (inputs // group, outputs))
    scales = rng.random((inputs // group, outputs)).astype(np.float32)
    plain, mixed = tuple(range(8)), (0, 2, 4, 6, 1, 3, 5, 7)
    if kind == "gptq":
        words = pack(codes.T, plain).T
        stored = {"qzeros": pack(zeros, plain)}
        offset = 1
    else:
        words = pack(codes, mixed)
        stored = {"qzeros": pack(zeros, mixed)}
        offset = 0
    stored |= {"qweight": words, "scales": scales}
    tensors = {f"up.{k}": torch.from_numpy(np.ascontiguousarray(v)) for k, v in stored.items()}
    save_file(tensors, tmp_path / "q.safetensors")
    host = FilesHost(tmp_path / "q.safetensors")
    assert host.tensor_names() == ("up.weight",)
    assert host.tensor_shape("up.weight") == (outputs, inputs)
    spread = np.arange(inputs) // group
    want = (codes - zeros[spread] - offset) * scales[spread]
    np.testing.assert_allclose(host.tensor("up.weight"), want.T, rtol=1e-6)


def test_code_book_with_nested_scales(tmp_path):
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, 128)
    book = np.sort(rng.normal(size=16)).astype(np.float32)
    inner = np.sort(rng.random(256)).astype(np.float32)
    scale_codes = rng.integers(0, 256, 2).astype(np.uint8)
    outer = np.array([3.0], np.float32)
    state = {"shape": [8, 16], "blocksize": 64, "nested_blocksize": 256, "nested_offset": 0.5}
    tensors = {
        "weight": (codes[0::2] << 4 | codes[1::2]).astype(np.uint8)[:, None],
        "weight.absmax": scale_codes,
        "weight.quant_map": book,
        "weight.nested_absmax": outer,
        "weight.nested_quant_map": inner,
        "weight.quant_state.bitsandbytes__nf4": np.frombuffer(
            json.dumps(state).encode(), np.uint8
        ).copy(),
    }
    save_file(
        {f"x.{k}": torch.from_numpy(v) for k, v in tensors.items()}, tmp_path / "q.safetensors"
    )
    host = FilesHost(tmp_path / "q.safetensors")
    assert host.tensor_names() == ("x.weight",)
    want = book[codes] * (inner[scale_codes] * 3.0 + 0.5).repeat(64)
    assert host.tensor_shape("x.weight") == (8, 16)
    np.testing.assert_allclose(host.tensor("x.weight").reshape(-1), want, rtol=1e-6)


def test_reading_needs_no_torch(tmp_path):
    path = write_tensors(tmp_path / "x.safetensors", {"x": np.ones((3, 4), np.float32)})
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from earmark.hosts.files import FilesHost\n"
        f"host = FilesHost({str(path)!r}); print(host.tensor('x').sum(), len(host.digest()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["12.0", "64"], done.stderr


def test_the_table_of_types_is_whole():
    assert set(tensorfile.BYTES) == set(tensorfile.FRAMEWORK)


def test_scaled_integers_are_loaded_as_the_weights_that_they_stand_for(tmp_path):
    codes = torch.randint(-90, 90, (6, 8), dtype=torch.int8)
    scale, path = torch.rand(6, 1) + 0.1, tmp_path / "small.safetensors"
    save_file({"weight": codes, "weight_scale": scale, "bias": torch.ones(6)}, path)
    layer = nn.Linear(8, 6)
    load_state(layer, path)
    assert torch.allclose(layer.weight, codes.float() * scale)
