"""Images of mke2fs, mounted in the VFS."""

from __future__ import annotations

import errno
import os
import stat
import struct
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from ext2_reader_support import (
    SOURCE_FIELDS,
    acl,
    assert_same,
    debugfs,
    index_directories,
    mke2fs,
    populate,
)

from fsimpl.ext2 import Ext2Superblock
from fsimpl.ext2.inode import Ext2Inode
from fsimpl.ext2.layout import EXT4_INDEX_FL
from vfs import VirtualFilesystem, abi
from vfs.credentials import Credentials
from vfs.task import Task

MountImage = Callable[..., str]

KINDS = {
    "ext2 1024": ("ext2", "1024", "-I", "128"),
    "ext2 2048": ("ext2", "2048", "-I", "256"),
    "ext2 4096": ("ext2", "4096", "-I", "1024"),
    "ext2 65536": ("ext2", "65536", "-I", "256"),
    "ext4 1024": ("ext4", "1024"),
    "ext4 4096": ("ext4", "4096"),
    "ext4 16384": ("ext4", "16384", "-O", "64bit,ea_inode"),
}


def superblock_of(vfs: VirtualFilesystem) -> Ext2Superblock:
    (found,) = (sb for sb in vfs.superblocks if isinstance(sb, Ext2Superblock))
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    directory = tmp_path / "tree"
    directory.mkdir()
    return directory


@pytest.fixture
def image(tmp_path: Path, tree: Path) -> Path:
    """A small ext2 of ``tree``, which has ``file`` and ``directory``."""
    (tree / "file").write_bytes(b"content of the file\n")
    (tree / "directory").mkdir()
    (tree / "directory" / "inner").write_bytes(b"inner")
    return mke2fs(tmp_path / "image", "4M", "-t", "ext2", "-b", "1024", tree=tree)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_mke2fs_copied_is_what_the_source_is(
    kind: str, tmp_path: Path, tree: Path, task: Task, mount_image: MountImage
) -> None:
    if os.geteuid():
        pytest.skip("devices and owners take root")
    fstype, block_size, *arguments = KINDS[kind]
    populate(tree, min(int(block_size), 4096))
    # It writes a hole below 3 GiB byte by byte.
    (tree / "large").unlink()
    image = mke2fs(
        tmp_path / "image", "160M", "-t", fstype, "-b", block_size, *arguments, tree=tree
    )
    assert_same(task, mount_image(image), tree, SOURCE_FIELDS)


def contents(task: Task, path: str) -> bytes:
    fd = task.open(path, os.O_RDONLY)
    try:
        return b"".join(iter(lambda: task.read(fd, 1 << 20), b""))
    finally:
        task.close(fd)


def test_a_mount_is_read_only_whatever_it_was_asked_to_be(
    vfs: VirtualFilesystem, task: Task, image: Path, mount_image: MountImage
) -> None:
    where = mount_image(image)
    for call in (
        lambda: task.mkdir(f"{where}/new"),
        lambda: task.unlink(f"{where}/file"),
        lambda: task.open(f"{where}/file", os.O_RDWR),
        lambda: task.setxattr(f"{where}/file", "user.a", b"a"),
        lambda: task.chmod(f"{where}/file", 0o600),
    ):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EROFS
    # As Linux answers for a loop device that is read-only.
    with pytest.raises(PermissionError):
        task.mount(None, where, None, abi.MS_REMOUNT)
    task.mount(None, where, None, abi.MS_REMOUNT | abi.MS_RDONLY, "errors=panic")
    assert superblock_of(vfs).show_options() == ",errors=panic"


def test_read_write_in_words_is_refused_like_a_read_only_device(task: Task, image: Path) -> None:
    task.mkdir("/x")
    with pytest.raises(PermissionError):
        task.mount(image, "/x", "ext2", 0, "rw")


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ("", ""),
        ("sb=1,errors=continue,user_xattr,acl,bsddf,check=none,nocheck,orlov", ""),
        (
            "resuid=5,nouid32,resgid=6,errors=panic,minixdf,grpid,debug",
            ",minixdf,grpid,nouid32,debug,resuid=5,resgid=6,errors=panic",
        ),
        ("errors=remount-ro,noload", ",noload,errors=remount-ro"),
    ],
)
def test_options_are_shown_as_linux_shows_them(
    options: str, shown: str, vfs: VirtualFilesystem, image: Path, mount_image: MountImage
) -> None:
    mount_image(image, options)
    assert superblock_of(vfs).show_options() == shown


