"""A running guest, and commands in it."""

from __future__ import annotations

import os
import re
import secrets
import selectors
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Final, NamedTuple

from harness.guest import agent
from harness.guest.errors import (
    GuestError,
    GuestFailed,
    GuestPanicked,
    GuestStopped,
    GuestTimeout,
    GuestUnavailable,
    QemuDied,
)
from harness.guest.initramfs import build_initramfs
from harness.guest.kernel import find_kernel
from harness.guest.kvm import choose_accelerator
from harness.guest.qemu import (
    KERNEL_ARGUMENTS,
    Machine,
    Pmem,
    QemuProcess,
    check_filesystem,
    find_qemu,
    qemu_arguments,
    socket_pair,
)
from harness.guest.stream import MarkedStream
from harness.guest.terminal import EscapeFilter, RawTerminal
from harness.guest.writer import Writer

Word = str | bytes | os.PathLike[str] | os.PathLike[bytes]
Command = str | Sequence[Word]
"""A text for the guest's /bin/sh, or a program with its arguments."""

Sink = Callable[[bytes], object]

ENVIRONMENT: Final[Mapping[str, str]] = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "TERM": "linux",
}

_CHUNK: Final = 1 << 16
_CONSOLE_TAIL_LINES: Final = 60
_CONSOLE_FLAGS: Final = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
_EARLY_MAX: Final = 1 << 20
_TAG_MAX: Final = 36
_TERMINAL: Final = "terminal"
_PORTS: Final = (agent.CONTROL_PORT, agent.STDIN_PORT, agent.STDOUT_PORT, agent.STDERR_PORT)
_WRITTEN: Final = (agent.CONTROL_PORT, agent.STDIN_PORT, _TERMINAL)
_HALT_SECONDS: Final = 20.0
_KILL_SECONDS: Final = 5.0
_DRAIN_SECONDS: Final = 5.0
_TERMINAL_DRAIN_SECONDS: Final = 1.0
_PANIC: Final = re.compile(r"Kernel panic - not syncing: (.*)")
_FAILURE: Final = re.compile(re.escape(agent.FAILURE_PREFIX) + "(.*)")


@dataclass(frozen=True)
class GuestConfig:
    """A guest to boot. All but `filesystem` has a default that fits this machine.

    `filesystem` is the socket on which a vhost-user daemon listens, or our end's counterpart: a
    connected socket, which the guest then owns. `memory` is in bytes; of several request
    `queues` a guest before Linux 6.11 uses one; `options` are mount options of the root;
    `boot_timeout` is in seconds, to the first command. With `console_log` the guest kernel's
    console goes to that file, else it is kept only to explain errors. `terminal` adds the
    /dev/hvc0 that `Guest.interact` needs. `files` are the host's that the initramfs holds, too,
    at these relative paths; commands see it as /proc/1/root. `pmem` are images that the guest has
    as persistent memory, and mounts before the first command.
    """

    filesystem: Path | socket.socket
    tag: str = "dentry"
    options: Sequence[str] = ()
    kernel: Path | None = None
    memory: int = 1 << 30
    cpus: int = 2
    queues: int = 1
    qemu: Path | None = None
    accelerator: tuple[str, ...] | None = None
    terminal: bool = False
    pmem: Sequence[Pmem] = ()
    boot_timeout: float = 90.0
    console_log: Path | None = None
    kernel_arguments: Sequence[str] = ()
    qemu_arguments: Sequence[str] = ()
    files: Mapping[str, Path] = field(default_factory=dict)


class Completed(NamedTuple):
    """How a command ended: its status as in sh (128 + n after signal n), and its output."""

    status: int
    stdout: bytes
    stderr: bytes


