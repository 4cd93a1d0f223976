"""Commands about the shell's tasks: who they are, and what they stand in."""

from __future__ import annotations

import argparse
from typing import Any, Final

from harness.shell.command import Commands, Invocation, Usage, argument
from vfs import abi

_NAMESPACES: Final = {"m": abi.CLONE_NEWNS, "U": abi.CLONE_NEWUSER}


def register(commands: Commands) -> None:
    """Put the family into the table."""
    add = commands.add

    @add("unshare", argument("-m", action="store_true", help="a mount namespace"),
         argument("-U", action="store_true", help="a user namespace"))  # fmt: skip
    def unshare(invocation: Invocation, given: argparse.Namespace) -> None:
        """give the task namespaces of its own"""
        flags = sum(flag for letter, flag in _NAMESPACES.items() if getattr(given, letter))
        if not flags:
            raise Usage("say which: -m, -U")
        invocation.sys.unshare(flags)

    @add("umask", argument("mask", nargs="?", metavar="MASK"))
    def umask(invocation: Invocation, given: argparse.Namespace) -> None:
        """show or set what is taken from the mode of new files"""
        if given.mask is None:
            before = invocation.sys.umask(0)
            invocation.sys.umask(before)
            invocation.print(f"{before:04o}")
            return
        try:
            mask = int(given.mask, 8)
        except ValueError:
            raise Usage(f"{given.mask}: an octal number is needed") from None
        invocation.sys.umask(mask)

    @add("task", argument("action", choices=["list", "new", "switch", "exit"], nargs="?",
                          default="list", help="list (default), new, switch, exit"),
         argument("name", nargs="?", metavar="NAME"))  # fmt: skip
    def task(invocation: Invocation, given: argparse.Namespace) -> None:
        """the shell's tasks: list them, make a clone of the current one, switch, end one"""
        session = invocation.session
        if given.action == "list":
            for name, pid in session.tasks.items():
                invocation.print(f"{'*' if pid == session.task else ' '} {name} ({pid})")
            return
        if given.name is None:
            raise Usage("its name is missing")
        if given.action == "new":
            if given.name in session.tasks:
                raise Usage(f"{given.name}: there is one of this name")
            session.tasks[given.name] = session.kernel.create_task(session.task)
        if given.name not in session.tasks:
            raise Usage(f"{given.name}: there is no such task")
        if given.action == "exit":
            if session.tasks[given.name] == session.task:
                raise Usage(f"{given.name}: it is the current one; switch first")
            session.kernel.exit_task(session.tasks.pop(given.name))
        else:
            session.task = session.tasks[given.name]

    @add("as", argument("who", metavar="UID[:GID[,GROUP...]]"),
         argument("words", nargs=argparse.REMAINDER, metavar="COMMAND"))  # fmt: skip
    def as_(invocation: Invocation, given: argparse.Namespace) -> int:
        """run a command as another user; without one, be that user from now on"""
        session = invocation.session
        child = session.kernel.create_task(session.task, **_identity(given.who))
        if not given.words:
            name = next(name for name, pid in session.tasks.items() if pid == session.task)
            session.kernel.exit_task(session.task)
            session.tasks[name] = session.task = child
            return 0
        before, session.task = session.task, child
        try:
            streams = invocation.stdin, invocation.stdout, invocation.stderr
            return session.invoke(given.words, *streams)
        finally:
            session.task = before
            session.kernel.exit_task(child)


def _identity(text: str) -> dict[str, Any]:
    """UID[:GID[,GROUP...]] as `create_task` takes it. Raises: Usage."""
    uid, _, rest = text.partition(":")
    numbers = rest.split(",") if rest else [uid]
    if not all(number.isdecimal() for number in (uid, *numbers)):
        raise Usage(f"{text}: numbers are needed, as 1000 or 1000:100,27")
    gid, *groups = map(int, numbers)
    return {"uid": int(uid), "gid": gid, "groups": groups}
