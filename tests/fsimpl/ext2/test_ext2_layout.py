"""Structures and hashes, beside what e2fsprogs makes of the same."""

from __future__ import annotations

import os
import random
import shutil
import struct
import subprocess
import uuid
from pathlib import Path

import pytest

from fsimpl.ext2 import layout, xattrs
from fsimpl.ext2.hashes import name_hash
from fsimpl.ext2.layout import DiskInode, GroupDescriptor, SuperBlock

NEEDS_E2FSPROGS = pytest.mark.skipif(
    not all(map(shutil.which, ("mke2fs", "debugfs"))), reason="needs e2fsprogs"
)


def make_fs(path: Path, *words: str) -> bytes:
    with path.open("wb") as file:
        file.truncate(32 << 20)
    subprocess.run(["mke2fs", "-q", "-F", *words, str(path)], check=True)
    return path.read_bytes()


@NEEDS_E2FSPROGS
@pytest.mark.parametrize("kind", ["ext2", "ext3", "ext4"])
@pytest.mark.parametrize("block_size", [1024, 4096])
def test_a_disk_of_mke2fs_unpacks_and_packs_again(
    tmp_path: Path, kind: str, block_size: int
) -> None:
    made = uuid.uuid4()
    image = make_fs(
        tmp_path / "image", "-t", kind, "-b", str(block_size), "-I", "256", "-L", "label", "-U",
        str(made), "-O", "64bit" if kind == "ext4" else "^64bit",
    )  # fmt: skip
    superblock = SuperBlock.unpack(image, layout.SUPERBLOCK_OFFSET)
    assert superblock.magic == layout.EXT2_MAGIC
    assert superblock.block_size == block_size
    assert superblock.blocks_count * block_size == len(image)
    assert superblock.uuid == made.bytes
    assert superblock.volume_name.rstrip(b"\0") == b"label"
    assert superblock.record_size == 256
    assert (superblock.min_extra_isize, superblock.want_extra_isize) == (32, 32)
    packed = superblock.pack()
    assert packed[:0x174] == image[1024 : 1024 + 0x174]
    assert SuperBlock.unpack(packed) == superblock
    names = layout.feature_names(layout.INCOMPAT_NAMES, superblock.feature_incompat)
    assert ("extent" in names, "64bit" in names) == (kind == "ext4", kind == "ext4")
    compat = layout.feature_names(layout.COMPAT_NAMES, superblock.feature_compat | 1 << 31)
    assert ("has_journal" in compat) == (kind != "ext2")
    assert compat[-1] == "0x80000000"

    start = max(block_size, 2048)
    size = superblock.group_desc_size
    assert size == (64 if kind == "ext4" else 32)
    unpack = GroupDescriptor.unpack64 if size == 64 else GroupDescriptor.unpack
    group = unpack(image, start)
    if size == 32:
        assert group.pack() == image[start : start + 32]
    root = DiskInode.unpack(image, group.inode_table * block_size + 256, 256)
    assert root.mode == 0o40755
    assert root.links_count == 3
    assert root.size == block_size
    assert root.extra_isize == 32
    assert root.pack()[:128] == image[group.inode_table * block_size + 256 :][:128]


def test_a_group_descriptor_of_64_bytes_keeps_both_halves() -> None:
    group = GroupDescriptor(1 << 40 | 5, 2 << 33 | 7, 3 << 35 | 9, 70000, 70001, 70002, 4, 70003, 9)
    assert len(group.pack64()) == 64
    assert GroupDescriptor.unpack64(group.pack64()) == group


def test_an_inode_without_extra_fields_has_none() -> None:
    inode = DiskInode(*range(12), bytes(range(60)), *range(9), extra_isize=32, crtime_extra=7)
    packed = inode.pack()
    assert DiskInode.unpack(packed, 0, 256) == inode
    assert DiskInode.unpack(packed, 0, 128) == inode._replace(extra_isize=0, crtime_extra=0)
    short = packed[:128] + struct.pack("<H", 4) + packed[130:]
    assert DiskInode.unpack(short, 0, 256) == inode._replace(extra_isize=4, crtime_extra=0)
    hostile = packed[:128] + struct.pack("<H", 65535) + packed[130:]
    assert DiskInode.unpack(hostile, 0, 256).crtime_extra == 7


