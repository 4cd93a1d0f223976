"""Images of trees that have everything, judged by e2fsck, debugfs and the host's kernel."""

from __future__ import annotations

import hashlib
import os
import shutil
import stat
import subprocess
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from ext2_snapshot import fsck, snapshot
from ext2_trees import make_extremes, write_at

from fsimpl.ext2.builder import BuildOptions, HostSource, ImageError, build, write_image
from fsimpl.ext2.builder.tree import Node, Progress
from fsimpl.ext2.layout import (
    COMPAT_DIR_INDEX,
    RO_COMPAT_DIR_NLINK,
    RO_COMPAT_LARGE_FILE,
    SUPERBLOCK_OFFSET,
    GroupDescriptor,
    SuperBlock,
    has_super,
)
from fsimpl.passthrough.idmap import IdTable, parse_extents

Mounted = Callable[..., AbstractContextManager[Path]]
UUID = uuid.UUID("4b1f3a52-7a1f-4f4e-9e0a-0d7f6c5b4a39")
pytestmark = pytest.mark.usefixtures("e2fsprogs")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    top.mkdir()
    return top


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return tmp_path / "image"


def make(tree: Path, image: Path, **options: object) -> SuperBlock:
    """An image that e2fsck has nothing to say about; its superblock."""
    wanted = BuildOptions(**{"uuid": UUID, **options})  # type: ignore[arg-type]
    with build(HostSource(tree), wanted) as plan:
        write_image(plan, str(image))
        assert not plan.changed
        assert plan.size == image.stat().st_size
    fsck(image)
    return superblock_of(image)


def superblock_of(image: Path, block: int = 0) -> SuperBlock:
    with image.open("rb") as file:
        return SuperBlock.unpack(
            os.pread(file.fileno(), 1024, block * 4096 if block else SUPERBLOCK_OFFSET)
        )


def debugfs(image: Path, command: str) -> str:
    done = subprocess.run(
        ["debugfs", "-R", command, str(image)], capture_output=True, text=True, errors="replace"
    )
    return done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes, and attributes of root's")
@pytest.mark.parametrize("htree", [False, True])
def test_linux_sees_the_same_tree_in_the_image(
    tree: Path, image: Path, mounted: Mounted, htree: bool
) -> None:
    make_extremes(tree)
    make(tree, image, htree=htree)
    with mounted(image) as where:
        assert snapshot(where, lost_and_found=False) == snapshot(tree)
        assert (where / "lost+found").stat().st_mode & 0o7777 == 0o700


@pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes, and attributes of root's")
def test_a_plan_reads_as_the_image_that_it_becomes(tree: Path, image: Path) -> None:
    make_extremes(tree)
    with build(HostSource(tree), BuildOptions(uuid=UUID)) as plan:
        write_image(plan, str(image))
        written = image.read_bytes()
        assert plan.read(0, plan.size) == written
        for offset, length in ((1, 5000), (4095, 2), (plan.size - 3, 100), (plan.size, 5)):
            assert plan.read(offset, length) == written[offset : offset + length]
        memory = bytearray(plan.size)
        plan.write_metadata(memoryview(memory))
        plan.write_copies(memoryview(memory))
        for piece in plan.mappings:
            assert piece.offset % 4096 == piece.length % 4096 == piece.file_offset % 4096 == 0
            fd = piece.file.open()
            memory[piece.offset : piece.offset + piece.length] = os.pread(
                fd, piece.length, piece.file_offset
            )
            os.close(fd)
        assert memory == written


