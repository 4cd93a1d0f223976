"""CPython's own tests of files, with TMPDIR on a mount, against the kernel's tmpfs."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

MODULES = (
    *("test_os", "test_posix", "test_shutil", "test_pathlib", "test_tempfile"),
    *("test_glob", "test_fileio", "test_mmap", "test_largefile"),
)
_OUTCOME = re.compile(r"^(test\w* \(.*\)).*? \.\.\. (ok|FAIL|ERROR|skipped|expected failure)", re.M)

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(os.geteuid() != 0, reason="compares what root may"),
    pytest.mark.skipif(
        importlib.util.find_spec("test.test_os") is None,
        reason="this Python has no tests: install the Debian package libpython3-testsuite",
    ),
]


def outcomes(directory: Path) -> dict[str, str]:
    """What became of each test with TMPDIR at `directory`."""
    result = subprocess.run(
        [sys.executable, "-m", "test", "-v", "-u", "largefile", *MODULES],
        env={**os.environ, "TMPDIR": str(directory)},
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    found = dict(_OUTCOME.findall(result.stdout))
    assert len(found) > 1000, result.stdout[-2000:]
    return found


@pytest.fixture(scope="module")
def on_kernel_tmpfs() -> Iterator[dict[str, str]]:
    with tempfile.TemporaryDirectory(prefix="dentry-kernel-") as directory:
        subprocess.run(["mount", "-t", "tmpfs", "dentry-test", directory], check=True)
        try:
            yield outcomes(Path(directory))
        finally:
            subprocess.run(["umount", directory], check=True)


def test_pythons_file_tests_end_as_on_the_kernels_tmpfs(
    tree_mount: Path, on_kernel_tmpfs: dict[str, str]
) -> None:
    ours = outcomes(tree_mount)
    different = {
        name: (expected, ours.get(name))
        for name, expected in on_kernel_tmpfs.items()
        if ours.get(name) != expected
    }
    assert different == {}
    assert ours.keys() == on_kernel_tmpfs.keys()
