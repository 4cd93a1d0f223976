"""``python -m benchmarks.mounts [--rounds N]``: what a mount costs, from 10 mounts to 10 000.

The same calls are made in a VirtualFilesystem of this process and, by a forked child in a mount
namespace of its own, on the kernel; both with a tmpfs as the root.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table

from fsimpl.tmpfs import TmpfsType
from harness.testbed.host_syscalls import HostSyscalls
from vfs import abi
from vfs.task import Task
from vfs.virtual_filesystem import VirtualFilesystem

SIZES = (10, 100, 1000, 10_000)
NAMESPACES = 100
DEPTH = 10
_CALLS = 20  # timed calls of a round, where one is too short
_OPTIONS = "mode=755,nr_inodes=0"


class System(Protocol):
    """What is measured: system calls, and a way to have further namespaces for a while."""

    calls: Any

    def namespaces(self, count: int) -> Any: ...


class Ours:
    """A VirtualFilesystem in this process."""

    def __init__(self, task: Task) -> None:
        self.calls: Any = task
        self._task = task

    @contextmanager
    def namespaces(self, count: int) -> Iterator[None]:
        with ExitStack() as stack:
            for _ in range(count):
                stack.enter_context(self._task.clone(abi.CLONE_NEWNS))
            yield


class Kernels:
    """The kernel, seen by a process in a mount namespace of its own."""

    def __init__(self) -> None:
        self.calls: Any = HostSyscalls()

    @contextmanager
    def namespaces(self, count: int) -> Iterator[None]:
        """Each is held by a child, until its pipe closes."""
        reading, writing = os.pipe()
        ready, started = os.pipe()
        children = []
        for _ in range(count):
            child = os.fork()
            if not child:
                os.close(writing)
                self.calls.unshare(abi.CLONE_NEWNS)
                os.write(started, b"x")
                os.read(reading, 1)
                os._exit(0)
            children.append(child)
        for _ in range(count):
            os.read(ready, 1)
        try:
            yield
        finally:
            for fd in (reading, writing, ready, started):
                os.close(fd)
            for child in children:
                os.waitpid(child, 0)


def _tree(system: System, size: int) -> None:
    """``size`` bind mounts side by side below ``/tree``, itself a mount; peers of nothing, unless
    the root is shared.
    """
    calls = system.calls
    for path in "/source", "/tree":
        calls.mkdir(path, 0o755)
        calls.mount("none", path, "tmpfs", 0, _OPTIONS)
    calls.mount(None, "/source", None, abi.MS_PRIVATE, None)
    for number in range(size):
        path = f"/tree/{number}"
        calls.mkdir(path, 0o755)
        calls.mount("/source", path, None, abi.MS_BIND, None)


def _timed(function: Callable[[], None], count: int) -> float:
    """Microseconds for each of ``count`` things that ``function`` does."""
    before = time.perf_counter_ns()
    function()
    return (time.perf_counter_ns() - before) / 1000 / count


def mount_and_umount(system: System, size: int) -> float:
    """A new tmpfs and its unmount, beside ``size`` mounts."""
    calls = system.calls
    _tree(system, size)
    calls.mkdir("/place", 0o755)

    def repeat() -> None:
        for _ in range(_CALLS):
            calls.mount("none", "/place", "tmpfs", 0, None)
            calls.umount2("/place", 0)

    return _timed(repeat, _CALLS)


def bind_and_umount(system: System, size: int) -> float:
    """A bind mount and its unmount, beside ``size`` mounts."""
    calls = system.calls
    _tree(system, size)
    calls.mkdir("/place", 0o755)

    def repeat() -> None:
        for _ in range(_CALLS):
            calls.mount("/tree/0", "/place", None, abi.MS_BIND, None)
            calls.umount2("/place", 0)

    return _timed(repeat, _CALLS)


def recursive_bind(system: System, size: int) -> float:
    """A recursive bind of ``size`` mounts; for each of them."""
    calls = system.calls
    _tree(system, size)
    calls.mkdir("/copy", 0o755)
    return _timed(lambda: calls.mount("/tree", "/copy", None, abi.MS_BIND | abi.MS_REC, None), size)


def recursive_unmount(system: System, size: int) -> float:
    """The lazy unmount of a tree of ``size`` mounts; for each of them."""
    calls = system.calls
    _tree(system, size)
    return _timed(lambda: calls.umount2("/tree", abi.MNT_DETACH), size)


def shared_unmount(system: System, size: int) -> float:
    """The lazy unmount of a shared tree that 100 namespaces have copies of, ``size`` mounts in
    all; for each of them.
    """
    calls = system.calls
    calls.mount(None, "/", None, abi.MS_REC | abi.MS_SHARED, None)
    _tree(system, size // NAMESPACES)
    with system.namespaces(NAMESPACES):
        return _timed(lambda: calls.umount2("/tree", abi.MNT_DETACH), size)


def walk(system: System, size: int) -> float:
    """stat(2) of a path through ten mounts, beside ``size`` mounts."""
    calls = system.calls
    _tree(system, size)
    path = ""
    for _ in range(DEPTH):
        path += "/d"
        calls.mkdir(path, 0o755)
        calls.mount("none", path, "tmpfs", 0, None)

    def repeat() -> None:
        for _ in range(_CALLS):
            calls.stat(path)

    return _timed(repeat, _CALLS)


ROWS: tuple[tuple[str, Callable[[System, int], float], tuple[int, ...]], ...] = (
    ("mount + umount", mount_and_umount, SIZES),
    ("bind + umount", bind_and_umount, SIZES),
    ("recursive bind, per mount", recursive_bind, SIZES),
    ("recursive unmount, per mount", recursive_unmount, SIZES),
    (f"the same, shared by {NAMESPACES} namespaces", shared_unmount, (1000, 10_000)),
    (f"walk through {DEPTH} mounts", walk, SIZES),
)


def ours(row: Callable[[System, int], float], size: int) -> float:
    """``row`` on a fresh VirtualFilesystem."""
    vfs = VirtualFilesystem()
    vfs.register(TmpfsType())
    with vfs.create_namespace("tmpfs", options=_OPTIONS) as namespace:
        task = vfs.create_task(namespace)
    try:
        return row(Ours(task), size)
    finally:
        vfs.shutdown()


def kernels(row: Callable[[System, int], float], size: int) -> float:
    """``row`` on the kernel, in a child of its own. Raises: OSError if it cannot be asked."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            answer: object = _in_new_namespace(row, size)
        except OSError as error:
            answer = str(error)
        os.write(writing, json.dumps(answer).encode())
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    answer = json.loads(text) if text else "the child died"
    if not isinstance(answer, float):
        raise OSError(answer)
    return answer


