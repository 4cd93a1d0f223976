"""Guests on `dentry virtiofsd`, as its users start it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from virtiofsd_support import Daemon, running

from harness.guest import Guest, GuestConfig, GuestUnavailable
from harness.guest.initramfs import find_busybox, program_files
from harness.guest.kernel import find_kernel
from harness.guest.qemu import find_qemu


def need_guest() -> None:
    """Skip the test where no guest can be booted."""
    try:
        find_qemu(), find_kernel(), find_busybox()
    except GuestUnavailable as error:
        pytest.skip(str(error))


def root_directory(path: Path) -> Path:
    """What a guest's root needs."""
    busybox = find_busybox()
    for name in ("bin", "sbin", "usr/bin", "usr/sbin", "proc", "sys", "dev", "tmp"):
        (path / name).mkdir(parents=True)
    shutil.copy(busybox, path / "bin" / "busybox")
    listing = subprocess.run([busybox, "--list-full"], capture_output=True, check=True, text=True)
    for applet in listing.stdout.split():
        if not (path / applet).exists():
            (path / applet).symlink_to("/bin/busybox")
    return path


@contextmanager
def waiting(directory: Path, *words: str) -> Iterator[Daemon]:
    """Serve `directory/share` at `directory/sock`; yields when that listens, checks how it ends."""
    base = ("--socket-path", directory / "sock", "--shared-dir", directory / "share")
    with running("virtiofsd", *base, *words) as daemon:
        assert daemon.process.stderr is not None
        while "waiting" not in daemon.process.stderr.readline():
            assert daemon.process.poll() is None
        yield daemon
        assert daemon.end() == 0, daemon.stderr


@contextmanager
def guest_on(
    directory: Path, *words: str, tools: tuple[str, ...] = (), **config: Any
) -> Iterator[Guest]:
    """Boot a guest on such a daemon, with these programs of the host's in its initramfs."""
    files = {name: path for tool in tools for name, path in program_files(tool).items()}
    with (
        waiting(directory, *words),
        Guest(GuestConfig(directory / "sock", files=files, boot_timeout=240, **config)) as guest,
    ):
        yield guest


def sh(guest: Guest, script: str) -> str:
    """The output of a script that ends well and quietly."""
    done = guest.run(script)
    assert (done.status, done.stderr) == (0, b""), f"{script}: {done}"
    return done.stdout.decode()


def tool(guest: Guest, name: str, *words: str) -> str:
    """The output of one of the host's programs. It finds the guest's root at /proc/1/cwd/."""
    path = shutil.which(name)
    assert path is not None
    done = guest.run(("/proc/1/root/bin/chroot", "/proc/1/root", path, *words))
    assert (done.status, done.stderr) == (0, b""), f"{name} {words}: {done}"
    return done.stdout.decode()
