"""The /dev/fuse transport, with a server that is not ours to test."""

from __future__ import annotations

import errno
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.fuse.dev_fuse import FuseMount
from harness.fuse.host_mount import HostMountError, MountOptions, attach

if TYPE_CHECKING:
    from tests.harness.fuse_mount.conftest import OneFileServer

INTERRUPT = 36

pytestmark = pytest.mark.fuse
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount so")


def mountinfo(path: Path) -> list[str] | None:
    """The fields of the topmost mount at `path`, or None."""
    found = None
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(path):
            found = fields
    return found


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def test_the_mount_is_there_inside_of_with_and_gone_after_it(
    tmp_path: Path, one_file: OneFileServer
) -> None:
    with FuseMount(tmp_path, one_file):
        fields = mountinfo(tmp_path)
        assert fields is not None
        assert "fuse.dentry" in fields
        assert os.listdir(tmp_path.parent)
        assert (tmp_path / "file").stat().st_size == one_file.SIZE
    assert mountinfo(tmp_path) is None
    assert one_file.resets == 1


@needs_root
def test_a_mount_has_nodev_and_nosuid_unless_asked(tmp_path: Path, one_file: OneFileServer) -> None:
    with FuseMount(tmp_path, one_file):
        fields = mountinfo(tmp_path)
        assert fields is not None
        assert {"nodev", "nosuid", "rw"} <= set(fields[5].split(","))
    options = MountOptions(dev=True, suid=True, read_only=True, noexec=True, fsname="name")
    with FuseMount(tmp_path, one_file, options=options):
        fields = mountinfo(tmp_path)
        assert fields is not None
        words = set(fields[5].split(","))
        assert not {"nodev", "nosuid"} & words
        assert {"ro", "noexec"} <= words
        assert "name" in fields


@needs_root
def test_access_options_reach_the_kernel(tmp_path: Path, one_file: OneFileServer) -> None:
    options = MountOptions(allow_other=True, default_permissions=True)
    with FuseMount(tmp_path, one_file, options=options):
        fields = mountinfo(tmp_path)
        assert fields is not None
        assert {"allow_other", "default_permissions"} <= set(fields[-1].split(","))


@pytest.mark.parametrize("readers", [1, 3])
def test_data_goes_both_ways_with_any_number_of_readers(
    tmp_path: Path, one_file: OneFileServer, readers: int
) -> None:
    with FuseMount(tmp_path, one_file, readers=readers):
        fd = os.open(tmp_path / "file", os.O_RDWR)
        try:
            assert os.pread(fd, 1 << 19, 0) == b"x" * (1 << 19)
            data = os.urandom(1 << 20)
            assert os.pwrite(fd, data, 0) == len(data)
        finally:
            os.close(fd)
        assert one_file.written == data


def test_a_request_answered_later_does_not_hold_up_others(
    tmp_path: Path, one_file: OneFileServer
) -> None:
    with FuseMount(tmp_path, one_file):
        fd = os.open(tmp_path / "file", os.O_RDONLY)
        results: list[bytes] = []
        thread = threading.Thread(target=lambda: results.append(os.pread(fd, 5, one_file.PARK)))
        thread.start()
        wait_until(lambda: bool(one_file.parked))
        assert os.pread(fd, 5, 0) == b"xxxxx"
        assert not results
        one_file.complete_parked(b"later")
        thread.join()
        os.close(fd)
        assert results == [b"later"]


def test_a_completion_after_the_unmount_is_dropped(tmp_path: Path, one_file: OneFileServer) -> None:
    with FuseMount(tmp_path, one_file) as mount:
        reader = read_in_child(tmp_path / "file", one_file.PARK)
        wait_until(lambda: bool(one_file.parked))
        mount.abort()
        reader.wait()
    read_end, write_end = os.pipe()
    try:
        one_file.complete_parked(b"nobody wants this")
        os.set_blocking(read_end, False)
        with pytest.raises(BlockingIOError):
            os.read(read_end, 1)
    finally:
        os.close(read_end)
        os.close(write_end)


def test_a_killed_client_is_announced_by_interrupt_and_freed_by_the_late_reply(
    tmp_path: Path, one_file: OneFileServer
) -> None:
    with FuseMount(tmp_path, one_file):
        reader = read_in_child(tmp_path / "file", one_file.PARK)
        wait_until(lambda: bool(one_file.parked))
        reader.kill()
        wait_until(lambda: one_file.requests[INTERRUPT] == 1)
        one_file.complete_parked(b"late")
        assert reader.wait() == -signal.SIGKILL


def test_a_second_reply_is_nobodys_error(
    tmp_path: Path, one_file: OneFileServer, caplog: pytest.LogCaptureFixture
) -> None:
    with FuseMount(tmp_path, one_file):
        reader = read_in_child(tmp_path / "file", one_file.PARK)
        wait_until(lambda: bool(one_file.parked))
        again = one_file.parked[0]
        one_file.complete_parked(b"x")
        assert reader.wait() == 0
        one_file.parked.append(again)
        one_file.complete_parked(b"x")
        assert (tmp_path / "file").exists()
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_reply_that_the_kernel_refuses_becomes_eio(
    tmp_path: Path, one_file: OneFileServer, caplog: pytest.LogCaptureFixture
) -> None:
    with FuseMount(tmp_path, one_file):
        with pytest.raises(OSError) as caught:
            (tmp_path / "garbage").stat()
        assert caught.value.errno == errno.EIO
        assert (tmp_path / "file").exists()
    assert "refused the reply" in caplog.text