@pytest.mark.parametrize(
    "options",
    [
        "sb=0",
        "sb=3",
        "sb=x",
        "sb",
        "errors=x",
        "noacl",
        "nouser_xattr",
        "resuid=x",
        "check",
        "bogus",
    ],
)
def test_options_that_linux_refuses_are_refused(options: str, task: Task, image: Path) -> None:
    task.mkdir("/x")
    with pytest.raises(OSError) as caught:
        task.mount(image, "/x", "ext2", 0, options)
    assert caught.value.errno == errno.EINVAL


def test_a_backup_superblock_and_its_descriptors_will_do(
    tmp_path: Path, tree: Path, task: Task, mount_image: MountImage
) -> None:
    (tree / "file").write_bytes(b"still here")
    image = mke2fs(tmp_path / "image", "20M", "-t", "ext2", "-b", "1024", tree=tree)
    with image.open("r+b") as file:
        file.seek(1024)
        file.write(bytes(2048))
    task.mkdir("/x")
    with pytest.raises(OSError) as caught:
        task.mount(image, "/x", "ext2")
    assert caught.value.errno == errno.EINVAL
    where = mount_image(image, "sb=8193")
    assert contents(task, f"{where}/file") == b"still here"


@pytest.mark.parametrize(
    ("bit", "number", "message"),
    [
        (0x1, errno.EINVAL, "unsupported optional features: compression"),
        (0x8, errno.EINVAL, "unsupported optional features: journal_dev"),
        (0x8000, errno.EINVAL, "unsupported optional features: inline_data"),
        (0x10000, errno.EINVAL, "unsupported optional features: encrypt"),
        (0x20000, errno.EINVAL, "unsupported optional features: casefold"),
        (0x100000, errno.EINVAL, "unsupported optional features: 0x100000"),
        (0x4, errno.EROFS, "try mounting with noload"),
    ],
)
def test_features_that_are_not_read_are_named(
    bit: int, number: int, message: str, task: Task, image: Path
) -> None:
    _poke(image, 1024 + 0x60, struct.pack("<I", 0x2 | bit))
    fd = task.fsopen("ext2", 0)
    task.fsconfig(fd, abi.FSCONFIG_SET_STRING, "source", str(image), 0)
    with pytest.raises(OSError) as caught:
        task.fsconfig(fd, abi.FSCONFIG_CMD_CREATE, None, None, 0)
    assert caught.value.errno == number
    assert message in task.read(fd, 4096).decode()
    task.close(fd)


def _poke(image: Path, offset: int, data: bytes) -> None:
    with image.open("r+b") as file:
        file.seek(offset)
        file.write(data)


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0x18, struct.pack("<I", 7)),  # log_block_size
        (0x18, struct.pack("<I", 0xFFFFFFFF)),
        (0x04, struct.pack("<I", 1 << 30)),  # blocks_count
        (0x04, struct.pack("<I", 1)),
        (0x14, struct.pack("<I", 1 << 20)),  # first_data_block
        (0x20, struct.pack("<I", 0)),  # blocks_per_group
        (0x28, struct.pack("<I", 0)),  # inodes_per_group
        (0x28, struct.pack("<I", 0xFFFFFFF8)),
        (0x00, struct.pack("<I", 0xFFFFFFFF)),  # inodes_count
        (0x58, struct.pack("<H", 0)),  # inode_size
        (0x58, struct.pack("<H", 129)),
        (0x54, struct.pack("<I", 3)),  # first_ino
    ],
)
def test_a_superblock_that_makes_no_sense_is_refused(
    offset: int, data: bytes, task: Task, image: Path
) -> None:
    _poke(image, 1024 + offset, data)
    task.mkdir("/x")
    with pytest.raises(OSError) as caught:
        task.mount(image, "/x", "ext2")
    assert caught.value.errno == errno.EINVAL


@pytest.mark.parametrize("source", ["directory", "device", "fifo", "text", "empty", "missing"])
def test_what_is_no_image_is_refused(source: str, task: Task, tmp_path: Path) -> None:
    path = tmp_path / source
    expected = errno.ENOTBLK
    if source == "directory":
        path.mkdir()
    elif source == "device":
        path = Path("/dev/zero")
    elif source == "fifo":
        os.mkfifo(path)
    elif source == "missing":
        expected = errno.ENOENT
    else:
        path.write_bytes(b"x" * 5000 if source == "text" else b"")
        expected = errno.EINVAL
    task.mkdir("/x")
    with pytest.raises(OSError) as caught:
        task.mount(path, "/x", "ext2")
    assert caught.value.errno == expected


def test_an_image_mounted_twice_is_one_filesystem(
    vfs: VirtualFilesystem, task: Task, image: Path, mount_image: MountImage
) -> None:
    first, second = mount_image(image), mount_image(image, "errors=panic")
    assert task.stat(first).st_dev == task.stat(second).st_dev
    assert superblock_of(vfs).show_options() == ""
    task.umount2(first, 0)
    assert contents(task, f"{second}/file") == b"content of the file\n"


