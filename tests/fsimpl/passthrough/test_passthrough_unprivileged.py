"""A process that is not root: it is itself for every caller."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from fsimpl.passthrough import PassthroughType
from vfs import Credentials, VirtualFilesystem, abi
from vfs.task import Task

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user: needs root")


@pytest.fixture
def as_user(shared: Path, capfd: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Runs a function with a task of ``cred`` on ``shared``, in a process of uid and gid 1000."""
    os.chown(shared, 1000, 1000)

    def run(function: Callable[[Task], None], cred: Credentials) -> None:
        child = os.fork()
        if not child:
            status = 1
            try:
                os.chdir(shared)
                os.setgroups([])
                os.setresgid(1000, 1000, 1000)
                os.setresuid(1000, 1000, 1000)
                vfs = VirtualFilesystem()
                vfs.register(PassthroughType())
                with vfs.create_namespace("passthrough", source=b".") as namespace:
                    function(vfs.create_task(namespace, cred))
                vfs.shutdown()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        status = os.waitpid(child, 0)[1]
        assert status == 0, capfd.readouterr().err

    return run


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o200, 0o644])
def test_whoever_makes_a_file_may_write_to_it_whatever_its_mode(
    as_user: Callable[..., None], shared: Path, mode: int
) -> None:
    def make(task: Task) -> None:
        task.umask(0)
        fd = task.open("f", abi.O_CREAT | abi.O_EXCL | abi.O_RDWR, mode)
        task.write(fd, b"content")
        assert task.pread64(fd, 10, 0) == b"content"
        task.close(fd)

    as_user(make, Credentials(1000, 1000))
    assert (shared / "f").stat().st_mode & 0o7777 == mode
    assert (shared / "f").read_bytes() == b"content"


def test_names_attributes_and_links_work_through_a_users_own_descriptors(
    as_user: Callable[..., None], shared: Path
) -> None:
    def work(task: Task) -> None:
        task.mkdir("d", 0o755)
        fd = task.open("d", abi.O_TMPFILE | abi.O_RDWR, 0o600)
        task.write(fd, b"x")
        task.linkat(fd, "", abi.AT_FDCWD, "d/f", abi.AT_EMPTY_PATH)
        task.link("d/f", "g")
        task.chmod("g", 0o640)
        task.chown("g", 1000, 1000)
        task.truncate("g", 5)
        task.setxattr("g", "user.a", b"1")
        assert task.listxattr("d/f") == [b"user.a"]
        task.rename("g", "d/h")
        assert sorted(task.listdir("d")) == ["f", "h"]

    as_user(work, Credentials(1000, 1000))
    assert (shared / "d" / "f").stat().st_mode & 0o7777 == 0o640


def test_what_root_inside_makes_belongs_to_the_user_and_the_host_still_refuses(
    as_user: Callable[..., None], shared: Path
) -> None:
    (shared / "roots").mkdir(mode=0o700)
    (shared / "file").write_bytes(b"root's")
    (shared / "file").chmod(0o600)

    def work(task: Task) -> None:
        task.mkdir("mine")
        for attempt in (
            lambda: task.mkdir("roots/new"),
            lambda: task.open("file", abi.O_RDONLY),
            lambda: task.chmod("file", 0o777),
            lambda: task.chown("mine", 0, 0),
        ):
            with pytest.raises(PermissionError):
                attempt()

    as_user(work, Credentials.root())
    assert (shared / "mine").stat().st_uid == 1000