@pytest.mark.parametrize("seconds", [-(2**31), -1, 0, 2**31 - 1, 2**31, 2**32, 2**34 - 2**31 - 1])
@pytest.mark.parametrize("nanoseconds", [0, 1, 999_999_999])
def test_times_come_back(seconds: int, nanoseconds: int) -> None:
    time_ns = seconds * 10**9 + nanoseconds
    low, extra = layout.encode_time(time_ns)
    assert max(low, extra) < 2**32
    assert layout.decode_time(low, extra) == time_ns


def test_times_out_of_range_are_the_nearest() -> None:
    assert layout.decode_time(*layout.encode_time(-(2**40) * 10**9)) == -(2**31) * 10**9
    assert layout.decode_time(*layout.encode_time(2**40 * 10**9)) == (2**34 - 2**31 - 1) * 10**9
    assert layout.decode_time(0xFFFFFFFF) == -(10**9)


@pytest.mark.parametrize(
    "rdev",
    [os.makedev(*pair) for pair in ((5, 1), (255, 255), (256, 0), (0, 256), (4095, 2**20 - 1))],
)
def test_device_numbers_come_back(rdev: int) -> None:
    assert layout.decode_device(layout.encode_device(rdev)) == rdev


@NEEDS_E2FSPROGS
def test_names_hash_as_e2fsprogs_says(tmp_path: Path) -> None:
    image = tmp_path / "image"
    make_fs(image)
    letters = random.Random(3)
    names = ["".join(letters.choices("abcXYZ019._", k=length)) for length in (1, 2, 3, 4, 5, 31)]
    names += ["".join(letters.choices("abcXYZ019._", k=length)) for length in (32, 33, 64, 255)]
    names += ["ä", "größer" * 9]
    for seed in (None, uuid.UUID("12345678-9abc-def0-1122-334455667788")):
        for version in range(6):
            option = "" if seed is None else f"-s {seed} "
            commands = "".join(f"dx_hash -h {version} {option}{name}\n" for name in names)
            done = subprocess.run(
                ["debugfs", "-f", "-", str(image)], input=commands, capture_output=True, text=True
            )
            told = [
                int(line.split(" is ")[1].split()[0], 16)
                for line in done.stdout.splitlines()
                if line.startswith("Hash of ")
            ]
            raw = bytes(16) if seed is None else seed.bytes
            assert [name_hash(name.encode(), version, raw) for name in names] == told
    with pytest.raises(ValueError, match="number 6"):
        name_hash(b"", 6)


def test_sparse_superblocks_are_at_powers() -> None:
    copies = [group for group in range(400) if layout.has_super(group, sparse=True)]
    assert copies == [0, 1, 3, 5, 7, 9, 25, 27, 49, 81, 125, 243, 343]
    assert layout.has_super(2, sparse=False)


def test_attribute_names_split_by_what_the_disk_has_numbers_for() -> None:
    for name in (b"user.x", b"trusted.a.b", b"security.capability", xattrs.ACL_ACCESS):
        assert xattrs.join_name(*xattrs.split_name(name)) == name
    for name in (b"user.", b"btrfs.compression", b"user", b""):
        with pytest.raises(OSError, match="not supported"):
            xattrs.split_name(name)
    assert xattrs.join_name(99, b"x") is None


def test_what_is_no_acl_is_refused() -> None:
    entries = [(1, 7, 0xFFFFFFFF), (2, 5, 1000), (4, 5, 0xFFFFFFFF), (0x20, 0, 0xFFFFFFFF)]
    assert xattrs.parse_acl(xattrs.format_acl(entries)) == entries
    disk = xattrs.acl_to_disk(entries)
    assert len(disk) == 4 + 3 * 4 + 8
    assert xattrs.acl_from_disk(disk) == entries
    for broken in (b"", disk[:-1], disk[:6], b"\2" + disk[1:], disk[:4] + b"\x40" + disk[5:]):
        with pytest.raises(OSError, match="Invalid"):
            xattrs.acl_from_disk(broken)
    for broken in (b"", b"\1\0\0\0", xattrs.format_acl(entries)[:-1]):
        with pytest.raises(OSError, match=r"Invalid|not supported"):
            xattrs.parse_acl(broken)