class Guest:
    """A Linux guest whose root is a virtio-fs tag. Boots when made; use it in a `with`.

    It runs one command at a time and belongs to the thread that made it: QEMU is killed when
    that thread ends. Leaving the `with` syncs and halts the guest; leaving it by an exception
    kills it. A command's background processes live on, and what they print shows up in the
    output of later commands.

    Raises: GuestUnavailable; GuestError, if it does not come up.
    """

    def __init__(self, config: GuestConfig) -> None:
        self._resources = ExitStack()
        self._selector = self._resources.enter_context(selectors.PollSelector())
        self._console = os.memfd_create("console")
        self._console_text = ""
        self._messages = self._resources.enter_context(os.fdopen(os.memfd_create("qemu"), "w+b"))
        self._resources.callback(lambda: os.close(self._console))
        self._ports: dict[str, socket.socket] = {}
        self._writers: dict[str, Writer] = {}
        self._line = b""
        self._early: dict[str, bytes] = {}
        self._call: _Call | None = None
        self._stdin_used = False
        self._ready = False
        self._ended = False
        self._closed = False
        try:
            self._boot(config)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self.halt()
        else:
            self.close()

    @property
    def qemu_pid(self) -> int:
        return self._qemu.pid

    def run(
        self,
        command: Command,
        *,
        stdin: bytes = b"",
        environment: Mapping[str, str] = ENVIRONMENT,
        cwd: Word = "/",
        timeout: float | None = 60.0,
    ) -> Completed:
        """Run `command` in the guest and return its status and output.

        A command that takes longer than `timeout` seconds is killed with its process group, and
        the guest stays usable unless even that does not end it.

        Raises: GuestUnavailable, GuestTimeout, GuestPanicked, GuestStopped, QemuDied.
        """
        script = _launcher(command, environment, cwd)
        stdout, stderr = bytearray(), bytearray()
        sinks = {agent.STDOUT_PORT: stdout.extend, agent.STDERR_PORT: stderr.extend}
        status = self._finish(self._begin(sinks), b"upload", script, stdin, timeout)
        return Completed(status, bytes(stdout), bytes(stderr))

    def stream(
        self,
        command: Command,
        *,
        stdin: int | None = None,
        stdout: Sink,
        stderr: Sink,
        environment: Mapping[str, str] = ENVIRONMENT,
        cwd: Word = "/",
        timeout: float | None = None,
    ) -> int:
        """Run `command`, passing its output on as it comes, and return its status.

        `stdin` is a descriptor to read its input from, which works once in a guest's life.

        Raises: as `run`.
        """
        script = _launcher(command, environment, cwd)
        sinks = {agent.STDOUT_PORT: stdout, agent.STDERR_PORT: stderr}
        if stdin is None:
            return self._finish(self._begin(sinks), b"upload", script, b"", timeout)
        if self._stdin_used:
            raise GuestUnavailable("a guest can stream the input of one command only")
        self._stdin_used = True
        call = self._begin(sinks)
        source = self._writers[agent.STDIN_PORT]
        source.feed_from(stdin)
        try:
            return self._finish(call, b"stream", script, b"", timeout)
        finally:
            source.detach()

    def interact(
        self,
        command: Command = ("/bin/sh",),
        *,
        stdin: int = 0,
        stdout: int = 1,
        environment: Mapping[str, str] = ENVIRONMENT,
        cwd: Word = "/",
    ) -> int:
        """Run `command` on our terminal and return its status. Ctrl-A x ends the guest.

        Needs `GuestConfig.terminal`. The guest's terminal follows the size of ours.

        Raises: as `run`, and GuestQuit.
        """
        writer = self._writers.get(_TERMINAL)
        if writer is None:
            raise GuestUnavailable("the guest was booted without a terminal")
        script = _launcher(command, environment, cwd)
        call = self._begin({_TERMINAL: partial(_write_all, stdout)})
        with RawTerminal(stdin) as raw:

            def resize() -> None:
                rows, columns = raw.size()
                self._say(b"size %d %d\n" % (rows, columns))

            resize()
            self._selector.register(raw.resized, selectors.EVENT_READ, resize)
            writer.feed_from(stdin, EscapeFilter())
            try:
                return self._finish(call, b"terminal", script, b"", None)
            finally:
                if not self._closed:
                    writer.detach()
                    self._selector.unregister(raw.resized)

    def console(self) -> str:
        """Return all that the guest kernel has written to its console."""
        if not self._closed:
            self._console_text = _read_file(self._console).replace("\r\n", "\n")
        return self._console_text

    def halt(self) -> None:
        """Sync the guest's file systems and end it. Does nothing if it is closed already.

        Raises: GuestError, if it does not end by itself, because data may be lost then.
        """
        if self._closed:
            return
        try:
            self._say(b"halt\n")
            if not self._until(lambda: self._ended, _after(_HALT_SECONDS)):
                raise GuestTimeout("the guest did not halt", self._console_tail())
            error = self._diagnosis()
            if not isinstance(error, GuestStopped):
                raise error
        finally:
            self.close()

    def close(self) -> None:
        """Kill the guest if it runs, and release everything. May be repeated."""
        if self._closed:
            return
        self.console()
        self._closed = True
        self._resources.close()

    def _boot(self, config: GuestConfig) -> None:
        qemu = config.qemu or find_qemu()
        kernel = find_kernel(config.kernel)
        if len(os.fsencode(config.tag)) > _TAG_MAX:
            raise GuestUnavailable(f"a virtio-fs tag has at most {_TAG_MAX} bytes: {config.tag!r}")
        if isinstance(config.filesystem, Path):
            check_filesystem(config.filesystem)
        archive = build_initramfs(
            kernel, config.tag, options=config.options, files=config.files, pmem=config.pmem
        )
        accelerator = config.accelerator or choose_accelerator(qemu)
        if config.console_log is not None:
            self._log_console_to(config.console_log)
        with ExitStack() as lent:
            initramfs = lent.enter_context(os.fdopen(os.memfd_create("initramfs"), "wb"))
            initramfs.write(archive)
            initramfs.flush()
            ports = {name: self._open_port(name, lent) for name in _PORTS}
            terminal = self._open_port(_TERMINAL, lent) if config.terminal else None
            filesystem: Path | int
            if isinstance(config.filesystem, Path):
                filesystem = config.filesystem
                lent_fds = []
            else:
                filesystem = lent.enter_context(config.filesystem).fileno()
                lent_fds = [filesystem]
            if terminal is not None:
                lent_fds.append(terminal)
            lent_fds += [pmem.fd for pmem in config.pmem]
            machine = Machine(
                kernel=kernel.image,
                initramfs=Path(f"/proc/self/fd/{initramfs.fileno()}"),
                filesystem=filesystem,
                tag=config.tag,
                console=Path(f"/proc/self/fd/{self._console}"),
                accelerator=accelerator,
                ports=ports,
                terminal=terminal,
                pmem=config.pmem,
                memory=config.memory,
                cpus=config.cpus,
                queues=config.queues,
                kernel_arguments=(*KERNEL_ARGUMENTS, *config.kernel_arguments),
                extra=config.qemu_arguments,
            )
            self._qemu = QemuProcess(
                qemu,
                qemu_arguments(machine),
                pass_fds=(
                    *lent_fds,
                    *(pmem.fd for pmem in config.pmem),
                    *ports.values(),
                    initramfs.fileno(),
                    self._console,
                ),
                messages=self._messages,
            )
        self._resources.callback(self._qemu.close)
        self._selector.register(self._qemu.pidfd, selectors.EVENT_READ, self._on_end)
        if not self._until(lambda: self._ready, _after(config.boot_timeout)):
            message = f"the guest did not boot within {config.boot_timeout:g} seconds"
            raise GuestTimeout(message, self._console_tail())

    def _log_console_to(self, path: Path) -> None:
        try:
            log = os.open(path, _CONSOLE_FLAGS, 0o666)
        except OSError as error:
            raise GuestUnavailable(f"can't write {path}: {error.strerror}") from error
        os.close(self._console)
        self._console = log

    def _open_port(self, name: str, lent: ExitStack) -> int:
        """Make the chardev `name`, and return QEMU's end, closed when `lent` is."""
        ours, theirs = socket_pair()
        lent.enter_context(theirs)
        self._resources.enter_context(ours)
        self._ports[name] = ours
        if name in _WRITTEN:
            self._writers[name] = Writer(self._selector, ours)
            self._resources.callback(self._writers[name].close)
        self._selector.register(ours, selectors.EVENT_READ, partial(self._on_data, name))
        return theirs.fileno()

    def _say(self, words: bytes) -> None:
        self._writers[agent.CONTROL_PORT].send(words)

    def _begin(self, sinks: Mapping[str, Sink]) -> _Call:
        if self._closed:
            raise GuestStopped("the guest has ended")
        if self._call is not None:
            raise RuntimeError("a guest runs one command at a time")
        self._call = _Call(sinks)
        for name in sinks:
            self._deliver(name, self._early.pop(name, b""))
        return self._call

    def _finish(
        self, call: _Call, mode: bytes, script: bytes, upload: bytes, timeout: float | None
    ) -> int:
        sizes = len(script), len(upload)
        try:
            self._say(b"run %s %s %d %d\n" % (call.marker, mode, *sizes))
            self._say(script + upload)
            deadline = None if timeout is None else _after(timeout)
            if not self._until(lambda: call.status is not None, deadline):
                self._say(b"kill\n")
                if not self._until(lambda: call.status is not None, _after(_KILL_SECONDS)):
                    message = f"the command took longer than {timeout:g} s and can't be killed"
                    raise GuestTimeout(message, self._console_tail())
                self._drain(call)
                call.timed_out = True
            else:
                self._drain(call)
        except BaseException:
            self.close()
            raise
        finally:
            self._call = None
        if call.timed_out:
            raise GuestTimeout(f"the command took longer than {timeout:g} s")
        assert call.status is not None
        return call.status

    def _drain(self, call: _Call) -> None:
        """Take in the output that is still on its way after a command's end."""
        seconds = _TERMINAL_DRAIN_SECONDS if _TERMINAL in call.streams else _DRAIN_SECONDS
        received = -1
        while not self._until(call.drained, _after(seconds)):
            if call.received == received:
                break
            received = call.received
        if call.drained():
            return
        if _TERMINAL not in call.streams:
            raise GuestFailed("the command destroyed the relays of its output")
        # Echoed keys may have fallen into the marker.
        call.streams[_TERMINAL].flush()

    def _until(self, done: Callable[[], bool], deadline: float | None) -> bool:
        """Turn the event loop until `done`, and return False if `deadline` comes first.

        Raises: GuestError, if the guest ends before that.
        """
        while not done():
            if self._ended:
                raise self._diagnosis()
            timeout = None if deadline is None else deadline - time.monotonic()
            if timeout is not None and timeout <= 0:
                return False
            for key, _ in self._selector.select(timeout):
                # An earlier callback of this round may have withdrawn it.
                if self._selector.get_map().get(key.fd) == key:
                    key.data()
        return True

    def _on_end(self) -> None:
        self._selector.unregister(self._qemu.pidfd)
        for name in self._ports:
            while self._on_data(name):
                pass
        self._ended = True

    def _on_data(self, name: str) -> bool:
        port = self._ports[name]
        try:
            data = port.recv(_CHUNK)
        except BlockingIOError:
            return False
        except ConnectionResetError:
            data = b""
        if not data:
            if port in self._selector.get_map():
                self._selector.unregister(port)
            return False
        if name == agent.CONTROL_PORT:
            *lines, self._line = (self._line + data).split(b"\n")
            for line in lines:
                self._on_reply(line.split())
        else:
            self._deliver(name, data)
        return True

    def _on_reply(self, words: list[bytes]) -> None:
        call = self._call
        if words == [b"ready"]:
            self._ready = True
        elif len(words) == 3 and words[0] == b"exit" and call and words[1] == call.marker:
            call.status = int(words[2])

    def _deliver(self, name: str, data: bytes) -> None:
        call = self._call
        stream = call.streams.get(name) if call else None
        if call is None or stream is None or stream.ended:
            self._early[name] = (self._early.get(name, b"") + data)[-_EARLY_MAX:]
            return
        call.received += len(data)
        self._early[name] = stream.feed(data)

    def _diagnosis(self) -> GuestError:
        """Return why QEMU has ended."""
        status = self._qemu.poll()
        tail = self._console_tail()
        if status is not None and status < 0:
            name = signal.Signals(-status).name
            return QemuDied(f"QEMU was killed by {name}", tail)
        if status:
            messages = _read_file(self._messages.fileno()).strip()
            return QemuDied(f"QEMU failed with status {status}: {messages}", tail)
        console = self.console()
        if failure := _FAILURE.search(console):
            return GuestFailed(f"the guest could not start: {failure[1]}", tail)
        if panic := _PANIC.search(console):
            return GuestPanicked(f"the guest's kernel panicked: {panic[1]}", tail)
        return GuestStopped("the guest shut down by itself", tail)

    def _console_tail(self) -> str:
        return "\n".join(self.console().rstrip().splitlines()[-_CONSOLE_TAIL_LINES:])


