"""The control socket: the same calls, made by a client, and what clients can do wrong."""

from __future__ import annotations

import errno
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from harness.control.client import Disconnected, RemoteKernel
from harness.control.encoding import decode, encode
from harness.control.kernel import Kernel, LocalKernel
from harness.control.server import LINE_MAX, ControlServer
from harness.errors import UsageError
from harness.virtiofs import listen
from vfs import VirtualFilesystem, abi
from vfs.task import Task


@pytest.fixture
def path(tmp_path: Path, vfs: VirtualFilesystem, task: Task) -> Iterator[str]:
    """The socket of a server whose kernels' tasks are clones of ``task``."""
    place = str(tmp_path / "control")
    with ControlServer(listen(place), lambda: LocalKernel(vfs, task)):
        yield place


@pytest.fixture(params=["local", "remote"])
def kernel(
    request: pytest.FixtureRequest, path: str, vfs: VirtualFilesystem, task: Task
) -> Iterator[Kernel]:
    with LocalKernel(vfs, task) if request.param == "local" else RemoteKernel(path) as found:
        yield found


def fails_with(number: int, call: Callable[..., Any], *arguments: Any, **keywords: Any) -> None:
    with pytest.raises(OSError) as caught:
        call(*arguments, **keywords)
    assert caught.value.errno == number


def test_calls_are_made_and_their_values_come_back(kernel: Kernel, task: Task) -> None:
    mine = kernel.create_task()
    kernel.call(mine, "mkdir", b"/d", 0o755)
    fd = kernel.call(mine, "open", "/d/f", abi.O_RDWR | abi.O_CREAT, 0o640)
    assert kernel.call(mine, "write", fd, b"\0\xff binary") == 9
    assert kernel.call(mine, "pread64", fd, 100, 0) == b"\0\xff binary"
    stat = kernel.call(mine, "fstat", fd)
    assert stat == task.stat("/d/f")
    assert (stat.st_size, stat.st_mode) == (9, abi.S_IFREG | 0o640)
    assert kernel.call(mine, "statfs", "/") == task.statfs("/")
    directory = kernel.call(mine, "open", "/d", abi.O_RDONLY, 0)
    records = kernel.call(mine, "getdents64", directory, 4096)
    assert [record.d_name for record in records] == [b".", b"..", b"f"]
    assert kernel.call(mine, "chdir", "/d") is None
    assert kernel.call(mine, "getcwd") == b"/d"


def test_errors_come_back_as_they_were_raised(kernel: Kernel) -> None:
    mine = kernel.create_task()
    fails_with(errno.ENOENT, kernel.call, mine, "stat", "/missing")
    fails_with(errno.EBADF, kernel.call, mine, "read", 77, 1)
    fails_with(errno.ENOSYS, kernel.call, mine, "reboot")
    fails_with(errno.ENOSYS, kernel.call, mine, "exit")
    fails_with(errno.EINVAL, kernel.call, mine, "mkdir")
    fails_with(errno.EINVAL, kernel.call, mine, "mkdir", 3, 4, 5, 6)
    fails_with(errno.ESRCH, kernel.call, 4711, "getcwd")
    fails_with(errno.ESRCH, kernel.exit_task, 4711)


def test_tasks_have_identities_and_end(kernel: Kernel, vfs: VirtualFilesystem) -> None:
    before = len(vfs.tasks)
    mine = kernel.create_task()
    kernel.call(mine, "mkdir", "/private", 0o700)
    other = kernel.create_task(mine, uid=1000, gid=1000, groups=[100])
    fails_with(errno.EACCES, kernel.call, other, "open", "/private", abi.O_RDONLY, 0)
    able = kernel.create_task(mine, uid=1000, gid=1000, capabilities=1 << 1)  # CAP_DAC_OVERRIDE
    kernel.call(able, "open", "/private", abi.O_RDONLY, 0)
    fails_with(errno.EINVAL, kernel.create_task, mine, uid="nobody")
    kernel.exit_task(other)
    fails_with(errno.ESRCH, kernel.call, other, "getcwd")
    assert len(vfs.tasks) == before + 2


def test_what_would_wait_fails_with_eagain(kernel: Kernel) -> None:
    mine = kernel.create_task()
    kernel.call(mine, "mknod", "/fifo", abi.S_IFIFO | 0o600, 0)
    fd = kernel.call(mine, "open", "/fifo", abi.O_RDWR, 0)
    fails_with(errno.EAGAIN, kernel.call, mine, "read", fd, 1)
    sent = kernel.call(mine, "write", fd, bytes(1 << 20))
    assert 0 < sent < 1 << 20
    fails_with(errno.EAGAIN, kernel.call, mine, "write", fd, b"x" * 8192)


