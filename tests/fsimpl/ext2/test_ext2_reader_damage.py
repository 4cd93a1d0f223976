"""Damaged images: EUCLEAN or EIO for what is hit, and the log says where; the rest stays good."""

from __future__ import annotations

import errno
import logging
import os
import stat
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from ext2_reader_support import debugfs, mke2fs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsimpl.ext2.layout import DiskInode
from harness.fuzz.ext2 import explore
from vfs.task import Task

MountImage = Callable[..., str]
BLOCK = 1024


class Damaged:
    """A small image whose bytes can be changed, by what they are."""

    def __init__(self, image: Path) -> None:
        self.image = image

    def block_of(self, path: str, number: int = 0) -> int:
        return int(debugfs(self.image, f'bmap "{path}" {number}').split()[-1])

    def poke(self, block: int, offset: int, data: bytes) -> None:
        with self.image.open("r+b") as file:
            file.seek(block * BLOCK + offset)
            file.write(data)

    def peek(self, block: int, offset: int, length: int) -> bytes:
        with self.image.open("rb") as file:
            file.seek(block * BLOCK + offset)
            return file.read(length)

    def number_of(self, path: str) -> int:
        text = debugfs(self.image, f'stat "{path}"')
        return int(text.split("Inode:")[1].split()[0])

    def record_of(self, path: str) -> tuple[int, int]:
        """Block and offset of the inode."""
        text = debugfs(self.image, f'imap "{path}"')
        words = text.replace(",", " ").split()
        return int(words[words.index("at") + 2]), int(words[-1], 16)

    def set_field(self, path: str, field: str, value: str) -> None:
        debugfs(self.image, f'sif "{path}" {field} {value}')


def make(tmp_path: Path, *arguments: str) -> Damaged:
    tree = tmp_path / "tree"
    (tree / "directory" / "below").mkdir(parents=True)
    (tree / "other").mkdir()
    (tree / "sound").write_bytes(b"sound")
    (tree / "directory" / "file").write_bytes(b"inner")
    (tree / "large").write_bytes(b"l" * BLOCK * 400)
    (tree / "slow").symlink_to("s" * 100)
    (tree / "fast").symlink_to("sound")
    with (tree / "extents").open("wb") as file:
        for number in range(0, 200, 2):
            file.seek(number * BLOCK)
            file.write(b"%d" % number)
    return Damaged(mke2fs(tmp_path / "image", "4M", "-b", "1024", *arguments, tree=tree))


@pytest.fixture
def ext2(tmp_path: Path) -> Damaged:
    return make(tmp_path, "-t", "ext2")


@pytest.fixture
def ext4(tmp_path: Path) -> Damaged:
    return make(tmp_path, "-t", "ext4", "-O", "^metadata_csum,^has_journal")


def fails(number: int, call: Callable[[], object]) -> None:
    with pytest.raises(OSError) as caught:
        call()
    assert caught.value.errno == number


def read_all(task: Task, path: str) -> bytes:
    fd = task.open(path, os.O_RDONLY)
    try:
        return b"".join(iter(lambda: task.read(fd, 1 << 16), b""))
    finally:
        task.close(fd)


