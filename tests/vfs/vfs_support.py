"""What the tests of the system calls share."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any

import pytest

from harness.testbed.target import TargetTask
from vfs import abi


def fails_with(number: int, call: Callable[..., Any], *args: Any) -> None:
    """Assert that ``call(*args)`` raises OSError with ``number``."""
    with pytest.raises(OSError) as info:
        call(*args)
    got = info.value.errno
    assert got == number, f"{errno.errorcode.get(got or 0)} instead of {errno.errorcode[number]}"


def make_file(task: TargetTask, path: str, data: bytes = b"", mode: int = 0o644) -> None:
    fd = task.open(path, abi.O_WRONLY | abi.O_CREAT | abi.O_TRUNC, mode)
    if data:
        assert task.write(fd, data) == len(data)
    task.close(fd)


def contents(task: TargetTask, path: str) -> bytes:
    fd = task.open(path, abi.O_RDONLY)
    data = task.read(fd, 1 << 20)
    task.close(fd)
    assert isinstance(data, bytes)
    return data


def names(task: TargetTask, path: str) -> set[str]:
    fd = task.open(path, abi.O_RDONLY | abi.O_DIRECTORY)
    found: set[str] = set()
    while entries := task.getdents64(fd, 32768):
        found |= {os.fsdecode(entry.d_name) for entry in entries}
    task.close(fd)
    return found - {".", ".."}


def mode(task: TargetTask, path: str) -> int:
    result: int = task.lstat(path).st_mode & 0o7777
    return result


def exists(task: TargetTask, path: str) -> bool:
    try:
        task.lstat(path)
    except FileNotFoundError:
        return False
    return True
