"""Images of trees that have everything, judged by e2fsck, debugfs and the host's kernel."""

from __future__ import annotations

import hashlib
import os
import subprocess
import uuid
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from ext2_snapshot import fsck, snapshot
from ext2_trees import make_extremes, write_at

from fsimpl.ext2.builder import BuildOptions, HostSource, ImageError, build, write_image
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

Mounted = Callable[[Path], AbstractContextManager[Path]]
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
    write_at(tree / "triple", (1, b"x" * 5000), (4096 * 5000, b"y"), (5 << 30, b"z" * 7000))
    (tree / "link").symlink_to("t" * 100)
    superblock = make(tree, image, label=b"a label")
    assert superblock.feature_ro_compat & RO_COMPAT_LARGE_FILE
    assert image.stat().st_blocks * 512 < 1 << 20
    dumped = tmp_path / "dumped"
    debugfs(image, f"dump /triple {dumped}")
    assert dumped.stat().st_size == (5 << 30) + 7000
    with dumped.open("rb") as file:
        assert os.pread(file.fileno(), 5003, 0) == b"\0" + b"x" * 5000 + b"\0\0"
        assert os.pread(file.fileno(), 2, 4096 * 5000) == b"y\0"
        assert os.pread(file.fileno(), 8000, 5 << 30) == b"z" * 7000
    shown = debugfs(image, "stats")
    assert "Filesystem volume name:   a label" in shown
    assert f"Filesystem UUID:          {UUID}" in shown
    # The kernel and e2fsprogs find the target of a link with blocks by these.
    assert "t" * 100 in debugfs(image, "cat /link")


@pytest.mark.slow
def test_a_directory_may_have_100_000_names(tree: Path, tmp_path: Path, mounted: Mounted) -> None:
    big = tree / "big"
    big.mkdir()
    (big / "0").touch()
    for number in range(1, 60_000):
        os.link(big / "0", big / str(number))
    for number in range(60_000, 100_000):
        (big / f"{number} is one of very many names").mkdir()
    for htree in (False, True):
        image = tmp_path / "image"
        superblock = make(tree, image, htree=htree)
        assert bool(superblock.feature_compat & COMPAT_DIR_INDEX) == htree
        assert not superblock.feature_ro_compat & RO_COMPAT_DIR_NLINK
        with mounted(image) as where:
            assert sorted(os.listdir(where / "big")) == sorted(os.listdir(big))
            for number in range(0, 60_000, 977):
                assert (where / "big" / str(number)).stat().st_nlink == 60_000
            assert (where / "big" / "99999 is one of very many names").is_dir()
            assert not (where / "big" / "99999").exists()


@pytest.mark.slow
def test_a_directory_may_have_more_subdirectories_than_links(
    tree: Path, image: Path, mounted: Mounted
) -> None:
    for number in range(65_001):
        (tree / str(number)).mkdir()
    superblock = make(tree, image, htree=True)
    assert superblock.feature_ro_compat & RO_COMPAT_DIR_NLINK
    with mounted(image) as where:
        assert where.stat().st_nlink == 1
        assert len(os.listdir(where)) == 65_002


def test_an_index_may_have_two_levels(tree: Path, image: Path, mounted: Mounted) -> None:
    first = tree / ("a" * 250)
    first.touch()
    names = [f"{number:0250}" for number in range(9_000)]
    for name in names:
        os.link(first, tree / name)
    make(tree, image, htree=True)
    assert "Indirect levels: 1" in debugfs(image, "htree_dump /")
    with mounted(image) as where:
        assert all((where / name).exists() for name in names[::17])
        assert len(os.listdir(where)) == len(names) + 2


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
    make(tree, image)
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
