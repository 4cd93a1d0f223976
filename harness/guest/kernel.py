"""Finds a guest kernel and the modules that a virtio-fs root needs."""

from __future__ import annotations

import gzip
import lzma
import re
import shutil
import struct
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from harness.guest.errors import GuestUnavailable

GUEST_MODULES: Final = ("virtiofs", "virtio_pci", "virtio_console")
"""What the initramfs loads: the file system, its bus, and the ports that the agent speaks on."""

PMEM_MODULES: Final = ("virtio_pmem", "nd_pmem")
"""What it loads besides for persistent memory. Linux's ext4 driver mounts ext2, too."""

_KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"

# Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
_HEADER_MAGIC: Final = (0x202, b"HdrS")
_HEADER_VERSION_POINTER: Final = 0x20E
_SETUP_BASE: Final = 0x200


@dataclass(frozen=True)
class Kernel:
    """A bootable image and the directory of its modules.

    `modules` is None when an explicitly named kernel has no module directory; everything it
    needs is then taken to be built in, and the guest's init reports it if it is not.
    """

    image: Path
    release: str
    modules: Path | None


def find_kernel(
    image: Path | None = None,
    *,
    boot: Path = Path("/boot"),
    modules: Path = Path("/lib/modules"),
    needed: Sequence[str] = GUEST_MODULES,
) -> Kernel:
    """Return `image` as a `Kernel`, or the newest installed one that has the `needed` modules.

    Raises: GuestUnavailable, if there is none or it can't be read.
    """
    if image is not None:
        return _explicit_kernel(image, modules)
    unreadable = None
    for candidate in _newest_first(boot.glob("vmlinuz-*")):
        release = candidate.name.removeprefix("vmlinuz-")
        kernel = Kernel(candidate, release, modules / release)
        if not _has_modules(kernel, needed):
            continue
        try:
            _read_header(candidate)
        except PermissionError:
            unreadable = candidate
            continue
        return kernel
    if unreadable is not None:
        raise GuestUnavailable(
            f"{unreadable} is not readable by this user: run as root or copy it and use --kernel"
        )
    raise GuestUnavailable(
        f"no guest kernel with virtiofs modules in {boot}: install the Debian package "
        f"{_KERNEL_PACKAGE}, or name a kernel with --kernel"
    )


def module_files(kernel: Kernel, names: Sequence[str] = GUEST_MODULES) -> list[Path]:
    """Return the module files that provide `names`, each after those it depends on.

    Built-in modules have no file. Source: modules.dep(5), modules.builtin.

    Raises: GuestUnavailable, if the kernel lacks a module.
    """
    if kernel.modules is None:
        return []
    depends = _read_modules_dep(kernel.modules)
    by_name = {module_name(path): path for path in depends}
    builtin = {module_name(path) for path in _read_lines(kernel.modules / "modules.builtin")}
    ordered: dict[str, None] = {}
    for name in map(module_name, names):
        if name in builtin:
            continue
        path = by_name.get(name)
        if path is None:
            raise GuestUnavailable(
                f"kernel {kernel.release} has no module {name}: install the Debian package "
                f"{_KERNEL_PACKAGE}, or name another kernel with --kernel"
            )
        # depmod lists all indirect dependencies too, to be loaded from right to left.
        ordered.update(dict.fromkeys(reversed(depends[path])))
        ordered[path] = None
    return [kernel.modules / path for path in ordered]


def read_module(path: Path) -> bytes:
    """Return the module as a plain ELF object: insmod in the guest unpacks nothing.

    Raises: GuestUnavailable, if it can't be read or is compressed in a way we can't undo.
    """
    try:
        if path.suffix == ".zst":
            return _unpack_zstd(path)
        data = path.read_bytes()
        if path.suffix == ".xz":
            return lzma.decompress(data)
        if path.suffix == ".gz":
            return gzip.decompress(data)
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise GuestUnavailable(f"can't read the kernel module {path}: {error}") from error
    return data


def module_name(path: str) -> str:
    """Return a module's name for lsmod from its file's path, `-` and compression undone."""
    name = PurePosixPath(path).name
    return name.partition(".ko")[0].replace("-", "_")


def image_release(image: Path) -> str | None:
    """Return the release that a bzImage states in its header (`uname -r`), None if it has none.

    Raises: OSError, if it can't be read.
    """
    header = _read_header(image)
    offset, magic = _HEADER_MAGIC
    if header[offset : offset + len(magic)] != magic:
        return None
    (pointer,) = struct.unpack_from("<H", header, _HEADER_VERSION_POINTER)
    version = header[pointer + _SETUP_BASE :].partition(b"\0")[0]
    words = version.decode("ascii", "replace").split()
    return words[0] if pointer and words else None


def _explicit_kernel(image: Path, modules: Path) -> Kernel:
    try:
        release = image_release(image)
    except OSError as error:
        raise GuestUnavailable(f"can't read the kernel {image}: {error.strerror}") from error
    if release is None:
        if not image.name.startswith("vmlinuz-"):
            raise GuestUnavailable(f"{image} is not a Linux bzImage: name one with --kernel")
        release = image.name.removeprefix("vmlinuz-")
    # An unpacked package has its modules beside its boot directory, not in the host's /lib.
    beside = image.absolute().parent.parent / "lib" / "modules"
    for directory in (modules / release, beside / release):
        if (directory / "modules.dep").is_file():
            return Kernel(image, release, directory)
    return Kernel(image, release, None)


def _newest_first(images: Iterable[Path]) -> list[Path]:
    def version(image: Path) -> list[tuple[int, int | str]]:
        words = re.findall(r"\d+|[a-z]+", image.name.removeprefix("vmlinuz-"))
        return [(1, int(word)) if word.isdigit() else (0, word) for word in words]

    return sorted(images, key=version, reverse=True)


def _has_modules(kernel: Kernel, names: Sequence[str]) -> bool:
    try:
        return all(path.is_file() for path in module_files(kernel, names))
    except GuestUnavailable:
        return False


def _read_modules_dep(directory: Path) -> dict[str, list[str]]:
    depends = {}
    for line in _read_lines(directory / "modules.dep"):
        path, _, rest = line.partition(":")
        depends[path] = rest.split()
    return depends


def _read_lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise GuestUnavailable(f"can't read {path}: {error.strerror}") from error


def _read_header(image: Path) -> bytes:
    with image.open("rb") as file:
        # The version string is in the setup sectors, of which there are at most 64 KiB.
        return file.read(1 << 16)


def _unpack_zstd(path: Path) -> bytes:
    zstd = shutil.which("zstd")
    if zstd is None:
        raise GuestUnavailable(f"{path} is compressed with zstd: install the Debian package zstd")
    result = subprocess.run([zstd, "-dcq", path], capture_output=True, check=False)
    if result.returncode:
        reason = result.stderr.decode(errors="replace").strip()
        raise GuestUnavailable(f"can't unpack the kernel module {path}: {reason}")
    return result.stdout
