"""/proc/sys/fs, written on ours; the same rules on the kernel's, in an IPC namespace of our own."""

from __future__ import annotations

import errno
import os
import pickle
from typing import Any

import pytest
from proc_support import contents, fails_with, names, register_proc, write

from harness.testbed.host_syscalls import HostSyscalls
from harness.testbed.target import TargetTask
from vfs import Credentials, VirtualFilesystem, abi
from vfs.abi import O_APPEND, O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY, SEEK_END, SEEK_SET
from vfs.credentials import CAP_DAC_OVERRIDE
from vfs.task import Task

LIMITS = {
    "mount-max": (1, 2**31 - 1),
    "protected_fifos": (0, 2),
    "protected_hardlinks": (0, 1),
    "protected_regular": (0, 2),
    "protected_symlinks": (0, 1),
}
# A number from 0 to 1 that every IPC namespace has its own of.
KERNELS = "/proc/sys/kernel/shm_rmid_forced"
OURS = "/proc/sys/fs/protected_symlinks"
_CLONE_NEWIPC = 0x8000000

WRITES = [
    b"1", b"0", b"0\n", b"1\n", b" 1", b"0 1", b"1 x", b"1x", b"", b"\n", b" ", b"2", b"-1", b"-0",
    b"+1", b"0x1", b"0X0", b"01", b"00", b"1\0", b"0\0junk", b"x", b"1" * 30, b"0" * 19 + b"1",
    b"0" * 20 + b"1", b"0" * 21 + b"1", b"4294967297", b"18446744073709551617", b"1\t\n 1", b"0,1",
    b"\t0", b"\v1", b"1\n0", b"--1", b"- 1", b"-", b"0x", b"08", b"0" * 5000, b" " * 5000 + b"1",
    b"1" + b" " * 5000, b"1" + b" " * 5000 + b"1", b"0x1 ", b"0x1g",
]  # fmt: skip


@pytest.fixture
def caller(vfs: VirtualFilesystem, task: Task) -> Task:
    register_proc(vfs)
    task.mkdir("/proc", 0o755)
    task.mount("proc", "/proc", "proc")
    return task


def script(calls: Any, path: str) -> list[Any]:
    """Everything that can be seen of writing, reading and seeking in a sysctl from 0 to 1."""

    def ask(call: Any, *args: Any) -> Any:
        try:
            return call(*args)
        except OSError as error:
            return errno.errorcode[error.errno or 0]

    def value() -> bytes:
        fd = calls.open(os.fsencode(path), O_RDONLY)
        try:
            text: bytes = calls.read(fd, 100)
        finally:
            calls.close(fd)
        return text

    seen: list[Any] = []
    for data in WRITES:
        fd = calls.open(os.fsencode(path), O_RDWR)
        seen.append((data[:30], ask(calls.write, fd, data), value()))
        calls.close(fd)
    for flags in (O_RDWR, O_RDWR | O_APPEND, O_WRONLY | O_TRUNC):
        fd = calls.open(os.fsencode(path), flags)
        seen.append((flags, ask(calls.write, fd, b"1"), value()))
        # Now away from 0, but O_APPEND moves our positions of regular files to the size, 0.
        if not flags & O_APPEND:
            seen.append((flags, ask(calls.write, fd, b"0"), value()))
        seen.append(ask(calls.pwrite64, fd, b"0", 1))
        seen.append((ask(calls.pwrite64, fd, b"0", 0), value()))
        calls.close(fd)
    fd = calls.open(os.fsencode(path), O_RDONLY)
    seen += [ask(calls.read, fd, 0), ask(calls.read, fd, 1), ask(calls.read, fd, 1)]
    seen += [ask(calls.pread64, fd, 5, 0), ask(calls.pread64, fd, 5, 1)]
    for whence in range(SEEK_SET, SEEK_END + 1):
        seen += [ask(calls.lseek, fd, offset, whence) for offset in (0, 5, -1)]
    return seen


def kernels_answers() -> list[Any]:
    """``script`` on the kernel's sysctl, by a child in an IPC namespace of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        answer: Any = None
        try:
            HostSyscalls().unshare(_CLONE_NEWIPC)
            answer = script(HostSyscalls(), KERNELS)
        except PermissionError:
            pass
        finally:
            os.write(writer, pickle.dumps(answer))
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as answers:
        answer = pickle.loads(answers.read())
    os.waitpid(pid, 0)
    if answer is None:
        pytest.skip("an IPC namespace needs root")
    assert isinstance(answer, list)
    return answer


def test_numbers_are_read_and_written_as_the_kernel_does(caller: Task) -> None:
    for ours, theirs in zip(script(caller, OURS), kernels_answers(), strict=True):
        assert ours == theirs


@pytest.mark.parametrize("name", LIMITS)
def test_a_sysctl_takes_effect_within_its_limits(
    vfs: VirtualFilesystem, caller: Task, name: str
) -> None:
    path = f"/proc/sys/fs/{name}"
    low, high = LIMITS[name]
    for value in (low, high):
        fd = caller.open(path, O_WRONLY)
        assert caller.write(fd, b"%d\n" % value) == len(b"%d\n" % value)
        caller.close(fd)
        assert getattr(vfs, name.replace("-", "_")) == value
        fd = caller.open(path, O_RDONLY)
        assert caller.read(fd, 100) == b"%d\n" % value
        caller.close(fd)
    for value in (low - 1, high + 1):
        fd = caller.open(path, O_WRONLY)
        fails_with(errno.EINVAL, caller.write, fd, b"%d" % value)
        caller.close(fd)
    assert getattr(vfs, name.replace("-", "_")) == high


def test_mount_max_bounds_mounts(vfs: VirtualFilesystem, caller: Task) -> None:
    fd = caller.open("/proc/sys/fs/mount-max", O_WRONLY)
    caller.write(fd, b"2")
    caller.mkdir("/m", 0o755)
    fails_with(errno.ENOSPC, caller.mount, "none", "/m", "tmpfs")


def test_only_root_writes_whatever_capabilities_others_have(caller: Task) -> None:
    mighty = Credentials(1000, 1000, caps=1 << CAP_DAC_OVERRIDE)
    with caller.clone(cred=mighty) as user:
        fails_with(errno.EACCES, user.open, OURS, O_WRONLY)
        fd = user.open(OURS, O_RDONLY)
        assert user.read(fd, 10) == b"1\n"
    with caller.clone(cred=Credentials(0, 0, caps=0)) as weak:
        assert weak.write(weak.open(OURS, O_WRONLY), b"0") == 1


def test_sysctls_are_there_and_refuse_what_is_no_number(root: TargetTask) -> None:
    assert set(LIMITS) <= set(names(root, "/proc/sys/fs"))
    assert contents(root, "/proc/sys/fs/mount-max").strip().isdigit()
    fails_with(errno.EINVAL, write, root, "/proc/sys/fs/mount-max", b"none")
    fails_with(errno.EACCES, root.access, "/proc/sys/fs/mount-max", abi.X_OK)