def test_the_end_of_a_client_ends_its_tasks(path: str, vfs: VirtualFilesystem) -> None:
    before = len(vfs.tasks)
    kernel = RemoteKernel(path)
    task = kernel.create_task()
    kernel.call(task, "open", "/f", abi.O_RDWR | abi.O_CREAT, 0o600)
    assert len(vfs.tasks) == before + 1
    kernel.close()
    deadline = time.monotonic() + 60
    while len(vfs.tasks) > before:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_clients_work_side_by_side(path: str) -> None:
    def work(number: int) -> None:
        try:
            with RemoteKernel(path) as kernel:
                task = kernel.create_task()
                fd = kernel.call(task, "open", f"/{number}", abi.O_RDWR | abi.O_CREAT, 0o600)
                for count in range(50):
                    assert kernel.call(task, "pwrite64", fd, b"%d" % number * 9000, count) == 9000
                assert kernel.call(task, "pread64", fd, 9000, 0) == b"%d" % number * 9000
        except BaseException as error:
            errors.append(error)

    errors: list[BaseException] = []
    threads = [threading.Thread(target=work, args=[number]) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors


def raw(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    sock.settimeout(60)
    sock.connect(path)
    assert json.loads(read_line(sock))["dentry"] == 1
    return sock


def read_line(sock: socket.socket) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        data = sock.recv(1 if len(line) < 1 << 16 else 1 << 16)
        assert data
        line += data
    return line


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"nonsense", "Expecting value"),
        (b"[1]", "a request is an object"),
        (b'"x"', "a request is an object"),
        (b"{}", "no operation None"),
        (b'{"op": "call"}', "task"),
        (b'{"op": "call", "task": [], "call": "stat"}', "Invalid argument"),
        (b'{"op": "call", "task": 1, "call": "stat", "arguments": [{"$bytes": 3}]}', "base64"),
        (b'{"op": "call", "task": 1, "call": "stat", "arguments": [{"$": "X"}]}', "no class"),
        (b"\x80", "decode"),
        (b"[" * 100_000, ""),
    ],
)  # fmt: skip
def test_a_bad_request_is_answered_and_the_next_one_served(
    path: str, line: bytes, message: str
) -> None:
    with raw(path) as sock:
        sock.sendall(line + b"\n")
        assert message in json.loads(read_line(sock))["error"]["message"]
        sock.sendall(b'{"id": 7, "op": "create_task"}\n')
        reply = json.loads(read_line(sock))
        assert reply["id"] == 7 and isinstance(reply["value"], int)


def test_a_line_without_end_is_cut_off(path: str) -> None:
    with raw(path) as sock, pytest.raises(OSError):
        for _ in range(LINE_MAX // 65536 + 100):
            sock.sendall(b"x" * 65536)
    RemoteKernel(path).close()


def test_a_client_that_does_not_read_is_dropped_and_slows_nobody(path: str) -> None:
    with raw(path) as lazy, RemoteKernel(path) as kernel:
        task = kernel.create_task()
        fd = kernel.call(task, "open", "/big", abi.O_RDWR | abi.O_CREAT, 0o600)
        kernel.call(task, "ftruncate", fd, 8 << 20)
        lazy.sendall(b'{"op": "create_task"}\n')
        own = json.loads(read_line(lazy))["value"]
        opening = {"op": "call", "task": own, "call": "open", "arguments": ["/big", 0, 0]}
        lazy.sendall(json.dumps(opening).encode() + b"\n")
        fd = json.loads(read_line(lazy))["value"]
        reading = {"op": "call", "task": own, "call": "pread64", "arguments": [fd, 8 << 20, 0]}
        lazy.sendall((json.dumps(reading).encode() + b"\n") * 6)
        assert kernel.call(task, "getcwd") == b"/"
        lazy.settimeout(60)
        with pytest.raises((OSError, AssertionError)):
            while True:
                lazy.sendall(b'{"op": "none"}\n' * 1000)
                time.sleep(0.01)
        assert kernel.call(task, "getcwd") == b"/"


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which needs root")
def test_another_users_client_is_told_and_left(path: str, tmp_path: Path) -> None:
    os.chmod(path, 0o777)
    tmp_path.chmod(0o755)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.chdir(tmp_path)
            os.setresuid(12345, 12345, 12345)
            RemoteKernel("control")
        except UsageError as error:
            status = 0 if "another user's" in str(error) else 2
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_the_socket_is_the_owners(path: str) -> None:
    assert os.stat(path).st_mode & 0o777 == 0o700


def test_where_no_daemon_is_the_user_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="start a daemon with --control"):
        RemoteKernel(str(tmp_path / "none"))
    left = tmp_path / "left"
    listen(str(left)).close()
    with pytest.raises(UsageError, match="has ended"):
        RemoteKernel(str(left))


def test_the_end_of_the_daemon_is_told(tmp_path: Path, vfs: VirtualFilesystem, task: Task) -> None:
    server = ControlServer(listen(str(tmp_path / "s")), lambda: LocalKernel(vfs, task))
    with RemoteKernel(str(tmp_path / "s")) as kernel:
        mine = kernel.create_task()
        server.close()
        with pytest.raises(Disconnected):
            kernel.call(mine, "getcwd")


@pytest.mark.parametrize("value", [None, 1, "x\udcff", b"\xff", [1, [b"x"]], {"a": {"b": b""}}])
def test_values_survive_json(value: Any) -> None:
    assert decode(json.loads(json.dumps(encode(value)))) == value


def test_a_request_that_is_interrupted_leaves_a_client_that_works(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RemoteKernel(path) as kernel:
        mine = kernel.create_task()
        sock = kernel._sock

        class Interrupted:
            def recv(self, size: int) -> bytes:
                monkeypatch.setattr(kernel, "_sock", sock)
                raise KeyboardInterrupt

            def send(self, data: bytes) -> int:
                return sock.send(data)

        monkeypatch.setattr(kernel, "_sock", Interrupted())
        with pytest.raises(KeyboardInterrupt):
            kernel.call(mine, "mkdir", "/d", 0o755)
        # The late reply is not taken for this one's.
        assert kernel.call(mine, "getcwd") == b"/"
        fails_with(errno.EEXIST, kernel.call, mine, "mkdir", "/d", 0o755)
