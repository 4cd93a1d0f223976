"""virtiofsd in Rust, of the newer Debian that ``make newer`` fetches."""

from __future__ import annotations

from pathlib import Path

from harness.guest.errors import GuestUnavailable
from harness.guest.newer import find_newer


def rust_virtiofsd(directory: Path) -> list[tuple[str, list[str]]]:
    """Its name and its command to serve ``directory``, which is made, at PATH; none without it."""
    try:
        program = find_newer().virtiofsd
    except GuestUnavailable:
        return []
    directory.mkdir()
    words = ("--socket-path=PATH", f"--shared-dir={directory}", "--cache=auto", "--sandbox=chroot")
    return [("Rust virtiofsd", [str(program), *words])]
