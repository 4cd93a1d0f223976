"""The command line: errors of use, and what needs no guest and no mount."""

from __future__ import annotations

import importlib
import io
import logging
import os
import signal
import socket
import stat
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.cli.commands import COMMANDS
from harness.cli.main import main
from harness.cli.options import parse_size
from harness.errors import UsageError
from harness.fuzz.isolation import fork
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import FuseClient

Run = Callable[..., "subprocess.CompletedProcess[str]"]


def run(*words: str | Path, **keywords: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "harness.cli", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        **keywords,  # type: ignore[call-overload]
    )


def run_forked(words: list[str], directory: Path) -> subprocess.CompletedProcess[str]:
    """As ``run``, in a fork of this process: what takes most of the time, imports, is done."""
    output, errors = (directory / name for name in ("stdout", "stderr"))
    for name in COMMANDS:
        importlib.import_module(f"harness.cli.{name}")
    child = fork()
    if child == 0:
        status = 70
        try:
            for fd, path in enumerate((Path(os.devnull), output, errors)):
                os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), fd)
            os.closerange(3, 1 << 10)
            sys.stdout, sys.stderr = (
                io.TextIOWrapper(io.FileIO(1, "w")),
                io.TextIOWrapper(io.FileIO(2, "w")),
            )
            logging.getLogger().handlers.clear()
            os.chdir(directory)
            status = main(words)
        except SystemExit as end:
            status = end.code if isinstance(end.code, int) else 71
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return subprocess.CompletedProcess(words, status, output.read_text(), errors.read_text())


def assert_error_of_use(result: subprocess.CompletedProcess[str], named: str) -> None:
    assert result.returncode == 2
    assert named in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ([], "see dentry --help"),
        (["unknown"], "unknown"),
        (["serve"], "--socket-path"),
        (["serve", "--socket-path", "s", "--fd", "3"], "not allowed with"),
        (["serve", "--socket-path", "/nonexistent/s"], "/nonexistent/s: No such directory"),
        (["serve", "--socket-path", ""], "--socket-path ''"),
        (["serve", "--socket-path", "."], "choose another path"),
        (["serve", "--fd", "-1"], "--fd -1"),
        (["serve", "--fd", str(1 << 80)], f"--fd {1 << 80}"),
        (["serve", "--socket-path", "s", "--tag", ""], "1 to 36 bytes"),
        (["serve", "--socket-path", "s", "--shared-dir", ""], "--shared-dir ''"),
        (["serve", "--socket-path", "s", "--mount", "type=tmpfs,\ndst=/"], r"type=tmpfs,\ndst=/"),
        (["serve", "--socket-path", "s", "--mount", "type=tmpfs,dst=x"], "dst=x is not absolute"),
        (["serve", "--socket-path", "s", "--mount", "type=tmpfs,dst=/,size=abc"], "size=abc"),
        (["serve", "--socket-path", "s", "--log-level", "a\nb"], "--log-level"),
        (["serve", "--socket-path", "/tmp/" + "x" * 108], "path too long"),
        (["serve", "--fd", "99"], "--fd 99: Bad file descriptor"),
        (["serve", "--fd", "0"], "--fd 0"),
        (["serve", "--socket-path", "s", "--tag", "x" * 37], "1 to 36 bytes"),
        (["serve", "--socket-path", "s", "--num-queues", "0"], "request queues"),
        (["serve", "--socket-path", "s", "--mount", "type=tmpfs"], "--mount type=tmpfs: no dst"),
        (["serve", "--socket-path", "s", "--shared-dir", "/nonexistent"], "/nonexistent"),
        (["mount"], "MOUNTPOINT"),
        (["mount", ""], "MOUNTPOINT"),
        (["mount", "/nonexistent"], "make the mount point first"),
        (["mount", "/dev/null"], "not a directory"),
        (["guest", "--memory", "lots"], "'lots' is no size"),
        (["guest", "--memory", "95m"], "96m at least"),
        (["guest", "--memory", "9999999t"], "this machine has"),
        (["guest", "--cpus", "0"], "--cpus 0"),
        (["guest", "--cpus", "256"], "1 to 255"),
        (["guest", "--tag", ""], "1 to 36 bytes"),
        (["guest", "--tag", "x" * 37], "1 to 36 bytes"),
        (["guest", "--transport", "pigeon"], "pigeon"),
        (["guest", "--mount", "type=none,dst=/"], "no type 'none'"),
        (["guest", "--root", "/nonexistent"], "--root /nonexistent: no such directory"),
        (["guest", "--root", "/dev/null"], "--root /dev/null: no such directory"),
        (["guest", "--root", "."], "make an empty directory 'proc'"),
        (["guest", "--kernel", "/bin/sh", "--", "true"], "not a Linux bzImage"),
        (["guest", "--kernel", "/nonexistent", "--", "true"], "/nonexistent"),
    ],
)
def test_an_error_of_use_is_one_line_on_stderr_and_status_2(
    words: list[str], named: str, tmp_path: Path
) -> None:
    assert_error_of_use(run_forked(words, tmp_path), named)


