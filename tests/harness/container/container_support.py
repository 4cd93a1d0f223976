"""`dentry do` from outside: as root and as an ordinary user, and what its processes are."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

USER = 12345

_AS_ROOT = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[3])!r})
from harness.cli.main import main
"""
# What is imported is imported as root: an interpreter in root's home is not for other users.
_AS_USER = f"""
import contextlib, ctypes, io, os
with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()):
    main(["--version"])
os.setgroups([])
os.setresgid({USER}, {USER}, {USER})
os.setresuid({USER}, {USER}, {USER})
ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE, which exec would have set
"""
_RUN = "sys.exit(main())"

Words = Sequence[str | Path]


def argv_of(who: str, words: Words) -> list[str]:
    """The command line of `dentry do WORDS` for "root" (who we are) or "user"."""
    program = _AS_ROOT + _AS_USER * (who == "user") + _RUN
    return [sys.executable, "-c", program, "do", *map(str, words)]


def run_do(
    *words: str | Path, who: str = "root", **keywords: object
) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        argv_of(who, words),
        **{"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, **keywords},  # type: ignore[call-overload]
        timeout=120,
    )


def output_of(*words: str | Path, who: str = "root", **keywords: object) -> str:
    """The standard output of a run that has to succeed without a word on standard error."""
    result = run_do(*words, who=who, **keywords)
    assert (result.returncode, result.stderr) == (0, "")
    return str(result.stdout)


def share(path: Path, *, read_only: bool = False) -> list[str]:
    """The words that put a host directory where it is on the host."""
    return ["--mount", f"type=passthrough,src={path},dst={path}" + ",ro" * read_only]


class Running:
    """A `dentry do` whose command has written its first line. To be used in a `with`."""

    def __init__(self, *words: str | Path, who: str = "root") -> None:
        self.process = subprocess.Popen(
            argv_of(who, words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Running:
        try:
            self._look()
        except BaseException:
            self.process.kill()
            self.process.communicate(timeout=60)
            raise
        return self

    def _look(self) -> None:
        assert self.process.stdout is not None
        self.line = self.process.stdout.readline()
        if not self.line:
            _, errors = self.process.communicate(timeout=60)
            raise AssertionError(f"it did not start: {errors}")
        self.server, self.init = sorted(children(self.process.pid))
        if os.readlink(f"/proc/{self.server}/ns/pid") != os.readlink("/proc/self/ns/pid"):
            self.server, self.init = self.init, self.server
        self.descendants = descendants(self.init)

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.process.communicate(timeout=60)
        for pid in (self.server, self.init, *self.descendants):
            assert is_gone(pid)

    def wait_for_descendants(self, count: int) -> None:
        """Return when pid 1 has at least ``count`` of them; those that are there then have to end
        with it.
        """
        deadline = time.monotonic() + 60
        while len(found := descendants(self.init)) < count:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        self.descendants = found

    def end(self) -> tuple[int, str, str]:
        """Its status and the rest of its output, and that all of it ended."""
        output, errors = self.process.communicate(timeout=60)
        for pid in (self.server, self.init, *self.descendants):
            assert is_gone(pid)
        return self.process.returncode, output, errors

    def kill(self, pid: int, number: int = signal.SIGKILL) -> None:
        os.kill(pid, number)


def children(pid: int) -> list[int]:
    """The children of a process; none if it has ended meanwhile."""
    try:
        words = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [int(word) for word in words.split()]


def descendants(pid: int) -> list[int]:
    """The children of a process, theirs, and so on."""
    found = []
    for child in children(pid):
        found += [child, *descendants(child)]
    return found


def is_gone(pid: int) -> bool:
    """Whether a process that has to end does so within a minute; a zombie has ended."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state in "ZX":
            return True
        time.sleep(0.01)
    return False


def wait_for_state(ancestor: int, name: str, state: str) -> None:
    """Return when a descendant of `ancestor` that is called `name` is in `state` (proc(5))."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for pid in descendants(ancestor):
            with suppress(FileNotFoundError, ProcessLookupError):
                if f"({name}) {state} " in Path(f"/proc/{pid}/stat").read_text():
                    return
        time.sleep(0.01)
    raise AssertionError(f"no {name} in state {state}")