@pytest.mark.parametrize(
    ("offset", "data", "reason"),
    [
        (4, struct.pack("<H", 0), "rec_len is smaller than minimal"),
        (4, struct.pack("<H", 8), "rec_len is smaller than minimal"),
        (4, struct.pack("<H", 13), "rec_len % 4 != 0"),
        (4, struct.pack("<H", 2048), "directory entry overrun"),
        (6, b"\x0d", "rec_len is too small for name_len"),
        (0, struct.pack("<I", 1 << 30), "inode out of bounds"),
        (8, b"be/ow", "bad name"),
        (8, b"be\0ow", "bad name"),
        (6, b"\0", "bad name"),
        (6, b"\x02", "'.' or '..' out of place"),
    ],
)
def test_a_bad_directory_entry_is_refused_with_its_block(
    offset: int, data: bytes, reason: str, ext2: Damaged, task: Task,
    mount_image: MountImage, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    block = ext2.block_of("/directory")
    entry = ext2.peek(block, 24, 8)
    if data == b"\x0d":
        # As short as its name takes, and then a name that is longer.
        ext2.poke(block, 24 + 4, struct.pack("<H", 16))
        ext2.poke(block, 40, struct.pack("<IHBB", 0, BLOCK - 40, 0, 0))
    if data == b"\x02":
        ext2.poke(block, 24 + 8, b"..")
    assert entry
    ext2.poke(block, 24 + offset, data)
    where = mount_image(ext2.image)
    with caplog.at_level(logging.ERROR):
        fails(errno.EUCLEAN, lambda: task.listdir(f"{where}/directory"))
    (message,) = caplog.messages
    assert reason in message and f"block {block}:" in message and str(ext2.image) in message
    number = ext2.number_of("/directory")
    assert f"inode #{number}:" in message
    assert read_all(task, f"{where}/sound") == b"sound"


def link_into(damaged: Damaged, directory: str, name: str, ino: int) -> None:
    """A name for ``ino`` at the end of ``directory``."""
    debugfs(damaged.image, f"link <{ino}> {directory}/{name}")


@pytest.mark.parametrize("target", ["/", "/directory", "/directory/below"])
def test_a_second_link_to_a_directory_makes_no_loop(
    target: str, ext2: Damaged, task: Task, mount_image: MountImage
) -> None:
    link_into(ext2, "/directory/below", "again", ext2.number_of(target))
    link_into(ext2, "/other", "again", ext2.number_of(target))
    where = mount_image(ext2.image)
    for place in ("directory/below", "other"):
        assert "again" in task.listdir(f"{where}/{place}")
        fails(errno.EUCLEAN, lambda: task.stat(f"{where}/{place}/again"))  # noqa: B023
    assert task.stat(f"{where}/directory/below").st_mode & stat.S_IFDIR


def test_directories_that_hold_each_other_are_not_reached(
    ext2: Damaged, task: Task, mount_image: MountImage
) -> None:
    below = ext2.number_of("/directory/below")
    block = ext2.block_of("/directory")
    ext2.poke(block, 12, struct.pack("<I", below))
    link_into(ext2, "/directory/below", "again", ext2.number_of("/directory"))
    where = mount_image(ext2.image)
    fails(errno.EUCLEAN, lambda: task.stat(f"{where}/directory"))
    assert read_all(task, f"{where}/sound") == b"sound"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("mode", "0"), ("mode", "0170644"), ("links_count", "0"), ("size", "0x7fffffffffffffff"),
        ("block[0]", "0xffffffff"), ("block[0]", "1"), ("block[0]", "0"), ("extra_isize", "0xfff0"),
        ("size", "0"), ("size", "1000"),
    ],
)  # fmt: skip
def test_a_directory_whose_inode_is_wrong_is_refused(
    field: str, value: str, ext2: Damaged, task: Task, mount_image: MountImage
) -> None:
    ext2.set_field("/directory", field, value)
    where = mount_image(ext2.image)
    fails(errno.EUCLEAN, lambda: task.listdir(f"{where}/directory"))
    assert read_all(task, f"{where}/sound") == b"sound"


@pytest.mark.parametrize(
    ("path", "field", "value"),
    [
        ("/large", "block[3]", "0x10000000"),
        ("/large", "block[IND]", "0xffffffff"),
        ("/large", "block[IND]", "4096"),
        ("/slow", "size", "2000"),
        ("/slow", "size", "0"),
        ("/slow", "block[0]", "5000"),
        ("/fast", "size", "60"),
        ("/fast", "size", "0"),
        ("/fast", "size", "20"),
    ],
)
def test_a_file_with_a_bad_block_or_size_is_refused(
    path: str, field: str, value: str, ext2: Damaged, task: Task, mount_image: MountImage
) -> None:
    ext2.set_field(path, field, value)
    where = mount_image(ext2.image)
    if path == "/large":
        fails(errno.EUCLEAN, lambda: read_all(task, where + path))
    else:
        fails(errno.EUCLEAN, lambda: task.readlink(where + path))
    assert read_all(task, f"{where}/sound") == b"sound"