def _in_new_namespace(row: Callable[[System, int], float], size: int) -> float:
    kernel = Kernels()
    calls = kernel.calls
    calls.unshare(abi.CLONE_NEWNS)
    calls.mount(None, "/", None, abi.MS_REC | abi.MS_PRIVATE, None)
    place = tempfile.gettempdir()
    calls.mount("none", place, "tmpfs", 0, _OPTIONS)
    calls.chdir(place)
    calls.pivot_root(".", ".")
    calls.umount2(".", abi.MNT_DETACH)
    calls.chdir("/")
    return row(kernel, size)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mounts", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="rounds per row (default: 5)")
    rounds: int = parser.parse_args().rounds
    console = Console(width=120)
    table = Table(title="µs, and how many times what it is with the fewest mounts")
    for column in ("operation", "mounts", "dentry", "growth", "kernel", "growth", "dentry/kernel"):
        table.add_column(column, justify="left" if column == "operation" else "right")
    for name, row, sizes in ROWS:
        first: tuple[float, float] | None = None
        for size in sizes:
            try:
                pairs = [(ours(row, size), kernels(row, size)) for _ in range(rounds)]
            except OSError as error:
                sys.exit(f"the kernel cannot be asked (are you root?): {error}")
            mine, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
            ratio = statistics.median(a / b for a, b in pairs)
            first = first or (mine, theirs)
            table.add_row(
                name, f"{size:,}", f"{mine:.1f}", f"{mine / first[0]:.2f}",
                f"{theirs:.1f}", f"{theirs / first[1]:.2f}", f"{ratio:.2f}",
            )  # fmt: skip
    console.print(table)


if __name__ == "__main__":
    main()
