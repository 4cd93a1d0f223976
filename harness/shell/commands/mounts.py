"""Commands that change mounts and roots."""

from __future__ import annotations

import argparse
import errno
from collections.abc import Iterator
from typing import Final

from harness.shell.command import Commands, Invocation, Usage, argument
from harness.shell.views import place_of, show, show_json, table_lines, tree_of
from vfs import abi

JSON: Final = argument("--json", action="store_true", help="the data itself")
_MOUNT_WORDS: Final = {
    "ro": abi.MS_RDONLY, "nosuid": abi.MS_NOSUID, "nodev": abi.MS_NODEV,
    "noexec": abi.MS_NOEXEC, "noatime": abi.MS_NOATIME, "nodiratime": abi.MS_NODIRATIME,
    "relatime": abi.MS_RELATIME, "nosymfollow": abi.MS_NOSYMFOLLOW, "remount": abi.MS_REMOUNT,
    "bind": abi.MS_BIND, "rbind": abi.MS_BIND | abi.MS_REC, "sync": abi.MS_SYNCHRONOUS,
}  # fmt: skip
_CLEARED: Final = {
    "rw": abi.MS_RDONLY, "suid": abi.MS_NOSUID, "dev": abi.MS_NODEV, "exec": abi.MS_NOEXEC,
    "atime": abi.MS_NOATIME, "diratime": abi.MS_NODIRATIME,
}  # fmt: skip
_PROPAGATION: Final = {
    "shared": abi.MS_SHARED, "slave": abi.MS_SLAVE, "private": abi.MS_PRIVATE,
    "unbindable": abi.MS_UNBINDABLE,
}  # fmt: skip


def register(commands: Commands) -> None:
    """Put the family into the table."""
    add = commands.add

    @add(
        "mount",
        argument("-t", metavar="TYPE", help="a new filesystem of this type"),
        argument("-o", action="append", default=[], metavar="OPTION,...", help="options"),
        argument("--bind", action="store_true", help="SOURCE, a place of the tree, once more"),
        argument("--rbind", action="store_true", help="and what is mounted below"),
        argument("--move", action="store_true", help="the mount at SOURCE to TARGET"),
        *(
            argument(f"--make-{'r' if recursive else ''}{word}", action="append_const",
                     dest="change", const=flag | recursive,
                     help="and below" if recursive else f"TARGET is {word}")
            for word, flag in _PROPAGATION.items()
            for recursive in (0, abi.MS_REC)
        ),
        argument("words", nargs="*", metavar="SOURCE TARGET"),
    )  # fmt: skip
    def mount(invocation: Invocation, given: argparse.Namespace) -> None:
        """mount a filesystem or a place of the tree; without words list mounts"""
        if not given.words:
            invocation.stdout.write(invocation.sys.mounts())
            return
        _mount(invocation, given)

    @add("umount", argument("-l", action="store_true", help="now, and the rest when it is unused"),
         argument("-f", action="store_true", help="although requests are under way"),
         argument("-R", action="store_true", help="and what is mounted below"),
         argument("paths", nargs="+", metavar="PATH"))  # fmt: skip
    def umount(invocation: Invocation, given: argparse.Namespace) -> None:
        """take mounts off"""
        flags = (abi.MNT_DETACH if given.l else 0) | (abi.MNT_FORCE if given.f else 0)
        for path in given.paths:
            for place in _below(invocation, path) if given.R else [path]:
                try:
                    invocation.sys.umount2(place, flags)
                except OSError as error:
                    invocation.fail(place, error)
                    if error.errno == errno.EBUSY:
                        invocation.complain(f"{place}: `why-busy {place}` tells why")

    @add("findmnt", JSON, argument("path", nargs="?", metavar="PATH"))
    def findmnt(invocation: Invocation, given: argparse.Namespace) -> None:
        """show mounts as a tree with their options"""
        rows = invocation.inspect("mounts", path=given.path)
        if show_json(invocation, given.json, rows):
            return
        table: list[tuple[str, ...]] = [("TARGET", "SOURCE", "FSTYPE", "OPTIONS")]
        for prefix, row in tree_of(rows):
            source = row["source"] + (f"[{row['shows']}]" if row["shows"] != "/" else "")
            options = ",".join(row["flags"]) or "rw"
            table.append((prefix + place_of(row), source, row["type"], options))
        show(invocation, table_lines(table, left=(0, 1, 2, 3), heading=True))

    @add("pivot_root", argument("new_root", metavar="NEW"), argument("put_old", metavar="OLD"))
    def pivot_root(invocation: Invocation, given: argparse.Namespace) -> None:
        """make NEW the root, and move the old one to OLD below it"""
        invocation.sys.pivot_root(given.new_root, given.put_old)

    @add("chroot", argument("path", metavar="DIRECTORY"))
    def chroot(invocation: Invocation, given: argparse.Namespace) -> None:
        """make a directory the task's root, and go there"""
        invocation.sys.chroot(given.path)
        invocation.sys.chdir("/")


def _mount(invocation: Invocation, given: argparse.Namespace) -> None:
    sys = invocation.sys
    flags, cleared, data = _mount_options(given.o)
    flags |= abi.MS_BIND * (given.bind or given.rbind) | abi.MS_REC * given.rbind
    flags |= abi.MS_MOVE * given.move
    *source, target = given.words
    if len(source) > 1:
        raise Usage("at most a source and a target")
    first: str | None = source[0] if source else None
    moving = flags & (abi.MS_BIND | abi.MS_MOVE) and not flags & abi.MS_REMOUNT
    if moving and first is None:
        raise Usage("the source is missing")
    if first is not None or given.t is not None or flags & abi.MS_REMOUNT:
        if not (moving or flags & abi.MS_REMOUNT) and given.t is None:
            raise Usage("-t TYPE, --bind or --move is needed")
        if flags & abi.MS_REMOUNT and given.t is None:
            flags = flags & ~abi.MS_REC | _flags_now(invocation, target) & ~cleared
        own = flags & ~(abi.MS_BIND | abi.MS_REC) if flags & abi.MS_BIND else 0
        first_call = flags if flags & (abi.MS_REMOUNT | abi.MS_MOVE) else flags & ~own
        sys.mount(first, target, given.t, first_call, data)
        if own and not flags & (abi.MS_REMOUNT | abi.MS_MOVE):
            # Flags beside MS_BIND are ignored by mount(2), so they need a call of their own.
            sys.mount(None, target, None, abi.MS_REMOUNT | abi.MS_BIND | own, None)
    elif not given.change:
        raise Usage("what to mount is missing")
    for change in given.change or ():
        sys.mount(None, target, None, change, None)


def _mount_options(words: list[str]) -> tuple[int, int, str | None]:
    """Flags, flags that are to be taken off, and what is the filesystem's."""
    flags = cleared = 0
    rest = []
    for word in ",".join(words).split(",") if words else ():
        if word in _MOUNT_WORDS:
            flags |= _MOUNT_WORDS[word]
        elif word in _CLEARED:
            cleared |= _CLEARED[word]
        elif word:
            rest.append(word)
    return flags, cleared, ",".join(rest) or None


def _flags_now(invocation: Invocation, target: str) -> int:
    """A remount keeps what is not named, as mount(8) has it by reading mountinfo."""
    rows = invocation.inspect("mounts", path=target)
    return sum(_MOUNT_WORDS[word] for word in rows[0]["flags"])


def _below(invocation: Invocation, path: str) -> Iterator[str]:
    """The mount points at and below `path`, deepest first."""
    rows = invocation.inspect("mounts", path=path)
    return (row["mountpoint"] for row in reversed(rows) if row["mountpoint"] is not None)