def test_what_is_before_a_bad_block_is_read(
    ext2: Damaged, task: Task, mount_image: MountImage
) -> None:
    ext2.set_field("/large", "block[3]", "0x10000000")
    where = mount_image(ext2.image)
    fd = task.open(f"{where}/large", os.O_RDONLY)
    assert task.read(fd, 1 << 20) == b"l" * BLOCK * 3
    fails(errno.EUCLEAN, lambda: task.read(fd, 1 << 20))
    task.close(fd)


@pytest.mark.parametrize(
    ("offset", "data"),
    [
        (0, b"\0\0"),  # eh_magic
        (2, struct.pack("<H", 500)),  # eh_entries
        (2, struct.pack("<H", 0)),
        (4, struct.pack("<H", 500)),  # eh_max
        (6, struct.pack("<H", 1)),  # eh_depth
        (12, struct.pack("<I", 50)),  # the first ee_block is behind the second
        (24, struct.pack("<I", 0)),
        (16, struct.pack("<H", 0)),  # ee_len
        (16, struct.pack("<H", 20)),
        (18, struct.pack("<H", 9)),  # ee_start_hi
        (20, struct.pack("<I", 4095)),  # ee_start_lo
        (20, struct.pack("<I", 0)),
    ],
)
def test_a_bad_extent_is_refused(
    offset: int, data: bytes, ext4: Damaged, task: Task, mount_image: MountImage
) -> None:
    block, start = ext4.record_of("/extents")
    disk = DiskInode.unpack(ext4.peek(block, start, 256), 0, 256)
    _, _, _, depth, _ = struct.unpack_from("<4HI", disk.block)
    assert depth == 1
    (leaf,) = struct.unpack_from("<I", disk.block, 16)
    if data == struct.pack("<I", 4095):
        data = struct.pack("<I", 4096)
    ext4.poke(leaf, offset, data)
    where = mount_image(ext4.image)
    fails(errno.EUCLEAN, lambda: read_all(task, f"{where}/extents"))
    assert read_all(task, f"{where}/sound") == b"sound"


def test_an_extent_tree_that_leads_back_to_itself_ends(
    ext4: Damaged, task: Task, mount_image: MountImage
) -> None:
    block, start = ext4.record_of("/extents")
    disk = DiskInode.unpack(ext4.peek(block, start, 256), 0, 256)
    (leaf,) = struct.unpack_from("<I", disk.block, 16)
    ext4.poke(leaf, 0, struct.pack("<4HI3I", 0xF30A, 1, 84, 1, 0, 0, leaf, 0))
    ext4.poke(block, start + 40 + 6, struct.pack("<H", 2))
    where = mount_image(ext4.image)
    fails(errno.EUCLEAN, lambda: read_all(task, f"{where}/extents"))


def test_seeking_in_a_file_of_absurd_size_ends(
    ext2: Damaged, task: Task, mount_image: MountImage
) -> None:
    # Each pointer of the map's tables leads to the same table, the last of which has no blocks.
    tables = [ext2.block_of("/large", number) for number in (20, 30, 40)]
    ext2.poke(tables[0], 0, struct.pack("<I", tables[1]) * 256)
    ext2.poke(tables[1], 0, struct.pack("<I", tables[2]) * 256)
    ext2.poke(tables[2], 0, bytes(BLOCK))
    block, start = ext2.record_of("/sound")
    ext2.poke(block, start + 40 + 4 * 14, struct.pack("<I", tables[0]))
    ext2.set_field("/sound", "size", str(1 << 42))
    where = mount_image(ext2.image)
    fd = task.open(f"{where}/sound", os.O_RDONLY)
    assert task.lseek(fd, 0, os.SEEK_HOLE) == BLOCK
    fails(errno.EUCLEAN, lambda: task.lseek(fd, BLOCK, os.SEEK_DATA))
    assert task.pread64(fd, 10, 1 << 20) == bytes(10)
    fails(errno.EUCLEAN, lambda: task.pread64(fd, 10, 1 << 41))
    task.close(fd)


