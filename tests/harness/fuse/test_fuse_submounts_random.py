"""A client and a task at random on one tree of mounts, against what the client remembers."""

from __future__ import annotations

from collections import Counter
from errno import EBUSY, EEXIST, EINVAL, ELOOP, ENOENT, ENOTEMPTY, ESTALE
from typing import Any

from fuse_session import ROOT, FuseError, Session
from hypothesis import given, settings
from hypothesis import strategies as st

from vfs.abi import MNT_DETACH, MS_BIND, MS_MOVE, MS_PRIVATE, MS_REC, MS_SHARED
from vfs.mountinfo import show_mountinfo
from vfs.task import Task

NAMES = (b"a", b"b")
PATHS = ("/a", "/b", "/a/a", "/a/b", "/b/a", "/a/a/b")

paths = st.sampled_from(PATHS)
steps = st.one_of(
    st.tuples(st.just("mount"), paths, st.booleans()),
    st.tuples(st.just("bind"), paths, paths, st.sampled_from([MS_BIND, MS_BIND | MS_REC])),
    st.tuples(st.just("move"), paths, paths),
    st.tuples(st.just("change"), st.integers(0, 50), st.sampled_from([MS_SHARED, MS_PRIVATE])),
    st.tuples(st.just("umount"), st.integers(0, 50), st.sampled_from([0, MNT_DETACH])),
    st.tuples(st.just("mkdir"), paths),
    st.tuples(st.just("rmdir"), paths),
    st.tuples(st.just("walk"), paths),
    st.tuples(st.just("walk"), paths),
    st.tuples(st.just("again"), st.integers(0, 50), st.sampled_from(NAMES)),
    st.tuples(st.just("open"), st.integers(0, 50)),
    st.tuples(st.just("list"), st.integers(0, 50)),
    st.tuples(st.just("close"), st.integers(0, 50)),
    st.tuples(st.just("forget"), st.integers(0, 50), st.integers(1, 3)),
)


class Model:
    """What the client has been told, `known` by node id with how often, and has open."""

    def __init__(self, session: Session, task: Task) -> None:
        self.session = session
        self.task = task
        self.known: Counter[int] = Counter()
        self.open: list[int] = []

    def nodeid(self, index: int) -> int:
        known = [ROOT, *sorted(self.known)]
        return known[index % len(known)]

    def mountpoint(self, index: int) -> bytes:
        lines = show_mountinfo(self.task.namespace, self.task.fs.root).splitlines()
        places = [line.split()[4] for line in lines]
        return places[index % len(places)]

    def lookup(self, parent: int, name: bytes) -> tuple[int, int]:
        """The node and its inode's number."""
        entry = self.session.lookup(parent, name)
        self.known[entry.nodeid] += 1
        return entry.nodeid, entry.attr.ino

    def mount(self, path: str, look: bool) -> None:
        self.task.mount("none", path, "tmpfs")
        for name in NAMES:
            self.task.mkdir(f"{path}/{name.decode()}", 0o755)
        if look:
            self.walk(f"{path}/{NAMES[0].decode()}")

    def bind(self, source: str, target: str, flags: int) -> None:
        self.task.mount(source, target, None, flags)

    def move(self, source: str, target: str) -> None:
        self.task.mount(source, target, None, MS_MOVE)

    def change(self, index: int, kind: int) -> None:
        self.task.mount(None, self.mountpoint(index), None, kind)

    def umount(self, index: int, flags: int) -> None:
        path = self.mountpoint(index)
        if path != b"/":
            self.task.umount2(path, flags)

    def mkdir(self, path: str) -> None:
        self.task.mkdir(path, 0o755)

    def rmdir(self, path: str) -> None:
        self.task.rmdir(path)

    def walk(self, path: str) -> None:
        """The client finds what the task finds."""
        nodeid, ino = ROOT, 0
        try:
            status = self.task.stat(path)
        except FileNotFoundError:
            status = None
        try:
            for name in path.encode().split(b"/")[1:]:
                nodeid, ino = self.lookup(nodeid, name)
        except FuseError as error:
            assert status is None and error.errno == ENOENT
        else:
            assert status is not None
            node = self.session.server.nodes.by_id[nodeid]
            assert (ino, node.inode.superblock.dev) == (status.st_ino, status.st_dev)

    def again(self, index: int, name: bytes) -> None:
        self.lookup(self.nodeid(index), name)

    def open_(self, index: int) -> None:
        self.open.append(self.session.opendir(self.nodeid(index)))

    def list(self, index: int) -> None:
        if self.open:
            fh = self.open[index % len(self.open)]
            for _, nodeid in self.session.list(fh, plus=True):
                if nodeid:
                    self.known[nodeid] += 1

    def close(self, index: int) -> None:
        if self.open:
            self.session.releasedir(self.open.pop(index % len(self.open)))

    def forget(self, index: int, count: int) -> None:
        nodeid = self.nodeid(index)
        if nodeid != ROOT:
            count = min(count, self.known[nodeid])
            self.session.forget(nodeid, count)
            self.known -= Counter({nodeid: count})

    def check(self) -> None:
        """Server and client agree on what was given; the rest is as it must be."""
        server = self.session.server
        server.check()
        self.session.vfs.check()
        given = Counter(server.nodes.stale)
        given.update({node.nodeid: node.nlookup for node in server.nodes.by_id.values()})
        given[ROOT] -= 1
        assert +given == self.known


@given(st.lists(steps, min_size=10, max_size=60))
@settings(max_examples=200, deadline=None)
def test_server_and_client_agree_whatever_is_mounted_and_unmounted(
    script: list[tuple[Any, ...]],
) -> None:
    with Session() as session:
        task = session.vfs.create_task(session.namespace)
        for path in sorted(PATHS):
            task.mkdir(path, 0o755)
        model = Model(session, task)
        for name, *arguments in script:
            try:
                getattr(model, "open_" if name == "open" else name)(*arguments)
            except FuseError as error:
                assert error.errno in (ESTALE, ENOENT)
            except OSError as error:
                assert error.errno in (EBUSY, EEXIST, EINVAL, ELOOP, ENOENT, ENOTEMPTY)
            model.check()