def test_the_same_tree_has_the_same_bytes(tree: Path, tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        (tree / name).mkdir()
        (tree / name / "file").write_bytes(name.encode() * 5000)
    digests = set()
    for attempt in range(3):
        image = tmp_path / f"image {attempt}"
        make(tree, image, label=b"twice", htree=True)
        digests.add(hashlib.sha256(image.read_bytes()).hexdigest())
    assert len(digests) == 1
    other = tmp_path / "other"
    make(tree, other, label=b"twice", uuid=uuid.uuid4())
    assert hashlib.sha256(other.read_bytes()).hexdigest() not in digests


def test_debugfs_dumps_what_is_in_the_files(tree: Path, image: Path, tmp_path: Path) -> None:
    write_at(tree / "double", (1, b"x" * 5000), (4096 * 5000, b"y"), (30 << 20, b"z" * 7000))
    (tree / "link").symlink_to("t" * 100)
    assert not make(tree, image, label=b"a label").feature_ro_compat & RO_COMPAT_LARGE_FILE
    assert image.stat().st_blocks * 512 < 1 << 20
    dumped = tmp_path / "dumped"
    debugfs(image, f"dump /double {dumped}")
    assert dumped.stat().st_size == (30 << 20) + 7000
    with dumped.open("rb") as file:
        assert os.pread(file.fileno(), 5003, 0) == b"\0" + b"x" * 5000 + b"\0\0"
        assert os.pread(file.fileno(), 2, 4096 * 5000) == b"y\0"
        assert os.pread(file.fileno(), 8000, 30 << 20) == b"z" * 7000
    shown = debugfs(image, "stats")
    assert "Filesystem volume name:   a label" in shown
    assert f"Filesystem UUID:          {UUID}" in shown
    # The kernel and e2fsprogs find the target of a link with blocks by these.
    assert "t" * 100 in debugfs(image, "cat /link")


class MadeUp:
    """A source without a file system below it."""

    def __init__(self, top: Node) -> None:
        self.top = top

    def scan(self, progress: Progress) -> Node:
        return self.top

    def close(self) -> None:
        pass


def directory(children: dict[str, Node]) -> Node:
    node = Node(stat.S_IFDIR | 0o755)
    node.children = {name.encode(): child for name, child in children.items()}
    return node


def make_up(children: dict[str, Node], image: Path, htree: bool) -> SuperBlock:
    with build(MadeUp(directory(children)), BuildOptions(htree=htree)) as plan:
        write_image(plan, str(image))
    fsck(image)
    return superblock_of(image)


@pytest.mark.slow
@pytest.mark.parametrize("htree", [False, True])
def test_a_directory_may_have_100_000_names(image: Path, mounted: Mounted, htree: bool) -> None:
    file = Node(stat.S_IFREG | 0o644)
    names = {str(number): file for number in range(60_000)}
    for number in range(60_000, 100_000):
        names[f"{number} is one of very many names"] = Node(stat.S_IFIFO)
    superblock = make_up({"big": directory(names)}, image, htree)
    assert bool(superblock.feature_compat & COMPAT_DIR_INDEX) == htree
    with mounted(image) as where:
        assert sorted(os.listdir(where / "big")) == sorted(names)
        for number in range(0, 60_000, 977):
            assert (where / "big" / str(number)).stat().st_nlink == 60_000
        assert (where / "big" / "99999 is one of very many names").is_fifo()
        assert not (where / "big" / "99999").exists()


@pytest.mark.slow
def test_a_directory_may_have_more_subdirectories_than_links(image: Path, mounted: Mounted) -> None:
    superblock = make_up({str(number): directory({}) for number in range(65_000)}, image, True)
    assert superblock.feature_ro_compat & RO_COMPAT_DIR_NLINK
    with mounted(image) as where:
        assert where.stat().st_nlink == 1
        assert len(os.listdir(where)) == 65_001


@pytest.mark.parametrize("htree", [False, True])
def test_an_index_may_have_two_levels(image: Path, mounted: Mounted, htree: bool) -> None:
    file = Node(stat.S_IFREG)
    names = [f"{number:0250}" for number in range(9_000)]
    make_up(dict.fromkeys(names, file), image, htree)
    assert ("Indirect levels: 1" in debugfs(image, "htree_dump /")) == htree
    with mounted(image) as where:
        assert all((where / name).exists() for name in names[::17])
        assert len(os.listdir(where)) == len(names) + 1


@pytest.mark.parametrize("htree", [False, True])
def test_linux_can_go_on_writing_in_an_image(
    tree: Path, image: Path, mounted: Mounted, htree: bool
) -> None:
    names = [f"name {number} of some" for number in range(2_000)]
    for name in names:
        (tree / name).touch()
    (tree / "file").write_bytes(b"x" * 9_000_000)
    make(tree, image, htree=htree, size=20 << 20, blocks_per_group=1024)
    with mounted(image, "rw") as where:
        for number, name in enumerate(names[::3]):
            (where / name).unlink()
            (where / f"another name that is quite long {number}").write_bytes(b"new")
        (where / "file").unlink()
        (where / "dir").mkdir()
        (where / "dir" / "large").write_bytes(b"y" * 5_000_000)
        os.truncate(where / names[1], 1 << 20)
    fsck(image)
    with mounted(image) as where:
        assert len(os.listdir(where)) == 2_002
        assert (where / "dir" / "large").read_bytes() == b"y" * 5_000_000


def test_more_names_than_a_file_can_have_are_refused() -> None:
    file = Node(stat.S_IFREG)
    top = directory({str(number): file for number in range(65_001)})
    with pytest.raises(ImageError, match="0: it has 65001 names; a file of an ext2 has 65000"):
        build(MadeUp(top))


@pytest.mark.parametrize("blocks_per_group", [256, 1000, 8192, None])
@pytest.mark.parametrize("inodes_per_group", [16, 1000, None])
def test_groups_are_as_they_are_given(
    tree: Path, image: Path, blocks_per_group: int | None, inodes_per_group: int | None
) -> None:
    for number in range(300):
        (tree / str(number)).write_bytes(b"%d" % number)
    (tree / "large").write_bytes(os.urandom(9_000_001))
    superblock = make(
        tree, image, blocks_per_group=blocks_per_group, inodes_per_group=inodes_per_group
    )
    assert superblock.blocks_per_group == (blocks_per_group or 32768)
    if inodes_per_group is not None:
        assert superblock.inodes_per_group == -(-inodes_per_group // 16) * 16
    groups = -(-superblock.blocks_count // superblock.blocks_per_group)
    descriptors = None
    for group in range(groups):
        if has_super(group, sparse=True):
            at = group * superblock.blocks_per_group
            assert superblock_of(image, at) == superblock._replace(block_group_nr=group)
            with image.open("rb") as file:
                copy = os.pread(file.fileno(), groups * 32, (at + 1) * 4096)
            assert descriptors in (None, copy)
            descriptors = copy
    assert descriptors is not None
    unpacked = [GroupDescriptor.unpack(descriptors, at * 32) for at in range(groups)]
    assert sum(group.free_blocks_count for group in unpacked) == superblock.free_blocks_count


def test_e2fsck_can_use_a_backup_of_the_superblock(tree: Path, image: Path) -> None:
    (tree / "file").write_bytes(os.urandom(5_000_000))
    superblock = make(tree, image, blocks_per_group=256)
    with image.open("r+b") as file:
        file.write(bytes(8192))
    for group in (1, 3):
        backup = str(group * superblock.blocks_per_group)
        # It finds the broken primary, repairs it from the copy, and nothing else.
        done = subprocess.run(
            ["e2fsck", "-fn", "-b", backup, "-B", "4096", str(image)], capture_output=True
        )
        assert done.returncode in (0, 4)
        assert b"Pass 5" in done.stdout
        assert b"file" not in done.stdout.split(b"Pass 1")[1].split(b"Pass 5")[0].lower()


def test_a_size_is_kept_and_leaves_room(tree: Path, image: Path, mounted: Mounted) -> None:
    (tree / "file").write_bytes(b"x" * 100_000)
    for size in (1 << 20, (129 << 20) + 5000, 3 << 30):
        superblock = make(tree, image, size=size)
        assert image.stat().st_size == size // 4096 * 4096
        assert superblock.free_blocks_count * 4096 > size * 0.9 - (1 << 18)
        assert image.stat().st_blocks * 512 < 100 << 20
        image.unlink()


@pytest.mark.parametrize("blocks_per_group", [256, 1024, None])
def test_too_small_a_size_says_which_is_enough(
    tree: Path, image: Path, blocks_per_group: int | None
) -> None:
    (tree / "file").write_bytes(b"x" * (7 << 20))
    for number in range(2000):
        (tree / str(number)).touch()
    given = 1
    with pytest.raises(ImageError, match=r"needs (\d+) MiB, given 1 MiB") as caught:
        make(tree, image, size=given << 20, blocks_per_group=blocks_per_group)
    needed = int(str(caught.value).split("needs ")[1].split()[0])
    with pytest.raises(ImageError, match=f"needs {needed} MiB, given {needed - 1} MiB"):
        make(tree, image, size=(needed - 1) << 20, blocks_per_group=blocks_per_group)
    assert not image.exists()
    make(tree, image, size=needed << 20, blocks_per_group=blocks_per_group)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks_per_group": 255}, "255 blocks per group"),
        ({"blocks_per_group": 257}, "multiple of 8"),
        ({"blocks_per_group": 32776}, "256 to 32768"),
        ({"inodes_per_group": 0}, "0 inodes per group"),
        ({"inodes_per_group": 32769}, "1 to 32768"),
        ({"blocks_per_group": 256, "inodes_per_group": 32768}, "are too few"),
        ({"label": b"x" * 17}, "at most 16 bytes"),
        ({"size": 100}, "given 0 MiB"),
        ({"size": 1 << 60}, "less than 16 TiB"),
    ],
)
def test_numbers_that_no_ext2_has_are_refused(
    tree: Path, image: Path, options: dict[str, int], message: str
) -> None:
    with pytest.raises(ImageError, match=message):
        make(tree, image, **options)
    assert not image.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="makes files of others")
