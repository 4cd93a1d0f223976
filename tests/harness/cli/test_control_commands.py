"""`--control` of each daemon, and what is at the other end of it, through the real commands."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.control.client import RemoteKernel
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import FuseClient

DENTRY = [sys.executable, "-m", "harness.cli"]


def dentry(*words: str | Path) -> str:
    """The output of a command that has to succeed."""
    result = subprocess.run([*DENTRY, *words], capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def shell(control: Path, commands: str) -> str:
    return dentry("shell", "--connect", control, "-c", commands)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, "the daemon has ended"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def daemon(*words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([*DENTRY, *words], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        finally:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    """Where a tree is mounted; not any more afterwards, whatever happens."""
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    if os.path.ismount(path):
        subprocess.run(["umount", "-l", path], check=False)


@pytest.mark.fuse
def test_what_is_done_in_the_mount_is_seen_in_the_shell_and_the_other_way(
    tmp_path: Path, place: Path
) -> None:
    control = tmp_path / "control"
    with daemon("mount", "--control", control, place) as process:
        wait_for(lambda: control.exists() and os.path.ismount(place), process)
        assert stat.S_IMODE(control.stat().st_mode) == 0o600
        (place / "file").write_text("from the host\n")
        assert shell(control, "cat /file; mkdir /m; mount -t tmpfs none /m; touch /m/in") == (
            "from the host\n"
        )
        assert os.listdir(place / "m") == ["in"]
        listener = subprocess.Popen(
            [*DENTRY, "shell", "--connect", control, "-c", "trace on LOOKUP -n 1"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            number = 0
            while listener.poll() is None:
                (place / f"no-{number}").exists()
                number += 1
                time.sleep(0.02)
            assert listener.stdout is not None
            line = listener.stdout.read()
        finally:
            listener.kill()
            listener.communicate()
        assert re.fullmatch(r'\[client \d+\] #\d+ LOOKUP node=1 "no-\d+" uid=0 = .*>\n', line)
    assert not control.exists()


@pytest.fixture
def busy_mount(tmp_path: Path, place: Path) -> Iterator[Path]:
    """The control socket of a mount that somebody works in."""
    control = tmp_path / "control"
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            (place / "d" / "busy").write_bytes(b"x")
            os.stat(place / "d" / "busy")
            stop.wait(0.005)

    with daemon("mount", "--control", control, place) as process:
        wait_for(lambda: control.exists() and os.path.ismount(place), process)
        (place / "d").mkdir()
        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield control
        finally:
            stop.set()
            thread.join()


@pytest.mark.fuse
def test_top_shows_rates_latencies_and_paths(busy_mount: Path) -> None:
    found = json.loads(dentry("top", "--connect", busy_mount, "--once", "--json"))
    assert found["requests"]["WRITE"]["per_second"] > 0
    row = found["requests"]["WRITE"]
    assert 0 < row["p50"] <= row["p90"] <= row["p99"]
    assert "/d/busy" in [row["path"] for row in found["paths"] if row["per_second"] > 0]
    assert found["depth"] is not None and found["nodes"] >= 3
    text = dentry("top", "--connect", busy_mount, "--once")
    assert re.search(r"^WRITE +[1-9]\d* +\d+ +[\d.]+ [µm]?s", text, re.M)
    assert re.search(r"^/d/busy +\d+$", text, re.M)
    metrics = dentry("top", "--connect", busy_mount, "--prometheus")
    assert re.search(r'^dentry_requests_total\{opcode="WRITE"\} \d+$', metrics, re.M)
    assert re.search(r'^dentry_request_seconds_count\{opcode="WRITE"\} \d+$', metrics, re.M)


@pytest.mark.fuse
def test_top_is_drawn_in_place_on_a_terminal(busy_mount: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS="120", LINES="40")
        os.execv(
            sys.executable, [*DENTRY, "top", "--connect", str(busy_mount), "--interval", "0.2"]
        )
    seen = b""
    deadline = time.monotonic() + 120
    try:
        while not re.search(rb"WRITE.*\n?[^\n]*(\xc2\xb5s|ms)", seen) or b"/d/busy" not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([terminal], [], [], 1)[0]:
                seen += os.read(terminal, 1 << 16)
        assert b"\x1b[?1049h" in seen
        os.write(terminal, b"\x03")
        while b"\x1b[?1049l" not in seen:
            assert time.monotonic() < deadline, seen
            seen += os.read(terminal, 1 << 16)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
        child = 0
    finally:
        if child:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        os.close(terminal)


def test_top_tells_what_is_wrong(tmp_path: Path) -> None:
    words = ["--interval", "0"], ["--connect", str(tmp_path / "none")]
    for given in words:
        connect = ["--connect", "x"] if given[0] != "--connect" else []
        result = subprocess.run(
            [*DENTRY, "top", *connect, *given], capture_output=True, text=True, timeout=120
        )
        assert result.returncode == 2 and result.stderr.count("\n") == 1
        assert result.stderr.startswith(f"dentry: {given[0]}")


def test_the_requests_of_a_virtio_driver_are_counted_and_seen(tmp_path: Path) -> None:
    control, device = tmp_path / "control", tmp_path / "device"
    with daemon("serve", "--socket-path", device, "--control", control) as process:
        wait_for(lambda: control.exists() and device.exists(), process)
        shell(control, "echo data > /file")
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(str(device))
        with Frontend(sock) as frontend:
            frontend.negotiate()
            frontend.share_memory()
            client = FuseClient(frontend, depth=8, timeout=60)
            try:
                client.init()
                entry = client.lookup(1, b"file")
                assert entry.attr.size == 5
                metrics = dentry("top", "--connect", control, "--prometheus")
            finally:
                client.close()
        assert 'dentry_requests_total{opcode="LOOKUP"} 1\n' in metrics
        assert "dentry_queue_depth 0\n" in metrics and "dentry_nodes 2\n" in metrics


def test_ctrl_c_ends_the_trace_and_the_script_goes_on(tmp_path: Path) -> None:
    control, device = tmp_path / "control", tmp_path / "device"
    with daemon("serve", "--socket-path", device, "--control", control) as process:
        wait_for(control.exists, process)
        listener = subprocess.Popen(
            [*DENTRY, "shell", "--connect", control, "-c", "trace on vfs mount; echo ended"],
            stdout=subprocess.PIPE,
        )
        try:
            assert listener.stdout is not None
            with RemoteKernel(str(control)) as kernel:
                task = kernel.create_task()
                kernel.call(task, "mkdir", "/m", 0o755)
                while not select.select([listener.stdout], [], [], 0.05)[0]:
                    assert listener.poll() is None
                    kernel.call(task, "mount", "none", "/m", "tmpfs", 0, None)
                    kernel.call(task, "umount2", "/m", 0)
            listener.send_signal(signal.SIGINT)
            *traced, last = listener.communicate(timeout=120)[0].splitlines()
        finally:
            listener.kill()
            listener.communicate()
        assert set(traced) == {b"[%d] mount tmpfs /m" % task} and last == b"ended"
        assert listener.returncode == 0


@pytest.mark.guest
def test_what_a_guest_does_is_seen_in_the_shell_and_the_other_way(tmp_path: Path) -> None:
    control = tmp_path / "control"
    script = (
        "echo from the guest > /root/file; while [ ! -e /mnt/in ]; do sleep 0.1; done; "
        "echo seen; read line"
    )
    process = subprocess.Popen(
        [*DENTRY, "guest", "--control", control, "--", "sh", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        wait_for(control.exists, process)
        wait_for(lambda: "file" in shell(control, "ls /root"), process)
        assert shell(control, "cat /root/file; mount -t tmpfs none /mnt; touch /mnt/in") == (
            "from the guest\n"
        )
        assert process.stdout is not None and process.stdout.readline() == b"seen\n"
        process.communicate(b"\n", timeout=120)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0 and not control.exists()


@pytest.mark.fuse
def test_what_a_command_in_a_container_does_is_seen_in_the_shell(tmp_path: Path) -> None:
    control = tmp_path / "control"
    script = (
        "echo from inside > /tmp/file; while [ ! -e /tmp/m/in ]; do sleep 0.1; done; "
        "echo seen; read line"
    )
    process = subprocess.Popen(
        [*DENTRY, "do", "--control", control, "sh", "-c", script],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        wait_for(control.exists, process)
        assert stat.S_IMODE(control.stat().st_mode) == 0o600
        wait_for(lambda: "file" in shell(control, "ls /tmp"), process)
        commands = "cat /tmp/file; mkdir /tmp/m; mount -t tmpfs none /tmp/m; touch /tmp/m/in"
        assert shell(control, commands) == "from inside\n"
        assert process.stdout is not None and process.stdout.readline() == b"seen\n"
        process.communicate(b"\n", timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0 and not control.exists()