@pytest.mark.parametrize("below", ["tmpfs", "passthrough"])
def test_with_loop_the_image_is_a_file_of_the_tree(
    below: str, task: Task, image: Path, mount_image: MountImage
) -> None:
    task.mkdir("/below")
    if below == "passthrough":
        task.mount(image.parent, "/below", "passthrough")
    else:
        task.mount(None, "/below", "tmpfs")
        fd = task.creat("/below/image", 0o600)
        task.write(fd, image.read_bytes())
        task.close(fd)
    task.chdir("/below")
    where = mount_image(Path("image"), "loop")
    task.chdir("/")
    assert contents(task, f"{where}/file") == b"content of the file\n"
    assert task.listdir(f"{where}/directory") == ["inner"]
    with pytest.raises(OSError) as caught:
        task.umount2("/below", 0)
    assert caught.value.errno == errno.EBUSY
    task.umount2(where, 0)
    task.umount2("/below", 0)


def test_loop_takes_regular_files_that_the_task_may_read_and_finds(task: Task, image: Path) -> None:
    task.mkdir("/x")
    task.mknod("/fifo", stat.S_IFIFO | 0o600)
    for source, expected in (
        (str(image), errno.ENOENT),
        ("/x", errno.ENOTBLK),
        ("/fifo", errno.ENOTBLK),
        ("", errno.ENOENT),
    ):
        with pytest.raises(OSError) as caught:
            task.mount(source, "/x", "ext2", 0, "loop")
        assert caught.value.errno == expected, source


def test_images_in_images_come_to_an_end(task: Task, tmp_path: Path, tree: Path) -> None:
    (tree / "bottom").write_bytes(b"bottom")
    image = tmp_path / "0"
    mke2fs(image, "400K", "-t", "ext2", "-b", "1024", "-N", "16", tree=tree)
    for level in range(1, 12):
        tree = tmp_path / f"tree{level}"
        tree.mkdir()
        image.rename(tree / "image")
        image = tmp_path / str(level)
        size = f"{400 + level * 100}K"
        mke2fs(image, size, "-t", "ext2", "-b", "1024", "-N", "16", tree=tree)
    source, options = str(image), ""
    with pytest.raises(OSError) as caught:
        for level in range(12):
            task.mkdir(f"/m{level}")
            task.mount(source, f"/m{level}", "ext2", 0, options)
            source, options = f"/m{level}/image", "loop"
    assert caught.value.errno == errno.ELOOP
    assert level == 8


