"""Generated trees through FUSE: files that are longer than their size, and nobody who asks."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EACCES, EINVAL, ENOENT, ESRCH

import pytest
from fuse_session import ROOT, Session, expect

from fsimpl.proc import ProcType
from fsimpl.tmpfs import TmpfsType
from harness.fuse import abi
from vfs import VirtualFilesystem


@pytest.fixture
def session() -> Iterator[Session]:
    """A server over a tmpfs with proc on /proc, mounted by task 1, which is still there."""
    vfs = VirtualFilesystem(tracing=True)
    vfs.register(TmpfsType())
    vfs.register(ProcType())
    with Session(vfs=vfs) as session:
        task = vfs.create_task(session.namespace)
        task.mkdir("/proc", 0o755)
        task.mount("proc", "/proc", "proc")
        yield session


def walk(session: Session, *names: bytes) -> int:
    nodeid = ROOT
    for name in names:
        nodeid = session.lookup(nodeid, name).nodeid
    return nodeid


def test_a_generated_file_is_read_past_its_size(session: Session) -> None:
    status = walk(session, b"proc", b"1", b"status")
    assert session.getattr(status).size == 0
    opened = session.open(status, 0)
    assert opened.flags & abi.FOPEN_DIRECT_IO
    text = session.read(opened.fh, 0, 4096)
    assert b"State:\tS (sleeping)\nTgid:\t1\n" in text
    assert session.read(opened.fh, 10, 20) == text[10:30]


def test_a_sysctl_is_set_by_a_client(session: Session) -> None:
    opened = session.open(walk(session, b"proc", b"sys", b"fs", b"mount-max"), 2)
    assert opened.flags & abi.FOPEN_DIRECT_IO
    assert session.write(opened.fh, 0, b"77\n") == 3
    assert session.vfs.mount_max == 77
    expect(EINVAL, session.write, opened.fh, 0, b"none")


def test_a_client_lists_tasks_but_is_none_itself(session: Session) -> None:
    proc = walk(session, b"proc")
    listed = [name for name, _ in session.list(session.opendir(proc), plus=True)]
    assert listed[-3:] == [b"self", b"thread-self", b"1"]
    expect(ENOENT, session.call, "READLINK", walk(session, b"proc", b"self"))
    expect(EACCES, session.call, "READLINK", walk(session, b"proc", b"1", b"cwd"))
    expect(ENOENT, session.lookup, proc, b"2")


def test_a_task_s_directory_goes_though_a_client_knows_it(session: Session) -> None:
    directory = walk(session, b"proc", b"1")
    opened = session.open(walk(session, b"proc", b"1", b"status"), 0)
    session.vfs.tasks[0].exit()
    expect(ENOENT, session.lookup, walk(session, b"proc"), b"1")
    expect(ENOENT, session.lookup, directory, b"status")
    expect(ESRCH, session.read, opened.fh, 0, 10)
