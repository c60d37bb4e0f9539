from __future__ import annotations

import os
from contextlib import closing

import numpy as np
import pytest

from earmark.errors import FileError
from earmark.hosts import direct, files
from earmark.hosts.files import FilesHost, write_tensors

DATA = np.random.default_rng(0).integers(0, 256, 3 * direct.PAGE + 77, dtype=np.uint8)


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "bytes"
    made.write_bytes(DATA.tobytes())
    return made


def refuse(*_):
    raise OSError(22, "Invalid argument")


@pytest.mark.parametrize("how", ["past the cache", "through the cache", "refused at the read"])
@pytest.mark.parametrize("offset", [0, 1, 4095, 4096, 5000, len(DATA) - 3, len(DATA), 99_999])
@pytest.mark.parametrize("size", [1, 100, 4096, 8193])
def test_any_bytes_are_read(path, monkeypatch, how, offset, size):
    if how == "refused at the read" and hasattr(os, "preadv"):
        monkeypatch.setattr(os, "preadv", refuse)
    with closing(direct.Source(path, past_cache=how != "through the cache")) as source:
        for _ in range(2):
            found = source.read(direct.buffer(size), offset, size)
            np.testing.assert_array_equal(found, DATA[offset : offset + size])


def test_files_that_cannot_be_opened_past_the_cache_are_read_the_usual_way(path, monkeypatch):
    opened = os.open

    def picky(name, flags, *rest, **more):
        return refuse() if flags & direct._DIRECT else opened(name, flags, *rest, **more)

    monkeypatch.setattr(direct.os, "open", picky)
    with closing(direct.Source(path, past_cache=True)) as source:
        assert source.read(direct.buffer(10), 5, 10).tobytes() == DATA[5:15].tobytes()


def test_both_ways_give_a_host_the_same_values_and_digest(tmp_path, monkeypatch):
    rng = np.random.default_rng(1)
    tensors = {
        name: rng.standard_normal((1 << 10, 1 << 10)).astype(np.float32) for name in ("a", "b", "c")
    }
    path = write_tensors(tmp_path / "model.safetensors", tensors, metadata={"odd": "length"})
    usual = FilesHost(path)
    monkeypatch.setattr(files, "_LARGE", 0)
    past = FilesHost(path)
    index = rng.permutation(1 << 18)[:500]
    np.testing.assert_array_equal(past.blocks("b", 4, index), usual.blocks("b", 4, index))
    np.testing.assert_array_equal(past.tensor("c"), tensors["c"])
    pieces = np.concatenate(list(past.chunks("a", entries=300_001)))
    np.testing.assert_array_equal(pieces, tensors["a"].ravel())
    assert past.digest() == usual.digest()


def test_a_file_that_is_shortened_meanwhile_is_an_ordinary_error(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "_LARGE", 0)
    path = write_tensors(tmp_path / "model.safetensors", {"a": np.ones((1 << 10, 1 << 10), "f4")})
    host = FilesHost(path)
    os.truncate(path, path.stat().st_size - 5000)
    with pytest.raises(FileError, match="ended inside"):
        host.tensor("a")
