"""The processes around the daemon: one that waits outside, and the init of its pid namespace."""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Final, NoReturn

from fsimpl.passthrough.oslib import capset
from harness import linux

LOG = logging.getLogger(__name__)

FORWARDED: Final = frozenset(
    (
        signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1,
        signal.SIGUSR2,
    )
)  # fmt: skip
_SI_KERNEL: Final = 0x80
_FD_MAX: Final = (1 << 31) - 1


def close_all_but(keep: Iterable[int]) -> None:
    """Close every other descriptor of this process."""
    low = 0
    for fd in sorted({fd for fd in keep if fd >= 0}):
        # Of an empty range at 0 Python 3.11 makes close_range(0, ~0).
        if low < fd:
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, _FD_MAX)


def fork_daemon(at_end: Callable[[], None] | None) -> None:
    """Fork into a pid namespace that was unshared; return in the new process only.

    The caller stays behind as the waiter: it passes signals on, and ends as the daemon did. The
    namespace's first process is an init that does nothing but to end with the waiter, however that
    ends, whereupon the kernel kills all others in the namespace. (The daemon could ask for
    PR_SET_PDEATHSIG itself, but setfsuid(2) revokes that.) And because the daemon is not pid 1,
    signals do to it what they do to any process.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    lifeline, hold = os.pipe()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FORWARDED | {signal.SIGCHLD})
    # Ignored by whoever started us, it would leave nobody to wait for.
    child_handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    init = os.fork()
    if init == 0:
        _be_init(lifeline)
    os.close(lifeline)
    try:
        daemon = os.fork()
    except OSError:
        os.close(hold)
        os.waitpid(init, 0)
        raise
    if daemon == 0:
        os.close(hold)
        if child_handler is not None:
            signal.signal(signal.SIGCHLD, child_handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        return
    try:
        # What we hold open of the daemon's connections would keep their other ends waiting.
        close_all_but((0, 1, 2, hold))
        status = _wait(daemon)
        os.close(hold)
        os.waitpid(init, 0)
        _end_as(status, at_end)
    finally:
        # The caller's `finally`s are the daemon's to run, not ours.
        os._exit(1)


def _be_init(lifeline: int) -> NoReturn:
    try:
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # orphans are reaped by the kernel
        close_all_but((lifeline,))
        # It is of the daemon's user and stands in the host's tree: nothing may get hold of it.
        linux.prctl(linux.PR_SET_DUMPABLE, 0)
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        capset(0, 0, 0)
        os.read(lifeline, 1)
    finally:
        os._exit(0)


def _wait(daemon: int) -> int:
    while True:
        info = signal.sigwaitinfo(FORWARDED | {signal.SIGCHLD})
        if info.si_signo == signal.SIGCHLD:
            pid, status = os.waitpid(daemon, os.WNOHANG)
            if pid:
                return status
        # What a terminal sends, it sends to the daemon too.
        elif info.si_code != _SI_KERNEL:
            os.kill(daemon, info.si_signo)


def _end_as(status: int, at_end: Callable[[], None] | None) -> NoReturn:
    if at_end is not None:
        try:
            at_end()
        except Exception:
            LOG.exception("cleaning up after the daemon")
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        if code != -signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, [-code])
        os.kill(os.getpid(), -code)
    os._exit(code)
