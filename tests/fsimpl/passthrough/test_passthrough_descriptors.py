"""Descriptors of the host: one for each inode, given back, and never all of them."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
from passthrough_kernel import open_descriptors

from fsimpl.passthrough import PassthroughSuperblock, PassthroughType
from vfs import VirtualFilesystem, abi
from vfs.task import Task


@pytest.fixture
def few_descriptors() -> Iterator[int]:
    """RLIMIT_NOFILE close above what is in use."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = max(map(int, os.listdir("/proc/self/fd"))) + 80
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_mount_that_is_gone_has_given_back_all_descriptors(shared: Path) -> None:
    for name in ("a", "b", "c"):
        (shared / name).mkdir()
        (shared / name / "file").write_bytes(b"x")
    before = open_descriptors()
    vfs = VirtualFilesystem()
    vfs.register(PassthroughType())
    with vfs.create_namespace("passthrough", source=bytes(shared)) as namespace:
        task = vfs.create_task(namespace)
    for name in ("a", "b", "c"):
        task.open(f"{name}/file", abi.O_RDWR)
        task.open(name, abi.O_RDONLY | abi.O_DIRECTORY)
    task.mkdir("a/new")
    assert open_descriptors() > before
    vfs.shutdown()
    assert open_descriptors() == before


@pytest.mark.parametrize(
    ("source", "number"),
    [(b"missing", errno.ENOENT), (b"file", errno.ENOTDIR)],
)
def test_a_source_that_cannot_be_shared_is_refused_and_costs_no_descriptor(
    vfs: VirtualFilesystem, shared: Path, source: bytes, number: int
) -> None:
    (shared / "file").write_bytes(b"")
    before = open_descriptors()
    with pytest.raises(OSError) as caught:
        vfs.create_namespace("passthrough", source=bytes(shared) + b"/" + source)
    assert caught.value.errno == number
    assert open_descriptors() == before


def test_an_unknown_mount_option_is_refused(vfs: VirtualFilesystem, shared: Path) -> None:
    with pytest.raises(OSError) as caught:
        vfs.create_namespace("passthrough", source=bytes(shared), options="nonsense=1")
    assert caught.value.errno == errno.EINVAL


def test_a_call_that_fails_costs_no_descriptor(inside: Task, shared: Path) -> None:
    inside.mkdir("d")
    inside.stat("d")
    before = open_descriptors()
    for attempt in (
        lambda: inside.mkdir("d"),
        lambda: inside.open("missing", abi.O_RDONLY),
        lambda: inside.open("d", abi.O_RDWR),
        lambda: inside.rename("d", "missing/d"),
        lambda: inside.open("new", abi.O_CREAT | abi.O_DIRECTORY),
        lambda: inside.readlink("d"),
    ):
        with pytest.raises(OSError):
            attempt()
    assert open_descriptors() == before


def test_names_of_one_file_share_one_inode_and_one_descriptor(
    inside: Task, shared: Path, superblock: PassthroughSuperblock
) -> None:
    (shared / "a").write_bytes(b"x")
    os.link(shared / "a", shared / "b")
    first = inside.stat("a")
    before = open_descriptors()
    assert inside.stat("b") == first
    assert open_descriptors() == before
    assert len(superblock.inodes) == 2
    inside.link("a", "c")
    assert inside.stat("b").st_nlink == 3
    inside.chmod("c", 0o600)
    assert inside.stat("a").st_mode & 0o7777 == 0o600


def test_more_files_than_descriptors_can_be_looked_at(
    few_descriptors: int, inside: Task, shared: Path
) -> None:
    for number in range(few_descriptors * 2):
        (shared / f"f{number}").write_bytes(b"")
    for number in range(few_descriptors * 2):
        inside.stat(f"f{number}")
    assert len(inside.listdir("/")) == few_descriptors * 2


def test_when_all_descriptors_are_in_use_the_next_file_is_enfile_and_made_nowhere(
    few_descriptors: int, inside: Task, shared: Path
) -> None:
    opened = []
    with pytest.raises(OSError) as caught:
        for number in range(few_descriptors):
            opened.append(inside.open(f"f{number}", abi.O_CREAT | abi.O_RDWR, 0o644))
    assert caught.value.errno == errno.ENFILE
    assert len(opened) > 10
    made = set(os.listdir(shared))
    for attempt in (
        lambda: inside.mkdir("d"),
        lambda: inside.symlink("x", "l"),
        lambda: inside.mknod("p", abi.S_IFIFO | 0o644),
        lambda: inside.open("g", abi.O_CREAT | abi.O_RDWR, 0o644),
    ):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == errno.ENFILE
    assert set(os.listdir(shared)) == made
    # Some are left for the process itself.
    os.close(os.open("/dev/null", os.O_RDONLY))
    for fd in opened:
        inside.close(fd)
    inside.mkdir("d")


def test_descriptors_that_are_closed_are_free_at_once(
    few_descriptors: int, inside: Task, superblock: PassthroughSuperblock, shared: Path
) -> None:
    (shared / "file").write_bytes(b"x")
    inside.files.limit = few_descriptors
    opened = []
    with pytest.raises(OSError):
        while True:
            opened.append(inside.open("file", abi.O_RDONLY))
    while opened:
        inside.close(opened.pop())
    # Even when nothing is left to give up.
    superblock.vfs.dcache.shrink(0)
    for _ in range(3):
        superblock.budget.newest = few_descriptors
        superblock.budget.require()
    inside.mkdir("d")


def test_one_file_opened_over_and_over_leaves_descriptors_for_the_process(
    few_descriptors: int, inside: Task, shared: Path
) -> None:
    (shared / "file").write_bytes(b"x")
    inside.files.limit = few_descriptors
    opened = []
    with pytest.raises(OSError) as caught:
        for _ in range(few_descriptors):
            opened.append(inside.open("file", abi.O_RDONLY))
    assert caught.value.errno == errno.ENFILE
    assert len(opened) > 10
    spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
    for fd in spare:
        os.close(fd)
    inside.close(opened.pop())
    opened.append(inside.open("file", abi.O_RDONLY))
