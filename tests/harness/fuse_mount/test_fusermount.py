"""Mounts by an ordinary user, through the setuid helper fusermount3."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from harness.fuse.dev_fuse import FuseMount
from harness.fuse.host_mount import HostMountError, MountOptions, have_fusectl

if TYPE_CHECKING:
    from tests.harness.fuse_mount.conftest import OneFileServer

USER = 65534  # fusermount3 wants one that has a name; nobody has

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which needs root"),
]


@pytest.fixture
def user_directory() -> Iterator[Path]:
    """A directory that `USER` owns, below directories that everybody may pass."""
    with tempfile.TemporaryDirectory(prefix="dentry-user-") as base:
        os.chmod(base, 0o755)
        directory = Path(base, "mountpoint")
        directory.mkdir()
        os.chown(directory, USER, USER)
        yield directory


class UserProcess:
    """A fork that runs `function` as `USER`, up to a `pause` in it and, told so, to the end.

    A fork, because an interpreter in root's home could not be executed by that user.
    """

    def __init__(self, function: Callable[[Callable[[], None]], None]) -> None:
        resumed, self._resume = os.pipe()
        self._reached, reached = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._resume)
            os.close(self._reached)
            _run_as_user(function, reached, resumed)
        os.close(resumed)
        os.close(reached)
        self.reached = os.read(self._reached, 1) == b"p"

    def finish(self) -> int:
        """Let it run on; its exit status."""
        os.close(self._resume)
        os.close(self._reached)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def _run_as_user(
    function: Callable[[Callable[[], None]], None], reached: int, resumed: int
) -> None:
    """Never returns, and does not outlive a test that hangs."""
    status = 1

    def pause() -> None:
        os.write(reached, b"p")
        os.read(resumed, 1)

    try:
        signal.alarm(30)
        os.setgroups([])
        os.setresgid(USER, USER, USER)
        os.setresuid(USER, USER, USER)
        function(pause)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def filesystem_at(path: Path) -> list[str] | None:
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        if line.split()[4] == str(path):
            return line.split()
    return None


def test_a_user_mounts_and_unmounts(user_directory: Path, one_file: OneFileServer) -> None:
    def serve(pause: Callable[[], None]) -> None:
        options = MountOptions(read_only=True)
        with FuseMount(user_directory, one_file, options=options):
            assert (user_directory / "file").stat().st_uid == USER
            pause()

    process = UserProcess(serve)
    fields = filesystem_at(user_directory)
    root_may_not = None
    try:
        os.stat(user_directory)
    except PermissionError as error:
        root_may_not = error.errno
    assert process.finish() == 0
    assert process.reached
    assert fields is not None
    assert "fuse.dentry" in fields
    assert {"ro", "nodev", "nosuid"} <= set(fields[5].split(","))
    assert root_may_not == errno.EACCES
    assert filesystem_at(user_directory) is None


def test_a_user_may_abort_the_own_connection(user_directory: Path, one_file: OneFileServer) -> None:
    def serve(pause: Callable[[], None]) -> None:
        with FuseMount(user_directory, one_file) as mount:
            pause()
            mount.abort()
            try:
                os.stat(user_directory / "file")
            except OSError as error:
                assert error.errno == errno.ENOTCONN
            else:
                raise AssertionError("the connection lives")

    have_fusectl()
    assert UserProcess(serve).finish() == 0
    assert filesystem_at(user_directory) is None


def test_a_user_server_that_is_killed_leaves_no_hung_client(
    user_directory: Path, one_file: OneFileServer
) -> None:
    def serve(pause: Callable[[], None]) -> None:
        with FuseMount(user_directory, one_file):
            pause()

    process = UserProcess(serve)
    os.kill(process.pid, signal.SIGKILL)
    assert process.finish() == -signal.SIGKILL
    try:
        with pytest.raises(OSError) as caught:
            os.stat(user_directory)
        assert caught.value.errno in (errno.ENOTCONN, errno.EACCES)
    finally:
        subprocess.run(["umount", user_directory], check=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (MountOptions(dev=True), "only root can mount with option 'dev'"),
        (MountOptions(suid=True), "only root can mount with option 'suid'"),
        (MountOptions(allow_other=True), "user_allow_other"),
    ],
)
def test_what_a_user_may_not_is_told_in_one_line(
    user_directory: Path, one_file: OneFileServer, options: MountOptions, message: str
) -> None:
    if options.allow_other and "\nuser_allow_other" in Path("/etc/fuse.conf").read_text():
        pytest.skip("this host lets users allow others")

    def refused(pause: Callable[[], None]) -> None:
        try:
            FuseMount(user_directory, one_file, options=options).mount()
        except HostMountError as error:
            assert message in str(error)
            assert "\n" not in str(error)
        else:
            raise AssertionError("it was mounted")

    assert UserProcess(refused).finish() == 0


def test_a_mount_point_of_somebody_else_is_refused_with_the_helpers_words(
    user_directory: Path, one_file: OneFileServer
) -> None:
    os.chown(user_directory, 0, 0)

    def refused(pause: Callable[[], None]) -> None:
        try:
            FuseMount(user_directory, one_file).mount()
        except HostMountError as error:
            assert "fusermount3" in str(error)
            assert "\n" not in str(error)
        else:
            raise AssertionError("it was mounted")

    assert UserProcess(refused).finish() == 0


def test_a_missing_helper_names_its_package(
    user_directory: Path, one_file: OneFileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")

    def refused(pause: Callable[[], None]) -> None:
        try:
            FuseMount(user_directory, one_file).mount()
        except HostMountError as error:
            assert "Debian package fuse3" in str(error)
        else:
            raise AssertionError("it was mounted")

    assert UserProcess(refused).finish() == 0
