"""`dentry mkext2`, as it is run."""

from __future__ import annotations

import os
import pty
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from fsimpl.ext2.layout import SUPERBLOCK_OFFSET, SuperBlock

MKEXT2 = [sys.executable, "-m", "harness.cli", "mkext2"]
UUID = "4b1f3a52-7a1f-4f4e-9e0a-0d7f6c5b4a39"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    (top / "dir").mkdir(parents=True)
    (top / "dir" / "file").write_bytes(b"content" * 10_000)
    return top


def mkext2(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MKEXT2, *map(str, words)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )


def fsck(image: Path) -> None:
    if shutil.which("e2fsck") is None:
        pytest.skip("needs e2fsck")
    subprocess.run(["e2fsck", "-fn", str(image)], check=True, capture_output=True)


def test_every_option_reaches_the_image(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    done = mkext2(
        tree, image, "--size", "5m", "--label", "named", "--uuid", UUID, "--blocks-per-group",
        "256", "--inodes-per-group", "32", "--uidmap", "0 0 1,5 6 7", "--gidmap", "0 0 1",
        "--uid", "3", "--gid", "4", "--htree", "--one-file-system",
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    superblock = SuperBlock.unpack(image.read_bytes(), SUPERBLOCK_OFFSET)
    assert image.stat().st_size == 5 << 20
    assert superblock.volume_name.rstrip(b"\0") == b"named"
    assert superblock.uuid.hex() == UUID.replace("-", "")
    assert (superblock.blocks_per_group, superblock.inodes_per_group) == (256, 32)
    fsck(image)


def test_an_archive_is_a_source(tree: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "archive.tgz", "w:gz") as archive:
        archive.add(tree, ".")
    image = tmp_path / "image"
    assert mkext2("--tar", tmp_path / "archive.tgz", image).returncode == 0
    assert b"content" * 1000 in image.read_bytes()
    fsck(image)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["{tree}"], "IMAGE"),
        (["{tree}/none", "{image}"], "none: No such file or directory"),
        (["{tree}/dir/file", "{image}"], "file: Not a directory"),
        (["{tree}", "{tree}/none/image"], "none/image: No such file or directory"),
        (["{tree}", "/dev/null"], "/dev/null: it is there and no regular file"),
        (["{tree}", "{tree}"], "no regular file"),
        (["--tar", "{tree}/dir/file", "{image}"], "no tar archive"),
        (["--tar", "{tree}", "{image}"], "Is a directory"),
        (["{tree}", "{image}", "--size", "1"], "given 0 MiB"),
        (["{tree}", "{image}", "--size", "x"], "'x' is no size"),
        (["{tree}", "{image}", "--uuid", "x"], "--uuid 'x'"),
        (["{tree}", "{image}", "--uidmap", "0 0"], "--uidmap"),
        (["{tree}", "{image}", "--gidmap", "0 0 0"], "--gidmap"),
        (["{tree}", "{image}", "--uid", "-1"], "--uid -1"),
        (["{tree}", "{image}", "--gid", str(1 << 32)], "--gid"),
        (["{tree}", "{image}", "--label", "n" * 17], "at most 16 bytes"),
        (["{tree}", "{image}", "--blocks-per-group", "100"], "100 blocks per group"),
    ],
)
def test_an_error_of_use_is_one_line_and_leaves_nothing(
    tree: Path, tmp_path: Path, words: list[str], named: str
) -> None:
    image = tmp_path / "image"
    done = mkext2(*(word.format(tree=tree, image=image) for word in words))
    assert done.returncode == 2
    assert named in done.stderr
    assert done.stderr.count("\n") == 1
    assert sorted(os.listdir(tmp_path)) == ["tree"]
    assert sorted(os.listdir(tree)) == ["dir"]


def test_a_terminal_sees_a_bar(tree: Path, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*MKEXT2, str(tree), str(tmp_path / "image")],
        stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs, env={**os.environ, "TERM": "xterm"},
    ) as process:  # fmt: skip
        os.close(theirs)
        shown = b""
        while True:
            try:
                some = os.read(ours, 65536)
            except OSError:  # EIO: nobody has the terminal any more
                break
            if not some:
                break
            shown += some
        assert process.wait(60) == 0
    os.close(ours)
    assert b"2 files" in shown


def test_the_old_image_stays_until_the_new_one_is_complete(tree: Path, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(image)
    assert mkext2(tree, image, "--size", "4096").returncode == 2
    assert image.read_bytes() == b"old"
    assert mkext2(tree, link).returncode == 0
    assert link.is_symlink()
    assert image.stat().st_size > 70_000
