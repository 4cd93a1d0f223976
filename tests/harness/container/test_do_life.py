"""The processes of `dentry do`: signals, terminals, and every way to die."""

from __future__ import annotations

import os
import pty
import re
import select
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import termios
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from container_support import (
    USER,
    Running,
    argv_of,
    children,
    is_gone,
    output_of,
    run_do,
    share,
    wait_for_state,
)

from harness.fuse.host_mount import FUSECTL, have_fusectl

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which needs root"),
]
both = pytest.mark.parametrize("who", ["root", "user"])
PYTHON = shutil.which("python3", path="/usr/bin:/bin") or "python3"

# Says the connection's number, and leaves a daemon that would outlive it.
BUSY = "stat -c %d /; setsid sleep 1000 & sleep 1000 & while :; do cat /etc/passwd; done >/dev/null"


@pytest.fixture
def shared() -> Iterator[Path]:
    """A directory of `USER`'s that is not below /tmp."""
    with tempfile.TemporaryDirectory(prefix="dentry-do-", dir="/srv") as directory:
        os.chown(directory, USER, USER)
        yield Path(directory)


def assert_disconnected(device: str) -> None:
    """The FUSE connection of the tree with st_dev `device` is no more, or will be: the kernel may
    take the last mount apart after the last process.
    """
    have_fusectl()
    deadline = time.monotonic() + 60
    while Path(FUSECTL, str(os.minor(int(device)))).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# Death


@both
def test_nothing_outlives_a_server_that_is_killed(who: str) -> None:
    with Running("sh", "-c", BUSY, who=who) as container:
        container.wait_for_descendants(2)
        container.kill(container.server)
        status, _, errors = container.end()
        assert status == 125
        assert errors.startswith("dentry: the server of the tree was killed by signal 9")
        assert errors.count("\n") == 1
        assert_disconnected(container.line)


@both
def test_nothing_outlives_a_pid_1_that_is_killed(who: str) -> None:
    with Running("sh", "-c", BUSY, who=who) as container:
        container.kill(container.init)
        assert container.end()[0] == 128 + signal.SIGKILL
        assert_disconnected(container.line)


@both
def test_nothing_outlives_a_command_that_is_killed(who: str) -> None:
    with Running("sh", "-c", BUSY, who=who) as container:
        container.kill(container.descendants[0])
        assert container.end()[0] == 128 + signal.SIGKILL
        assert_disconnected(container.line)


@both
def test_nothing_outlives_a_dentry_do_that_is_killed(who: str) -> None:
    with Running("sh", "-c", BUSY, who=who) as container:
        container.kill(container.process.pid)
        assert container.end()[0] == -signal.SIGKILL
        assert_disconnected(container.line)


@both
def test_what_the_command_leaves_running_ends_with_it(who: str) -> None:
    script = "setsid sleep 1000 & stat -c %d /; read line; exit 3"
    with Running("sh", "-c", script, who=who) as container:
        container.wait_for_descendants(2)
        assert container.end()[0] == 3
        assert_disconnected(container.line)


def test_orphans_are_reaped() -> None:
    script = "for i in 1 2 3; do (true & true & true &); done; sleep 0; echo ready; read line"
    with Running("sh", "-c", script) as container:
        deadline = time.monotonic() + 60
        while len(children(container.init)) > 1:
            assert time.monotonic() < deadline
        container.process.communicate("\n", timeout=60)


def test_an_aborted_connection_ends_the_command() -> None:
    have_fusectl()
    with Running("sh", "-c", BUSY) as container:
        Path(FUSECTL, str(os.minor(int(container.line))), "abort").write_text("1")
        assert container.end()[0] != 0


def test_the_hosts_mounts_are_left_alone() -> None:
    before = Path("/proc/self/mountinfo").read_text()
    with Running("sh", "-c", "echo ready; read line") as container:
        assert Path("/proc/self/mountinfo").read_text() == before
        container.process.communicate("\n", timeout=60)
    assert Path("/proc/self/mountinfo").read_text() == before


