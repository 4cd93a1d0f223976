"""Finds out whether KVM really runs guests here, and remembers the answer.

On some nested hosts /dev/kvm exists and answers ioctls, yet QEMU aborts or the guest spins in its
firmware for ever. Only running a guest tells.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
import tempfile
from pathlib import Path
from typing import Final

KVM: Final = ("-accel", "kvm", "-cpu", "host")
TCG: Final = ("-accel", "tcg,thread=multi", "-cpu", "max")

PROBE_TIMEOUT: Final = 5.0
"""Seconds. Where KVM works the probe ends within one."""

_EXIT_PORT: Final = 0x501
_EXIT_VALUE: Final = 0x31
# hw/misc/debugexit.c: the status of QEMU is the value written, shifted left, and 1.
_EXIT_STATUS: Final = _EXIT_VALUE << 1 | 1

_DISK_SIZE: Final = 1 << 20
_BOOT_SECTOR: Final = (
    bytes((0xBA, *_EXIT_PORT.to_bytes(2, "little")))  # mov dx, port
    + bytes((0xB0, _EXIT_VALUE))  # mov al, value
    + b"\xee"  # out dx, al
    + b"\xf4\xeb\xfd"  # hlt; jmp to the hlt
).ljust(510, b"\0") + b"\x55\xaa"


def choose_accelerator(qemu: Path) -> tuple[str, ...]:
    """Return QEMU's arguments for the fastest accelerator and CPU that work here."""
    return KVM if kvm_works(qemu) else TCG


def kvm_works(
    qemu: Path, *, device: Path = Path("/dev/kvm"), cache_dir: Path | None = None
) -> bool:
    """Tell whether `qemu` runs a guest under KVM.

    The first call takes up to `PROBE_TIMEOUT` seconds. Its answer is kept in a file under
    `cache_dir` (by default dentry's in XDG_CACHE_HOME), by host kernel, CPU and QEMU binary.
    Where this user can't open `device` the answer is no, and nothing is kept.
    """
    if not os.access(device, os.R_OK | os.W_OK):
        return False
    path = (cache_dir or default_cache_dir()) / f"kvm-{_host_key(qemu)}.json"
    known = _load(path)
    if known is not None:
        return known
    works = boots_sector(qemu, KVM)
    _store(path, works)
    return works


def boots_sector(qemu: Path, accelerator: tuple[str, ...], timeout: float = PROBE_TIMEOUT) -> bool:
    """Tell whether `qemu` boots, through its firmware, a sector that reports by a debug port."""
    with tempfile.NamedTemporaryFile(prefix="dentry-kvm-") as disk:
        disk.write(_BOOT_SECTOR)
        # SeaBIOS does not boot an AHCI disk of a single sector.
        disk.truncate(_DISK_SIZE)
        command = [
            *(str(qemu), "-M", "q35", *accelerator, "-m", "64"),
            *("-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
            *("-device", f"isa-debug-exit,iobase={_EXIT_PORT:#x},iosize=2"),
            *("-drive", f"file={disk.name},format=raw,if=ide,snapshot=on"),
        ]
        try:
            result = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                timeout=timeout,
                check=False,
            )
        except (subprocess.TimeoutExpired, OSError):
            return False
    return result.returncode == _EXIT_STATUS


def default_cache_dir() -> Path:
    """Return dentry's directory for what can be found out anew. XDG Base Directory, 0.8."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else Path("~/.cache").expanduser()) / "dentry"


def _host_key(qemu: Path) -> str:
    status = qemu.stat()
    kernel = platform.uname()
    facts = (
        *(kernel.release, kernel.version, kernel.machine, _cpu_model()),
        *(str(qemu.resolve()), status.st_size, status.st_mtime_ns),
    )
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _cpu_model() -> str:
    try:
        with open("/proc/cpuinfo") as cpuinfo:
            return next((line for line in cpuinfo if line.startswith("model name")), "")
    except OSError:
        return ""


def _load(path: Path) -> bool | None:
    try:
        answer = json.loads(path.read_text())["works"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return answer if isinstance(answer, bool) else None


def _store(path: Path, works: bool) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=".kvm-")
        with os.fdopen(fd, "w") as file:
            json.dump({"works": works}, file)
        os.replace(temporary, path)
    except OSError:
        # A home that can't be written costs a probe the next time, no more.
        return
