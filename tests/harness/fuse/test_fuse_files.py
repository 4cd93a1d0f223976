from __future__ import annotations

from collections.abc import Callable
from errno import EBADF, EEXIST, EFBIG, EINVAL, EISDIR, ENOTTY, ENXIO, ESTALE
from itertools import pairwise
from pathlib import Path
from stat import S_IFCHR, S_IFREG, S_IMODE

import pytest
from fuse_session import OP, ROOT, Opened, Session, expect, parse, unpack_entry

from harness.fuse import abi
from harness.fuse.cache import ALWAYS, NEVER
from harness.wire import Recurring
from vfs.abi import O_APPEND, O_EXCL, O_RDONLY, O_TRUNC, SEEK_DATA, SEEK_HOLE, SEEK_SET
from vfs.inode import Inode


def test_what_is_written_is_read_back_across_pages() -> None:
    data = bytes(range(256)) * 4096
    with Session() as session:
        _, opened = session.create(ROOT, b"file")
        assert session.write(opened.fh, 100, data) == len(data)
        assert session.read(opened.fh, 100, len(data)) == data
        assert session.read(opened.fh, 5000, 3) == data[4900:4903]
        assert session.read(opened.fh, len(data) + 100, 10) == b""
        assert session.read(opened.fh, len(data) + 90, 100) == data[-10:]


def test_a_write_moves_size_and_times_that_the_client_sees() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file")
        before = session.getattr(entry.nodeid)
        session.write(opened.fh, 0, b"12345")
        after = session.getattr(entry.nodeid)
        assert after.size == 5
        assert (after.mtime, after.mtime_ns) > (before.mtime, before.mtime_ns)


def test_o_append_goes_to_the_end_wherever_the_client_thinks_it_is() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file")
        session.write(opened.fh, 0, b"0123456789")
        appending = session.open(entry.nodeid, 1 | O_APPEND)
        session.write(appending.fh, 0, b"end", flags=1 | O_APPEND)
        assert session.read(opened.fh, 0, 100) == b"0123456789end"


def test_pages_written_back_through_an_appending_handle_keep_their_place() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file")
        session.write(opened.fh, 0, b"0123456789")
        appending = session.open(entry.nodeid, 1 | O_APPEND)
        session.write(appending.fh, 0, b"page", abi.WRITE_CACHE, flags=1 | O_APPEND)
        assert session.read(opened.fh, 0, 100) == b"page456789"


def test_a_write_whose_size_is_not_its_length_is_refused() -> None:
    with Session() as session:
        _, opened = session.create(ROOT, b"file")
        body = abi.WRITE_IN.pack(opened.fh, 0, 100, 0, 0, 0, 0)
        expect(EINVAL, session.call, "WRITE", 0, body + b"short")
        expect(EINVAL, session.call, "WRITE", 0, body[:20])
        expect(EFBIG, session.write, opened.fh, (1 << 63) - 1, b"x")


@pytest.mark.parametrize("segments", [list, Recurring])
@pytest.mark.parametrize("cuts", [(40,), (40, 60), (20, 50), ()])
@pytest.mark.parametrize("length", [41, 60, 79, 83])
def test_a_write_that_ends_before_its_header_says_is_refused(
    segments: Callable[[list[memoryview]], list[memoryview]], cuts: tuple[int, ...], length: int
) -> None:
    with Session() as session:
        _, opened = session.create(ROOT, b"file")
        body = abi.WRITE_IN.pack(opened.fh, 0, 4 if length > 80 else 0, 0, 0, 0, 0) + b"data"
        whole = session.request(OP["WRITE"], 0, body[: 44 if length > 80 else 40])
        view = memoryview(bytearray(whole[:length]))
        edges = [0, *(cut for cut in cuts if cut < len(view)), len(view)]
        back = bytearray(24)
        request = segments([view[start:end] for start, end in pairwise(edges)])
        reply = [memoryview(back)[:16], memoryview(back)[16:]]
        count = session.server.handle(request, reply, lambda length: None)
        expect(EINVAL, parse, bytes(back[:count]), session.unique)


