"""Running code in a sandbox: a forked process enters it, and sends back what it found."""

from __future__ import annotations

import ctypes
import errno
import inspect
import json
import logging
import os
import select
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from harness import linux
from harness.sandbox import SandboxError, SandboxOptions, enter
from harness.sandbox import sandbox as sandbox_module
from harness.syscall_numbers import number

USER = 1000
Probe = Callable[..., Any]
"""Gets the Sandboxed and, if it wants, the descriptor of the pipe that takes its report."""

_libc = ctypes.CDLL(None, use_errno=True)
_libc.syscall.restype = ctypes.c_long


class Outcome(NamedTuple):
    code: int
    """The exit code of the process that called ``enter``; -N if signal N killed it."""
    result: Any
    stderr: str


def _arity(probe: Probe) -> int:
    return len(inspect.signature(probe).parameters)


def become_user() -> None:
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    # Without it /proc/self stays root's.
    linux.prctl(linux.PR_SET_DUMPABLE, 1)


class Process:
    """A child that enters a sandbox, runs ``probe`` there, and reports through a pipe."""

    def __init__(
        self,
        probe: Probe,
        directory: str | os.PathLike[str],
        *,
        uid: int = 0,
        setup: Callable[[], None] | None = None,
        at_end: Callable[[], None] | None = None,
        **options: Any,
    ) -> None:
        # Python itself may be out of the user's reach.
        sandbox_module.preload()
        reading, writing = os.pipe()
        self.stderr = os.memfd_create("stderr")
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.dup2(self.stderr, 2)
                # Those of pytest write into files that the sandbox closes.
                sys.stdout = sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
                logging.getLogger().handlers[:] = [logging.StreamHandler(sys.stderr)]
                if setup is not None:
                    setup()
                if uid:
                    become_user()
                kept = options.pop("keep_fds", ())
                options["uid"], options["gid"] = options.pop("inside", (0, 0))
                wanted = SandboxOptions(
                    shared_dir=os.fspath(directory), keep_fds=(writing, *kept), **options
                )
                sandboxed = enter(wanted, at_end=at_end)
                message = {"result": probe(sandboxed, *[writing][: _arity(probe) - 1])}
                os.write(writing, json.dumps(message).encode())
                code = 0
            except SandboxError as error:
                os.write(writing, json.dumps({"refused": str(error)}).encode())
            except BaseException:
                os.write(writing, json.dumps({"bug": traceback.format_exc()}).encode())
            finally:
                os._exit(code)
        os.close(writing)
        self.reading = reading

    def finish(self) -> Outcome:
        with os.fdopen(self.reading, "rb") as pipe:
            data = pipe.read()
        _, status = os.waitpid(self.pid, 0)
        stderr = os.pread(self.stderr, 1 << 20, 0).decode()
        os.close(self.stderr)
        message = json.loads(data) if data.strip() else {}
        assert "bug" not in message, message["bug"]
        if "refused" in message:
            raise SandboxError(message["refused"])
        return Outcome(os.waitstatus_to_exitcode(status), message.get("result"), stderr)


def confined(probe: Probe, directory: str | os.PathLike[str], **options: Any) -> Any:
    """What ``probe`` returns in the sandbox. Raises: SandboxError, from there too."""
    options.setdefault("seccomp", "none")
    outcome = Process(probe, directory, **options).finish()
    assert outcome.code == 0, outcome
    return outcome.result


def attempt(function: Callable[..., object], *arguments: Any, **keywords: Any) -> str:
    """The name of the errno that refuses it, or "done"."""
    try:
        function(*arguments, **keywords)
    except OSError as error:
        assert error.errno is not None
        return errno.errorcode[error.errno]
    return "done"


def syscall(name: str, *arguments: int | bytes | None) -> int:
    """The call itself. Raises: OSError."""
    passed = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    result: int = _libc.syscall(ctypes.c_long(number(name)), *passed)
    if result == -1:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


@contextmanager
def shared_directory(uid: int) -> Iterator[Path]:
    """A directory of ``uid``'s where it can get to, with ``file`` in it, beside ``outside``."""
    with tempfile.TemporaryDirectory() as top:
        os.chmod(top, 0o755)
        shared = Path(top, "shared")
        shared.mkdir()
        (shared / "file").write_text("inside")
        Path(top, "outside").write_text("outside")
        for path in (shared, shared / "file"):
            os.chown(path, uid, uid)
        yield shared


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def wait_for_end(pidfd: int) -> None:
    """Until the process is gone, or a zombie; closes ``pidfd``."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(60_000), "still alive"
    os.close(pidfd)


def die_by(number: int) -> None:
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
