"""The daemon, the waiter outside, and the init beside it."""

from __future__ import annotations

import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox_support import Process, attempt, children, confined, die_by, wait_for_end

from fsimpl.passthrough import oslib
from harness import linux
from harness.sandbox import Sandboxed


def started(shared: Path, uid: int, **options: Any) -> tuple[Process, list[int]]:
    """A daemon that waits for a signal, and pidfds of init and daemon."""

    def probe(_: Sandboxed, report: int) -> None:
        signal.signal(signal.SIGUSR1, lambda *_: os._exit(11))
        os.write(report, b" ")
        while True:
            signal.pause()

    process = Process(probe, shared, uid=uid, seccomp="none", **options)
    assert os.read(process.reading, 1) == b" "
    return process, [os.pidfd_open(pid) for pid in children(process.pid)]


def test_the_daemons_exit_status_is_the_waiters(shared: Path, uid: int) -> None:
    outcome = Process(lambda _: os._exit(23), shared, uid=uid).finish()
    assert outcome.code == 23


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSYS])
def test_a_daemon_that_a_signal_kills_makes_the_waiter_die_of_it(
    shared: Path, uid: int, number: signal.Signals
) -> None:
    outcome = Process(lambda _: die_by(number), shared, uid=uid).finish()
    assert outcome.code == -number


def test_a_signal_to_the_waiter_reaches_the_daemons_handler(shared: Path, uid: int) -> None:
    process, pidfds = started(shared, uid)
    os.kill(process.pid, signal.SIGUSR1)
    assert process.finish().code == 11
    for pidfd in pidfds:
        wait_for_end(pidfd)


def test_a_signal_without_a_handler_ends_the_daemon(shared: Path, uid: int) -> None:
    process, pidfds = started(shared, uid)
    os.kill(process.pid, signal.SIGTERM)
    assert process.finish().code == -signal.SIGTERM
    for pidfd in pidfds:
        wait_for_end(pidfd)


@pytest.fixture
def orphans_come_to_us() -> Iterator[None]:
    """Pid 1 may take its time to reap one, and the init of its pid namespace waits for that."""
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    yield
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 0)


def reap(pids: list[int]) -> None:
    deadline = time.monotonic() + 60
    while pids:
        pids = [pid for pid in pids if not os.waitpid(pid, os.WNOHANG)[0]]
        assert time.monotonic() < deadline, f"still alive: {pids}"
        time.sleep(0.001)


@pytest.mark.usefixtures("orphans_come_to_us")
def test_the_death_of_the_waiter_kills_the_daemon(shared: Path, uid: int) -> None:
    process, pidfds = started(shared, uid)
    pids = children(process.pid)
    assert len(pidfds) == 2
    os.kill(process.pid, signal.SIGKILL)
    assert process.finish().code == -signal.SIGKILL
    reap(pids)
    for pidfd in pidfds:
        wait_for_end(pidfd)


@pytest.mark.usefixtures("orphans_come_to_us")
def test_it_dies_too_after_acting_as_another_user(shared: Path) -> None:
    """setfsuid(2) revokes PR_SET_PDEATHSIG, and a daemon does it for every request."""

    def probe(_: Sandboxed, report: int) -> None:
        oslib.setfsuid(1000)
        oslib.setfsuid(0)
        os.write(report, b" ")
        signal.pause()

    process = Process(probe, shared, seccomp="none")
    assert os.read(process.reading, 1) == b" "
    pids = children(process.pid)
    assert len(pids) == 2
    os.kill(process.pid, signal.SIGKILL)
    process.finish()
    reap(pids)


def test_processes_that_the_daemon_left_are_killed_at_its_end(shared: Path, uid: int) -> None:
    reading, writing = os.pipe()

    def probe(_: Sandboxed) -> None:
        if os.fork() == 0:
            time.sleep(600)

    confined(probe, shared, uid=uid, keep_fds=(writing,))
    os.close(writing)
    # Its end of the pipe was the last one.
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b""


def test_the_waiter_holds_none_of_the_daemons_descriptors(shared: Path, uid: int) -> None:
    ours, theirs = os.pipe()

    def probe(_: Sandboxed, report: int) -> None:
        os.close(theirs)
        os.write(report, b" ")
        signal.pause()

    process = Process(probe, shared, uid=uid, seccomp="none", keep_fds=(theirs,))
    os.close(theirs)
    assert os.read(process.reading, 1) == b" "
    with os.fdopen(ours, "rb") as pipe:
        assert pipe.read() == b""
    os.kill(process.pid, signal.SIGTERM)
    process.finish()


def test_at_end_runs_outside_after_the_daemon(shared: Path, uid: int) -> None:
    (shared / "socket").touch()
    os.chown(shared / "socket", uid, uid)
    path = os.fspath(shared / "socket")

    def probe(_: Sandboxed) -> Any:
        return attempt(os.stat, path), attempt(os.stat, "/socket")

    assert confined(probe, shared, uid=uid, at_end=lambda: os.unlink(path)) == ["ENOENT", "done"]
    assert not os.path.exists(path)


def test_a_failing_at_end_changes_no_status(shared: Path) -> None:
    def fail() -> None:
        raise ValueError("as the test asked")

    outcome = Process(lambda _: os._exit(5), shared, at_end=fail).finish()
    assert outcome.code == 5
    assert "as the test asked" in outcome.stderr


def test_an_exception_in_the_daemon_leaves_the_waiters_finally_alone(
    shared: Path, uid: int
) -> None:
    counter = os.memfd_create("counter")

    def probe(_: Sandboxed) -> None:
        try:
            raise KeyError("a bug")
        finally:
            os.write(counter, b"x")
            os._exit(3)

    assert Process(probe, shared, uid=uid, keep_fds=(counter,)).finish().code == 3
    assert os.pread(counter, 10, 0) == b"x"
    os.close(counter)


def test_a_traceback_can_be_printed_inside(shared: Path, uid: int) -> None:
    def probe(_: Sandboxed) -> None:
        try:
            raise KeyError("a bug")
        except KeyError:
            traceback.print_exc()
            os._exit(1)

    assert "KeyError: 'a bug'" in Process(probe, shared, uid=uid).finish().stderr


def test_no_mount_is_left_on_the_host(shared: Path, uid: int) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    confined(lambda _: os.mkdir("/made"), shared, uid=uid)
    assert Path("/proc/self/mountinfo").read_text() == before
    assert (shared / "made").stat().st_uid == uid


def test_threads_before_the_sandbox_are_a_bug(shared: Path) -> None:
    def threaded() -> None:
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()

    with pytest.raises(AssertionError, match="before there are threads"):
        confined(lambda _: None, shared, setup=threaded)
