"""What other threads do while a request has dropped the lock, and sizes that no client asks for."""

from __future__ import annotations

import os
import stat
import threading
from pathlib import Path

import pytest
from fuse_session import OP, ROOT, Session

from fsimpl.passthrough.file import PassthroughFile
from harness.fuse import abi
from harness.fuse.parking import Parking
from vfs.file import Buffers


@pytest.mark.skipif(os.geteuid() != 0, reason="set-id bits of a file of root's")
def test_a_file_released_and_forgotten_during_a_write_loses_its_set_id_bits_nonetheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Session(source=tmp_path) as session:
        entry, opened = session.create(ROOT, b"file", 0o6755)
        os.chmod(tmp_path / "file", 0o6755)
        session.getattr(entry.nodeid)
        kept = os.open(tmp_path / "file", os.O_RDONLY)
        real = PassthroughFile.write

        def write(self: PassthroughFile, buffers: Buffers, offset: int, flags: int) -> int:
            count = real(self, buffers, offset, flags)
            # The host gives them back, as CAP_FSETID keeps them.
            os.fchmod(kept, 0o6755)
            unique = session.unique
            session.call("UNLINK", ROOT, b"file\0")
            session.release(opened.fh)
            session.forget(entry.nodeid)
            session.unique = unique
            return count

        monkeypatch.setattr(PassthroughFile, "write", write)
        assert session.write(opened.fh, 0, b"data", abi.WRITE_KILL_SUIDGID) == 4
        assert stat.S_IMODE(os.fstat(kept).st_mode) == 0o755
        os.close(kept)


@pytest.mark.parametrize("name", ["READ", "WRITE"])
def test_a_transfer_of_gigabytes_over_the_same_page_moves_no_more_than_was_agreed(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Descriptors may all name the same memory, and so claim 4 GiB of room."""
    whole = 0xFFFFFFFF - (80 if name == "WRITE" else 0)
    with Session() as session:
        entry, opened = session.create(ROOT, b"file")
        session.setattr(entry.nodeid, abi.FATTR_SIZE, size=1 << 40)
        page = memoryview(bytearray(1 << 24))
        pages = [page] * (whole >> 24) + [page[: whole & (1 << 24) - 1]]
        arguments = abi.READ_IN.pack(opened.fh, 0, whole, 0, 0, 0, 0)
        request = bytearray(session.request(OP[name], entry.nodeid, arguments))
        back = bytearray(24)
        first = memoryview(back)
        if name == "READ":
            segments, reply = [memoryview(request)], [first[:16], *pages]
        else:
            request[:4] = (80 + whole).to_bytes(4, "little")
            segments, reply = [memoryview(request), *pages], [first]
        length = session.server.handle(segments, reply, lambda _: None)
        said, error, _ = abi.OUT_HEADER.unpack_from(back)
        assert (said, error) == (length, 0)
        count = length - 16 if name == "READ" else abi.WRITE_OUT.unpack_from(back, 16)[0]
        assert count == abi.MAX_WRITE
        assert not caplog.records


def test_nothing_comes_between_answering_what_waits_and_closing_what_is_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A request that began to wait there, on somebody else's lock, would wait for ever."""
    with Session() as session:
        parking = session.server.parking
        close = type(parking).close
        others_may_run: list[bool] = []

        def try_lock() -> None:
            others_may_run.append(session.vfs.lock.acquire(blocking=False))
            if others_may_run[-1]:
                session.vfs.lock.release()

        def closing(self: Parking) -> None:
            close(self)
            thread = threading.Thread(target=try_lock)
            thread.start()
            thread.join()

        monkeypatch.setattr(Parking, "close", closing)
        session.server.reset()
        assert others_may_run == [False]
