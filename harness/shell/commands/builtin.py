"""Commands about the shell itself."""

from __future__ import annotations

import argparse
import os
from typing import Final

from harness.shell.command import Commands, Invocation, Usage, argument
from harness.shell.session import Exit, named

_HOME: Final = "/"


def register(commands: Commands) -> None:
    """Put the family into the table."""
    add = commands.add

    @add("true")
    def true(invocation: Invocation, given: argparse.Namespace) -> int:
        """succeed"""
        return 0

    @add("false")
    def false(invocation: Invocation, given: argparse.Namespace) -> int:
        """fail"""
        return 1

    @add("exit", argument("status", nargs="?", metavar="STATUS"))
    def exit(invocation: Invocation, given: argparse.Namespace) -> int:
        """end the shell, by default with the status of the last command"""
        if given.status is None:
            raise Exit(invocation.session.status)
        if not given.status.isdecimal():
            raise Usage(f"{given.status}: a number is needed")
        raise Exit(int(given.status) & 0xFF)

    @add("echo", argument("-n", action="store_true", help="no newline"),
         argument("words", nargs=argparse.REMAINDER, metavar="WORD"))  # fmt: skip
    def echo(invocation: Invocation, given: argparse.Namespace) -> None:
        """write words, with a space between them"""
        invocation.print(" ".join(given.words), end="" if given.n else "\n")

    @add("cd", argument("path", nargs="?", default=_HOME, metavar="DIRECTORY"))
    def cd(invocation: Invocation, given: argparse.Namespace) -> None:
        """change the task's current directory"""
        try:
            invocation.sys.chdir(given.path)
        except OSError as error:
            raise named(error, given.path) from None

    @add("pwd")
    def pwd(invocation: Invocation, given: argparse.Namespace) -> None:
        """write the task's current directory"""
        invocation.print(os.fsdecode(invocation.sys.getcwd()))

    @add("set", argument("option", nargs="?", choices=["-e", "+e"]), prefix_chars="\0")
    def set(invocation: Invocation, given: argparse.Namespace) -> None:
        """list variables; -e ends a script at the first failure, +e does not"""
        if given.option is not None:
            invocation.session.errexit = given.option == "-e"
            return
        for name, value in sorted(invocation.session.variables.items()):
            invocation.print(f"{name}={value}")

    @add("unset", argument("names", nargs="+", metavar="NAME"))
    def unset(invocation: Invocation, given: argparse.Namespace) -> None:
        """forget variables"""
        for name in given.names:
            invocation.session.variables.pop(name, None)

    @add("sleep", argument("seconds", type=float, metavar="SECONDS"))
    def sleep(invocation: Invocation, given: argparse.Namespace) -> None:
        """do nothing for a while"""
        invocation.sleep(max(0.0, given.seconds))

    @add("help", argument("names", nargs="*", metavar="COMMAND"))
    def help(invocation: Invocation, given: argparse.Namespace) -> None:
        """list the commands, or tell about some"""
        if not given.names:
            width = max(map(len, commands))
            for name, command in sorted(commands.items()):
                invocation.print(f"{name:{width}}  {command.summary}")
        for name in given.names:
            if name not in commands:
                invocation.complain(f"{name}: there is no such command")
            else:
                invocation.print(commands[name].parser.format_help(), end="")
