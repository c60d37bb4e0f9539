"""Atomic writes: the old content or the new, never a torn one."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from earmark import files
from earmark.errors import FileError, FormatError, OutputError, RecordError, UsageError


def test_writes_and_refuses_to_overwrite(tmp_path) -> None:
    path = tmp_path / "a"
    files.write_bytes(path, b"one")
    with pytest.raises(UsageError, match="exists"):
        files.write_bytes(path, b"two")
    assert path.read_bytes() == b"one"
    files.write_bytes(path, b"two", overwrite=True, mode=0o600)
    assert path.read_bytes() == b"two"
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_failure_inside_leaves_the_old_content(tmp_path) -> None:
    path = tmp_path / "a"
    files.write_bytes(path, b"old")
    with pytest.raises(RuntimeError), files.replacing(path, overwrite=True) as temporary:
        temporary.write_bytes(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_a_crash_between_write_and_rename_leaves_the_old_content(tmp_path, monkeypatch) -> None:
    path = tmp_path / "a"
    files.write_bytes(path, b"old")

    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OutputError, match="No space"):
        files.write_bytes(path, b"new", overwrite=True)
    assert path.read_bytes() == b"old"
    assert [item.name for item in tmp_path.iterdir()] == ["a"]


def test_a_new_name_is_on_the_disk_when_the_file_is(tmp_path, monkeypatch) -> None:
    synced = []
    sync = os.fsync

    def spy(handle: int) -> None:
        synced.append(stat.S_ISDIR(os.fstat(handle).st_mode))
        sync(handle)

    monkeypatch.setattr(os, "fsync", spy)
    files.write_bytes(tmp_path / "a", b"new")
    assert synced == [False, True]

    for code in (errno.EINVAL, errno.EACCES, errno.EIO):

        def unable(handle: int, code: int = code) -> None:
            if stat.S_ISDIR(os.fstat(handle).st_mode):
                raise OSError(code, os.strerror(code))

        monkeypatch.setattr(os, "fsync", unable)
        if code == errno.EIO:
            with pytest.raises(OutputError, match="Input/output"):
                files.write_bytes(tmp_path / "b", b"new", overwrite=True)
        else:  # a folder that cannot be synced
            files.write_bytes(tmp_path / "b", b"new", overwrite=True)
    assert (tmp_path / "b").read_bytes() == b"new"


def test_folders_that_are_not_there(tmp_path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        files.write_bytes(tmp_path / "no" / "a", b"x")
    with pytest.raises(FileError, match="cannot be read"):
        files.read_bytes(tmp_path / "a")
    with pytest.raises(FileError, match="cannot be read"):
        files.file_digest(tmp_path / "a")


def test_reads_are_bounded(tmp_path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(11))
    with pytest.raises(FileError, match="11 bytes"):
        files.read_bytes(path, limit=10)
    assert files.read_bytes(path, limit=11) == bytes(11)
    assert len(files.file_digest(Path(path))) == 64


def test_another_kind_of_file_is_told_from_a_changed_one(tmp_path) -> None:
    def parse(data: bytes) -> bytes:
        if data != b"note/1 whole":
            raise RecordError("It is cut.", expected="All of it.", hint="Ask again.")
        return data

    path = tmp_path / "a"
    path.write_bytes(b"note/1 whole")
    assert files.read_as(path, parse, kind="note", sign="note/1", limit=99) == b"note/1 whole"
    path.write_bytes(b"note/1 wh")
    with pytest.raises(RecordError, match=r"The note .*a' cannot be taken: It is cut\.") as changed:
        files.read_as(path, parse, kind="note", sign="note/1", limit=99)
    assert (changed.value.expected, changed.value.hint) == ("All of it.", "Ask again.")
    path.write_bytes(b"something else")
    with pytest.raises(FormatError, match="is no note"):
        files.read_as(path, parse, kind="note", sign="note/1", limit=99)
