"""What a command is: a function with the words it understands, known by its name."""

from __future__ import annotations

import argparse
import errno
import inspect
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NoReturn

from harness.control.kernel import CALLS, Kernel
from harness.shell.streams import Reader, Writer

if TYPE_CHECKING:
    from harness.shell.session import Session

EXIT_FAILURE: Final = 1
EXIT_USAGE: Final = 2
_POLL_SECONDS: Final = 0.02

Run = Callable[["Invocation", argparse.Namespace], int | None]


class Usage(Exception):
    """Words that the command does not understand; the message is one line."""


class Syscalls:
    """A task's system calls, by their names as attributes. Those that would wait are tried again
    and again, for the VFS may be a daemon's, where nobody waits for us; Ctrl-C ends it.
    """

    def __init__(
        self, kernel: Kernel, task: int, interrupted: threading.Event | None = None
    ) -> None:
        """Calls raise KeyboardInterrupt once `interrupted` is set."""
        self._kernel = kernel
        self._task = task
        self._interrupted = interrupted or threading.Event()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in CALLS:
            raise AttributeError(name)

        def call(*arguments: Any) -> Any:
            while True:
                if self._interrupted.is_set():
                    raise KeyboardInterrupt
                try:
                    return self._kernel.call(self._task, name, *arguments)
                except BlockingIOError:
                    time.sleep(_POLL_SECONDS)

        return call


class Invocation:
    """A command at work: its session, its streams, and `sys`, the calls of the current task."""

    def __init__(
        self, session: Session, name: str, stdin: Reader, stdout: Writer, stderr: Writer
    ) -> None:
        self.session = session
        self.name = name
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.sys = session.syscalls()
        self.status = 0

    @property
    def streams(self) -> tuple[Reader, Writer, Writer]:
        """What a command that runs another one passes on."""
        return self.stdin, self.stdout, self.stderr

    def inspect(self, view: str, **arguments: Any) -> Any:
        """One of the views of `harness.inspect`, as the current task sees it. Raises: OSError."""
        return self.session.kernel.inspect(self.session.task, view, **arguments)

    def sleep(self, seconds: float) -> None:
        """Raises: KeyboardInterrupt (Ctrl-C, whichever thread this is)."""
        if self.session.interrupted.wait(seconds):
            raise KeyboardInterrupt

    def print(self, text: str = "", end: str = "\n") -> None:
        """Write text to the standard output."""
        self.stdout.write(os.fsencode(text + end))

    def complain(self, text: str) -> None:
        """Write a line with our name to the standard error; our status is failure."""
        self.status = EXIT_FAILURE
        self.stderr.write(os.fsencode(f"{self.name}: {text}\n"))

    def fail(self, path: str | bytes, error: OSError) -> None:
        """`complain` about a path, in the words of strerror(3)."""
        self.complain(f"{os.fsdecode(path)}: {strerror(error)}")


def strerror(error: OSError) -> str:
    """What strerror(3) says, whoever raised it."""
    return os.strerror(error.errno) if error.errno else str(error)


class Command:
    """An entry of the table: its name, its words, what it does, and its help."""

    def __init__(self, name: str, run: Run, parser: argparse.ArgumentParser) -> None:
        self.name = name
        self.run = run
        self.parser = parser

    @property
    def summary(self) -> str:
        """A line of help."""
        return (self.parser.description or "").split("\n")[0]

    def options(self) -> list[str]:
        """All spellings of its options, for completion."""
        return [word for action in self.parser._actions for word in action.option_strings]

    def choices(self) -> list[str]:
        """What the first word may be, if it is one of a few, for completion."""
        for action in self.parser._actions:
            if not action.option_strings:
                return [str(choice) for choice in action.choices or ()]
        return []

    def __call__(self, invocation: Invocation, words: list[str]) -> int:
        """Run it; return its status. Raises: KeyboardInterrupt, Disconnected."""
        try:
            arguments = self.parser.parse_args(words)
        except _Help:
            invocation.print(self.parser.format_help(), end="")
            return 0
        except (Usage, argparse.ArgumentError) as error:
            invocation.complain(f"{error} (see {self.name} --help)")
            return EXIT_USAGE
        try:
            status = self.run(invocation, arguments)
        except Usage as error:
            invocation.complain(str(error))
            return EXIT_USAGE
        except BrokenPipeError as error:
            if error.filename is not None:
                invocation.fail(error.filename, error)
            return EXIT_FAILURE
        except OSError as error:
            if error.filename is None:
                invocation.complain(strerror(error))
            else:
                invocation.fail(error.filename, error)
            return EXIT_FAILURE
        return invocation.status if status is None else status


class _Help(Exception):
    """Somebody said --help."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Usage(message.replace("\n", "\\n"))


class _HelpAction(argparse.Action):
    def __call__(self, *_: object) -> None:
        raise _Help


Argument = tuple[tuple[str, ...], dict[str, Any]]


def argument(*names: str, **keywords: Any) -> Argument:
    """A word of a command, as argparse's add_argument takes it."""
    return names, keywords


class Commands(dict[str, Command]):
    """The table of commands."""

    def add(self, name: str, *arguments: Argument, prefix_chars: str = "-") -> Callable[[Run], Run]:
        """Decorate a function as the command `name`. Its docstring is the help; `prefix_chars` are
        what options begin with.
        """

        def decorate(run: Run) -> Run:
            parser = _Parser(
                prog=name,
                description=inspect.cleandoc(run.__doc__ or ""),
                add_help=False,
                allow_abbrev=False,
                prefix_chars=prefix_chars,
                formatter_class=argparse.RawDescriptionHelpFormatter,
            )
            for names, keywords in arguments:
                parser.add_argument(*names, **keywords)
            if prefix_chars == "-":
                parser.add_argument("--help", action=_HelpAction, nargs=0, help="show this")
            self[name] = Command(name, run, parser)
            return run

        return decorate


def missing(path: str) -> OSError:
    """ENOENT for a path."""
    return OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
