"""The commands, a module a family. Each module's `register` puts its own into the table."""

from __future__ import annotations

from harness.shell.command import Commands
from harness.shell.commands import (
    builtin,
    changing,
    content,
    device,
    inside,
    listing,
    mounts,
    tasks,
    tracing,
)


def all_commands() -> Commands:
    """The table of every command."""
    commands = Commands()
    for family in (builtin, listing, content, changing, mounts, tasks, device, inside, tracing):
        family.register(commands)
    return commands
