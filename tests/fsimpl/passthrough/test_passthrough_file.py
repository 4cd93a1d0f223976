"""Data: straight between the caller's buffers and the host's files."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from passthrough_kernel import open_descriptors

from fsimpl.passthrough.file import PassthroughFile
from vfs import VirtualFilesystem, abi
from vfs.task import Task


def host_file(task: Task, fd: int) -> PassthroughFile:
    with task.vfs.lock:
        file = task.files.get_file(fd)
    assert isinstance(file, PassthroughFile)
    return file


def test_bytes_are_read_into_and_written_from_the_callers_own_buffers(
    inside: Task, shared: Path
) -> None:
    content = os.urandom(100_000)
    (shared / "f").write_bytes(content)
    fd = inside.open("f", abi.O_RDWR)
    file = host_file(inside, fd)
    memory = memoryview(bytearray(120_000))
    assert file.read([memory[10:4106], memory[5000:]], 7, 0) == 100_000 - 7
    assert memory[10:4106] == content[7:4103]
    assert memory[5000 : 5000 + 100_000 - 4103] == content[4103:]
    assert file.write([memory[10:20], memory[5000:5010]], 99_995, 0) == 20
    written = (shared / "f").read_bytes()
    assert written[99_995:] == content[7:17] + content[4103:4113]
    assert inside.fstat(fd).st_size == 100_015


def test_more_buffers_than_the_host_takes_at_once_give_a_short_count(
    inside: Task, shared: Path
) -> None:
    (shared / "f").write_bytes(b"x" * 5000)
    file = host_file(inside, inside.open("f", abi.O_RDWR))
    memory = memoryview(bytearray(2000))
    buffers = [memory[i : i + 1] for i in range(2000)]
    assert file.read(buffers, 0, 0) == abi.IOV_MAX
    assert file.write(buffers, 0, 0) == abi.IOV_MAX


@pytest.mark.parametrize("offset", [-1, 1 << 63, (1 << 64) - 1])
def test_an_offset_that_is_none_is_einval(inside: Task, shared: Path, offset: int) -> None:
    (shared / "f").write_bytes(b"x")
    file = host_file(inside, inside.open("f", abi.O_RDWR))
    memory = [memoryview(bytearray(4))]
    for operation in (file.read, file.write):
        with pytest.raises(OSError) as caught:
            operation(memory, offset, 0)
        assert caught.value.errno == errno.EINVAL


def test_appends_from_inside_and_from_the_host_do_not_overwrite_each_other(
    inside: Task, shared: Path
) -> None:
    (shared / "log").touch()
    fd = inside.open("log", abi.O_WRONLY | abi.O_APPEND)

    def from_host() -> None:
        with open(shared / "log", "ab", buffering=0) as log:
            for _ in range(500):
                log.write(b"h" * 10)

    thread = threading.Thread(target=from_host)
    thread.start()
    for _ in range(500):
        assert inside.write(fd, b"i" * 10) == 10
    thread.join()
    content = (shared / "log").read_bytes()
    assert content.count(b"i" * 10) == content.count(b"h" * 10) == 500
    assert len(content) == 10_000
    assert inside.lseek(fd, 0, abi.SEEK_END) == 10_000


def test_a_write_grows_the_size_others_see_at_once(inside: Task, shared: Path) -> None:
    fd = inside.open("f", abi.O_CREAT | abi.O_RDWR, 0o644)
    inside.pwrite64(fd, b"end", 10_000)
    assert inside.stat("f").st_size == 10_003
    inside.truncate("f", 5)
    assert inside.fstat(fd).st_size == 5
    assert inside.pread64(fd, 10, 0) == bytes(5)


def test_holes_are_where_the_host_has_them(inside: Task, shared: Path) -> None:
    with open(shared / "f", "wb") as file:
        file.seek(1 << 20)
        file.write(b"data")
        file.truncate(4 << 20)
        file.flush()
        os.fsync(file.fileno())
    fd = inside.open("f", abi.O_RDONLY)
    host = os.open(shared / "f", os.O_RDONLY)
    for offset in (0, 1 << 20, (1 << 20) + 2, 2 << 20):
        for whence in (abi.SEEK_DATA, abi.SEEK_HOLE):
            try:
                expected = os.lseek(host, offset, whence)
            except OSError as error:
                with pytest.raises(OSError) as caught:
                    inside.lseek(fd, offset, whence)
                assert caught.value.errno == error.errno
            else:
                assert inside.lseek(fd, offset, whence) == expected
    os.close(host)
    assert inside.fstat(fd).st_blocks == (shared / "f").stat().st_blocks


def test_fallocate_allocates_punches_and_keeps_the_size_as_asked(
    inside: Task, shared: Path
) -> None:
    fd = inside.open("f", abi.O_CREAT | abi.O_RDWR, 0o644)
    inside.write(fd, b"x" * 65536)
    inside.fallocate(fd, abi.FALLOC_FL_KEEP_SIZE, 0, 1 << 20)
    assert (shared / "f").stat().st_size == 65536
    inside.fallocate(fd, 0, 0, 1 << 20)
    assert inside.fstat(fd).st_size == 1 << 20
    punch = abi.FALLOC_FL_PUNCH_HOLE | abi.FALLOC_FL_KEEP_SIZE
    inside.fallocate(fd, punch, 4096, 4096)
    content = (shared / "f").read_bytes()
    assert content[4095:8193] == b"x" + bytes(4096) + b"x"
    assert inside.fstat(fd).st_blocks == (shared / "f").stat().st_blocks


def test_a_range_is_copied_within_and_between_files(inside: Task, shared: Path) -> None:
    content = os.urandom(3 << 20)
    (shared / "a").write_bytes(content)
    source = inside.open("a", abi.O_RDONLY)
    target = inside.open("b", abi.O_CREAT | abi.O_RDWR, 0o644)
    done = 0
    while done < 2 << 20:
        count = inside.copy_file_range(source, 100 + done, target, done, (2 << 20) - done)
        assert count > 0
        done += count
    assert (shared / "b").read_bytes() == content[100 : 100 + (2 << 20)]
    assert inside.fstat(target).st_size == 2 << 20


def test_open_flags_that_are_handled_above_do_not_reach_the_host(
    inside: Task, shared: Path
) -> None:
    asked = abi.O_RDWR | abi.O_APPEND | abi.O_DIRECT | abi.O_SYNC | abi.O_NONBLOCK
    fd = inside.open("f", abi.O_CREAT | asked, 0o644)
    got = fcntl.fcntl(host_file(inside, fd).fd, fcntl.F_GETFL)
    # O_NONBLOCK is of the passthrough's own, and always there.
    assert got & ~abi.O_LARGEFILE == abi.O_RDWR | abi.O_NONBLOCK
    inside.write(fd, b"unaligned")
    assert (shared / "f").read_bytes() == b"unaligned"


@pytest.mark.parametrize("access", [abi.O_RDONLY, abi.O_WRONLY, abi.O_RDWR])
def test_a_new_file_is_open_for_writing_on_the_host_only_if_it_is_to_be_written(
    inside: Task, access: int
) -> None:
    fd = inside.open("f", abi.O_CREAT | access | abi.O_NOATIME, 0o644)
    got = fcntl.fcntl(host_file(inside, fd).fd, fcntl.F_GETFL)
    assert (got & abi.O_ACCMODE == abi.O_RDONLY) == (access == abi.O_RDONLY)
    assert got & abi.O_NOATIME
    if access == abi.O_WRONLY:
        with pytest.raises(OSError) as caught:
            inside.read(fd, 1)
        assert caught.value.errno == errno.EBADF


def test_a_new_file_that_is_not_opened_costs_one_descriptor(inside: Task) -> None:
    before = open_descriptors()
    inside.mknod("f", abi.S_IFREG | 0o644)
    assert open_descriptors() == before + 1


def test_a_new_file_is_opened_on_the_host_once_to_be_written(
    inside: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[int] = []

    def counted(path: bytes, flags: int, *args: int, **keywords: int) -> int:
        opened.append(flags)
        return open_(path, flags, *args, **keywords)

    open_ = os.open
    monkeypatch.setattr(os, "open", counted)
    inside.open("f", abi.O_CREAT | abi.O_WRONLY, 0o644)
    assert [flags & abi.O_PATH for flags in opened] == [0, abi.O_PATH]


def test_direct_io_reaches_the_host_when_the_mount_allows_it(
    vfs: VirtualFilesystem, shared: Path
) -> None:
    (shared / "f").write_bytes(b"x" * 8192)
    options = "allow_direct_io"
    with vfs.create_namespace("passthrough", source=bytes(shared), options=options) as namespace:
        task = vfs.create_task(namespace)
    fd = task.open("f", abi.O_RDONLY | abi.O_DIRECT)
    assert fcntl.fcntl(host_file(task, fd).fd, fcntl.F_GETFL) & abi.O_DIRECT
    assert vfs.superblocks[-1].show_options() == ",allow_direct_io"


def test_direct_io_is_allowed_by_a_remount_and_not_taken_back(
    vfs: VirtualFilesystem, shared: Path
) -> None:
    (shared / "f").write_bytes(b"x" * 8192)
    with vfs.create_namespace("passthrough", source=bytes(shared)) as namespace:
        task = vfs.create_task(namespace)
    for options in ("allow_direct_io", ""):
        task.mount(None, "/", None, abi.MS_REMOUNT, options)
        fd = task.open("f", abi.O_RDONLY | abi.O_DIRECT)
        assert fcntl.fcntl(host_file(task, fd).fd, fcntl.F_GETFL) & abi.O_DIRECT


def test_an_option_with_a_value_or_an_unknown_one_is_refused(inside: Task) -> None:
    fd = inside.fsopen("passthrough")
    for key, value in (("allow_direct_io", "yes"), ("nonsense", "1")):
        with pytest.raises(OSError, match=f"Errno {errno.EINVAL}"):
            inside.fsconfig(fd, abi.FSCONFIG_SET_STRING, key, value)
    assert [inside.read(fd, 100) for _ in range(2)] == [
        b"e passthrough: Unexpected value for 'allow_direct_io'\n",
        b"e passthrough: Unknown parameter 'nonsense'\n",
    ]


def test_without_a_source_there_is_nothing_to_mount(inside: Task) -> None:
    inside.mkdir("mnt")
    with pytest.raises(OSError, match=f"Errno {errno.EINVAL}"):
        inside.mount(None, "mnt", "passthrough")


def test_syncing_and_flushing_reach_the_host_without_error(inside: Task, shared: Path) -> None:
    inside.mkdir("d")
    fd = inside.open("f", abi.O_CREAT | abi.O_RDWR | abi.O_DSYNC, 0o644)
    inside.write(fd, b"x")
    inside.fsync(fd)
    inside.fdatasync(fd)
    inside.syncfs(fd)
    inside.fsync(inside.open("d", abi.O_RDONLY))
    host_file(inside, fd).flush()
    inside.close(fd)
    assert (shared / "f").read_bytes() == b"x"


def test_many_threads_read_and_write_one_file_without_mixing_their_blocks(
    inside: Task, shared: Path
) -> None:
    fd = inside.open("f", abi.O_CREAT | abi.O_RDWR, 0o644)
    failures: list[BaseException] = []

    def run(which: int) -> None:
        block = bytes([which]) * 4096
        try:
            for round_ in range(50):
                offset = (round_ * 4 + which) * 4096
                assert inside.pwrite64(fd, block, offset) == 4096
                assert inside.pread64(fd, 4096, offset) == block
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(which,)) for which in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert inside.fstat(fd).st_size == 200 * 4096


def test_open_waits_until_a_lease_is_given_up(inside: Task, shared: Path) -> None:
    """As an NFS server's delegation or Samba's oplock of the same file is a lease."""
    (shared / "leased").write_bytes(b"data")
    ready, tell = os.pipe()
    child = os.fork()
    if not child:
        try:
            fd = os.open(shared / "leased", os.O_RDWR)

            def give_up(number: int, frame: object) -> None:
                time.sleep(0.05)
                fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
                os._exit(0)

            signal.signal(signal.SIGIO, give_up)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
            os.write(tell, b"x")
            time.sleep(30)
        finally:
            os._exit(1)
    os.close(tell)
    assert os.read(ready, 1) == b"x"
    os.close(ready)
    fd = inside.open("leased", abi.O_RDONLY)
    assert os.waitpid(child, 0)[1] == 0
    assert inside.read(fd, 10) == b"data"
    assert not os.get_blocking(host_file(inside, fd).fd)
