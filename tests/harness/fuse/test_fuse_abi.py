"""The wire format against the header that the distribution ships."""

from __future__ import annotations

import re
from pathlib import Path
from struct import Struct

import pytest

from harness.fuse import abi

HEADER = Path("/usr/include/linux/fuse.h")
SIZES = {"uint16_t": 2, "uint32_t": 4, "int32_t": 4, "uint64_t": 8, "int64_t": 8, "char": 1}
# Ours that the header spells otherwise, or that this header may be too old for.
RENAMED = {"ATTR_OUT": "attr_out", "FILE_LOCK": "file_lock", "INIT_EXT_IN": "init_in"}
NOT_WHOLE = {"INIT_IN", "SETXATTR_COMPAT_IN", "EXT_HEADER"}


@pytest.fixture(scope="module")
def header() -> str:
    if not HEADER.exists():
        pytest.skip("install linux-libc-dev")
    return re.sub(r"/\*.*?\*/|//[^\n]*", "", HEADER.read_text(), flags=re.S)


def struct_sizes(text: str) -> dict[str, int]:
    """The size of every ``struct fuse_*``; they are laid out without holes on purpose."""
    sizes: dict[str, int] = {}
    for name, fields in re.findall(r"struct fuse_(\w+) \{(.*?)\};", text, re.S):
        total = 0
        for kind, count in re.findall(r"((?:struct )?\w+)\s+\w+(?:\[(\d*)\])?;", fields):
            size = sizes[kind[12:]] if kind.startswith("struct ") else SIZES[kind]
            total += size * (int(count or 0) if "[" in fields and count != "" else 1)
        sizes[name] = total
    sizes["dirent"] -= 1  # the flexible array of characters
    return sizes


def test_structures_have_the_sizes_of_the_kernels_header(header: str) -> None:
    theirs = struct_sizes(header)
    ours = {name: value for name, value in vars(abi).items() if isinstance(value, Struct)}
    compared = 0
    for name, value in ours.items():
        key = RENAMED.get(name, name.lower())
        if name not in NOT_WHOLE and key in theirs:
            assert value.size == theirs[key], name
            compared += 1
    assert compared > 40


def test_flags_have_the_bits_of_the_kernels_header(header: str) -> None:
    theirs = {
        name: 1 << int(bit)
        for name, bit in re.findall(r"#define (\w+)\s+\(1(?:ULL)? << (\d+)\)", header)
    }
    compared = 0
    for name, value in vars(abi).items():
        if isinstance(value, int):
            for spelled in (name, f"FUSE_{name}"):
                if spelled in theirs:
                    assert value == theirs[spelled], name
                    compared += 1
    assert compared > 50


def test_structures_newer_than_the_header_have_the_sizes_of_the_protocol() -> None:
    assert abi.STATX_IN.size == 24
    assert abi.STATX_OUT.size == 32 + 256
    assert abi.COPY_FILE_RANGE_OUT.size == 8
    assert abi.INIT_OUT.size == abi.INIT_EXT_IN.size == 64
