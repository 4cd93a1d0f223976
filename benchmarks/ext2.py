"""``python -m benchmarks.ext2 [--tree DIR] [--rounds N]``: ext2 images, beside ``mke2fs -d``.

Every row runs in a process of its own, the rows in turn, and what is printed are medians; peak
memory is that process's. "in memory" is what a virtual machine is given: a memfd with the metadata
and what can't be mapped (which counts as memory), and the list of mappings. Its time is without
the start of Python, since a daemon forks for it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.table import Table

from fsimpl.ext2.builder import HostSource, build

_MIB: Final = 1 << 20
_LARGE: Final = 256 * _MIB
_ROWS: Final = ("mke2fs -d", "dentry mkext2", "in memory")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ext2", description=__doc__)
    parser.add_argument("--tree", default="/usr/share", help="of many small files")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken")
    parser.add_argument("--in-memory", metavar="DIR", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.in_memory is not None:
        _build_in_memory(arguments.in_memory)
        return
    if shutil.which("mke2fs") is None:
        parser.error("there is no mke2fs here (Debian: e2fsprogs)")
    console = Console(width=100)
    table = Table(title=f"images of two trees, medians of {arguments.rounds} rounds")
    table.add_column("tree")
    table.add_column("made by")
    table.add_column("seconds", justify="right")
    table.add_column("CPU seconds", justify="right")
    table.add_column("peak MiB", justify="right")
    table.add_column("times as fast", justify="right", style="bold")
    with tempfile.TemporaryDirectory(prefix="dentry-bench-", dir="/var/tmp") as directory:
        large = Path(directory) / "large"
        large.mkdir()
        for number in range(4):
            with (large / str(number)).open("wb") as file:
                for _ in range(_LARGE // _MIB):
                    file.write(os.urandom(_MIB))
        os.sync()
        for tree, name in ((arguments.tree, arguments.tree), (str(large), "1 GiB in 4 files")):
            _compare(tree, name, Path(directory) / "image", arguments.rounds, table)
    console.print(table)


def _compare(tree: str, name: str, image: Path, rounds: int, table: Table) -> None:
    blocks = [path.lstat().st_size // 4096 + 1 for path in Path(tree).rglob("*")]
    size = sum(blocks) * 4096 * 11 // 10 + 16 * _MIB
    files = len(blocks) + 1000
    commands = {
        "mke2fs -d": ["mke2fs", "-q", "-F", "-t", "ext2", "-N", str(files), "-d", tree, str(image)],
        "dentry mkext2": [sys.executable, "-m", "harness.cli", "mkext2", tree, str(image)],
        "in memory": [sys.executable, "-m", "benchmarks.ext2", "--in-memory", tree],
    }
    measured: dict[str, list[tuple[float, float, float]]] = {row: [] for row in _ROWS}
    for number in range(rounds + 1):
        for row in _ROWS:
            image.unlink(missing_ok=True)
            if row == "mke2fs -d":
                with image.open("wb") as file:
                    file.truncate(size)
            once = _run(commands[row])
            if number:  # the first round reads the tree into the page cache
                measured[row].append(once)
    image.unlink(missing_ok=True)
    base = statistics.median(once[0] for once in measured[_ROWS[0]])
    for row in _ROWS:
        seconds, cpu, memory = (
            statistics.median(column) for column in zip(*measured[row], strict=True)
        )
        table.add_row(
            name, row, f"{seconds:.2f}", f"{cpu:.2f}", f"{memory:.0f}", f"{base / seconds:.1f}"
        )


_LAUNCHER: Final = """
import os, sys, time
start = time.perf_counter()
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
_, status, usage = os.wait4(pid, 0)
seconds = time.perf_counter() - start
assert not status, status
print(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)
"""


def _run(command: list[str]) -> tuple[float, float, float]:
    """Seconds, CPU seconds, and peak memory in MiB.

    A child has at least its parent's peak memory, so that a small process stands between.
    """
    done = subprocess.run(
        [sys.executable, "-SEc", _LAUNCHER, *command], stdout=subprocess.PIPE, text=True, check=True
    )
    *own, last = done.stdout.splitlines()
    seconds, cpu, memory = map(float, last.split())
    if own:
        seconds, cpu, shared = map(float, own[0].split())
        memory += shared / _MIB
    return seconds, cpu, memory


def _build_in_memory(tree: str) -> None:
    start, cpu = time.perf_counter(), time.process_time()
    memory = os.memfd_create("image")
    with build(HostSource(tree)) as plan:
        os.ftruncate(memory, plan.size)
        plan.write_metadata(memory)
        plan.write_copies(memory)
    shared = os.fstat(memory).st_blocks * 512
    print(time.perf_counter() - start, time.process_time() - cpu, shared, flush=True)


if __name__ == "__main__":
    main()