def test_names_in_an_index_are_found_through_it(
    vfs: VirtualFilesystem,
    tmp_path: Path,
    tree: Path,
    task: Task,
    mount_image: MountImage,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [f"name {number} {'x' * 100} \u00df" for number in range(3000)]
    (tree / "file").touch()
    (tree / "indexed").mkdir()
    for name in names:
        (tree / "indexed" / name).hardlink_to(tree / "file")
    image = mke2fs(tmp_path / "image", "8M", "-t", "ext2", "-b", "1024", tree=tree)
    index_directories(image)
    where = mount_image(image)
    superblock = superblock_of(vfs)
    read: list[int] = []

    def read_block(self: Ext2Superblock, block: int, inode: Ext2Inode | None = None) -> bytes:
        read.append(block)
        return original(self, block, inode)

    original = Ext2Superblock.read_block
    monkeypatch.setattr(Ext2Superblock, "read_block", read_block)
    with task.lock, task._lookup(abi.AT_FDCWD, f"{where}/indexed") as found:
        assert found.inode.flags & EXT4_INDEX_FL
        for name in names[::7]:
            read.clear()
            inode = found.inode.lookup(os.fsencode(name))
            assert inode is not None, name
            inode.put()
            assert len(read) < 16, name
        assert found.inode.lookup(b"none") is None
    assert not superblock.complaints
    assert sorted(task.listdir(f"{where}/indexed")) == sorted(names)


@pytest.mark.parametrize("where_in_the_root", [24, 28, 29, 30, 34, 38, 44])
def test_a_damaged_index_is_done_without(
    where_in_the_root: int,
    vfs: VirtualFilesystem,
    tmp_path: Path,
    tree: Path,
    task: Task,
    mount_image: MountImage,
) -> None:
    names = [f"{number:03}{'x' * 200}" for number in range(200)]
    (tree / "file").touch()
    for name in names:
        (tree / name).hardlink_to(tree / "file")
    image = mke2fs(tmp_path / "image", "2M", "-t", "ext2", "-b", "1024", tree=tree)
    index_directories(image)
    block = int(debugfs(image, "bmap / 0").split()[-1])
    _poke(image, block * 1024 + where_in_the_root, b"\xff\xff\xff\xff")
    where = mount_image(image)
    for name in names:
        assert task.stat(f"{where}/{name}").st_nlink == 201
    with pytest.raises(FileNotFoundError):
        task.stat(f"{where}/none")
    assert any("reading all of it" in text for text in superblock_of(vfs).complaints)


def test_a_listing_goes_on_from_each_cookie(task: Task, image: Path, tree: Path) -> None:
    for number in range(100):
        (tree / f"more {number}").touch()
    image = mke2fs(image.with_name("more"), "4M", "-t", "ext2", "-b", "1024", tree=tree)
    task.mkdir("/x")
    task.mount(image, "/x", "ext2")
    fd = task.open("/x", os.O_RDONLY)
    records = task.getdents64(fd, 1 << 20)
    for index, record in enumerate(records):
        task.lseek(fd, record.d_off, os.SEEK_SET)
        assert task.getdents64(fd, 1 << 20) == records[index + 1 :]
    task.lseek(fd, records[5].d_off + 4, os.SEEK_SET)
    assert task.getdents64(fd, 1 << 20) == records[7:]
    for beyond in (1 << 20, 1 << 40, (1 << 63) - 1):
        task.lseek(fd, beyond, os.SEEK_SET)
        assert task.getdents64(fd, 1 << 20) == []
    task.close(fd)


def test_an_acl_decides_about_those_who_are_not_the_owner(
    task: Task, tmp_path: Path, tree: Path, mount_image: MountImage
) -> None:
    path = tree / "file"
    path.write_bytes(b"for some")
    no_id = 0xFFFFFFFF
    try:
        entries = ((1, 6, no_id), (2, 4, 1000), (2, 7, 1001), (4, 0, no_id), (8, 6, 2000),
                   (8, 4, 2001), (16, 4, no_id), (32, 0, no_id))  # fmt: skip
        os.setxattr(path, "system.posix_acl_access", acl(*entries))
        os.chown(path, 500, 2002)
    except OSError as error:
        pytest.skip(f"the host cannot make the file: {error}")
    image = mke2fs(tmp_path / "image", "1M", "-t", "ext2", "-b", "1024", tree=tree)
    where = mount_image(image)
    people = {(uid, gid) for uid in (0, 500, 1000, 1001, 1002) for gid in (0, 2000, 2001, 2002)}
    for uid, gid in people:
        for mask in range(1, 8):
            assert _allowed_here(task, f"{where}/file", uid, gid, mask) == _allowed_there(
                path, uid, gid, mask
            ), (uid, gid, mask)


def _allowed_here(task: Task, path: str, uid: int, gid: int, mask: int) -> bool:
    with task.clone(cred=Credentials(uid, gid)) as person:
        try:
            person.faccessat2(abi.AT_FDCWD, path, mask & ~os.W_OK)
        except PermissionError:
            return False
    return True


def _allowed_there(path: Path, uid: int, gid: int, mask: int) -> bool:
    with path.open("rb") as opened:
        child = os.fork()
        if not child:
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            allowed = os.access(f"/proc/self/fd/{opened.fileno()}", mask & ~os.W_OK)
            os._exit(not allowed)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_several_threads_read_at_once(task: Task, tmp_path: Path, tree: Path) -> None:
    content = {f"f{number}": os.urandom(200_000) for number in range(4)}
    for name, data in content.items():
        (tree / name).write_bytes(data)
    image = mke2fs(tmp_path / "image", "4M", "-t", "ext2", "-b", "1024", tree=tree)
    task.mkdir("/x")
    task.mount(image, "/x", "ext2")
    wrong: list[str] = []

    def read(name: str) -> None:
        for _ in range(20):
            if contents(task, f"/x/{name}") != content[name]:
                wrong.append(name)

    threads = [threading.Thread(target=read, args=(name,)) for name in content for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("block_size", [1024, 4096])
def test_data_far_behind_a_hole_is_found(
    block_size: int, task: Task, tmp_path: Path, tree: Path, mount_image: MountImage
) -> None:
    # The last table of pointers that a file can have, through each of the three levels.
    fan = block_size // 4
    place = (12 + fan + fan**2 + fan**3 - 1) * block_size if block_size == 1024 else 5 << 30
    with (tree / "far").open("wb") as file:
        file.seek(place)
        file.write(b"far")
    image = mke2fs(tmp_path / "image", "8M", "-t", "ext2", "-b", str(block_size), tree=tree)
    where = mount_image(image)
    fd = task.open(f"{where}/far", os.O_RDONLY)
    assert task.lseek(fd, 0, os.SEEK_DATA) == place
    assert task.lseek(fd, place, os.SEEK_HOLE) == place + 3
    assert task.pread64(fd, 10, place - 2) == b"\0\0far"
    task.close(fd)
