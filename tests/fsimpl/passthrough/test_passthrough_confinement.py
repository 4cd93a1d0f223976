"""Nobody inside gets outside: by "..", symlinks, magic links, names, or races with the host."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fsimpl.passthrough import PassthroughSuperblock
from fsimpl.passthrough.inode import PassthroughInode
from vfs import Credentials, abi
from vfs.task import Task


@pytest.fixture
def outside(tmp_path: Path, shared: Path) -> Path:
    """A file beside the shared directory, which nobody inside may ever see."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    return secret


@pytest.fixture
def against() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Runs a function over and over in another thread until the test ends."""
    stop = threading.Event()
    threads: list[threading.Thread] = []
    failures: list[BaseException] = []

    def start(function: Callable[[], None]) -> None:
        def run() -> None:
            try:
                while not stop.is_set():
                    function()
            except BaseException as error:
                failures.append(error)

        threads.append(threading.Thread(target=run))
        threads[-1].start()

    yield start
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures


def test_dotdot_stops_at_the_shared_directory(inside: Task, shared: Path, outside: Path) -> None:
    (shared / "a").mkdir()
    for path in ("../secret", "a/../../secret", "/../../../secret"):
        with pytest.raises(FileNotFoundError):
            inside.stat(path)
    assert inside.stat("a/../..").st_ino == shared.stat().st_ino


def test_the_root_directory_lists_itself_as_its_parent(inside: Task, shared: Path) -> None:
    fd = inside.open("/", abi.O_RDONLY | abi.O_DIRECTORY)
    numbers = {record.d_name: record.d_ino for record in inside.getdents64(fd)}
    assert numbers[b".."] == numbers[b"."] == shared.stat().st_ino


def test_symlinks_lead_to_places_inside_only(inside: Task, shared: Path, outside: Path) -> None:
    (shared / "absolute").symlink_to(outside)
    (shared / "relative").symlink_to("../secret")
    (shared / "secret").write_bytes(b"ours")
    with pytest.raises(FileNotFoundError):
        inside.stat("absolute")
    fd = inside.open("relative", abi.O_RDONLY)
    assert inside.read(fd, 10) == b"ours"


def test_an_absolute_symlink_starts_at_the_root_inside(inside: Task, shared: Path) -> None:
    (shared / "etc").mkdir()
    (shared / "etc" / "passwd").write_bytes(b"inside")
    (shared / "link").symlink_to("/etc/passwd")
    assert inside.stat("link").st_size == len(b"inside")


@pytest.mark.parametrize("link", ["root", "cwd", "fd/0", "exe"])
def test_a_magic_link_of_the_host_is_only_text(
    vfs: object, inside: Task, tmp_path: Path, link: str
) -> None:
    inside.mkdir("proc", 0o755)
    inside.mount("/proc", "proc", "passthrough")
    pid = os.getpid()
    text = inside.readlink(f"proc/{pid}/{link}")
    assert text == os.readlink(f"/proc/{pid}/{link}").encode()
    # Followed by us the text starts at the task's root, where none of it exists but "/" itself.
    try:
        found = inside.stat(f"proc/{pid}/{link}")
    except FileNotFoundError:
        return
    assert text == b"/" and found == inside.stat("/")


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/b", b"../secret", b"a\0b"])
def test_the_inode_itself_refuses_what_is_not_one_component(
    superblock: PassthroughSuperblock, shared: Path, outside: Path, name: bytes
) -> None:
    root, cred = superblock.root_inode, Credentials.root()
    (shared / "file").write_bytes(b"")
    file = root.lookup(b"file")
    assert file is not None
    for attempt in (
        lambda: root.lookup(name),
        lambda: root.create(name, abi.S_IFREG | 0o644, cred),
        lambda: root.mkdir(name, abi.S_IFDIR | 0o755, cred),
        lambda: root.mknod(name, abi.S_IFIFO | 0o644, 0, cred),
        lambda: root.symlink(name, b"x", cred),
        lambda: root.unlink(name, file),
        lambda: root.rmdir(name, file),
        lambda: root.rename(b"file", file, root, name, None, 0, cred),
        lambda: root.rename(name, file, root, b"file", None, 0, cred),
    ):
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno == 22
    file.put()
    assert outside.exists()
    assert sorted(os.listdir(shared)) == ["file"]


def test_a_directory_swapped_for_a_symlink_after_lookup_is_not_followed(
    superblock: PassthroughSuperblock, shared: Path, tmp_path: Path, outside: Path
) -> None:
    (shared / "d").mkdir()
    (shared / "d" / "f").write_bytes(b"inside")
    directory = superblock.root_inode.lookup(b"d")
    assert directory is not None
    (shared / "d").rename(shared / "old")
    (shared / "d").symlink_to(tmp_path)
    assert directory.lookup(b"secret") is None
    file = directory.lookup(b"f")
    assert isinstance(file, PassthroughInode)
    link = superblock.root_inode.lookup(b"d")
    assert link is not None and link.is_symlink
    for inode in (directory, file, link):
        inode.put()


def test_what_is_opened_is_what_was_looked_up_although_the_name_means_a_symlink_now(
    inside: Task, shared: Path, outside: Path
) -> None:
    (shared / "f").write_bytes(b"inside")
    handle = inside.open("f", abi.O_PATH)
    (shared / "f").unlink()
    (shared / "f").symlink_to(outside)
    with inside.vfs.lock:
        file = inside.files.get_file(handle)
        opened = file.inode.open(file.mount, file.dentry, abi.O_RDONLY, inside.cred)
    buffer = bytearray(16)
    assert opened.read([memoryview(buffer)], 0, 0) == len(b"inside")
    assert buffer.startswith(b"inside")
    with inside.vfs.lock:
        opened.put()


def test_a_walk_through_dotdot_stays_inside_while_the_host_moves_the_directory_out_and_in(
    inside: Task, shared: Path, tmp_path: Path, outside: Path, against: Callable[..., None]
) -> None:
    (shared / "a" / "b" / "c").mkdir(parents=True)
    (shared / "mark").write_bytes(b"inside")

    def swing() -> None:
        os.rename(shared / "a" / "b", tmp_path / "b")
        os.rename(tmp_path / "b", shared / "a" / "b")

    against(swing)
    reached = 0
    for _ in range(500):
        try:
            inside.stat("a/b/c/../../../mark")
            reached += 1
        except FileNotFoundError:
            pass
        for path in ("a/b/c/../../../secret", "a/b/c/../../../../secret", "a/b/../../secret"):
            with pytest.raises(FileNotFoundError):
                inside.stat(path)
    assert reached


def test_a_file_that_turns_into_a_symlink_and_back_is_never_read_from_outside(
    inside: Task, shared: Path, outside: Path, against: Callable[..., None]
) -> None:
    (shared / "f").write_bytes(b"inside")
    (shared / "link").symlink_to(outside)

    def swap() -> None:
        os.rename(shared / "f", shared / "kept")
        os.rename(shared / "link", shared / "f")
        os.rename(shared / "f", shared / "link")
        os.rename(shared / "kept", shared / "f")

    against(swap)
    reads = 0
    for _ in range(1000):
        try:
            fd = inside.open("f", abi.O_RDONLY)
        except OSError:
            continue
        assert inside.read(fd, 16) == b"inside"
        inside.close(fd)
        reads += 1
    assert reads


@pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes: needs root")
def test_host_devices_fifos_and_sockets_are_never_opened_on_the_host(
    superblock: PassthroughSuperblock, inside: Task, shared: Path
) -> None:
    os.mkfifo(shared / "fifo")
    inside.mknod("null", abi.S_IFCHR | 0o666, abi.makedev(1, 3))
    inside.mknod("socket", abi.S_IFSOCK | 0o666)
    for name in ("fifo", "null", "socket"):
        handle = inside.open(name, abi.O_PATH)
        with inside.vfs.lock:
            file = inside.files.get_file(handle)
            with pytest.raises(OSError) as caught:
                file.inode.open(file.mount, file.dentry, abi.O_RDWR, inside.cred)
        assert caught.value.errno == 6