def test_handles_end_with_release() -> None:
    with Session() as session:
        _, opened = session.create(ROOT, b"file")
        session.release(opened.fh)
        expect(EBADF, session.read, opened.fh, 0, 1)
        expect(EBADF, session.write, opened.fh, 0, b"x")
        expect(EBADF, session.release, opened.fh)


def test_open_with_o_trunc_empties_the_file() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file")
        session.write(opened.fh, 0, b"content")
        session.open(entry.nodeid, 1 | O_TRUNC)
        assert session.getattr(entry.nodeid).size == 0


def test_create_of_an_existing_file_opens_it_unless_exclusive() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file")
        session.write(opened.fh, 0, b"content")
        again, handle = session.create(ROOT, b"file")
        assert again.nodeid == entry.nodeid
        assert session.read(handle.fh, 0, 100) == b"content"
        expect(EEXIST, session.create, ROOT, b"file", flags=2 | O_EXCL)
        session.mkdir(ROOT, b"dir")
        expect(EEXIST, session.create, ROOT, b"dir")


def test_a_created_file_can_be_written_whatever_its_mode() -> None:
    with Session() as session:
        session.uid = session.gid = 1000
        entry, opened = session.create(ROOT, b"file", 0o444, 1)
        assert session.write(opened.fh, 0, b"x") == 1
        assert S_IMODE(entry.attr.mode) == 0o444


def test_devices_and_directories_are_not_opened_as_files() -> None:
    with Session() as session:
        expect(EISDIR, session.open, ROOT)
        node = session.mknod(ROOT, b"null", S_IFCHR | 0o666, 0x103)
        expect(ENXIO, session.open, node.nodeid)
        expect(ESTALE, session.open, 77)


def test_a_write_of_somebody_without_fsetid_drops_set_id_bits() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file", 0o6755)
        session.write(opened.fh, 0, b"x")
        assert S_IMODE(session.getattr(entry.nodeid).mode) == 0o6755
        session.write(opened.fh, 0, b"x", abi.WRITE_KILL_SUIDGID)
        assert S_IMODE(session.getattr(entry.nodeid).mode) == 0o755


def test_set_group_id_without_group_execute_survives_a_write() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file", 0o6745)
        session.write(opened.fh, 0, b"x", abi.WRITE_KILL_SUIDGID)
        assert S_IMODE(session.getattr(entry.nodeid).mode) == 0o2745


def test_truncate_and_open_drop_set_id_bits_when_told() -> None:
    with Session() as session:
        entry, _ = session.create(ROOT, b"file", 0o4755)
        session.setattr(entry.nodeid, abi.FATTR_SIZE | abi.FATTR_KILL_SUIDGID, size=10)
        assert S_IMODE(session.getattr(entry.nodeid).mode) == 0o755
        entry, _ = session.create(ROOT, b"other", 0o4755)
        session.open(entry.nodeid, 1 | O_TRUNC, abi.OPEN_KILL_SUIDGID)
        assert S_IMODE(session.getattr(entry.nodeid).mode) == 0o755


def test_lseek_finds_data_and_holes() -> None:
    with Session() as session:
        _, opened = session.create(ROOT, b"file")
        session.write(opened.fh, 1 << 20, b"data")

        def seek(offset: int, whence: int) -> int:
            body = abi.LSEEK_IN.pack(opened.fh, offset, whence, 0)
            found: int = abi.LSEEK_OUT.unpack(session.call("LSEEK", 0, body, 8))[0]
            return found

        assert seek(0, SEEK_DATA) == 1 << 20
        assert seek(0, SEEK_HOLE) == 0
        expect(ENXIO, seek, 1 << 21, SEEK_DATA)
        expect(ENXIO, seek, (1 << 64) - 1, SEEK_DATA)
        expect(EINVAL, seek, 0, SEEK_SET)


def test_fallocate_grows_a_file() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file")
        session.call("FALLOCATE", 0, abi.FALLOCATE_IN.pack(opened.fh, 0, 5000, 0, 0), 0)
        assert session.getattr(entry.nodeid).size == 5000
        body = abi.FALLOCATE_IN.pack(opened.fh, (1 << 64) - 1, 1, 0, 0)
        expect(EINVAL, session.call, "FALLOCATE", 0, body, 0)