def test_owners_are_mapped(tree: Path, image: Path, mounted: Mounted) -> None:
    for name, owner in (("root", 0), ("user", 1000), ("other", 5)):
        (tree / name).touch()
        os.chown(tree / name, owner, owner + 1)

    def owners(**options: object) -> dict[str, tuple[int, int]]:
        make(tree, image, **options)
        with mounted(image) as where:
            status = {name: (where / name).stat() for name in ("root", "user", "other")}
        return {name: (one.st_uid, one.st_gid) for name, one in status.items()}

    uids, gids = IdTable(total=True), IdTable(total=True)
    parse_extents("0 1000 1,100000 0 2", uids)
    parse_extents("0 1001 1", gids)
    assert owners(uid=7) == {"root": (7, 1), "user": (7, 1001), "other": (7, 6)}
    assert owners(uids=uids, gids=gids) == {
        "root": (100_000, 65534), "user": (0, 0), "other": (65534, 65534),
    }  # fmt: skip
    assert owners(uids=uids, gids=gids, uid=3, gid=4)["other"] == (3, 4)


@pytest.mark.skipif(os.geteuid() != 0, reason="sets trusted attributes")
def test_inodes_with_the_same_attributes_share_a_block(
    tree: Path, image: Path, mounted: Mounted
) -> None:
    for number in range(1100):
        (tree / str(number)).touch()
        os.setxattr(tree / str(number), "trusted.same", b"s" * 1000)
    make(tree, image)
    assert image.stat().st_size < 1 << 20
    with mounted(image) as where:
        for number in range(0, 1100, 13):
            assert os.getxattr(where / str(number), "trusted.same") == b"s" * 1000


