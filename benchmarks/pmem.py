"""``python -m benchmarks.pmem [--tree DIR] [--rounds N]``: how soon a guest has a directory.

Seconds from the start of ``dentry guest`` until a command in the guest has read one file of the
tree, and until it has walked all of it, over virtio-fs and as an ext2 image in persistent memory:
one of a size that is found out before the guest starts, and one whose size is given, so that the
guest boots meanwhile. Rows in turn, medians.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

_PLACE = "/mnt/tree"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.pmem", description=__doc__)
    parser.add_argument("--tree", default="/usr/share", help="what the guest is to have")
    parser.add_argument("--size", default="2g", help="given for the image of a given size")
    parser.add_argument("--rounds", type=int, default=3, help="of which medians are taken")
    arguments = parser.parse_args()
    tree = os.path.abspath(arguments.tree)
    rows = {
        "virtio-fs": ("--mount", f"type=passthrough,src={tree},dst={_PLACE},ro"),
        "pmem": ("--pmem-ext2", f"{tree},dst={_PLACE}"),
        "pmem, size given": ("--pmem-ext2", f"{tree},dst={_PLACE},size={arguments.size}"),
        "pmem, size given, dax": ("--pmem-ext2", f"{tree},dst={_PLACE},size={arguments.size},dax"),
    }
    file = _first_file(tree)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in rows}
    for _ in range(arguments.rounds):
        for name, words in rows.items():
            found[name].append(_measure(words, file))
    table = Table(title=f"{tree}, medians of {arguments.rounds} rounds")
    table.add_column("over")
    table.add_column("first file (s)", justify="right")
    table.add_column("whole tree walked (s later)", justify="right")
    for name, times in found.items():
        first, walked = (statistics.median(column) for column in zip(*times, strict=True))
        table.add_row(name, f"{first:.1f}", f"{walked:.1f}")
    Console(width=100).print(table)


def _first_file(tree: str) -> str:
    """The path in the guest of some file of ``tree`` that is not empty."""
    for directory, _, names in os.walk(tree):
        for name in sorted(names):
            path = Path(directory, name)
            if path.is_file() and not path.is_symlink() and path.stat().st_size:
                return f"{_PLACE}/{path.relative_to(tree)}"
    raise SystemExit(f"there is no file in {tree}")


def _measure(words: tuple[str, ...], file: str) -> tuple[float, float]:
    script = f"cat {shlex.quote(file)} >/dev/null && echo && find {_PLACE} -size +0 >/dev/null"
    command = (sys.executable, "-m", "harness.cli", "guest", *words, "--", "sh", "-c")
    with tempfile.TemporaryDirectory(prefix="dentry-bench-") as empty:
        start = time.monotonic()
        with subprocess.Popen(
            (*command, f"{script}; echo"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            cwd=empty,
            bufsize=0,
        ) as guest:
            assert guest.stdout is not None
            times = [time.monotonic() for _ in range(2) if guest.stdout.read(1) == b"\n"]
    if guest.returncode or len(times) != 2:
        raise SystemExit(f"the guest failed with status {guest.returncode}")
    return times[0] - start, times[1] - times[0]


if __name__ == "__main__":
    main()