def test_copy_file_range_copies_within_the_server() -> None:
    with Session() as session:
        _, source = session.create(ROOT, b"a")
        _, target = session.create(ROOT, b"b")
        session.write(source.fh, 0, b"0123456789")
        body = abi.COPY_FILE_RANGE_IN.pack(source.fh, 2, 0, target.fh, 1, 5, 0)
        payload = session.call("COPY_FILE_RANGE", 0, body, 8)
        assert abi.WRITE_OUT.unpack(payload)[0] == 5
        assert session.read(target.fh, 0, 100) == b"\x0023456"
        payload = session.call("COPY_FILE_RANGE_64", 0, body, 8)
        assert abi.COPY_FILE_RANGE_OUT.unpack(payload)[0] == 5


def test_ioctl_that_nobody_knows_fails_with_enotty() -> None:
    with Session() as session:
        _, opened = session.create(ROOT, b"file")
        body = abi.IOCTL_IN.pack(opened.fh, 0, 0x5401, 0, 0, 0)
        expect(ENOTTY, session.call, "IOCTL", 0, body, 16)


def test_tmpfile_has_no_name_until_it_is_linked() -> None:
    with Session() as session:
        body = abi.CREATE_IN.pack(2, S_IFREG | 0o600, 0, 0) + b"/\0"
        payload = session.call("TMPFILE", ROOT, body, 144)
        entry = unpack_entry(payload)
        opened = Opened(*abi.OPEN_OUT.unpack_from(payload, 128)[:2])
        assert entry.attr.nlink == 0
        session.write(opened.fh, 0, b"content")
        linked = session.link(entry.nodeid, ROOT, b"named")
        assert (linked.nodeid, linked.attr.nlink, linked.attr.size) == (entry.nodeid, 1, 7)


def test_pages_are_kept_over_an_open_only_while_the_client_knows_the_file_as_it_is() -> None:
    with Session() as session:
        entry, opened = session.create(ROOT, b"file")
        session.write(opened.fh, 0, b"content")
        assert not session.open(entry.nodeid, O_RDONLY).flags & abi.FOPEN_KEEP_CACHE
        session.getattr(entry.nodeid)
        assert session.open(entry.nodeid, O_RDONLY).flags & abi.FOPEN_KEEP_CACHE
        session.write(opened.fh, 0, b"another")
        assert not session.open(entry.nodeid, O_RDONLY).flags & abi.FOPEN_KEEP_CACHE


def test_cache_policies_decide_timeouts_and_open_flags() -> None:
    with Session(cache=NEVER) as session:
        entry, opened = session.create(ROOT, b"file")
        assert (entry.entry_s, entry.attr_s) == (0, 0)
        assert opened.flags & abi.FOPEN_DIRECT_IO
    with Session(cache={"tmpfs": ALWAYS}) as session:
        entry, opened = session.create(ROOT, b"file")
        assert (entry.entry_s, entry.attr_s) == (86400, 86400)
        assert opened.flags & abi.FOPEN_KEEP_CACHE


def test_close_is_told_only_where_it_matters() -> None:
    with Session() as session:
        assert not session.create(ROOT, b"file")[1].flags & abi.FOPEN_NOFLUSH
    with Session(local_locks=True) as session:
        assert session.create(ROOT, b"file")[1].flags & abi.FOPEN_NOFLUSH


def test_copying_reads_attributes_under_the_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The buffer that the host's answers come in is shared, and the lock is what guards it."""
    with Session(source=tmp_path) as session:
        entry, source = session.create(ROOT, b"source")
        session.write(source.fh, 0, b"data")
        _, target = session.create(ROOT, b"target")
        inode = session.server.nodes.by_id[entry.nodeid].inode
        refresh = type(inode).refresh
        unguarded = []

        def watched(self: Inode) -> None:
            if not session.vfs.lock._is_owned():
                unguarded.append(self)
            refresh(self)

        monkeypatch.setattr(type(inode), "refresh", watched)
        body = abi.COPY_FILE_RANGE_IN.pack(source.fh, 0, entry.nodeid, target.fh, 0, 4, 0)
        session.call("COPY_FILE_RANGE", entry.nodeid, body)
        monkeypatch.undo()
        assert session.read(target.fh, 0, 10) == b"data"
        assert not unguarded
