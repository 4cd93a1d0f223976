"""`dentry mount` from outside: how it starts, stops, and fails."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.harness.fuse_mount.conftest import MountDaemon

    StartDaemon = Callable[..., MountDaemon]

pytestmark = pytest.mark.fuse
needs_root_for_devices = pytest.mark.skipif(
    os.geteuid() != 0, reason="the option dev is root's: fusermount3 refuses it"
)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unmounts_and_exits_with_zero(
    tmp_path: Path, mount_daemon: StartDaemon, number: int
) -> None:
    with mount_daemon(tmp_path) as daemon:
        (tmp_path / "file").write_text("x")
        assert daemon.stop(number) == 0
        assert not daemon.mount_fields()
        assert daemon.log() == ""
        assert os.listdir(tmp_path) == []


def test_unmounting_by_hand_ends_the_daemon(tmp_path: Path, mount_daemon: StartDaemon) -> None:
    with mount_daemon(tmp_path) as daemon:
        subprocess.run(["umount", tmp_path], check=True)
        assert daemon.process.wait(60) == 0


def test_a_signal_while_files_are_open_still_ends_the_daemon(
    tmp_path: Path, mount_daemon: StartDaemon
) -> None:
    with (
        mount_daemon(tmp_path) as daemon,
        subprocess.Popen(
            ["sh", "-c", 'exec 3>"$0"; echo open; read line', tmp_path / "file"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as client,
    ):
        assert client.stdout is not None
        assert client.stdout.readline() == b"open\n"
        assert daemon.stop() == 0
        assert not daemon.mount_fields()


def test_killing_the_daemon_leaves_no_client_hanging(
    tmp_path: Path, mount_daemon: StartDaemon
) -> None:
    with mount_daemon(tmp_path) as daemon:
        errors: list[int | None] = []

        def work() -> None:
            try:
                while True:
                    (tmp_path / "file").write_text("x")
            except OSError as error:
                errors.append(error.errno)

        thread = threading.Thread(target=work)
        thread.start()
        daemon.stop(signal.SIGKILL)
        thread.join(60)
        assert errors and errors[0] in (errno.ENOTCONN, errno.ECONNABORTED)
        assert daemon.mount_fields()


def test_a_mount_can_be_made_again_where_one_was(tmp_path: Path, mount_daemon: StartDaemon) -> None:
    mountpoint, shared = tmp_path / "mountpoint", tmp_path / "shared"
    mountpoint.mkdir()
    shared.mkdir()
    for content in ("first", "second"):
        with mount_daemon(mountpoint, "--shared-dir", shared):
            (mountpoint / content).write_text(content)
    assert sorted(path.name for path in shared.iterdir()) == ["first", "second"]
    with mount_daemon(mountpoint):
        assert os.listdir(mountpoint) == []


@needs_root_for_devices
def test_the_tree_is_what_the_specs_say(tmp_path: Path, mount_daemon: StartDaemon) -> None:
    mountpoint, shared = tmp_path / "mountpoint", tmp_path / "shared"
    mountpoint.mkdir()
    shared.mkdir()
    (shared / "file").write_text("from the host")
    specs = (
        *("--mount", f"type=passthrough,src={shared},dst=/a/b,ro"),
        *("--mount", "type=tmpfs,dst=/small,size=64k"),
        *("--mount", "type=devtmpfs,dst=/dev"),
        *("--mount", "type=bind,src=/a,dst=/again"),
    )
    with mount_daemon(mountpoint, *specs, "-o", "dev"):
        assert (mountpoint / "a/b/file").read_text() == "from the host"
        assert (mountpoint / "again/b/file").read_text() == "from the host"
        with pytest.raises(OSError) as caught:
            (mountpoint / "a/b/new").touch()
        assert caught.value.errno == errno.EROFS
        with pytest.raises(OSError) as caught:
            (mountpoint / "small/file").write_bytes(bytes(1 << 20))
        assert caught.value.errno == errno.ENOSPC
        fd = os.open(mountpoint / "dev/zero", os.O_RDONLY)
        assert os.read(fd, 4) == b"\0" * 4
        os.close(fd)
    assert [path.name for path in shared.iterdir()] == ["file"]


@needs_root_for_devices
def test_options_of_the_mount_are_as_asked(tmp_path: Path, mount_daemon: StartDaemon) -> None:
    with mount_daemon(tmp_path) as daemon:
        assert {"rw", "nodev", "nosuid"} <= set(daemon.mount_fields()[5].split(","))
    words = "ro,dev,suid,noexec,noatime,allow_other,default_permissions,fsname=mine"
    with mount_daemon(tmp_path, "-o", words) as daemon:
        fields = daemon.mount_fields()
        flags = set(fields[5].split(","))
        assert {"ro", "noexec", "noatime"} <= flags
        assert not {"nodev", "nosuid"} & flags
        assert {"allow_other", "default_permissions"} <= set(fields[-1].split(","))
        assert fields[-3:-1] == ["fuse.dentry", "mine"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["{tmp}/missing"], "make the mount point first"),
        (["-o", "sync", "{tmp}"], "-o sync"),
        (["--readers", "0", "{tmp}"], "--readers 0"),
        (["--shared-dir", "{tmp}/missing", "{tmp}"], "{tmp}/missing"),
        (["--shared-dir", "{tmp}", "{tmp}"], "would hold itself"),
        (["--mount", "type=passthrough,src=/,dst=/host,ro", "{tmp}"], "would hold itself"),
    ],
)
def test_an_error_of_use_is_one_line_and_status_2(
    tmp_path: Path, arguments: list[str], named: str
) -> None:
    words = [word.replace("{tmp}", str(tmp_path)) for word in arguments]
    result = subprocess.run(
        [sys.executable, "-m", "harness.cli", "mount", *words], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert named.replace("{tmp}", str(tmp_path)) in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""