@both
def test_pages_written_through_a_mapping_arrive_before_the_end(shared: Path, who: str) -> None:
    file = shared / "file"
    program = f"""
import mmap, os
fd = os.open('{file}', os.O_RDWR | os.O_CREAT)
os.ftruncate(fd, 8 << 20)
memory = mmap.mmap(fd, 8 << 20)
memory[:] = bytes([7]) * (8 << 20)
os._exit(0)
"""
    output_of(*share(shared), "--", PYTHON, "-c", program, who=who)
    assert file.read_bytes() == bytes([7]) * (8 << 20)


@pytest.mark.slow
def test_a_file_that_somebody_outside_holds_delays_the_end_but_does_not_stop_it() -> None:
    name = f"\0dentry-do-{os.getpid()}"
    program = (
        "import socket\n"
        "sock = socket.socket(socket.AF_UNIX)\n"
        f"sock.connect({name!r})\n"
        "held = open('/tmp/held', 'w+')\n"
        "socket.send_fds(sock, [b'x'], [held.fileno()])\n"
    )
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(name)
        server.listen()
        process = subprocess.Popen(argv_of("root", ["--", PYTHON, "-c", program]))
        connection, _ = server.accept()
        with connection:
            (fd,) = socket.recv_fds(connection, 1, 1)[1]
        try:
            assert process.wait(60) == 0
            with pytest.raises(OSError, match=r"not connected|aborted"):
                os.pread(fd, 1, 0)
        finally:
            with suppress(OSError):
                os.close(fd)


# Signals


@both
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_for_us_is_the_commands(who: str, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    script = f"trap 'echo caught; exit 9' {name}; echo ready; while :; do sleep 0.01; done"
    with Running("sh", "-c", script, who=who) as container:
        container.process.send_signal(number)
        assert container.end() == (9, "caught\n", "")


@both
def test_a_signal_that_the_command_does_not_catch_ends_it(who: str) -> None:
    with Running("sh", "-c", BUSY, who=who) as container:
        container.process.terminate()
        assert container.end()[0] == 128 + signal.SIGTERM
        assert_disconnected(container.line)


def test_what_was_ignored_stays_ignored_and_the_rest_is_as_always() -> None:
    plain = ["sh", "-c", "grep -E 'SigBlk|SigIgn' /proc/self/status"]

    def signals(*command: str) -> list[int]:
        """What is blocked and what is ignored, as bit masks."""
        shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        return [int(mask, 16) for mask in shown[1::2]]

    # The test itself may have been started with signals ignored.
    blocked, ignored = signals(*plain)
    inside = argv_of("root", plain)
    assert signals(*inside) == [blocked, ignored]
    assert signals("nohup", *inside) == [blocked, ignored | 1 << signal.SIGHUP - 1]


# The terminal


class Terminal:
    """An interactive shell on a pseudo terminal, and what it has written."""

    def __init__(self, directory: Path) -> None:
        script = directory / "do"
        script.write_text(f'#!/bin/sh\nexec {shlex.join(argv_of("root", []))} "$@"\n')
        script.chmod(0o755)
        self.do = str(script)
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            attributes = termios.tcgetattr(0)
            attributes[3] &= ~termios.ECHO
            termios.tcsetattr(0, termios.TCSANOW, attributes)
            os.environ.update(PS1="$ ", HISTFILE="/dev/null", TERM="dumb")
            try:
                os.execvp("bash", ["bash", "--norc", "--noediting", "-i"])
            finally:
                os._exit(1)
        self.text = ""
        self.expect(r"\$ ")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, pattern: str) -> re.Match[str]:
        """Read until `pattern` is there, and drop all up to its end."""
        deadline = time.monotonic() + 60
        while not (match := re.search(pattern, self.text)):
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError(f"no {pattern!r} in {self.text!r}")
            self.text += os.read(self.fd, 4096).decode()
        self.text = self.text[match.end() :]
        return match

    def start(self, *words: str | Path) -> None:
        """Have the shell run `dentry do WORDS`."""
        self.type(shlex.join([self.do, *map(str, words)]) + "\n")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    if not shutil.which("bash"):
        pytest.skip("no bash")
    with Terminal(tmp_path) as terminal:
        yield terminal


