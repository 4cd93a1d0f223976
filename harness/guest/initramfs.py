"""Builds the guest's initramfs: busybox, kernel modules, and the init of `agent`."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

from harness.guest.agent import APPLETS, INIT
from harness.guest.cpio import CpioWriter
from harness.guest.errors import GuestUnavailable
from harness.guest.kernel import (
    GUEST_MODULES,
    PMEM_MODULES,
    Kernel,
    module_files,
    read_module,
)
from harness.guest.qemu import Pmem

_ELF_MAGIC: Final = b"\x7fELF"
_ELF64: Final = 2
_PT_INTERP: Final = 3
_DIRECTORIES: Final = ("bin", "dev", "etc", "lib", "newroot", "proc", "run", "sys")


def build_initramfs(
    kernel: Kernel,
    tag: str,
    *,
    options: Sequence[str] = (),
    modules: Sequence[str] = GUEST_MODULES,
    busybox: Path | None = None,
    files: Mapping[str, Path] | None = None,
    pmem: Sequence[Pmem] = (),
) -> bytes:
    """Return an initramfs that mounts virtio-fs `tag` with mount `options` as its root.

    The init mounts `pmem` too, in the order of the machine's devices. `files` are put into the
    archive at their relative paths, with their modes. It is not compressed: with gzip the guest
    booted no sooner and no later.

    Raises: GuestUnavailable, if busybox, a module or a file is missing.
    """
    archive = CpioWriter()
    for directory in _DIRECTORIES:
        archive.directory(directory)
    # The kernel opens it as init's standard streams, before init could make it.
    archive.device("dev/console", stat.S_IFCHR, 5, 1)
    archive.file("bin/busybox", _read_busybox(busybox or find_busybox()), 0o755)
    for applet in APPLETS:
        archive.symlink(f"bin/{applet}", "busybox")
    names = []
    for path in module_files(kernel, (*modules, *(PMEM_MODULES if pmem else ()))):
        name = path.name.partition(".ko")[0] + ".ko"
        archive.file(f"lib/{name}", read_module(path))
        names.append(name)
    archive.file("etc/modules", "".join(f"{name}\n" for name in names).encode())
    archive.file("etc/tag", os.fsencode(tag))
    archive.file("etc/options", ",".join(options or ("rw",)).encode())
    # The destination comes last, for read to take the rest of the line.
    mounts = [(",".join(("ro", *image.options)), image.destination) for image in pmem]
    lines = "".join(f"{options} {destination}\n" for options, destination in mounts)
    archive.file("etc/pmem", os.fsencode(lines))
    archive.file("init", INIT.encode(), 0o755)
    made = {PurePosixPath(directory) for directory in (".", *_DIRECTORIES)}
    for name, source in (files or {}).items():
        for parent in reversed(PurePosixPath(name).parents):
            if parent not in made:
                archive.directory(str(parent))
                made.add(parent)
        archive.file(name, _read(source), stat.S_IMODE(source.stat().st_mode))
    return archive.finish()


def program_files(program: str) -> dict[str, Path]:
    """Return, for the `files` of an initramfs, a program of the host's with its libraries, all at
    the paths that they have here.

    Raises: GuestUnavailable, if there is no such program.
    """
    path = shutil.which(program)
    if path is None:
        raise GuestUnavailable(f"no {program}: install the Debian package that has it")
    listing = subprocess.run(["ldd", path], capture_output=True, text=True, check=False).stdout
    words = (path, *(word for word in listing.split() if word.startswith("/")))
    return {word.lstrip("/"): Path(word) for word in words}


def find_busybox() -> Path:
    """Return the path of a busybox in PATH.

    Raises: GuestUnavailable.
    """
    path = shutil.which("busybox", path=os.environ.get("PATH", "") + ":/usr/bin:/bin")
    if path is None:
        raise GuestUnavailable("no busybox: install the Debian package busybox-static")
    return Path(path)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise GuestUnavailable(f"can't read {path}: {error.strerror}") from error


def _read_busybox(path: Path) -> bytes:
    data = _read(path)
    if _is_dynamic(data):
        raise GuestUnavailable(
            f"{path} is dynamically linked: install the Debian package busybox-static"
        )
    return data


def _is_dynamic(data: bytes) -> bool:
    """Tell if an ELF file asks for an interpreter, which an initramfs does not have. See elf(5)."""
    if data[:4] != _ELF_MAGIC or data[4] != _ELF64:
        return False
    offset = int.from_bytes(data[32:40], "little")
    size = int.from_bytes(data[54:56], "little")
    count = int.from_bytes(data[56:58], "little")
    headers = (data[offset + i * size :][:4] for i in range(count))
    return any(int.from_bytes(kind, "little") == _PT_INTERP for kind in headers)
