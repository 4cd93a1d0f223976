"""The cpio writer, read back by cpio and by busybox."""

import io
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest

from harness.guest.cpio import CpioWriter

READERS = [
    pytest.param(
        ["cpio", "-idm", "--quiet"],
        marks=pytest.mark.skipif(not shutil.which("cpio"), reason="no cpio here"),
        id="cpio",
    ),
    pytest.param(
        ["busybox", "cpio", "-idm"],
        marks=pytest.mark.skipif(not shutil.which("busybox"), reason="no busybox here"),
        id="busybox",
    ),
]


def sample_archive() -> bytes:
    archive = CpioWriter()
    archive.directory("bin", 0o755)
    archive.directory("bin/sub", 0o700)
    for size in range(6):
        archive.file(f"bin/sub/of{size}", b"x" * size, 0o640)
    archive.file("bin/tool", bytes(range(256)) * 33, 0o755)
    archive.file("bin/n\udcffme", b"a name that is not UTF-8")
    archive.symlink("bin/link", "tool")
    archive.fifo("pipe", 0o600)
    return archive.finish()


@pytest.mark.parametrize("reader", READERS)
def test_other_tools_unpack_the_same_tree(reader: list[str], tmp_path: Path) -> None:
    subprocess.run(reader, input=sample_archive(), cwd=tmp_path, check=True, capture_output=True)
    assert (tmp_path / "bin/tool").read_bytes() == bytes(range(256)) * 33
    assert stat.S_IMODE((tmp_path / "bin/tool").stat().st_mode) == 0o755
    assert stat.S_IMODE((tmp_path / "bin/sub").stat().st_mode) == 0o700
    assert [(tmp_path / f"bin/sub/of{size}").stat().st_size for size in range(6)] == [*range(6)]
    assert (tmp_path / os.fsdecode(b"bin/n\xffme")).read_bytes() == b"a name that is not UTF-8"
    assert os.readlink(tmp_path / "bin/link") == "tool"
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root makes device nodes")
@pytest.mark.parametrize("reader", READERS)
def test_device_nodes_keep_type_and_number(reader: list[str], tmp_path: Path) -> None:
    archive = CpioWriter()
    archive.device("console", stat.S_IFCHR, 5, 1, 0o600)
    archive.device("disk", stat.S_IFBLK, 259, 65537, 0o660)
    subprocess.run(reader, input=archive.finish(), cwd=tmp_path, check=True, capture_output=True)
    console, disk = (tmp_path / "console").stat(), (tmp_path / "disk").stat()
    assert stat.S_ISCHR(console.st_mode)
    assert (os.major(console.st_rdev), os.minor(console.st_rdev)) == (5, 1)
    assert stat.S_ISBLK(disk.st_mode)
    assert (os.major(disk.st_rdev), os.minor(disk.st_rdev)) == (259, 65537)


def test_equal_contents_give_equal_archives() -> None:
    assert sample_archive() == sample_archive()


def test_headers_and_data_are_aligned_to_four_bytes() -> None:
    archive = CpioWriter()
    archive.file("abc", b"12345")
    data = io.BytesIO(archive.finish())
    header = data.read(110)
    assert header[:6] == b"070701"
    assert int(header[54:62], 16) == 5
    assert int(header[94:102], 16) == len("abc") + 1
    assert data.read(6) == b"abc\0\0\0"
    assert data.read(8) == b"12345\0\0\0"
    assert data.read(6) == b"070701"


@pytest.mark.parametrize("path", ["", "/etc", "a\0b"])
def test_a_path_that_leaves_the_archive_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a path"):
        CpioWriter().file(path, b"")
