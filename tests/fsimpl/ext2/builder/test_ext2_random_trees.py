"""Random trees: e2fsck is content, and Linux sees in the image what it sees in the source."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from ext2_snapshot import fsck, snapshot
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsimpl.ext2.builder import BuildOptions, HostSource, build, write_image

Mounted = Callable[[Path], AbstractContextManager[Path]]
pytestmark = pytest.mark.usefixtures("e2fsprogs")

NAMES = st.one_of(st.binary(min_size=1, max_size=12), st.binary(min_size=250, max_size=255)).filter(
    lambda name: not set(name) & {0, 0x2F} and name not in (b".", b"..", b"lost+found")
)
# Times that the host's file system can store as well, whatever it is.
TIMES = st.one_of(
    st.integers(-(2**31), 2**34 - 2**31 - 1).map(lambda seconds: seconds * 10**9),
    st.integers(0, 2**32 * 10**9),
)
PERMISSIONS = st.integers(0, 0o7777)
OWNERS = st.sampled_from((0, 1, 1000, 65535, 65536, 2**32 - 2))
OFFSETS = st.one_of(
    st.integers(0, 60_000),
    st.sampled_from((12, 12 + 1024, 12 + 1024 + 1024**2)).flatmap(
        lambda block: st.integers(block * 4096 - 5000, block * 4096 + 5000)
    ),
)
DATA = st.one_of(st.binary(max_size=40), st.integers(1, 20_000).map(lambda size: b"#" * size))
XATTRS = st.dictionaries(
    st.sampled_from((b"user.a", b"user.b", b"trusted.some thing", b"security.x")),
    st.one_of(st.binary(max_size=80), st.integers(0, 900).map(lambda size: b"=" * size)),
    max_size=4,
)
ATTRIBUTES = st.tuples(PERMISSIONS, OWNERS, OWNERS, TIMES, XATTRS)
LEAVES = st.one_of(
    st.tuples(st.just("file"), st.lists(st.tuples(OFFSETS, DATA), max_size=4), ATTRIBUTES),
    st.tuples(
        st.just("link"),
        st.binary(min_size=1, max_size=200).filter(lambda target: 0 not in target),
        ATTRIBUTES,
    ),
    st.tuples(
        st.sampled_from(("fifo", "char", "block", "socket")),
        st.tuples(st.integers(0, 4095), st.integers(0, 2**20 - 1)),
        ATTRIBUTES,
    ),
    st.tuples(st.just("again"), st.integers(0, 1000), ATTRIBUTES),
)
TREES = st.recursive(
    LEAVES,
    lambda children: st.tuples(
        st.just("directory"), st.dictionaries(NAMES, children, max_size=7), ATTRIBUTES
    ),
    max_leaves=25,
)
TYPES = {
    "fifo": stat.S_IFIFO, "char": stat.S_IFCHR, "block": stat.S_IFBLK, "socket": stat.S_IFSOCK,
}  # fmt: skip


def grow(path: bytes, tree: Any, files: list[bytes]) -> None:
    """Make ``tree`` at ``path``. ``files`` are what later ones may be links to."""
    kind, what, (permissions, uid, gid, time_ns, xattrs) = tree
    if kind == "again":
        if files:
            os.link(files[what % len(files)], path, follow_symlinks=False)
            return
        kind, what = "file", []
    if kind == "directory":
        os.mkdir(path)
        for name, child in what.items():
            grow(os.path.join(path, name), child, files)
    else:
        files.append(path)
        if kind == "file":
            with open(path, "wb") as file:
                for offset, data in what:
                    os.pwrite(file.fileno(), data, offset)
        elif kind == "link":
            os.symlink(what, path)
        else:
            os.mknod(path, TYPES[kind] | 0o600, os.makedev(*what) if kind in "charblock" else 0)
    for name, value in xattrs.items():
        if not name.startswith(b"user.") or kind in ("file", "directory"):
            try:
                os.setxattr(path, name, value, follow_symlinks=False)
            except OSError:
                pass  # more than the host's file system has room for
    os.chown(path, uid, gid, follow_symlinks=False)
    if kind != "link":
        os.chmod(path, permissions)
    os.utime(path, ns=(time_ns, time_ns), follow_symlinks=False)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="makes device nodes, and files of others")
@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[
        HealthCheck.function_scoped_fixture, HealthCheck.filter_too_much, HealthCheck.too_slow,
    ],
)  # fmt: skip
@given(
    children=st.dictionaries(NAMES, TREES, max_size=8),
    htree=st.booleans(),
    blocks_per_group=st.sampled_from((256, 264, 4096, None)),
    inodes_per_group=st.sampled_from((16, 64, None)),
    room=st.sampled_from((None, 24 << 20)),
)
def test_linux_sees_a_random_tree_in_its_image(
    mounted: Mounted,
    children: dict[bytes, Any],
    htree: bool,
    blocks_per_group: int | None,
    inodes_per_group: int | None,
    room: int | None,
) -> None:
    with tempfile.TemporaryDirectory(prefix="dentry-ext2-") as directory:
        top, image = Path(directory) / "tree", Path(directory) / "image"
        top.mkdir()
        files: list[bytes] = []
        for name, child in children.items():
            grow(os.path.join(os.fsencode(top), name), child, files)
        options = BuildOptions(
            size=room,
            blocks_per_group=blocks_per_group,
            inodes_per_group=inodes_per_group,
            htree=htree,
        )
        before = snapshot(top)
        with build(HostSource(top), options) as plan:
            write_image(plan, str(image))
            assert not plan.changed
            assert plan.read(0, plan.size) == image.read_bytes()
        fsck(image)
        with mounted(image) as where:
            assert snapshot(where, lost_and_found=False) == before
