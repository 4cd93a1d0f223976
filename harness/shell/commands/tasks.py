"""Commands about the shell's tasks: who they are, and what they stand in."""

from __future__ import annotations

import argparse
import fcntl
from collections.abc import Callable
from typing import Any, Final

from harness.shell.command import Commands, Invocation, Syscalls, Usage, argument
from harness.shell.session import named
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

    @add("nsenter", argument("task", metavar="TASK", help="a task of the shell, or a pid"),
         argument("words", nargs=argparse.REMAINDER, metavar="COMMAND"))  # fmt: skip
    def nsenter(invocation: Invocation, given: argparse.Namespace) -> int:
        """run a command in a task's mount namespace; without one, go there"""
        session = invocation.session
        owner = session.tasks.get(given.task)
        if owner is None:
            if not given.task.isdecimal():
                raise Usage(f"{given.task}: there is no such task")
            owner = int(given.task)
        if not given.words:
            _enter(invocation.sys, owner)
            return 0
        return _run_in(invocation, given.words, lambda sys: _enter(sys, owner))

    @add("flock", argument("-s", action="store_true", help="shared, not exclusive"),
         argument("-n", action="store_true", help="fail if somebody else has it"),
         argument("path", metavar="FILE"),
         argument("words", nargs=argparse.REMAINDER, metavar="COMMAND"))  # fmt: skip
    def flock(invocation: Invocation, given: argparse.Namespace) -> int:
        """run a command with a lock on a file, which is made if it is not there"""
        if not given.words:
            raise Usage("a command is missing")
        session, sys = invocation.session, invocation.sys
        operation = fcntl.LOCK_SH if given.s else fcntl.LOCK_EX
        try:
            fd = sys.open(given.path, abi.O_RDONLY | abi.O_CREAT | abi.O_CLOEXEC, 0o666)
        except OSError as error:
            raise named(error, given.path) from None
        try:
            if given.n:
                session.kernel.call(session.task, "flock", fd, operation | fcntl.LOCK_NB)
            else:
                sys.flock(fd, operation)
            return session.invoke(given.words, *invocation.streams)
        finally:
            sys.close(fd)

    @add("ulimit", argument("-n", nargs="?", const="", required=True, metavar="NUMBER",
                            help="of descriptors"))  # fmt: skip
    def ulimit(invocation: Invocation, given: argparse.Namespace) -> None:
        """show or set how many descriptors the task may have"""
        if given.n:
            if not given.n.isdecimal() or int(given.n) >= 1 << 31:
                raise Usage(f"{given.n}: a number is needed")
            invocation.sys.setrlimit_nofile(int(given.n))
            return
        own = next(row for row in invocation.inspect("tasks") if row["own"])
        invocation.print(str(own["fds_limit"]))

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
        who = _identity(given.who)
        if given.words:
            return _run_in(invocation, given.words, **who)
        name = next(name for name, pid in session.tasks.items() if pid == session.task)
        child = session.kernel.create_task(session.task, **who)
        session.kernel.exit_task(session.task)
        session.tasks[name] = session.task = child
        return 0


def _run_in(
    invocation: Invocation,
    words: list[str],
    prepare: Callable[[Syscalls], None] = lambda sys: None,
    **who: Any,
) -> int:
    """Run a command in a clone of the current task."""
    session = invocation.session
    before = session.task
    child = session.kernel.create_task(before, **who)
    try:
        prepare(Syscalls(session.kernel, child))
        session.task = child
        return session.invoke(words, *invocation.streams)
    finally:
        session.task = before
        session.kernel.exit_task(child)


def _enter(sys: Syscalls, owner: int) -> None:
    """Raises: as setns(2); ESRCH."""
    fd = sys.nsfd(owner, "mnt")
    try:
        sys.setns(fd, abi.CLONE_NEWNS)
    finally:
        sys.close(fd)


def _identity(text: str) -> dict[str, Any]:
    """UID[:GID[,GROUP...]] as `create_task` takes it. Raises: Usage."""
    uid, _, rest = text.partition(":")
    numbers = rest.split(",") if rest else [uid]
    if not all(number.isdecimal() for number in (uid, *numbers)):
        raise Usage(f"{text}: numbers are needed, as 1000 or 1000:100,27")
    gid, *groups = map(int, numbers)
    return {"uid": int(uid), "gid": gid, "groups": groups}