def test_a_reader_that_dies_takes_the_connection_with_it(
    tmp_path: Path, one_file: OneFileServer, caplog: pytest.LogCaptureFixture
) -> None:
    with FuseMount(tmp_path, one_file) as mount:
        waiting = read_in_child(tmp_path / "file", one_file.PARK)
        wait_until(lambda: bool(one_file.parked))
        with pytest.raises(OSError) as caught:
            (tmp_path / "die").stat()
        assert caught.value.errno in (errno.ECONNABORTED, errno.ENOTCONN)
        assert waiting.wait() == errno.ECONNABORTED
        with pytest.raises(OSError) as caught:
            (tmp_path / "file").stat()
        assert caught.value.errno == errno.ENOTCONN
        mount.wait()
    assert mountinfo(tmp_path) is None
    assert "a bug of the server" in caplog.text


def test_unmounting_by_hand_ends_wait(tmp_path: Path, one_file: OneFileServer) -> None:
    with FuseMount(tmp_path, one_file) as mount:
        subprocess.run(["umount", tmp_path], check=True)
        mount.wait()
    assert one_file.resets == 1


def test_a_mount_in_use_is_detached_and_its_users_get_an_error(
    tmp_path: Path, one_file: OneFileServer
) -> None:
    with FuseMount(tmp_path, one_file):
        fd = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        assert mountinfo(tmp_path) is None
        with pytest.raises(OSError) as caught:
            os.pread(fd, 1, 0)
        assert caught.value.errno == errno.ENOTCONN
    finally:
        # Closing asks the server too, and frees the descriptor whatever the answer.
        with suppress(OSError):
            os.close(fd)


@needs_root
def test_a_mount_on_top_of_ours_is_not_taken_for_ours(
    tmp_path: Path, one_file: OneFileServer
) -> None:
    try:
        with FuseMount(tmp_path, one_file):
            subprocess.run(["mount", "-t", "tmpfs", "upper", tmp_path], check=True)
        fields = mountinfo(tmp_path)
        assert fields is not None
        assert "upper" in fields
    finally:
        subprocess.run(["umount", tmp_path], check=True)
        subprocess.run(["umount", "-q", tmp_path], check=False)


def test_a_cached_name_is_dropped_by_a_notification(
    tmp_path: Path, one_file: OneFileServer
) -> None:
    with FuseMount(tmp_path, one_file) as mount:
        (tmp_path / "file").stat()
        mount.notify_inval_entry(1, b"file")
        mount.notify_inval_inode(1, -1)
        with pytest.raises(OSError) as caught:
            mount.notify_inval_entry(4711, b"file")
        assert caught.value.errno == errno.ENOENT
    with pytest.raises(OSError) as caught:
        mount.notify_inval_entry(1, b"file")
    assert caught.value.errno == errno.ENODEV


def test_a_mount_point_that_is_missing_or_a_file_is_told_in_one_line(
    tmp_path: Path, one_file: OneFileServer
) -> None:
    with pytest.raises(HostMountError, match="no such directory"):
        FuseMount(tmp_path / "missing", one_file).mount()
    (tmp_path / "regular").touch()
    with pytest.raises(HostMountError, match="not a directory"):
        FuseMount(tmp_path / "regular", one_file).mount()


def test_a_dead_mount_at_the_mount_point_is_named_as_what_it_is(
    tmp_path: Path, one_file: OneFileServer
) -> None:
    dead = attach(tmp_path, MountOptions())
    os.close(dead.fd)
    try:
        with pytest.raises(HostMountError, match="whose server died"):
            FuseMount(tmp_path, one_file).mount()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_killing_the_server_process_frees_its_clients(tmp_path: Path) -> None:
    script = (
        "import os, sys, threading\n"
        "from harness.fuse.host_mount import MountOptions, attach\n"
        "mount = attach(sys.argv[1], MountOptions())\n"
        "print('mounted', flush=True)\n"
        "threading.Event().wait()\n"
    )
    server = subprocess.Popen(
        [sys.executable, "-c", script, tmp_path], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout is not None
        assert server.stdout.readline() == "mounted\n"
        client = read_in_child(tmp_path / "file", 0)
        wait_until(lambda: waits_for_server(client.pid))
        server.send_signal(signal.SIGKILL)
        server.wait()
        assert client.wait() in (errno.ENOTCONN, errno.ECONNABORTED)
    finally:
        server.kill()
        server.communicate()
        subprocess.run(["umount", "-l", tmp_path], check=True)


def waits_for_server(pid: int) -> bool:
    """Whether a process sleeps in the kernel's FUSE client. See proc(5), wchan."""
    place = Path(f"/proc/{pid}/wchan").read_text()
    return "fuse" in place or "request_wait" in place


def read_in_child(path: Path, offset: int) -> subprocess.Popen[bytes]:
    """A process that reads one byte and exits with 0 or the errno."""
    script = (
        "import os, sys\n"
        "try:\n"
        "    fd = os.open(sys.argv[1], os.O_RDONLY)\n"
        "    os.pread(fd, 1, int(sys.argv[2]))\n"
        "except OSError as error:\n"
        "    sys.exit(error.errno)\n"
    )
    return subprocess.Popen([sys.executable, "-c", script, path, str(offset)])
