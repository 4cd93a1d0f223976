"""A program on a pseudo terminal, as a person has it."""

from __future__ import annotations

import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Self

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z~]|\x1b[=>()][0-9B]?|\x1b\][^\x07]*\x07")
# Not in a forked copy of ours, which may have threads.
_TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execv(sys.executable, sys.orig_argv[:1] + sys.argv[1:])"
)


class Terminal:
    """`dentry shell` with these words; `screen` is what it has written and nobody has expected."""

    def __init__(self, state: Path, *words: str, **environment: str) -> None:
        self.fd, terminal = os.openpty()
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, struct.pack("4H", 50, 200, 0, 0))
        environment |= {"XDG_STATE_HOME": str(state), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _TAKE_TERMINAL, "-m", "harness.cli", "shell", *words],
            stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        os.close(terminal)
        self.screen = ""
        self.raw = ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self.fd)

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def expect(self, pattern: str) -> re.Match[str]:
        """Read until `pattern` is there, and drop all up to its end."""
        deadline = time.monotonic() + 60
        while not (match := re.search(pattern, self.screen)):
            ready, _, _ = select.select([self.fd], [], [], max(0, deadline - time.monotonic()))
            if not ready:
                raise AssertionError(f"no {pattern!r} in {self.screen!r}")
            self._read()
        self.screen = self.screen[match.end() :]
        return match

    def prompt(self, pattern: str = r"init uid 0 ns \d+ / #") -> None:
        """Wait until a command can be typed. A line is drawn again whenever the program likes, so
        what the command writes, or what is new in this prompt, has to be waited for.
        """
        self.expect(pattern)

    def end(self) -> int:
        """Its status, once it has ended."""
        while True:
            try:
                self._read()
            except OSError:
                break
        return self._process.wait(60)

    def _read(self) -> None:
        data = os.read(self.fd, 1 << 16).decode(errors="replace")
        self.raw += data
        self.screen = _ESCAPES.sub("", self.screen + data)