def test_the_process_ends_with_the_status_of_an_error_of_use(tmp_path: Path) -> None:
    assert_error_of_use(run("unknown", cwd=tmp_path), "unknown")
    assert_error_of_use(run("serve", "--fd", "0", cwd=tmp_path), "--fd 0")


def test_a_missing_qemu_names_its_package(tmp_path: Path) -> None:
    (tmp_path / "busybox").symlink_to("/bin/busybox")
    environment = {**os.environ, "PATH": str(tmp_path)}
    assert_error_of_use(run("guest", "--", "true", env=environment), "qemu-system-x86")


def test_a_socket_that_a_daemon_listens_on_is_left_to_it(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen(1)
        assert_error_of_use(run("serve", "--socket-path", path), "a daemon listens there")
    assert path.is_socket()


def test_a_daemon_does_not_unlink_the_socket_of_its_successor(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "serve", "--socket-path", path]
    ) as daemon:
        with Frontend.connect(path) as frontend:
            frontend.negotiate()
        path.unlink()
        with socket.socket(socket.AF_UNIX) as successor:
            successor.bind(str(path))
            daemon.terminate()
            assert daemon.wait(60) == 0
    assert path.is_socket()


def test_ctrl_c_while_modules_are_imported_leaves_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Interrupter:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "harness.cli.commands":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "harness.cli.commands", raising=False)
    monkeypatch.setattr(sys, "meta_path", [Interrupter(), *sys.meta_path])
    assert main(["--version"]) == 130


def test_a_reader_that_goes_away_is_no_bug_of_ours() -> None:
    environment = {**os.environ, "PATH": "/nonexistent"}
    end, output = os.pipe()
    os.close(end)
    result = subprocess.run(
        [sys.executable, "-m", "harness.cli", "demo"],
        stdout=output,
        stderr=subprocess.PIPE,
        env=environment,
        timeout=60,
    )
    os.close(output)
    assert (result.returncode, result.stderr) == (141, b"")


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("dentry 0.")


@pytest.mark.parametrize("command", ["serve", "mount", "guest"])
def test_help_explains_the_specs(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert "type=passthrough,src=/srv,dst=/srv,ro" in capsys.readouterr().out


def test_sizes_have_suffixes() -> None:
    assert parse_size("4096") == 4096
    assert parse_size("512m") == 512 << 20
    assert parse_size("2G") == 2 << 30
    for text in ("", "m", "0", "-1", "1.5g", "1q", "\u0661"):
        with pytest.raises(UsageError):
            parse_size(text)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_serves_one_client_after_another_and_ends_by_a_signal(
    tmp_path: Path, number: int
) -> None:
    path, shared = tmp_path / "socket", tmp_path / "shared"
    shared.mkdir()
    (shared / "file").write_text("x")
    arguments = ["serve", "--socket-path", path, "--shared-dir", shared]
    with subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *arguments], stderr=subprocess.PIPE
    ) as daemon:
        for _ in range(2):
            with Frontend.connect(path) as frontend:
                assert read_through(frontend, b"file") == b"x"
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
        daemon.send_signal(number)
        _, errors = daemon.communicate(timeout=60)
        assert (daemon.returncode, errors) == (0, b"")
    assert not path.exists()


@pytest.mark.parametrize("listening", [True, False])
def test_serve_takes_an_inherited_socket(tmp_path: Path, listening: bool) -> None:
    (tmp_path / "file").write_text("x")
    if listening:
        theirs = socket.socket(socket.AF_UNIX)
        theirs.bind(str(tmp_path / "socket"))
        theirs.listen(1)
        ours = socket.socket(socket.AF_UNIX)
        ours.connect(str(tmp_path / "socket"))
    else:
        ours, theirs = socket.socketpair()
    command = ["serve", "--fd", str(theirs.fileno()), "--shared-dir", str(tmp_path)]
    with subprocess.Popen(
        [sys.executable, "-m", "harness.cli", *command], pass_fds=[theirs.fileno()]
    ) as daemon:
        theirs.close()
        with Frontend(ours) as frontend:
            assert read_through(frontend, b"file") == b"x"
        if listening:
            daemon.terminate()
        assert daemon.wait(60) == 0


def read_through(frontend: Frontend, name: bytes) -> bytes:
    frontend.negotiate()
    frontend.share_memory()
    client = FuseClient(frontend)
    client.init()
    entry = client.lookup(1, name)
    handle = client.open(entry.nodeid)
    data = client.read(entry.nodeid, handle, 0, 4096)
    client.release(entry.nodeid, handle)
    return data