def test_an_image_that_is_cut_short_while_it_is_mounted_gives_eio(
    ext2: Damaged, task: Task, mount_image: MountImage, caplog: pytest.LogCaptureFixture
) -> None:
    where = mount_image(ext2.image)
    assert task.stat(f"{where}/large").st_size == BLOCK * 400
    os.truncate(ext2.image, ext2.block_of("/large", 100) * BLOCK)
    with caplog.at_level(logging.ERROR):
        fails(errno.EIO, lambda: read_all(task, f"{where}/large"))
    assert f"inode #{ext2_number(task, where)}: " in caplog.text
    os.truncate(ext2.image, 0)
    fails(errno.EIO, lambda: read_all(task, f"{where}/sound"))
    fails(errno.EIO, lambda: task.listdir(f"{where}/other"))


def ext2_number(task: Task, where: str) -> int:
    return task.stat(f"{where}/large").st_ino


@pytest.mark.parametrize("path", ["/", "/directory"])
def test_names_of_inodes_that_are_no_files_are_refused(
    path: str, ext2: Damaged, task: Task, mount_image: MountImage
) -> None:
    for number, name in ((1, "bad blocks"), (7, "resize"), (200, "free")):
        link_into(ext2, path, f'"{name}"'.replace(" ", "_").strip('"'), number)
    where = mount_image(ext2.image)
    for name in ("bad_blocks", "resize", "free"):
        fails(errno.EUCLEAN, lambda: task.stat(f"{where}{path}/{name}"))  # noqa: B023


def test_a_root_that_is_no_directory_is_not_mounted(
    ext2: Damaged, task: Task, caplog: pytest.LogCaptureFixture
) -> None:
    ext2.set_field("/", "mode", "0100644")
    task.mkdir("/x")
    fails(errno.EUCLEAN, lambda: task.mount(ext2.image, "/x", "ext2"))
    assert "root inode is no directory" in caplog.text


def test_complaints_come_to_an_end(
    ext2: Damaged, task: Task, mount_image: MountImage, caplog: pytest.LogCaptureFixture
) -> None:
    table = ext2.block_of("/large", 20)
    block, start = ext2.record_of("/large")
    ext2.poke(table, 0, b"".join(struct.pack("<I", 1 << 20 | n * 2) for n in range(256)))
    ext2.poke(block, start + 40 + 4 * 12, struct.pack("<I", table))
    where = mount_image(ext2.image)
    fd = task.open(f"{where}/large", os.O_RDONLY)
    for _ in range(2):
        for number in range(12, 268):
            fails(errno.EUCLEAN, lambda: task.pread64(fd, 1, number * BLOCK))  # noqa: B023
    task.close(fd)
    assert len(caplog.messages) == 102
    assert "not logged" in caplog.messages[-1]


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    edits=st.lists(
        st.tuples(st.integers(0, (1 << 20) - 1), st.binary(min_size=1, max_size=8)),
        min_size=1, max_size=20,
    ),
    kind=st.sampled_from(["ext2", "ext4"]),
)  # fmt: skip
def test_whatever_bytes_are_changed_only_errors_that_may_be_come_of_it(
    edits: list[tuple[int, bytes]], kind: str, tmp_path: Path
) -> None:
    image = tmp_path / kind
    if not image.exists():
        (tmp_path / f"of {kind}").mkdir()
        made = make(tmp_path / f"of {kind}", "-t", kind, "-O", "^has_journal")
        made.image.rename(image)
    sound = image.read_bytes()
    with image.open("r+b") as file:
        for place, data in edits:
            file.seek(place)
            file.write(data)
    explore(image)
    image.write_bytes(sound)
