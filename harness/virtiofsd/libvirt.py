"""What libvirt wants to know of a vhost-user backend: docs/interop/vhost-user.json of QEMU."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Final

from harness.errors import UsageError

FILE_NAME: Final = "50-dentry.json"
_FEATURES: Final = ["migrate-precopy", "separate-options"]


def capabilities() -> str:
    """What ``--print-capabilities`` prints."""
    return json.dumps({"type": "fs", "features": _FEATURES}, indent=2)


def write_description(directory: str, program: str) -> str:
    """Write ``FILE_NAME`` into ``directory``, which names ``program``; return its path.

    Raises:
        UsageError: ``program``'s name isn't virtiofsd, so that libvirt, which gives it virtiofsd's
            options and no subcommand, could not run it; or the file can't be written.
    """
    if os.path.basename(program) != "virtiofsd":
        raise UsageError(
            "libvirt runs a program without a subcommand: make a symbolic link named virtiofsd to "
            "dentry, and call that one with --write-libvirt-json"
        )
    path = Path(directory, FILE_NAME)
    description = {
        "description": "dentry vhost-user-fs",
        "type": "fs",
        "binary": os.path.abspath(program),
        "features": _FEATURES,
    }
    try:
        path.write_text(json.dumps(description, indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"--write-libvirt-json {directory}: {error.strerror}") from None
    return str(path)