def test_ctrl_c_is_for_the_command_once(terminal: Terminal) -> None:
    program = (
        "import signal as s; s.pthread_sigmask(s.SIG_BLOCK, [s.SIGINT]);"
        "print('ready', flush=True); s.sigwait([s.SIGINT]);"
        "print('caught', flush=True); s.sigwait([s.SIGINT]);"
        "print('caught', s.sigtimedwait([s.SIGINT], 0.1), flush=True); raise SystemExit(5)"
    )
    terminal.start("--", PYTHON, "-c", program)
    terminal.expect("ready")
    terminal.type("\x03")
    terminal.expect("caught")
    terminal.type("\x03")
    terminal.expect("caught None")
    terminal.expect(r"\$ ")
    terminal.type("echo status $?\n")
    terminal.expect("status 5")
    terminal.start("cat")
    terminal.type("line\n")
    terminal.expect("line")
    terminal.type("\x03")
    terminal.expect(r"\$ ")
    terminal.type("echo status $?\n")
    terminal.expect("status 130")


def test_ctrl_z_stops_the_job_and_fg_continues_it(terminal: Terminal) -> None:
    script = 'echo ready; while read line; do echo "$line"; done; echo end; exit 6'
    terminal.start("sh", "-c", script)
    terminal.expect("ready")
    for n in range(3):
        terminal.type("\x1a")
        terminal.expect(r"Stopped.*\n\$ ")
        # The shell knows of its own child only; until the command has stopped it may still read.
        wait_for_state(terminal.pid, "sh", "T")
        terminal.type("fg >/dev/null\n")
        terminal.type(f"line {n}\n")
        terminal.expect(f"line {n}")
    terminal.type("\x04")
    terminal.expect("end")
    terminal.type("echo status $?\n")
    terminal.expect("status 6")


def test_an_interactive_shell_inside_controls_jobs_and_gives_the_terminal_back(
    terminal: Terminal,
) -> None:
    terminal.start("--env", "PS1=inside> ", "bash", "--norc", "--noediting", "-i")
    terminal.expect("inside> ")
    terminal.type("tty\n")
    terminal.expect(r"/dev/console[^>]*inside> ")
    program = (
        "import signal as s; s.pthread_sigmask(s.SIG_BLOCK, [s.SIGCONT, s.SIGINT]);"
        "print('started', flush=True); s.sigwait([s.SIGCONT]);"
        "print('continued', flush=True); s.sigwait([s.SIGINT])"
    )
    terminal.type(shlex.join([PYTHON, "-c", program]) + "\n")
    terminal.expect("started")
    terminal.type("\x1a")
    terminal.expect(r"Stopped[^>]*inside> ")
    terminal.type("fg >/dev/null\n")
    terminal.expect("continued")
    terminal.type("\x03")
    terminal.expect("inside> ")
    terminal.type("exit 4\n")
    terminal.expect(r"\$ ")
    terminal.type("echo status $?\n")
    terminal.expect("status 4")


def test_a_script_has_the_terminal_back_after_a_shell_inside(terminal: Terminal) -> None:
    """The script does no job control of its own: nobody but us can come back to the foreground."""
    words = "--env PS1=inside: bash --norc --noediting -i"
    terminal.type(f"sh -c '{terminal.do} {words}; read line; echo got $line'\n")
    terminal.expect("inside:")
    terminal.type("exit\n")
    terminal.type("the answer\n")
    terminal.expect("got the answer")


def test_a_new_session_has_no_controlling_terminal(terminal: Terminal) -> None:
    terminal.start("--new-session", "sh", "-c", "echo >/dev/tty || echo none; sleep 1000")
    terminal.expect("none")
    # A shell that is just starting it may swallow the signal.
    wait_for_state(terminal.pid, "sleep", "S")
    terminal.type("\x03")
    terminal.expect(r"\$ ")
    terminal.type("echo status $?\n")
    terminal.expect("status 130")


def test_the_command_can_be_a_filter_in_a_pipe() -> None:
    result = run_do("tr", "a-z", "A-Z", stdin=None, input="words\n")
    assert (result.returncode, result.stdout) == (0, "WORDS\n")
    process = subprocess.Popen(argv_of("root", ["yes"]), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.read(2) == b"y\n"
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE
    assert is_gone(process.pid)
