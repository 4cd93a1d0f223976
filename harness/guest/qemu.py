"""QEMU: its command line and its process."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final

from harness.guest.errors import GuestUnavailable
from harness.linux import die_with_parent

QEMU_BINARY: Final = "qemu-system-x86_64"
_QEMU_PACKAGE: Final = "qemu-system-x86"

KERNEL_ARGUMENTS: Final = (
    "console=ttyS0",
    # Only warnings and worse: a serial line costs an emulated guest a trap for every byte.
    "quiet",
    # Any panic or oops restarts at once, which -no-reboot turns into QEMU's end.
    *("panic=-1", "oops=panic"),
    # A quarter of a second of boot time under TCG.
    "cryptomgr.notests",
)

_PMEM_ROOM: Final = 1 << 30
_TERMINATE_SECONDS: Final = 5.0


@dataclass(frozen=True)
class Pmem:
    """A file system image as persistent memory that nobody writes to.

    `fd` (borrowed) is of a file of `size` bytes, a multiple of 2 MiB; the guest's init mounts it at
    `destination`, an absolute path, with mount `options` besides ro.
    """

    fd: int
    size: int
    destination: str
    options: Sequence[str] = ()


@dataclass(frozen=True)
class Machine:
    """What the guest is made of. Paths may be `/proc/self/fd/N` of QEMU's own descriptors.

    `filesystem` is the vhost-user socket's path, or the number of a descriptor of QEMU's that is
    connected to one; `ports` are (name, descriptor) of virtio-serial ports, `terminal` is the
    descriptor behind /dev/hvc0, and `console` is the file that receives the first serial line.
    """

    kernel: Path
    initramfs: Path
    filesystem: Path | int
    tag: str
    console: Path
    accelerator: tuple[str, ...]
    ports: Mapping[str, int] = field(default_factory=dict)
    terminal: int | None = None
    pmem: Sequence[Pmem] = ()
    memory: int = 1 << 30
    cpus: int = 2
    queues: int = 1
    kernel_arguments: Sequence[str] = KERNEL_ARGUMENTS
    extra: Sequence[str] = ()


def find_qemu() -> Path:
    """Return the path of QEMU in PATH.

    Raises: GuestUnavailable.
    """
    path = shutil.which(QEMU_BINARY)
    if path is None:
        raise GuestUnavailable(f"no {QEMU_BINARY}: install the Debian package {_QEMU_PACKAGE}")
    return Path(path)


def qemu_arguments(machine: Machine) -> list[str]:
    """Return QEMU's arguments, without the program, for a guest made as `machine` says."""
    # vhost-user hands the guest's memory to the daemon, so it must be shared, in a descriptor.
    memory = f"memory-backend-memfd,id=mem,size={machine.memory},share=on"
    if isinstance(machine.filesystem, int):
        filesystem = f"socket,id=fs,fd={machine.filesystem}"
    else:
        filesystem = f"socket,id=fs,path={_option(str(machine.filesystem))}"
    arguments = [
        *("-M", "q35", *machine.accelerator),
        *("-smp", str(machine.cpus), "-m", _memory(machine)),
        *("-object", memory, "-numa", "node,memdev=mem"),
        *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none"),
        *("-kernel", str(machine.kernel), "-initrd", str(machine.initramfs)),
        *("-append", " ".join(machine.kernel_arguments)),
        *("-chardev", f"file,id=console,path={_option(str(machine.console))}"),
        *("-serial", "chardev:console"),
        *("-chardev", filesystem),
        # A queue of 1024 lets Linux send 1 MiB in a request; with QEMU's 128 it is 496 KiB.
        *(
            "-device",
            f"vhost-user-fs-pci,chardev=fs,tag={_option(machine.tag)},queue-size=1024"
            f",num-request-queues={machine.queues}",
        ),
        *("-device", "virtio-serial-pci"),
    ]
    for number, pmem in enumerate(machine.pmem):
        # A read-only backend is a ROM, which a vhost-user daemon is given no descriptor of.
        backend = f"id=pmem{number},mem-path=/proc/self/fd/{pmem.fd},size={pmem.size}"
        arguments += ("-object", f"memory-backend-file,{backend},share=on,readonly=on")
        arguments += ("-device", f"virtio-pmem-pci,memdev=pmem{number}")
    if machine.terminal is not None:
        # The port numbered 0 is a console's, so this device comes before the ports.
        arguments += ("-chardev", f"socket,id=terminal,fd={machine.terminal}")
        arguments += ("-device", "virtconsole,chardev=terminal")
    for number, (name, fd) in enumerate(machine.ports.items()):
        arguments += ("-chardev", f"socket,id=port{number},fd={fd}")
        arguments += ("-device", f"virtserialport,chardev=port{number},name={_option(name)}")
    return [*arguments, *machine.extra]


class QemuProcess:
    """A running QEMU, killed when the thread that started it ends, however that comes about.

    Takes over nothing: the descriptors in `pass_fds` stay the caller's to close.

    Raises: GuestUnavailable, if the program can't be executed.
    """

    def __init__(
        self,
        program: Path,
        arguments: Sequence[str],
        *,
        pass_fds: Sequence[int],
        messages: IO[bytes],
    ) -> None:
        try:
            self._process = subprocess.Popen(
                [str(program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=messages,
                stderr=messages,
                pass_fds=pass_fds,
                preexec_fn=_die_with_parent(),
                # Ctrl-C at the terminal is ours to act upon.
                process_group=0,
            )
        except OSError as error:
            raise GuestUnavailable(f"can't run {program}: {error.strerror}") from error
        self.pidfd = os.pidfd_open(self._process.pid)
        """Becomes readable when QEMU has ended; for a selector."""

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, -n after signal n, or None while QEMU runs."""
        return self._process.poll()

    def wait(self, timeout: float) -> bool:
        """Wait up to `timeout` seconds for QEMU to end by itself, and tell if it has."""
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return False
        return True

    def close(self) -> None:
        """End QEMU if it runs, by SIGTERM first, reap it and close `pidfd`. May be repeated."""
        if self._process.poll() is None:
            self._process.terminate()
            if not self.wait(_TERMINATE_SECONDS):
                self._process.kill()
                self._process.wait()
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def check_filesystem(path: Path) -> None:
    """Check that `path` is a socket, so that the person learns of a missing daemon in one line.

    It is not connected to: a vhost-user daemon takes the first connection for its one client.

    Raises: GuestUnavailable.
    """
    if not path.is_socket():
        raise GuestUnavailable(f"no vhost-user socket at {path}: start its daemon (dentry serve)")


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Return (ours, QEMU's) ends of a chardev, ours not blocking."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, theirs


def _memory(machine: Machine) -> str:
    """QEMU's "-m": places in the guest's address space are reserved for all that is in it."""
    text = f"{machine.memory}B"
    if not machine.pmem:
        return text
    # Each may be moved up to where it is aligned.
    room = sum(pmem.size + _PMEM_ROOM for pmem in machine.pmem)
    return f"{text},maxmem={machine.memory + room}B"


def _option(value: str) -> str:
    """Quote a value inside a QEMU option list. See qemu(1), "-chardev"."""
    return value.replace(",", ",,")


def _die_with_parent() -> Callable[[], None]:
    parent = os.getpid()

    def in_child() -> None:
        die_with_parent(signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    return in_child
