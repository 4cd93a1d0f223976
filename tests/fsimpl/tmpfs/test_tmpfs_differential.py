"""Random operations on names, on ours and on the kernel's tmpfs: same errnos, same outcome."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from tmpfs_kernel import KernelTmpfs
from tmpfs_ours import Ours

from vfs import abi

NAMES = ("a", "b", "c")
PATHS = st.builds("/".join, st.lists(st.sampled_from(NAMES), min_size=1, max_size=3)).map(
    lambda path: "/" + path
)
FLAGS = st.sampled_from(
    [
        0,
        0,
        abi.RENAME_NOREPLACE,
        abi.RENAME_EXCHANGE,
        abi.RENAME_WHITEOUT,
        abi.RENAME_NOREPLACE | abi.RENAME_WHITEOUT,
        abi.RENAME_EXCHANGE | abi.RENAME_WHITEOUT,
    ]
)


class NamesMachine(RuleBasedStateMachine):
    """Fifteen inodes and six pages, so that both run out."""

    @initialize()
    def make(self) -> None:
        self.ours = Ours("size=24k,nr_inodes=15,mode=755")
        self.kernel: KernelTmpfs | None = None
        try:
            self.kernel = KernelTmpfs(size="24k", nr_inodes="15", mode="755")
        except PermissionError:
            return

    def teardown(self) -> None:
        if hasattr(self, "ours"):
            self.ours.close()
            if self.kernel is not None:
                self.kernel.close()

    def both(self, operation: Callable[[Any], object]) -> None:
        answers = []
        for side in (self.ours, self.kernel):
            if side is None:
                return
            try:
                answers.append(operation(side))
            except OSError as error:
                answers.append(os.strerror(error.errno or 0))
        assert answers[0] == answers[1]

    @rule(path=PATHS, size=st.integers(0, 13_000))
    def write(self, path: str, size: int) -> None:
        def operation(side: Any) -> int:
            calls = side.task if isinstance(side, Ours) else os
            fd = side.open(path, os.O_CREAT | os.O_WRONLY, 0o640)
            try:
                return int(calls.write(fd, bytes(size)))
            finally:
                calls.close(fd)

        self.both(operation)

    @rule(path=PATHS)
    def mkdir(self, path: str) -> None:
        self.both(lambda side: side.mkdir(path, 0o755))

    @rule(path=PATHS)
    def mknod(self, path: str) -> None:
        nobodys_device = os.makedev(240, 77)
        self.both(lambda side: side.mknod(path, stat.S_IFCHR | 0o600, nobodys_device))

    @rule(path=PATHS, length=st.sampled_from([1, 127, 128]))
    def symlink(self, path: str, length: int) -> None:
        self.both(lambda side: side.symlink("a" * length, path))

    @rule(old=PATHS, new=PATHS)
    def link(self, old: str, new: str) -> None:
        self.both(lambda side: side.link(old, new))

    @rule(path=PATHS)
    def unlink(self, path: str) -> None:
        self.both(lambda side: side.unlink(path))

    @rule(path=PATHS)
    def rmdir(self, path: str) -> None:
        self.both(lambda side: side.rmdir(path))

    @rule(old=PATHS, new=PATHS, flags=FLAGS)
    def rename(self, old: str, new: str, flags: int) -> None:
        self.both(lambda side: side.rename(old, new, flags))

    @rule(path=PATHS, size=st.integers(0, 20_000))
    def truncate(self, path: str, size: int) -> None:
        self.both(lambda side: side.truncate(path, size))

    @rule(path=PATHS, length=st.integers(0, 3000))
    def setxattr(self, path: str, length: int) -> None:
        self.both(lambda side: side.setxattr(path, "user.x", bytes(length)))

    @precondition(lambda self: hasattr(self, "ours"))
    @invariant()
    def trees_are_the_same(self) -> None:
        self.ours.check()
        if self.kernel is None:
            return
        assert self.ours.usage() == self.kernel.usage()
        pending = ["/"]
        while pending:
            directory = pending.pop()
            names = sorted(self.kernel.listdir(directory))
            assert sorted(self.ours.listdir(directory)) == names
            for name in names:
                path = os.path.join(directory, name)
                a, b = self.ours.lstat(path), self.kernel.lstat(path)
                for field in ("mode", "nlink", "uid", "gid", "size", "blocks", "rdev"):
                    assert getattr(a, "st_" + field) == getattr(b, "st_" + field), (path, field)
                if stat.S_ISDIR(b.st_mode):
                    pending.append(path)


TestNames = NamesMachine.TestCase
TestNames.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
