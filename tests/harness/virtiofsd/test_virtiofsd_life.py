"""Sockets, pid files, systemd and the log: what a daemon's life is made of."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness.errors import UsageError
from harness.socket_file import SocketFile
from harness.virtiofsd import life
from harness.virtiofsd.life import (
    Ended,
    Notifier,
    PidFile,
    Signals,
    activated_socket,
    configure_log,
    inherited_socket,
)


@pytest.fixture
def root_logger() -> Iterator[None]:
    """The root logger, as it was afterwards."""
    logger = logging.getLogger()
    level, handlers = logger.level, list(logger.handlers)
    yield
    for handler in set(logger.handlers) - set(handlers):
        handler.close()
    logger.setLevel(level)
    logger.handlers[:] = handlers


def test_a_pid_file_is_gone_after_its_daemon_and_its_socket_too(tmp_path: Path) -> None:
    pid_file = PidFile(str(tmp_path / "s.pid"))
    socket_file = SocketFile(str(tmp_path / "s"))
    pid_file.remove(socket_file)
    pid_file.close()
    socket_file.listener.close()
    assert list(tmp_path.iterdir()) == []


def test_a_pid_file_that_another_daemon_has_made_since_is_left_to_it(tmp_path: Path) -> None:
    first = PidFile(str(tmp_path / "s.pid"))
    os.unlink(tmp_path / "s.pid")
    second = PidFile(str(tmp_path / "s.pid"))
    first.remove(None)
    first.close()
    assert (tmp_path / "s.pid").read_text() == f"{os.getpid()}\n"
    second.remove(None)
    second.close()


def test_who_waits_outside_leaves_a_pid_file_that_somebody_has_locked(tmp_path: Path) -> None:
    waiter = PidFile(str(tmp_path / "s.pid"))
    waiter.close()
    successor = PidFile(str(tmp_path / "s.pid"))
    waiter.remove(None)
    waiter.close()
    assert (tmp_path / "s.pid").exists()
    successor.remove(None)
    successor.close()
    assert not (tmp_path / "s.pid").exists()


def test_a_link_in_place_of_a_pid_file_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "s.pid").symlink_to("precious")
    with pytest.raises(UsageError, match=r"s\.pid"):
        PidFile(str(tmp_path / "s.pid"))
    assert (tmp_path / "precious").read_text() == "precious"


@pytest.mark.parametrize("path", ["/nonexistent/s", "/" + "x" * 200, "."])
def test_a_socket_that_cannot_be_had_is_refused_by_name(path: str) -> None:
    with pytest.raises(UsageError, match="--socket-path"):
        SocketFile(path)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, False),
        ({"LISTEN_PID": "7", "LISTEN_FDS": "1"}, True),
        ({"LISTEN_PID": "8", "LISTEN_FDS": "1"}, False),
        ({"LISTEN_PID": "x", "LISTEN_FDS": "1"}, False),
        ({"LISTEN_FDS": "1"}, False),
    ],
)
def test_a_socket_of_systemds_is_for_the_process_it_names(
    environment: dict[str, str], expected: bool
) -> None:
    assert activated_socket(environment, 7) == expected


@pytest.mark.parametrize("count", ["0", "2", "", "x"])
def test_systemd_has_to_open_one_socket(count: str) -> None:
    with pytest.raises(UsageError, match="LISTEN_FDS"):
        activated_socket({"LISTEN_PID": "7", "LISTEN_FDS": count}, 7)


@pytest.mark.parametrize("abstract", [False, True])
def test_systemd_is_told_at_a_path_or_an_abstract_name(tmp_path: Path, abstract: bool) -> None:
    name = f"dentry-{secrets.token_hex(8)}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}" if abstract else name)
        manager.settimeout(60)
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}" if abstract else name})
        notifier.send("READY=1")
        assert manager.recv(100) == b"READY=1"
        notifier.close()


def test_without_systemd_nobody_is_told() -> None:
    notifier = Notifier({})
    assert notifier.fileno() == -1
    notifier.send("READY=1")
    notifier.close()


def test_a_systemd_that_has_gone_is_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    notifier.send("STOPPING=1")
    notifier.close()
    assert "could not be told STOPPING=1" in caplog.text


def test_a_systemd_that_is_not_there_is_refused() -> None:
    with pytest.raises(UsageError, match="NOTIFY_SOCKET=/nonexistent"):
        Notifier({"NOTIFY_SOCKET": "/nonexistent"})


def test_what_is_no_stream_socket_is_not_taken_and_stays_open() -> None:
    reader, writer = os.pipe()
    with pytest.raises(UsageError, match="--fd 5"):
        inherited_socket(reader, "--fd 5")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagram:
        with pytest.raises(UsageError, match="no Unix stream socket"):
            inherited_socket(datagram.fileno(), "--fd 5")
        assert os.fstat(datagram.fileno())
    os.close(reader)
    os.close(writer)


def test_the_system_log_gets_what_stderr_would(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    root_logger: None,
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "log"))
        syslog.settimeout(60)
        monkeypatch.setattr(life, "SYSTEM_LOG", str(tmp_path / "log"))
        assert configure_log("virtiofsd", "warn", True) >= 0
        logging.getLogger("here").info("unsaid")
        logging.getLogger("here").warning("said")
        line = syslog.recv(1000)
    assert line.rstrip(b"\0").endswith(f"virtiofsd[{os.getpid()}]: here: said".encode())
    assert line.startswith(b"<12>")
    assert capsys.readouterr().err == ""


def test_without_a_system_log_the_log_goes_to_stderr_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], root_logger: None
) -> None:
    monkeypatch.setattr(life, "SYSTEM_LOG", "/nonexistent/log")
    assert configure_log("virtiofsd", "info", True) == -1
    logging.getLogger("here").info("said")
    lines = capsys.readouterr().err.splitlines()
    assert "/nonexistent/log" in lines[0]
    assert lines[1] == "virtiofsd: INFO: here: said"


def test_a_signal_ends_what_runs_once_and_what_waits_by_an_exception() -> None:
    before = signal.getsignal(signal.SIGTERM)
    ends: list[str] = []
    with Signals() as signals:
        signals.end = lambda: ends.append("ended")
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert ends == ["ended"]
    with Signals(), pytest.raises(Ended):
        os.kill(os.getpid(), signal.SIGHUP)
    assert signal.getsignal(signal.SIGTERM) == before
