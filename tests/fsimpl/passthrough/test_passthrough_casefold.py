"""ascii_casefold: names are found whatever the case of their letters."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fsimpl.passthrough.inode import PassthroughInode
from vfs import abi
from vfs.task import Task

MountWith = Callable[..., Task]
# Long enough for a test to end before names are listed again.
LONG = "ascii_casefold,timeout=1000"


def errno_of(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return None


def test_a_name_is_found_in_any_case_and_keeps_its_own(mount_with: MountWith, shared: Path) -> None:
    (shared / "Dir").mkdir()
    (shared / "Dir" / "ReadMe").write_bytes(b"x")
    task = mount_with(LONG)
    expected = (shared / "Dir" / "ReadMe").stat().st_ino
    for path in ("Dir/ReadMe", "dir/readme", "DIR/README", "dIR/rEADmE", "dir/readme"):
        assert task.stat(path).st_ino == expected
    assert task.listdir("DIR") == ["ReadMe"]
    assert errno_of(lambda: task.stat("dir/readm")) == errno.ENOENT


def test_without_the_option_case_counts(mount_with: MountWith, shared: Path) -> None:
    (shared / "File").touch()
    assert errno_of(lambda: mount_with().stat("file")) == errno.ENOENT


def test_only_ascii_letters_are_folded(mount_with: MountWith, shared: Path) -> None:
    (shared / "Ä").touch()
    task = mount_with(LONG)
    assert errno_of(lambda: task.stat("ä")) == errno.ENOENT
    assert task.stat("Ä").st_size == 0


def test_an_exact_name_comes_before_one_in_another_case(
    mount_with: MountWith, shared: Path
) -> None:
    (shared / "a").write_bytes(b"1")
    (shared / "A").write_bytes(b"22")
    task = mount_with(LONG)
    assert (task.stat("a").st_size, task.stat("A").st_size) == (1, 2)
    task.unlink("a")
    assert os.listdir(shared) == ["A"]
    assert task.stat("a").st_size == 2


def test_a_name_that_exists_in_another_case_cannot_be_made(
    mount_with: MountWith, shared: Path
) -> None:
    (shared / "File").touch()
    task = mount_with(LONG)
    for make in (
        lambda: task.mkdir("FILE"),
        lambda: task.symlink("x", "FILE"),
        lambda: task.link("File", "file"),
        lambda: task.open("FILE", abi.O_CREAT | abi.O_EXCL | abi.O_RDWR, 0o644),
    ):
        assert errno_of(make) == errno.EEXIST
    task.close(task.open("FILE", abi.O_CREAT | abi.O_RDWR, 0o644))
    assert os.listdir(shared) == ["File"]


def test_names_go_in_any_case_and_are_gone_in_every_other(
    mount_with: MountWith, shared: Path
) -> None:
    (shared / "File").touch()
    (shared / "Dir").mkdir()
    task = mount_with(LONG)
    assert task.stat("file") and task.stat("FILE") and task.stat("dir")
    task.unlink("fILE")
    task.rmdir("DIR")
    assert os.listdir(shared) == []
    for name in ("File", "file", "FILE", "fILE", "Dir", "dir"):
        assert errno_of(lambda name=name: task.stat(name)) == errno.ENOENT


def test_what_is_made_is_found_in_any_case_at_once(mount_with: MountWith, shared: Path) -> None:
    task = mount_with(LONG)
    assert errno_of(lambda: task.stat("NOTHING")) == errno.ENOENT
    task.mkdir("Dir")
    task.close(task.open("File", abi.O_CREAT | abi.O_RDWR, 0o644))
    task.symlink("x", "Link")
    task.mknod("Fifo", abi.S_IFIFO | 0o600)
    task.link("File", "Hard")
    for name in ("DIR", "FILE", "LINK", "FIFO", "HARD"):
        task.lstat(name)


def test_renaming_moves_what_any_case_names(mount_with: MountWith, shared: Path) -> None:
    (shared / "From").write_bytes(b"new")
    (shared / "To").write_bytes(b"o")
    (shared / "Dir").mkdir()
    task = mount_with(LONG)
    assert task.stat("FROM").st_size == 3
    task.rename("FROM", "TO")
    assert sorted(os.listdir(shared)) == ["Dir", "To"]
    assert errno_of(lambda: task.stat("from")) == errno.ENOENT
    task.rename("to", "dir/Moved")
    assert task.stat("DIR/MOVED").st_size == 3
    assert os.listdir(shared / "Dir") == ["Moved"]
    assert errno_of(lambda: task.stat("to")) == errno.ENOENT


def test_what_the_host_adds_is_found_when_the_cache_has_expired(
    mount_with: MountWith, shared: Path
) -> None:
    kept, fresh = mount_with(LONG), mount_with("ascii_casefold,timeout=0")
    for task in (kept, fresh):
        assert errno_of(lambda task=task: task.stat("FILE")) == errno.ENOENT
    (shared / "File").touch()
    assert fresh.stat("FILE").st_size == 0
    assert errno_of(lambda: kept.stat("FILE")) == errno.ENOENT
    assert kept.stat("File").st_size == 0


def test_what_the_host_removes_is_gone_although_the_cache_knows_it(
    mount_with: MountWith, shared: Path
) -> None:
    (shared / "File").touch()
    task = mount_with(LONG)
    task.stat("FILE")
    (shared / "File").unlink()
    assert errno_of(lambda: task.stat("FILE")) == errno.ENOENT
    assert errno_of(lambda: task.unlink("FILE")) == errno.ENOENT


def test_the_cache_goes_with_the_directory(mount_with: MountWith, shared: Path) -> None:
    (shared / "d").mkdir()
    (shared / "d" / "File").touch()
    task = mount_with(LONG)
    task.stat("d/FILE")
    superblock = task.fs.root.dentry.superblock

    def folded() -> list[PassthroughInode]:
        return [i for i in superblock.inodes.values() if i.folded is not None]  # type: ignore[attr-defined]

    assert len(folded()) == 1
    with task.vfs.lock:
        task.vfs.dcache.shrink_superblock(superblock)
    assert not folded()


def test_a_negative_timeout_excludes_it(mount_with: MountWith) -> None:
    assert errno_of(lambda: mount_with("ascii_casefold,negative_timeout=1")) == errno.EINVAL
    assert errno_of(lambda: mount_with("ascii_casefold,negative_timeout=0")) is None


@pytest.mark.parametrize("timeout", ["-1", "x", "", "1e3", "1."])
def test_a_timeout_that_is_no_number_of_seconds_is_refused(
    mount_with: MountWith, timeout: str
) -> None:
    assert errno_of(lambda: mount_with(f"timeout={timeout}")) == errno.EINVAL
