"""A shell at work: its tasks, its variables, and how a script is run."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final, Self

from harness.control.client import Disconnected
from harness.control.kernel import Kernel
from harness.shell.command import EXIT_FAILURE, EXIT_USAGE, Commands, Invocation, Syscalls, strerror
from harness.shell.expansion import expand_text, expand_words
from harness.shell.language import (
    AndOr,
    Command,
    Pipeline,
    Redirection,
    Script,
    SyntaxProblem,
    Word,
    parse,
)
from harness.shell.streams import CHUNK, BufferedWriter, Bytes, Pipe, Reader, Writer
from vfs import abi

if TYPE_CHECKING:
    from harness.shell.commands.tracing import Recording

EXIT_NOT_FOUND: Final = 127
EXIT_INTERRUPTED: Final = 130
_CREATE: Final = abi.O_WRONLY | abi.O_CREAT | abi.O_CLOEXEC


class Exit(Exception):
    """The shell is to end, with `status`."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Session:
    """A person's or a script's shell on a `Kernel`. To be closed, by `with` or `close`.

    `tasks` are its tasks by their names, `task` is the current one's pid. `recording` is what
    `trace save` keeps. `errexit` ends the script at the first failure, as sh(1)'s ``set -e``.
    `interrupted` is set while a pipeline ends by Ctrl-C, which Python gives to the main thread
    only: commands in others raise KeyboardInterrupt at their next call.
    """

    def __init__(
        self, kernel: Kernel, commands: Commands, stdin: Reader, stdout: Writer, stderr: Writer
    ) -> None:
        """`kernel` and the streams are borrowed."""
        self.kernel = kernel
        self.commands = commands
        self.stdin = stdin
        self.stdout = stdout
        self.stderr = stderr
        self.interrupted = threading.Event()
        self.task = kernel.create_task()
        self.tasks = {"init": self.task}
        self.variables: dict[str, str] = {"?": "0"}
        self.errexit = False
        self.recording: Recording | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the tasks, and `trace save`."""
        if self.recording is not None:
            self.recording.end()
        for task in self.tasks.values():
            self.kernel.exit_task(task)
        self.tasks.clear()

    def syscalls(self) -> Syscalls:
        """The current task's calls."""
        return Syscalls(self.kernel, self.task, self.interrupted)

    @property
    def status(self) -> int:
        """Of the last command; `$?`."""
        return int(self.variables["?"])

    def run(self, text: str) -> int:
        """Run a script; return the status of its last command.

        Raises: Exit (the script says so, or `errexit` does); KeyboardInterrupt; Disconnected.
        """
        try:
            script = parse(text)
        except SyntaxProblem as problem:
            self._complain(str(problem))
            return self._end(EXIT_USAGE)
        return self.run_script(script)

    def run_script(self, script: Script) -> int:
        """As `run`, for a script that is parsed."""
        for item in script:
            self._run_list(item)
        return self.status

    def _run_list(self, item: AndOr) -> None:
        pipelines = [("", item.first), *item.rest]
        ran = item.first
        for operator, pipeline in pipelines:
            if (operator == "&&" and self.status) or (operator == "||" and not self.status):
                continue
            self._end(self._run_pipeline(pipeline))
            ran = pipeline
        # POSIX: not for a pipeline that ! negates, nor for any but the last of a list.
        if self.errexit and self.status and ran is pipelines[-1][1] and not ran.negated:
            raise Exit(self.status)

    def _end(self, status: int) -> int:
        self.variables["?"] = str(status)
        return status

    def _run_pipeline(self, pipeline: Pipeline) -> int:
        *before, last = pipeline.commands
        try:
            if before:
                status = self._run_together(before, last)
            else:
                status = self._run_command(last, self.stdin, self.stdout)
        finally:
            self.interrupted.clear()
            self.stdout.flush()
            self.stderr.flush()
        return int(not status) if pipeline.negated else status

    def _run_together(self, before: Sequence[Command], last: Command) -> int:
        """All but the last command run in threads of their own, none of which outlives it."""
        pipes = [Pipe() for _ in before]
        readers: list[Reader] = [self.stdin, *(pipe.reader for pipe in pipes)]
        threads = []
        try:
            with self._interrupted_later():
                for command, reader, pipe in zip(before, readers, pipes, strict=False):
                    thread = threading.Thread(target=self._run_piped, args=(command, reader, pipe))
                    thread.start()
                    threads.append(thread)
            return self._run_command(last, readers[-1], self.stdout)
        except KeyboardInterrupt:
            self.interrupted.set()
            raise
        finally:
            with self._interrupted_later():
                readers[-1].close()
                for thread in threads:
                    thread.join()

    @contextmanager
    def _interrupted_later(self) -> Generator[None]:
        """Inside, Ctrl-C only sets `interrupted`; behind it, it raises KeyboardInterrupt."""
        here = threading.current_thread() is threading.main_thread()
        if not here or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        came = False

        def interrupt(*_: object) -> None:
            nonlocal came
            came = True
            self.interrupted.set()

        signal.signal(signal.SIGINT, interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if came:
                raise KeyboardInterrupt

    def _run_piped(self, command: Command, stdin: Reader, pipe: Pipe) -> None:
        try:
            self._run_command(command, stdin, pipe)
        except (Exit, KeyboardInterrupt, Disconnected):
            # As in sh(1), where it is a process that ends. That there is no daemon any more is
            # found out by the session, too, in the end when it closes.
            pass
        finally:
            pipe.close()
            if stdin is not self.stdin:
                stdin.close()

    def _run_command(self, command: Command, stdin: Reader, stdout: Writer) -> int:
        try:
            # Closing a file tells what became of what was written to it.
            with ExitStack() as stack:
                return self._run_redirected(command, stdin, stdout, stack)
        except OSError as error:
            where = os.fsdecode(error.filename) + ": " if error.filename is not None else ""
            self._complain(f"{where}{strerror(error)}")
            return EXIT_FAILURE

    def _run_redirected(
        self, command: Command, stdin: Reader, stdout: Writer, stack: ExitStack
    ) -> int:
        words = self.expand(command.words)
        sys = self.syscalls()
        streams = self._redirect(sys, command.redirections, stdin, stdout, stack)
        before = dict(self.variables)
        for name, word in command.assignments:
            self.variables[name] = expand_text(word, self.variables)
        if not words:
            return 0
        try:
            return self.invoke(words, *streams)
        finally:
            for name, _ in command.assignments:
                self.variables.pop(name)
                if name in before:
                    self.variables[name] = before[name]

    def expand(self, words: Sequence[Word]) -> list[str]:
        """Words as arguments, with names of the VFS for patterns."""
        return expand_words(words, self.variables, self._list_directory)

    def _list_directory(self, path: str) -> list[str] | None:
        try:
            return list_directory(self.syscalls(), path)
        except OSError:
            return None

    def invoke(self, words: list[str], stdin: Reader, stdout: Writer, stderr: Writer) -> int:
        name, *rest = words
        command = self.commands.get(name)
        if command is None:
            self._complain(f"{name}: there is no such command; `help` lists them", stderr)
            return EXIT_NOT_FOUND
        return command(Invocation(self, name, stdin, stdout, stderr), rest)

    def _redirect(
        self,
        sys: Syscalls,
        redirections: Sequence[Redirection],
        stdin: Reader,
        stdout: Writer,
        stack: ExitStack,
    ) -> tuple[Reader, Writer, Writer]:
        stderr = self.stderr
        for operator, target in redirections:
            if target is None:
                stderr = stdout
            elif operator in ("<<", "<<-"):
                stdin = Bytes(os.fsencode(expand_text(target, self.variables)))
            else:
                path = self._one_path(target)
                if operator == "<":
                    stdin = FileReader(sys, path)
                    stack.callback(stdin.close)
                    continue
                flags = abi.O_APPEND if operator.endswith(">>") else abi.O_TRUNC
                writer = stack.enter_context(write_file(sys, path, flags))
                if operator.startswith("2"):
                    stderr = writer
                else:
                    stdout = writer
        return stdin, stdout, stderr

    def _one_path(self, target: Word) -> str:
        found = self.expand([target])
        if len(found) != 1:
            raise OSError(0, "a redirection needs one name")
        return found[0]

    def _complain(self, text: str, stderr: Writer | None = None) -> None:
        (stderr or self.stderr).write(os.fsencode(f"dentry: {text}\n"))
        self.stderr.flush()


def list_directory(sys: Syscalls, path: str) -> list[str]:
    """The names in a directory, as the current task may read them. Raises: as open and getdents."""
    fd = sys.open(path, abi.O_RDONLY | abi.O_DIRECTORY | abi.O_CLOEXEC, 0)
    try:
        names: list[str] = []
        while records := sys.getdents64(fd, CHUNK):
            names += [os.fsdecode(record.d_name) for record in records]
        return [name for name in names if name not in (".", "..")]
    finally:
        sys.close(fd)


class FileReader:
    """A `Reader` of a file of the VFS."""

    def __init__(self, sys: Syscalls, path: str) -> None:
        """Raises: as open(2)."""
        try:
            self._fd = sys.open(path, abi.O_RDONLY | abi.O_CLOEXEC, 0)
        except OSError as error:
            raise named(error, path) from None
        self._sys = sys
        self._path = path

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def read(self) -> bytes:
        try:
            data: bytes = self._sys.read(self._fd, CHUNK)
        except OSError as error:
            raise named(error, self._path) from None
        return data

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._sys.close(fd)


def write_file(sys: Syscalls, path: str, flags: int, mode: int = 0o666) -> BufferedWriter:
    """A writer to a file of the VFS that is made if it is not there. Raises: as open(2)."""

    def named_call(call: Callable[..., int], *arguments: object) -> int:
        try:
            return call(*arguments)
        except OSError as error:
            raise named(error, path) from None

    fd = named_call(sys.open, path, _CREATE | flags, mode)
    return BufferedWriter(lambda data: named_call(sys.write, fd, data), lambda: sys.close(fd))


def named(error: OSError, path: str) -> OSError:
    """`error` with the path that it is about."""
    return OSError(error.errno, os.strerror(error.errno or 0), path)
