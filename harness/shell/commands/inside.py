"""Commands that look inside of the VFS, and explain it."""

from __future__ import annotations

import argparse
import errno
import os
from collections.abc import Callable, Iterator
from typing import Any

from harness.shell.command import Commands, Invocation, Usage, argument
from harness.shell.commands.mounts import JSON
from harness.shell.views import (
    dentries_lines,
    explain_lines,
    extents_lines,
    mounts_lines,
    pairs_lines,
    propagate_lines,
    records_lines,
    refs_lines,
    show,
    show_json,
)
from vfs import abi


def register(commands: Commands) -> None:
    """Put the family into the table."""
    add = commands.add
    tables: list[tuple[str, str, str, tuple[str, ...]]] = [
        ("fds", "fds", "list the task's open descriptors",
         ("fd", "access", "position", "references", "path")),
        ("locks", "locks", "list all advisory locks",
         ("kind", "access", "filesystem", "ino", "start", "end", "pid", "waiters")),
        ("devices", "devices", "list the devices that have drivers here",
         ("kind", "major", "minor", "mode", "name")),
        ("ps", "tasks", "list all tasks of the VFS",
         ("pid", "uid", "gid", "namespace", "umask", "fds", "root", "cwd", "comm")),
    ]  # fmt: skip
    for name, view, help_text, columns in tables:
        run = _table(view, columns)
        run.__doc__ = help_text
        add(name, JSON)(run)

    @add("mounts", JSON, argument("path", nargs="?", metavar="PATH"))
    def mounts(invocation: Invocation, given: argparse.Namespace) -> None:
        """draw the tree of mounts with peer groups, masters, and what is hidden"""
        rows = invocation.inspect("mounts", path=given.path)
        if not show_json(invocation, given.json, rows):
            show(invocation, mounts_lines(rows))

    @add("propagate", JSON, argument("--bind", metavar="SOURCE", help="a bind of this place"),
         argument("--dry-run", nargs="?", const="mount", choices=["mount"],
                  help="nothing else is ever done; the word mount may follow"),
         argument("target", metavar="TARGET"))  # fmt: skip
    def propagate(invocation: Invocation, given: argparse.Namespace) -> None:
        """tell where something mounted on TARGET would appear, and why; nothing is mounted"""
        rows = invocation.inspect("propagate", target=given.target, source=given.bind)
        if not show_json(invocation, given.json, rows):
            show(invocation, propagate_lines(rows))

    @add("dentries", JSON, argument("--depth", type=int, metavar="N", help="not deeper"),
         argument("path", nargs="?", default="/", metavar="PATH"))  # fmt: skip
    def dentries(invocation: Invocation, given: argparse.Namespace) -> None:
        """draw the cache of names: positive, negative, mounted on, references, unused"""
        found = invocation.inspect("dentries", path=given.path, depth=given.depth)
        if not show_json(invocation, given.json, found):
            show(invocation, dentries_lines(found))

    @add("inode", JSON, argument("path", metavar="PATH"))
    def inode(invocation: Invocation, given: argparse.Namespace) -> None:
        """show an inode, and the names by which the cache knows it"""
        found = invocation.inspect("inode", path=given.path)
        if not show_json(invocation, given.json, found):
            show(invocation, pairs_lines(found))

    @add("refs", JSON, argument("path", nargs="?", metavar="PATH"))
    def refs(invocation: Invocation, given: argparse.Namespace) -> None:
        """tell who holds the mount, the dentry and the inode of a path; or what lives"""
        rows = invocation.inspect("refs", path=given.path)
        if not show_json(invocation, given.json, rows):
            show(invocation, refs_lines(rows))

    @add("why-busy", JSON, argument("path", metavar="PATH"))
    def why_busy(invocation: Invocation, given: argparse.Namespace) -> int:
        """tell what keeps a mount from being unmounted; succeeds if nothing does"""
        found = invocation.inspect("busy", path=given.path)
        if not show_json(invocation, given.json, found):
            if not found["root"]:
                invocation.print(f"{given.path} is no mount point; about the mount that it is on:")
            for reason in found["reasons"]:
                invocation.print(f"{reason['what']}: {reason['cure']}")
            if not found["reasons"]:
                invocation.print("nothing keeps it busy")
        return int(found["busy"])

    @add("statistics", JSON)
    def statistics(invocation: Invocation, given: argparse.Namespace) -> None:
        """count what lives, and what is cached"""
        found = invocation.inspect("statistics")
        if not show_json(invocation, given.json, found):
            live = found.pop("live")
            counts = {f"live {kind}": count for kind, count in live.items()}
            show(invocation, pairs_lines({**found, **counts}))

    @add("check", JSON)
    def check(invocation: Invocation, given: argparse.Namespace) -> int:
        """check every invariant of the VFS"""
        found = invocation.inspect("check")
        if not show_json(invocation, given.json, found):
            broken = found["broken"]
            invocation.print("all invariants hold" if broken is None else f"broken: {broken}")
        return int(found["broken"] is not None)

    @add("extents", JSON, argument("path", metavar="FILE"))
    def extents(invocation: Invocation, given: argparse.Namespace) -> None:
        """show where a file has data and where holes"""
        rows = list(_extents(invocation, given.path))
        if not show_json(invocation, given.json, rows):
            show(invocation, extents_lines(rows))

    @add("explain", JSON, argument("action", choices=["open", "walk"], help="open or walk"),
         argument("path", metavar="PATH"),
         argument("-r", action="store_true", help="for reading"),
         argument("-w", action="store_true", help="for writing"),
         argument("-n", action="store_true", help="do not follow a link at the end"))  # fmt: skip
    def explain(invocation: Invocation, given: argparse.Namespace) -> int:
        """walk a path step by step, and tell what decides; succeeds as the call would"""
        opening = given.action == "open"
        found = invocation.inspect(
            "explain", path=given.path, write=given.w, follow=not given.n,
            read=opening and (given.r or not given.w),
        )  # fmt: skip
        if not show_json(invocation, given.json, found):
            show(invocation, explain_lines(found))
        return int(found["errno"] is not None)

    @add("errno", argument("number", metavar="NUMBER|NAME"))
    def errno_(invocation: Invocation, given: argparse.Namespace) -> None:
        """tell what an error number means"""
        names = {name: number for number, name in errno.errorcode.items()}
        text = given.number.upper()
        number = int(text) if text.isdecimal() else names.get(text)
        if number is None or number not in errno.errorcode:
            raise Usage(f"{given.number}: there is no such error")
        invocation.print(f"{errno.errorcode[number]} {number}: {os.strerror(number)}")


def _table(view: str, columns: tuple[str, ...]) -> Callable[[Invocation, argparse.Namespace], None]:
    def run(invocation: Invocation, given: argparse.Namespace) -> None:
        rows = invocation.inspect(view)
        if not show_json(invocation, given.json, rows):
            show(invocation, records_lines(rows, columns))

    return run


def _extents(invocation: Invocation, path: str) -> Iterator[dict[str, Any]]:
    sys = invocation.sys
    fd = sys.open(path, abi.O_RDONLY | abi.O_CLOEXEC, 0)
    try:
        size = sys.fstat(fd).st_size
        at = 0
        while at < size:
            try:
                data = sys.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                data = size
            if data > at:
                yield {"kind": "hole", "start": at, "end": data}
            if data < size:
                at = sys.lseek(fd, data, os.SEEK_HOLE)
                yield {"kind": "data", "start": data, "end": at}
            else:
                at = size
    finally:
        sys.close(fd)
