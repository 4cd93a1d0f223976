"""A newer Debian beside the host's, unpacked by `make newer`: for comparisons, and newer guests."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from harness.guest.errors import GuestUnavailable
from harness.guest.kernel import find_kernel

VARIABLE: Final = "DENTRY_NEWER"
_DEFAULT: Final = Path(__file__).parents[2] / ".cache" / "newer"


@dataclass(frozen=True)
class Newer:
    """Programs that run on the host as they are, and a kernel image with its modules beside it."""

    virtiofsd: Path
    """The Rust one."""
    qemu: Path
    kernel: Path


def find_newer(directory: Path | None = None) -> Newer:
    """Return what is in `directory`, by default DENTRY_NEWER's or the checkout's.

    Raises: GuestUnavailable.
    """
    directory = directory or Path(os.environ.get(VARIABLE) or _DEFAULT).absolute()
    virtiofsd, qemu = (directory / "bin" / name for name in ("virtiofsd", "qemu-system-x86_64"))
    if not (os.access(virtiofsd, os.X_OK) and os.access(qemu, os.X_OK)):
        raise GuestUnavailable(f"no newer Debian in {directory}: run make newer")
    root = directory / "root"
    kernel = find_kernel(boot=root / "boot", modules=root / "lib" / "modules")
    return Newer(virtiofsd, qemu, kernel.image)
