"""/dev/tty and /dev/console; a pseudo terminal in raw mode is what Linux says."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pytest

from devtmpfs.tty import INPUT_LIMIT, TCGETS, TIOCGWINSZ, TIOCSWINSZ, Terminal
from vfs.task import Task

if TYPE_CHECKING:
    from tests.devtmpfs.conftest import Machine


def fails_with(number: int) -> AbstractContextManager[object]:
    return pytest.raises(OSError, match=re.escape(f"[Errno {number}]"))


class Attached:
    """A console with a terminal whose output is kept."""

    def __init__(self, machine: Machine, flags: int) -> None:
        self.task = machine.task
        self.output: list[bytes] = []
        self.terminal = Terminal(self.output.append)
        machine.standard.console.terminal = self.terminal
        self.fd = self.task.open("/dev/console", flags)


@pytest.fixture
def console(machine: Machine) -> Iterator[Attached]:
    attached = Attached(machine, os.O_RDWR | os.O_NONBLOCK)
    yield attached
    attached.task.close(attached.fd)


@pytest.fixture
def pty() -> Iterator[tuple[int, int]]:
    master, slave = os.openpty()
    tty.setraw(slave)
    os.set_blocking(slave, False)
    yield master, slave
    os.close(slave)
    os.close(master)


def host_poll(fd: int) -> int:
    poller = select.poll()
    poller.register(fd, 0x7FF)
    ready = poller.poll(0)
    return ready[0][1] if ready else 0


def test_without_a_terminal_tty_is_enxio_and_console_enodev(task: Task) -> None:
    with fails_with(errno.ENXIO):
        task.open("/dev/tty", os.O_RDWR)
    with fails_with(errno.ENODEV):
        task.open("/dev/console", os.O_RDWR)


def test_tty_is_enxio_on_linux_for_a_process_without_a_terminal() -> None:
    program = "import os\ntry: os.open('/dev/tty', os.O_RDWR)\nexcept OSError as e: print(e.errno)"
    done = subprocess.run(
        [sys.executable, "-c", program], start_new_session=True, capture_output=True, text=True
    )
    assert done.stdout == f"{errno.ENXIO}\n"


def test_bytes_pass_both_ways_untouched(console: Attached) -> None:
    assert console.task.write(console.fd, b"a\nb\x03\xff") == 5
    assert console.output == [b"a\nb\x03\xff"]
    assert console.terminal.feed(b"x\r\x04y") == 4
    assert console.task.read(console.fd, 2) == b"x\r"
    assert console.task.read(console.fd, 9) == b"\x04y"
    assert len(console.output) == 1, "nothing is echoed"


def test_a_read_without_input_would_block(console: Attached, pty: tuple[int, int]) -> None:
    with fails_with(errno.EAGAIN):
        console.task.read(console.fd, 9)
    with fails_with(errno.EAGAIN):
        os.read(pty[1], 9)


def test_poll_answers_as_a_pty_does(console: Attached, pty: tuple[int, int]) -> None:
    master, slave = pty
    assert console.task.poll_now(console.fd) == host_poll(slave)
    console.terminal.feed(b"x")
    os.write(master, b"x")
    assert console.task.poll_now(console.fd) == host_poll(slave)


def test_after_a_hang_up_reads_end_and_everything_else_is_eio(console: Attached) -> None:
    task, fd = console.task, console.fd
    console.terminal.feed(b"last")
    console.terminal.hang_up()
    assert task.read(fd, 9) == b"last"
    master, slave = os.openpty()
    os.close(master)
    assert task.read(fd, 9) == os.read(slave, 9) == b""
    assert task.poll_now(fd) == host_poll(slave)
    for operation in (
        lambda: task.write(fd, b"x"),
        lambda: os.write(slave, b"x"),
        lambda: task.ioctl(fd, TCGETS, bytes(60)),
        lambda: fcntl.ioctl(slave, TCGETS, bytes(60)),
        lambda: task.open("/dev/console", os.O_RDWR),
    ):
        with fails_with(errno.EIO):
            operation()
    os.close(slave)


def test_a_terminal_cannot_seek(console: Attached, pty: tuple[int, int]) -> None:
    for operation in (
        lambda: console.task.lseek(console.fd, 0, os.SEEK_SET),
        lambda: console.task.pread64(console.fd, 1, 0),
        lambda: os.lseek(pty[1], 0, os.SEEK_SET),
        lambda: os.pread(pty[1], 1, 0),
    ):
        with fails_with(errno.ESPIPE):
            operation()


def test_a_blocked_reader_gets_what_is_typed(machine: Machine) -> None:
    attached = Attached(machine, os.O_RDWR)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(attached.task.read(attached.fd, 9)))
    reader.start()
    attached.terminal.feed(b"typed")
    reader.join(60)
    assert got == [b"typed"]
    attached.task.close(attached.fd)


def test_input_beyond_the_limit_is_not_taken(console: Attached) -> None:
    assert console.terminal.feed(b"x" * (INPUT_LIMIT - 1)) == INPUT_LIMIT - 1
    assert console.terminal.feed(b"abc") == 1
    assert len(console.task.read(console.fd, 2 * INPUT_LIMIT)) == INPUT_LIMIT


def test_the_settings_are_those_of_raw_mode(console: Attached, pty: tuple[int, int]) -> None:
    settings = console.task.ioctl(console.fd, TCGETS, 0)
    iflag, oflag, cflag, lflag, _line, controls = struct.unpack("=4IB19s", settings)
    host = termios.tcgetattr(pty[1])
    raw_iflag = termios.ICRNL | termios.IXON | termios.BRKINT | termios.INPCK | termios.ISTRIP
    assert iflag & raw_iflag == host[0] & raw_iflag == 0
    assert oflag & termios.OPOST == host[1] & termios.OPOST == 0
    assert cflag & termios.CSIZE == host[2] & termios.CSIZE == termios.CS8
    raw_lflag = termios.ECHO | termios.ICANON | termios.ISIG | termios.IEXTEN
    assert lflag & raw_lflag == host[3] & raw_lflag == 0
    assert controls[termios.VMIN] == 1
    assert controls[termios.VTIME] == 0


def test_the_window_size_can_be_asked_and_set(console: Attached) -> None:
    task, fd = console.task, console.fd
    assert struct.unpack("=4H", task.ioctl(fd, TIOCGWINSZ, 0)) == (24, 80, 0, 0)
    task.ioctl(fd, TIOCSWINSZ, struct.pack("=4H", 50, 132, 1, 2))
    assert console.terminal.window == (50, 132, 1, 2)
    with fails_with(errno.EFAULT):
        task.ioctl(fd, TIOCSWINSZ, b"short")


def test_tty_is_the_terminal_it_was_given(machine: Machine) -> None:
    output: list[bytes] = []
    machine.standard.tty.terminal = Terminal(output.append)
    fd = machine.task.open("/dev/tty", os.O_RDWR)
    machine.task.write(fd, b"hi")
    machine.task.close(fd)
    assert output == [b"hi"]


def test_removing_the_device_wakes_its_readers(machine: Machine) -> None:
    attached = Attached(machine, os.O_RDWR)
    failures: list[int | None] = []

    def read() -> None:
        try:
            attached.task.read(attached.fd, 9)
        except OSError as error:
            failures.append(error.errno)

    reader = threading.Thread(target=read)
    reader.start()
    machine.vfs.devices.unregister(machine.standard.console)
    reader.join(60)
    assert failures == [errno.ENODEV]
    attached.task.close(attached.fd)


@pytest.mark.parametrize("name", ["tty", "console"])
def test_nodes_have_the_numbers_and_modes_of_linux(task: Task, name: str) -> None:
    expected = {"tty": (0o20666, os.makedev(5, 0)), "console": (0o20600, os.makedev(5, 1))}
    found = task.stat(f"/dev/{name}")
    assert (found.st_mode, found.st_rdev) == expected[name]
