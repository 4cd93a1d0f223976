"""Pictures of views for the documentation: `python -m harness.shell.pictures DIRECTORY`."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from harness.compose import Tree
from harness.control.kernel import LocalKernel
from harness.shell.commands import all_commands
from harness.shell.session import Session
from harness.shell.streams import BufferedWriter, Bytes

_PROPAGATION: Final = """\
mkdir /srv /peer /slave /covered; mount -t tmpfs none /srv; mount --make-shared /srv
mkdir /srv/data; mount --bind /srv /peer; mount --bind /srv /slave; mount --make-slave /slave
mount -t tmpfs -o ro,nosuid none /srv/data; mount -t tmpfs none /covered
mkdir /covered/below; mount -t tmpfs none /covered/below; mount -t tmpfs none /covered
"""
PICTURES: Final = {
    "mounts": (_PROPAGATION, "mounts"),
    "propagate": (_PROPAGATION, "propagate --dry-run mount --bind /covered /srv/data"),
    "dentries": (
        "mkdir -p /home/ann/notes; echo x > /home/ann/todo; mkdir /home/mnt; "
        "mount -t tmpfs none /home/mnt; ln -s todo /home/ann/link; cd /home/ann/notes",
        "dentries /home",
    ),
    "explain": (
        "mkdir -p /home/ann/private; chmod 750 /home/ann; chown 1000:100 /home/ann; "
        "echo x > /home/ann/private/diary; ln -s /home/ann/private/diary /diary; as 1001:100",
        "explain open /diary -w",
    ),
}
"""By names of files: what is prepared, and the command that is shown."""

_WIDTH: Final = 100


class _Terminal(BufferedWriter):
    is_terminal = True


def picture(preparation: str, command: str) -> str:
    """What `command` draws, as SVG. Raises: RuntimeError (it complains)."""
    drawn, errors = io.BytesIO(), io.BytesIO()
    streams = _Terminal(drawn.write), BufferedWriter(errors.write)
    with (
        Tree([]) as tree,
        LocalKernel(tree.vfs, tree.task) as kernel,
        Session(kernel, all_commands(), Bytes(), *streams) as session,
    ):
        session.run(f"{preparation}\n{command}")
    if errors.getvalue():
        raise RuntimeError(errors.getvalue().decode())
    console = Console(record=True, file=io.StringIO(), width=_WIDTH)
    console.print(Text.from_ansi(drawn.getvalue().decode()))
    return console.export_svg(title=command)


def main(directory: str) -> None:
    """Write all pictures."""
    # Whatever the terminal can't do, the pictures can.
    os.environ.pop("NO_COLOR", None)
    os.environ.update(TERM="xterm-256color", COLORTERM="")
    for name, (preparation, command) in PICTURES.items():
        path = Path(directory, f"{name}.svg")
        path.write_text(picture(preparation, command))
        print(path)


if __name__ == "__main__":
    main(sys.argv[1])