class _Call:
    """A command under way: what is known of its end."""

    __slots__ = ("marker", "received", "status", "streams", "timed_out")

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        # Not to be guessed: a command could print it and cut off its own output.
        self.marker = b"dentry-" + secrets.token_hex(16).encode()
        self.streams = {name: MarkedStream(self.marker, sink) for name, sink in sinks.items()}
        self.status: int | None = None
        self.received = 0
        self.timed_out = False

    def drained(self) -> bool:
        return all(stream.ended for stream in self.streams.values())


def run_guest(
    config: GuestConfig,
    command: Command,
    *,
    stdin: int | None = None,
    stdout: Sink | None = None,
    stderr: Sink | None = None,
    environment: Mapping[str, str] = ENVIRONMENT,
    cwd: Word = "/",
    timeout: float | None = None,
) -> int:
    """Boot a guest, run `command` in it, halt it, and return the command's status.

    Output goes to `stdout` and `stderr` as it comes, by default to ours; input comes from
    descriptor `stdin`, if given. `timeout` is in seconds and for the command alone.

    Raises: GuestUnavailable; GuestError.
    """
    with Guest(config) as guest:
        return guest.stream(
            command,
            stdin=stdin,
            stdout=stdout or partial(_write_all, 1),
            stderr=stderr or partial(_write_all, 2),
            environment=environment,
            cwd=cwd,
            timeout=timeout,
        )


def _launcher(command: Command, environment: Mapping[str, str], cwd: Word) -> bytes:
    words: Sequence[Word] = ("/bin/sh", "-c", command) if isinstance(command, str) else command
    variables = {os.fsencode(name): os.fsencode(value) for name, value in environment.items()}
    return agent.launcher([os.fsencode(word) for word in words], variables, os.fsencode(cwd))


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def _read_file(fd: int) -> str:
    return os.pread(fd, os.fstat(fd).st_size, 0).decode("utf-8", "replace")


def _after(seconds: float) -> float:
    return time.monotonic() + seconds
