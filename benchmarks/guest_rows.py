"""The rows: what a guest's programs do with the files of its root."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from harness.guest import Guest
from harness.guest.initramfs import program_files

JOBS = (1, 4)
_FILE_SIZE = "16m"
_REPEATS = 4  # of find and tar, because /proc/uptime has hundredths of a second
_TREE_IN_GUEST = "tree.tar"
_SOURCES = ("vfs", "fsimpl", "devtmpfs", "harness", "tests")

# The initramfs as the guest's commands see it, and from there the tag, which is init's directory.
_INITRAMFS = "/proc/1/root"
_TAG = "/proc/1/cwd/."
_FIO = (
    "/usr/bin/fio", "--name=bench", f"--directory={_TAG}", "--filename_format=bench.$jobnum",
    f"--size={_FILE_SIZE}", "--fallocate=none", "--ioengine=psync", "--direct=1", "--thread",
    "--group_reporting", "--output-format=json",
)  # fmt: skip


class Work(NamedTuple):
    """What a run of a row came to, in the row's unit."""

    amount: float
    seconds: float


class SourceTree(NamedTuple):
    """An archive of this checkout's sources, and how many files it has, and directories."""

    archive: Path
    entries: int


class Session:
    """A guest in which the rows are run, with the files they use in its root."""

    def __init__(self, guest: Guest, tree: SourceTree) -> None:
        self._guest = guest
        self.entries = tree.entries
        self.fio("write", "1m", max(JOBS))
        self.sh(f"mkdir tree && tar x -f /{_TREE_IN_GUEST} -C tree")

    def fio(self, kind: str, size: str, jobs: int, *words: str) -> dict[str, float]:
        """What fio found for requests of ``size`` by so many jobs, each on a file of its own."""
        output = self._run(*_FIO, f"--rw={kind}", f"--bs={size}", f"--numjobs={jobs}", *words)
        [job] = json.loads(output)["jobs"]
        found: dict[str, float] = job["write" if "write" in kind else "read"]
        return found

    def sh(self, script: str) -> str:
        """The output of a script of busybox's shell, in the root."""
        return self._run("/bin/sh", "-ec", f"cd {_TAG}; {script}")

    def _run(self, *words: str) -> str:
        command = (f"{_INITRAMFS}/bin/chroot", _INITRAMFS, *words)
        done = self._guest.run(command, timeout=300)
        if done.status:
            raise RuntimeError(f"{words[0]} failed in the guest: {done.stderr.decode()}")
        return done.stdout.decode()


class Row(NamedTuple):
    """One kind of work by ``jobs`` at once. ``run`` takes the seconds that fio should last."""

    name: str
    jobs: int
    unit: str
    run: Callable[[Session, int], Work]


def _random(kind: str, jobs: int) -> Callable[[Session, int], Work]:
    def run(session: Session, seconds: int) -> Work:
        found = session.fio(kind, "4k", jobs, "--time_based", f"--runtime={seconds}")
        return Work(found["total_ios"], found["runtime"] / 1000)

    return run


def _sequential(kind: str, jobs: int) -> Callable[[Session, int], Work]:
    def run(session: Session, seconds: int) -> Work:
        found = session.fio(kind, "1m", jobs, "--time_based", f"--runtime={seconds}")
        return Work(found["io_bytes"] / (1 << 20), found["runtime"] / 1000)

    return run


def _script(command: str) -> Callable[[Session, int], Work]:
    def run(session: Session, seconds: int) -> Work:
        output = session.sh(
            f"for n in $(seq {_REPEATS}); do sync; echo 3 >/proc/sys/vm/drop_caches;"
            f"read before rest </proc/uptime; {command}; read after rest </proc/uptime;"
            "echo $after -$before; done"
        )
        return Work(session.entries * _REPEATS, sum(map(float, output.split())))

    return run


ROWS = [
    *(Row("randread 4 KiB", jobs, "req", _random("randread", jobs)) for jobs in JOBS),
    *(Row("randwrite 4 KiB", jobs, "req", _random("randwrite", jobs)) for jobs in JOBS),
    *(Row("seqread 1 MiB", jobs, "MiB", _sequential("read", jobs)) for jobs in JOBS),
    *(Row("seqwrite 1 MiB", jobs, "MiB", _sequential("write", jobs)) for jobs in JOBS),
    Row("find", 1, "file", _script("find tree >/dev/null")),
    Row("tar", 1, "file", _script("tar c -f /dev/null tree")),
]


def source_tree(directory: Path) -> SourceTree:
    """Make the archive in ``directory``."""
    top = Path(__file__).parents[1]
    archive = directory / _TREE_IN_GUEST
    with tarfile.open(archive, "w") as tar:
        for name in _SOURCES:
            tar.add(top / name, name, filter=_is_source)
    with tarfile.open(archive) as tar:
        return SourceTree(archive, len(tar.getmembers()))


def _is_source(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    wanted = member.isdir() or member.name.endswith(".py")
    return member if wanted and "__pycache__" not in member.name else None


def guest_files(tree: SourceTree) -> dict[str, Path]:
    """What a guest's initramfs needs for the rows: fio, as the host has it, and the tree.

    Raises: GuestUnavailable, if there is no fio.
    """
    return {**program_files("fio"), _TREE_IN_GUEST: tree.archive}