@pytest.mark.parametrize("count", [1, 5, 30])
def test_attributes_fill_the_inode_and_then_the_block(
    tree: Path, image: Path, mounted: Mounted, count: int
) -> None:
    file = tree / "file"
    file.touch()
    for number in range(count):
        try:
            os.setxattr(file, f"user.{number}", bytes([number]) * number * 3)
        except OSError:
            pytest.skip("the file system here has no room for them")
    make(tree, image)
    with mounted(image) as where:
        assert snapshot(where, lost_and_found=False) == snapshot(tree)


def test_what_an_ext2_cannot_hold_is_said_by_name(tree: Path, image: Path) -> None:
    (tree / "lost+found").touch()
    with pytest.raises(ImageError, match="lost\\+found is no directory"):
        make(tree, image)
    (tree / "lost+found").unlink()
    with (tree / "long").open("wb") as file:
        try:
            file.truncate(5 << 40)
        except OSError:
            pytest.skip("no file of 5 TiB can be made here")
    with pytest.raises(ImageError, match="long: it has 5497558138880 bytes"):
        make(tree, image)


def test_the_trees_own_lost_and_found_is_the_images(
    tree: Path, image: Path, mounted: Mounted
) -> None:
    (tree / "lost+found").mkdir(mode=0o711)
    (tree / "lost+found" / "found").write_bytes(b"it")
    make(tree, image)
    with mounted(image) as where:
        assert snapshot(where) == snapshot(tree)
        assert (where / "lost+found").stat().st_ino == 11


def test_a_file_of_3_tib_has_its_end(tree: Path, image: Path, mounted: Mounted) -> None:
    try:
        write_at(tree / "huge", (0, b"begin"), (3 << 40, b"end"))
    except OSError:
        pytest.skip("no file of 3 TiB can be made here")
    assert make(tree, image).feature_ro_compat & RO_COMPAT_LARGE_FILE
    with mounted(image) as where, (where / "huge").open("rb") as file:
        assert os.pread(file.fileno(), 10, 3 << 40) == b"end"
        assert os.pread(file.fileno(), 10, 0) == b"begin" + bytes(5)


def test_a_tree_deeper_than_a_path_is_long_is_complete(tree: Path, image: Path) -> None:
    name = "d" * 200
    fd = os.open(tree, os.O_RDONLY)
    for _ in range(60):
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    bottom = os.open("bottom", os.O_WRONLY | os.O_CREAT, dir_fd=fd)
    os.write(bottom, b"x" * 5000)
    os.close(bottom)
    os.close(fd)
    make(tree, image)
    assert debugfs(image, f"cat {(name + '/') * 60}bottom") == "x" * 5000


def test_content_is_shared_with_the_source_where_the_file_system_can(tmp_path: Path) -> None:
    if os.geteuid() != 0 or shutil.which("mkfs.xfs") is None:
        pytest.skip("needs root and mkfs.xfs (Debian: xfsprogs)")
    if "\txfs\n" not in Path("/proc/filesystems").read_text():
        pytest.skip("needs a kernel with xfs")
    disk, where = tmp_path / "disk", tmp_path / "mounted"
    with disk.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(disk)], check=True)
    where.mkdir()
    subprocess.run(["mount", "-o", "loop", str(disk), str(where)], check=True)
    try:
        tree, image = where / "tree", where / "image"
        tree.mkdir()
        (tree / "large").write_bytes(os.urandom(50_000_003))
        before = os.statvfs(where).f_bfree
        make(tree, image)
        os.sync()
        assert (before - os.statvfs(where).f_bfree) * 4096 < 5 << 20
        with build(HostSource(tree), BuildOptions(uuid=UUID)) as plan:
            assert plan.read(0, plan.size) == image.read_bytes()
    finally:
        subprocess.run(["umount", str(where)], check=True)
