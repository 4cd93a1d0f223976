"""A tree of several mounts: what is on each comes along, and both sides must have them."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from fuse_session import ROOT, Session, expect
from migration_support import (
    GUEST_ERRORS,
    assembled,
    follow,
    load,
    resealed,
    save,
    sections,
)

from harness.compose import Tree
from harness.fuse import abi
from harness.fuse.server import FuseServer
from harness.migration.session import HandleRecord, LockRecord, NodeRecord
from harness.migration.stream import Unpacker
from harness.mountspec import parse_mount_spec
from vfs.abi import MS_BIND, MS_RDONLY, MS_REMOUNT, S_IFCHR, makedev

SPECS = ("type=tmpfs,dst=/,mode=755", "type=tmpfs,dst=/a/b,size=1m", "type=devtmpfs,dst=/dev",
         "type=proc,dst=/proc", "type=bind,src=/a/b/sub,dst=/bound")  # fmt: skip


class Side(Session):
    """A server of a composed tree."""

    def __init__(self, tree: Tree, init: bool, **options: object) -> None:
        self.tree = tree
        self.vfs = tree.vfs
        self.root = tree.root
        self.server = FuseServer(tree.vfs, tree.root, **options)  # type: ignore[arg-type]
        self.unique = self.uid = self.gid = self.pid = 0
        self.extensions = b""
        if init:
            self.init()

    def __exit__(self, *exc: object) -> None:
        self.vfs.check()
        self.server.check()
        self.server.reset()
        self.tree.close()


@contextmanager
def side(*specs: str, init: bool = False, share: Path | None = None) -> Iterator[Side]:
    words = [spec if share is None else spec.replace("SHARE", str(share)) for spec in specs]
    parsed = [parse_mount_spec(word) for word in words]
    binds = [spec for spec in parsed if spec.type == "bind"]
    tree = Tree([spec for spec in parsed if spec.type != "bind"], tracing=True)
    for spec in binds:
        for path in (spec.source, spec.destination):
            assert path is not None
            tree.task.mkdir(path)
        tree.task.mount(spec.source or "", spec.destination, None, MS_BIND)
    with Side(tree, init) as one:
        yield one


def node(client: Session, path: bytes) -> int:
    at = ROOT
    for name in path.split(b"/"):
        at = client.lookup(at, name).nodeid
    return at


def test_each_tmpfs_has_its_content_and_mounts_stay_where_they_are() -> None:
    with side(*SPECS, init=True) as source, side(*SPECS) as target:
        top, below = node(source, b"a"), node(source, b"a/b")
        source.create(top, b"above")
        entry, opened = source.create(below, b"below")
        source.write(opened.fh, 0, b"in the submount")
        sub, bound = node(source, b"a/b/sub"), node(source, b"bound")
        assert sub != bound
        source.create(bound, b"through the bind")
        null = source.lookup(node(source, b"dev"), b"null")
        version = source.lookup(node(source, b"proc"), b"filesystems")
        load(target.server, save(source.server))
        follow(source, target)
        assert target.read(opened.fh, 0, 100) == b"in the submount"
        assert target.lookup(below, b"below").nodeid == entry.nodeid
        assert node(target, b"a/b") == below
        assert target.getattr(below).flags & abi.ATTR_SUBMOUNT
        assert (
            target.lookup(sub, b"through the bind").nodeid
            != target.lookup(bound, b"through the bind").nodeid
        )
        assert target.getattr(null.nodeid).rdev == makedev(1, 3)
        assert target.getattr(version.nodeid).mode == version.attr.mode
        assert target.tree.task.stat("/a/above").st_size == 0
        # A device that goes away still takes its node along.
        devices = target.vfs.devices
        device = devices.lookup(S_IFCHR, 1, 3)
        assert device is not None
        devices.unregister(device)
        expect(errno.ENOENT, target.lookup, node(target, b"dev"), b"null")


@pytest.mark.parametrize(
    ("there", "here", "said"),
    [
        ((), ("type=tmpfs,dst=/m",), "type=tmpfs,dst=/m.* is mounted here and not there"),
        (("type=tmpfs,dst=/m",), (), "type=tmpfs,dst=/m.* is mounted there and not here"),
        (("type=tmpfs,dst=/m",), ("type=devtmpfs,dst=/m",), "type=devtmpfs,dst=/m.* here"),
        (("type=tmpfs,dst=/m",), ("type=tmpfs,dst=/m,ro",), "type=tmpfs,dst=/m,ro.* here"),
        (("type=tmpfs,dst=/m,size=8k",), ("type=tmpfs,dst=/m,size=4k",), "larger size"),
        (("type=tmpfs,dst=/m,size=0",), ("type=tmpfs,dst=/m,size=4k",), "larger size"),
    ],
)
def test_mounts_that_differ_are_named(
    there: tuple[str, ...], here: tuple[str, ...], said: str
) -> None:
    base = "type=tmpfs,dst=/,mode=755"
    with side(base, *there, init=True) as source, side(base, *here) as target:
        source.create(ROOT, b"f")
        with pytest.raises(OSError, match=said):
            load(target.server, save(source.server))
        target.init()
        expect(errno.ENOENT, target.lookup, ROOT, b"f")


def test_a_mount_that_came_while_the_guest_ran_is_an_error_until_it_goes() -> None:
    with side(*SPECS, init=True) as source, side(*SPECS) as target:
        source.tree.task.mkdir("/late")
        source.tree.task.mount("none", "/late", "tmpfs")
        with pytest.raises(OSError, match="dst=/late"):
            load(target.server, save(source.server))
        source.tree.task.umount2("/late", 0)
        load(target.server, save(source.server))


def test_a_mount_that_became_read_only_is_an_error() -> None:
    with side(*SPECS, init=True) as source, side(*SPECS) as target:
        source.tree.task.mount(None, "/a/b", None, MS_REMOUNT | MS_BIND | MS_RDONLY)
        with pytest.raises(OSError, match="dst=/a/b,ro"):
            load(target.server, save(source.server))


def test_a_tmpfs_that_is_too_small_takes_nothing() -> None:
    base = "type=tmpfs,dst=/,mode=755"
    with side(base, init=True) as source, side(f"{base},size=64k") as target:
        _, opened = source.create(ROOT, b"f")
        source.write(opened.fh, 0, bytes(100_000))
        with pytest.raises(OSError, match="too small here"):
            load(target.server, save(source.server))
        assert target.vfs.superblocks[-1].statfs().bfree


def test_a_load_that_fails_late_leaves_what_was_there() -> None:
    """Directories, device nodes and links with their attributes; and none of what came."""
    with side(*SPECS, init=True) as source, side(*SPECS) as target:
        source.setattr(ROOT, abi.FATTR_MODE, mode=0o700)
        source.setattr(node(source, b"dev/null"), abi.FATTR_MODE, mode=0o600)
        entry, opened = source.create(ROOT, b"new")
        source.call("SETLK", entry.nodeid, abi.LK_IN.pack(opened.fh, 1, 0, 9, 1, 7, 0, 0), 0)
        parts = list(sections(save(source.server)))[:-1]
        # Two owners of one lock: the last thing to be found out.
        second = LockRecord(opened.fh, 2, False, 1, 0, 9, 7).pack().data
        parts = [(tag, body + second if tag == b"lock" else body) for tag, body in parts]
        task = target.tree.task

        def seen() -> list[object]:
            paths = ("/", "/dev", "/dev/null", "/dev/fd", "/dev/pts", "/a/b", "/bound")
            shown = [task.lstat(path) for path in paths]
            return [(s.st_mode, s.st_uid, s.st_ino, s.st_nlink, s.st_mtime_ns) for s in shown]

        before = seen(), sorted(task.listdir("/")), sorted(task.listdir("/dev"))
        with pytest.raises(OSError, match="a lock cannot be had"):
            load(target.server, assembled(parts))
        target.vfs.check()
        assert (seen(), sorted(task.listdir("/")), sorted(task.listdir("/dev"))) == before
        load(target.server, save(source.server))
        assert task.stat("/").st_mode & 0o777 == 0o700


def test_what_is_above_a_bind_mount_is_not_reached_through_it() -> None:
    """A forged state that has a node or an open file there."""
    with side(*SPECS, init=True) as source, side(*SPECS) as target:
        above = node(source, b"a/b")
        entry, opened = source.create(above, b"secret")
        bound = node(source, b"bound")
        state = save(source.server)
        records = {}
        for tag, body in sections(state):
            if tag == b"node":
                data = Unpacker(body)
                while data:
                    record = NodeRecord.unpack(data)
                    records[record.nodeid] = record
        for nodeid in (above, entry.nodeid):
            old = records[nodeid].pack().data
            new = records[nodeid]._replace(mount=records[bound].mount).pack().data
            assert state.count(old) == 1
            with pytest.raises(OSError, match="outside of the mount"):
                load(target.server, resealed(state.replace(old, new)))
        old = HandleRecord(opened.fh, records[above].mount, records[entry.nodeid].dentry, 0o2, 0, 0,
                           frozenset(), 0).pack().data  # fmt: skip
        new = old[:8] + records[bound].mount.to_bytes(4, "little") + old[12:]
        assert state.count(old) == 1
        with pytest.raises(OSError, match="outside of the mount"):
            load(target.server, resealed(state.replace(old, new)))


def test_a_passthrough_in_the_tree_is_found_from_its_own_root(tmp_path: Path) -> None:
    (tmp_path / "one" / "d").mkdir(parents=True)
    (tmp_path / "one" / "d" / "f").write_bytes(b"shared")
    os.symlink("one", tmp_path / "two")
    base = ("type=tmpfs,dst=/,mode=755", "type=passthrough,src=SHARE,dst=/srv/x")
    with (
        side(*base, init=True, share=tmp_path / "one") as source,
        side(*base, share=tmp_path / "two") as target,
    ):
        f = node(source, b"srv/x/d/f")
        opened = source.open(f)
        load(target.server, save(source.server))
        follow(source, target)
        assert target.read(opened.fh, 0, 100) == b"shared"
        assert node(target, b"srv/x/d/f") == f


def test_what_is_open_on_a_mount_that_was_taken_away_is_told_as_asked() -> None:
    with side(*SPECS, init=True) as source, side(*SPECS) as target:
        source.tree.task.mkdir("/late")
        source.tree.task.mount("none", "/late", "tmpfs")
        late = node(source, b"late")
        entry, opened = source.create(late, b"f")
        source.tree.task.umount2("/late", 2)
        with pytest.raises(OSError, match="on a mount that is in no tree any more"):
            save(source.server)
        load(target.server, save(source.server, GUEST_ERRORS))
        follow(source, target)
        expect(errno.EBADF, target.read, opened.fh, 0, 1)
        expect(errno.ESTALE, target.getattr, entry.nodeid)
        source.release(opened.fh)
