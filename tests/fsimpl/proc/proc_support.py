"""What the tests of proc share."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from fsimpl.proc import ProcType
from harness.testbed.target import TargetTask
from vfs import VirtualFilesystem, abi

# Where a task of the test bed on Linux keeps what is not the test's.
FIRST_PRIVATE_FD = 4000


def register_proc(vfs: VirtualFilesystem) -> None:
    """Register the type unless it is there."""
    if "proc" not in vfs.filesystem_types:
        vfs.register(ProcType())


def fails_with(number: int, call: Callable[..., Any], *args: Any) -> None:
    """Assert that ``call(*args)`` raises OSError with ``number``."""
    with pytest.raises(OSError) as info:
        call(*args)
    got = info.value.errno
    assert got == number, f"{errno.errorcode.get(got or 0)} instead of {errno.errorcode[number]}"


def contents(task: TargetTask, path: str) -> bytes:
    fd = task.open(path, abi.O_RDONLY)
    data = b""
    while piece := task.read(fd, 1 << 16):
        data += piece
    task.close(fd)
    return data


def write(task: TargetTask, path: str, data: bytes) -> int:
    fd = task.open(path, abi.O_WRONLY)
    try:
        count: int = task.write(fd, data)
    finally:
        task.close(fd)
    return count


def names(task: TargetTask, path: str) -> list[str]:
    """In the directory's order, without "." and ".."."""
    fd = task.open(path, abi.O_RDONLY | abi.O_DIRECTORY)
    found: list[str] = []
    while entries := task.getdents64(fd, 32768):
        found += [os.fsdecode(entry.d_name) for entry in entries]
    task.close(fd)
    return [name for name in found if name not in (".", "..")]


def numbers(task: TargetTask, path: str) -> list[int]:
    """The descriptors, or tasks, among the names in ``path``."""
    return [int(name) for name in names(task, path) if name.isdigit()]


def descriptors(task: TargetTask, path: str) -> set[int]:
    return {fd for fd in numbers(task, path) if fd < FIRST_PRIVATE_FD}


def pid_of(task: TargetTask) -> int:
    return int(task.readlink("/proc/self"))


def fields(text: bytes) -> dict[str, str]:
    """``Name:\\tvalue`` lines."""
    pairs = (line.split(":", 1) for line in text.decode().splitlines())
    return {name: value.removeprefix("\t") for name, value in pairs}
