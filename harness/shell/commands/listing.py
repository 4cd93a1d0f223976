"""Commands that show names and attributes."""

from __future__ import annotations

import argparse
import fnmatch
import os
import stat
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from harness.shell.command import Commands, Invocation, Syscalls, Usage, argument, strerror
from harness.shell.session import list_directory, named
from harness.shell.views import Line, Piece, columns, show, shown, table_lines, terminal_width
from vfs import abi
from vfs.syscalls.attributes import Stat

_UNITS: Final = "KMGTPE"
_SIX_MONTHS_SECONDS: Final = 182 * 86400
_TYPES: Final = {
    "f": stat.S_IFREG,
    "d": stat.S_IFDIR,
    "l": stat.S_IFLNK,
    "c": stat.S_IFCHR,
    "b": stat.S_IFBLK,
    "p": stat.S_IFIFO,
    "s": stat.S_IFSOCK,
}
_STYLES: Final = {
    stat.S_IFDIR: "bold blue",
    stat.S_IFLNK: "bold cyan",
    stat.S_IFCHR: "bold yellow",
    stat.S_IFBLK: "bold yellow",
    stat.S_IFIFO: "yellow",
    stat.S_IFSOCK: "bold magenta",
}
_TYPE_NAMES: Final = {
    stat.S_IFREG: "regular file",
    stat.S_IFDIR: "directory",
    stat.S_IFLNK: "symbolic link",
    stat.S_IFCHR: "character special file",
    stat.S_IFBLK: "block special file",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket",
}


def register(commands: Commands) -> None:
    """Put the family into the table."""
    add = commands.add

    @add(
        "ls",
        argument("-l", action="store_true", help="a line each, with attributes"),
        argument("-a", action="store_true", help="also names that begin with a dot"),
        argument("-A", action="store_true", help="as -a, without . and .."),
        argument("-i", action="store_true", help="with inode numbers"),
        argument("-R", action="store_true", help="and what is below"),
        argument("-d", action="store_true", help="directories themselves"),
        argument("-h", action="store_true", help="sizes with units"),
        argument("-S", action="store_true", help="largest first"),
        argument("-t", action="store_true", help="latest change first"),
        argument("-r", action="store_true", help="the other way round"),
        argument("-1", action="store_true", dest="one", help="a name a line"),
        argument("--zero", action="store_true", help="end names by NUL, as they are"),
        argument("paths", nargs="*", default=["."], metavar="PATH"),
    )
    def ls(invocation: Invocation, given: argparse.Namespace) -> None:
        """list names, in columns and colours on a terminal, else one a line"""
        _Listing(invocation, given).run()

    @add("stat", argument("-L", action="store_true", help="follow a symbolic link"),
         argument("-f", action="store_true", help="the filesystem"),
         argument("paths", nargs="+", metavar="PATH"))  # fmt: skip
    def stat_(invocation: Invocation, given: argparse.Namespace) -> None:
        """show all attributes"""
        show = _show_filesystem if given.f else _show_stat
        for path in given.paths:
            try:
                show(invocation, path, given.L)
            except OSError as error:
                invocation.fail(path, error)

    @add(
        "find",
        argument("paths", nargs="*", default=["."], metavar="PATH"),
        argument("-name", help="the last component matches this pattern"),
        argument("-path", help="the whole path matches this pattern"),
        argument("-type", choices=sorted(_TYPES), help="f, d, l, c, b, p or s"),
        argument("-inum", type=int, metavar="N", help="the inode number"),
        argument("-links", type=int, metavar="N", help="the number of links"),
        argument("-user", type=int, metavar="UID", help="the owner"),
        argument("-empty", action="store_true", help="an empty file or directory"),
        argument("-maxdepth", type=int, metavar="N", help="not deeper than this"),
        argument("-mindepth", type=int, default=0, metavar="N", help="not above this"),
        argument("-xdev", action="store_true", help="stay on one filesystem"),
        argument("-print0", action="store_true", help="end names by NUL"),
    )
    def find(invocation: Invocation, given: argparse.Namespace) -> None:
        """list what is below some paths, if all that is asked for holds"""
        end = b"\0" if given.print0 else b"\n"
        for top in given.paths:
            for path, found, depth in walk(invocation, top, given.maxdepth, given.xdev):
                if depth >= given.mindepth and _matches(invocation.sys, path, found, given):
                    invocation.stdout.write(os.fsencode(path) + end)

    @add("tree", argument("-a", action="store_true", help="also names that begin with a dot"),
         argument("-L", type=int, metavar="N", dest="depth", help="not deeper than this"),
         argument("paths", nargs="*", default=["."], metavar="PATH"))  # fmt: skip
    def tree(invocation: Invocation, given: argparse.Namespace) -> None:
        """draw directories"""
        for path in given.paths:
            invocation.print(shown(path))
            _draw(invocation, path, "", given.a, given.depth)

    @add(
        "du",
        argument("-s", action="store_true", help="only the sum of each path"),
        argument("-h", action="store_true", help="with units"),
        argument("paths", nargs="*", default=["."], metavar="PATH"),
    )
    def du(invocation: Invocation, given: argparse.Namespace) -> None:
        """add up what files take, in KiB; hard links count once"""
        seen: set[tuple[int, int]] = set()
        for path in given.paths:
            total = _add_up(invocation, path, given, seen)
            if given.s and total is not None:
                _print_usage(invocation, path, total, given.h)

    @add("df", argument("-h", action="store_true", help="with units"),
         argument("-i", action="store_true", help="inodes"),
         argument("paths", nargs="*", metavar="PATH"))  # fmt: skip
    def df(invocation: Invocation, given: argparse.Namespace) -> None:
        """show what is free on filesystems, by default on all that are mounted"""
        paths = given.paths or _mountpoints(invocation)
        size = "Inodes" if given.i else "Size" if given.h else "1K-blocks"
        rows: list[tuple[str, ...]] = []
        for path in paths:
            try:
                rows.append(_usage_row(invocation, path, given))
            except OSError as error:
                invocation.fail(path, error)
        heading = ("Filesystem", size, "Used", "Available", "Use%", "Path")
        show(invocation, table_lines([heading, *rows], left=(0, 5), heading=True))

    @add("readlink", argument("-f", action="store_true", help="the path without any link"),
         argument("paths", nargs="+", metavar="PATH"))  # fmt: skip
    def readlink(invocation: Invocation, given: argparse.Namespace) -> None:
        """show where symbolic links point to"""
        for path in given.paths:
            try:
                if given.f:
                    invocation.print(canonical(invocation.sys, path))
                else:
                    invocation.print(os.fsdecode(invocation.sys.readlink(path)))
            except OSError as error:
                invocation.fail(path, error)


# ls


class _Listing:
    """One `ls`."""

    def __init__(self, invocation: Invocation, given: argparse.Namespace) -> None:
        self.invocation = invocation
        self.sys = invocation.sys
        self.given = given
        self.began = False

    def run(self) -> None:
        files: list[tuple[str, Stat]] = []
        directories: list[str] = []
        for path in self.given.paths:
            try:
                found = self._stat_argument(path)
            except OSError as error:
                self.invocation.fail(path, error)
                continue
            if stat.S_ISDIR(found.st_mode) and not self.given.d:
                directories.append(path)
            else:
                files.append((path, found))
        if files:
            self._print(files, "")
            self.began = True
        headed = len(self.given.paths) > 1 or self.given.R
        for path in sorted(directories):
            self._directory(path, headed)

    def _stat_argument(self, path: str) -> Stat:
        """A link to a directory is that directory, if its content is wanted."""
        found: Stat = self.sys.lstat(path)
        if stat.S_ISLNK(found.st_mode) and not (self.given.l or self.given.d):
            try:
                found = self.sys.stat(path)
            except OSError:
                return found
        return found

    def _directory(self, path: str, headed: bool) -> None:
        try:
            names = list_directory(self.sys, path)
        except OSError as error:
            self.invocation.fail(path, error)
            return
        if self.given.a and not self.given.A:
            names += [".", ".."]
        elif not self.given.A:
            names = [name for name in names if not name.startswith(".")]
        found = []
        for name in names:
            try:
                found.append((name, self.sys.lstat(join(path, name))))
            except OSError as error:
                self.invocation.fail(join(path, name), error)
        if headed:
            if self.began:
                self.invocation.print()
            self.invocation.print(f"{shown(path)}:")
        self.began = True
        if self.given.l and not self.given.zero:
            self.invocation.print(f"total {sum(s.st_blocks for _, s in found) // 2}")
        self._print(found, path)
        if self.given.R:
            for name, attributes in self._sorted(found):
                if stat.S_ISDIR(attributes.st_mode) and name not in (".", ".."):
                    self._directory(join(path, name), True)

    def _sorted(self, found: list[tuple[str, Stat]]) -> list[tuple[str, Stat]]:
        given = self.given
        found = sorted(found)
        if given.S:
            found.sort(key=lambda item: -item[1].st_size)
        elif given.t:
            found.sort(key=lambda item: -item[1].st_mtime_ns)
        return found[::-1] if given.r else found

    def _print(self, found: list[tuple[str, Stat]], directory: str) -> None:
        found = self._sorted(found)
        if self.given.zero:
            for name, _ in found:
                self.invocation.stdout.write(os.fsencode(name) + b"\0")
        elif self.given.l:
            rows = [self._row(attributes) for name, attributes in found]
            lines = table_lines(rows, left=(1, 6) if self.given.i else (0, 5), gap=" ")
            names = [self._long_name(name, attributes, directory) for name, attributes in found]
            show(self.invocation, [line + name for line, name in zip(lines, names, strict=True)])
        else:
            lines = (
                [Piece(f"{attributes.st_ino} " if self.given.i else ""), _name(name, attributes)]
                for name, attributes in found
            )
            if self.invocation.stdout.is_terminal and not self.given.one:
                lines = columns(list(lines), terminal_width())
            show(self.invocation, lines)

    def _long_name(self, name: str, attributes: Stat, directory: str) -> Line:
        line = [Piece(" "), _name(name, attributes)]
        if stat.S_ISLNK(attributes.st_mode):
            try:
                target = shown(os.fsdecode(self.sys.readlink(join(directory, name))))
                line.append(Piece(f" -> {target}"))
            except OSError as error:
                self.invocation.fail(join(directory, name), error)
        return line

    def _row(self, attributes: Stat) -> tuple[str, ...]:
        mode = attributes.st_mode
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            size = f"{abi.major(attributes.st_rdev)},{abi.minor(attributes.st_rdev):4}"
        else:
            size = human(attributes.st_size) if self.given.h else str(attributes.st_size)
        row = (
            stat.filemode(mode), str(attributes.st_nlink), str(attributes.st_uid),
            str(attributes.st_gid), size, _when(attributes.st_mtime_ns),
        )  # fmt: skip
        return (str(attributes.st_ino), *row) if self.given.i else row


def _name(name: str, attributes: Stat) -> Piece:
    mode = attributes.st_mode
    style = _STYLES.get(stat.S_IFMT(mode), "")
    return Piece(shown(name), "bold green" if not style and mode & 0o111 else style)


def _when(time_ns: int) -> str:
    """A time in UTC as ls(1) shows it: the clock's within half a year, else the year's."""
    seconds = time_ns // 10**9
    recent = 0 <= time.time() - seconds < _SIX_MONTHS_SECONDS
    return time.strftime("%b %e %H:%M" if recent else "%b %e  %Y", time.gmtime(seconds))


# stat


def _show_stat(invocation: Invocation, path: str, follow: bool) -> None:
    sys = invocation.sys
    found: Stat = sys.stat(path) if follow else sys.lstat(path)
    mode = found.st_mode
    extended = sys.statx(
        abi.AT_FDCWD, path, 0 if follow else abi.AT_SYMLINK_NOFOLLOW,
        abi.STATX_BASIC_STATS | abi.STATX_BTIME | abi.STATX_MNT_ID,
    )  # fmt: skip
    name = shown(path)
    if stat.S_ISLNK(mode):
        name += " -> " + shown(os.fsdecode(sys.readlink(path)))
    invocation.print(f"  File: {name}")
    invocation.print(
        f"  Size: {found.st_size}  Blocks: {found.st_blocks}  IO Block: {found.st_blksize}  "
        f"{_TYPE_NAMES.get(stat.S_IFMT(mode), 'unknown')}"
    )
    device = f"{abi.major(found.st_dev)},{abi.minor(found.st_dev)}"
    special = ""
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        special = f"  Device type: {abi.major(found.st_rdev)},{abi.minor(found.st_rdev)}"
    invocation.print(
        f"Device: {device}  Inode: {found.st_ino}  Links: {found.st_nlink}  "
        f"Mount: {extended.stx_mnt_id}{special}"
    )
    invocation.print(
        f"Access: ({mode & 0o7777:04o}/{stat.filemode(mode)})  Uid: {found.st_uid}  "
        f"Gid: {found.st_gid}"
    )
    for name, when in (
        ("Access", found.st_atime_ns),
        ("Modify", found.st_mtime_ns),
        ("Change", found.st_ctime_ns),
        (" Birth", extended.stx_btime_ns),
    ):
        known = name != " Birth" or extended.stx_mask & abi.STATX_BTIME
        invocation.print(f"{name}: {timestamp(when) if known else '-'}")


def timestamp(time_ns: int) -> str:
    """A time in UTC, to the nanosecond."""
    seconds, rest = divmod(time_ns, 10**9)
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds)) + f".{rest:09} +0000"


def _show_filesystem(invocation: Invocation, path: str, follow: bool) -> None:
    found = invocation.sys.statfs(path)
    invocation.print(f'  File: "{shown(path)}"')
    invocation.print(f"    ID: {found.f_fsid:x} Namelen: {found.f_namelen} Type: {found.f_type:#x}")
    invocation.print(f"Block size: {found.f_bsize}  Fundamental block size: {found.f_frsize}")
    invocation.print(
        f"Blocks: Total: {found.f_blocks} Free: {found.f_bfree} Available: {found.f_bavail}"
    )
    invocation.print(f"Inodes: Total: {found.f_files} Free: {found.f_ffree}")


# find, tree, du


def walk(
    invocation: Invocation, top: str, maxdepth: int | None = None, one_filesystem: bool = False
) -> Iterator[tuple[str, Stat, int]]:
    """`top` and all below it, in the order of names: path, attributes, depth. Links are not
    followed; what can't be looked at is complained about.
    """
    pending = [(top, 0)]
    device = None
    while pending:
        path, depth = pending.pop()
        try:
            found: Stat = invocation.sys.lstat(path)
        except OSError as error:
            invocation.fail(path, error)
            continue
        device = found.st_dev if device is None else device
        yield path, found, depth
        within = not one_filesystem or found.st_dev == device
        if stat.S_ISDIR(found.st_mode) and within and (maxdepth is None or depth < maxdepth):
            try:
                names = list_directory(invocation.sys, path)
            except OSError as error:
                invocation.fail(path, error)
                continue
            pending += [(join(path, name), depth + 1) for name in sorted(names, reverse=True)]


def _matches(sys: Syscalls, path: str, found: Stat, given: argparse.Namespace) -> bool:
    mode = found.st_mode
    name = path.rstrip("/").rpartition("/")[2] or "/"
    return (
        (given.name is None or fnmatch.fnmatchcase(name, given.name))
        and (given.path is None or fnmatch.fnmatchcase(path, given.path))
        and (given.type is None or stat.S_IFMT(mode) == _TYPES[given.type])
        and (given.inum is None or found.st_ino == given.inum)
        and (given.links is None or found.st_nlink == given.links)
        and (given.user is None or found.st_uid == given.user)
        and (not given.empty or _is_empty(sys, path, found))
    )


def _is_empty(sys: Syscalls, path: str, found: Stat) -> bool:
    if not stat.S_ISDIR(found.st_mode):
        return stat.S_ISREG(found.st_mode) and not found.st_size
    try:
        return not list_directory(sys, path)
    except OSError:
        return False


def _draw(invocation: Invocation, path: str, indent: str, hidden: bool, depth: int | None) -> None:
    if depth == 0:
        return
    try:
        names = sorted(list_directory(invocation.sys, path))
    except OSError as error:
        invocation.complain(f"{path}: {strerror(error)}")
        return
    names = [name for name in names if hidden or not name.startswith(".")]
    for number, name in enumerate(names, 1):
        last = number == len(names)
        below = join(path, name)
        text = shown(name)
        try:
            mode = invocation.sys.lstat(below).st_mode
            if stat.S_ISLNK(mode):
                text += " -> " + shown(os.fsdecode(invocation.sys.readlink(below)))
        except OSError as error:
            invocation.fail(below, error)
            mode = 0
        invocation.print(f"{indent}{'└── ' if last else '├── '}{text}")
        if stat.S_ISDIR(mode):
            further = indent + ("    " if last else "│   ")
            _draw(invocation, below, further, hidden, None if depth is None else depth - 1)


def _add_up(
    invocation: Invocation, path: str, given: argparse.Namespace, seen: set[tuple[int, int]]
) -> int | None:
    """The 512-byte blocks of what is at and below `path`; directories are printed on the way."""
    try:
        found: Stat = invocation.sys.lstat(path)
        identity = found.st_dev, found.st_ino
        if identity in seen:
            return 0
        seen.add(identity)
        total = found.st_blocks
        if not stat.S_ISDIR(found.st_mode):
            return total
        names = list_directory(invocation.sys, path)
    except OSError as error:
        invocation.fail(path, error)
        return None
    for name in sorted(names):
        total += _add_up(invocation, join(path, name), given, seen) or 0
    if not given.s:
        _print_usage(invocation, path, total, given.h)
    return total


def _print_usage(invocation: Invocation, path: str, blocks: int, units: bool) -> None:
    amount = human(blocks * 512) if units else str((blocks + 1) // 2)
    invocation.print(f"{amount}\t{shown(path)}")


# df


def _mountpoints(invocation: Invocation) -> list[str]:
    """Where something is mounted, as the task sees it; a later mount hides an earlier one."""
    found: dict[str, None] = {}
    for line in invocation.sys.mountinfo().splitlines():
        place = line.split(b" ")[4]
        found[os.fsdecode(unescape(place))] = None
    return list(found)


def unescape(text: bytes) -> bytes:
    """A field of mountinfo without its octal escapes."""
    for number in b" \t\n\\":
        text = text.replace(b"\\%03o" % number, bytes([number]))
    return text


def _usage_row(invocation: Invocation, path: str, given: argparse.Namespace) -> tuple[str, ...]:
    found = invocation.sys.statfs(path)
    mounted = invocation.sys.statmount_at(path, abi.STATMOUNT_FS_TYPE)
    if given.i:
        total, used, free = found.f_files, found.f_files - found.f_ffree, found.f_ffree
        numbers = [str(number) for number in (total, used, free)]
    else:
        size = found.f_frsize or found.f_bsize
        total, free = found.f_blocks * size, found.f_bavail * size
        used = (found.f_blocks - found.f_bfree) * size
        text: Callable[[int], str] = human if given.h else lambda n: str(n // 1024)
        numbers = [text(number) for number in (total, used, free)]
    share = f"{-(-100 * used // (used + free))}%" if used + free else "-"
    return (os.fsdecode(mounted.fs_type or b"?"), *numbers, share, shown(path))


# What others use, too


def join(directory: str, name: str) -> str:
    """A name below a directory, or alone."""
    if not directory:
        return name
    return directory + name if directory.endswith("/") else f"{directory}/{name}"


def human(size: int) -> str:
    """A number of bytes with a unit, rounded up, as ls(1) and du(1) do with -h."""
    if size < 1024:
        return str(size)
    unit = min((size.bit_length() - 1) // 10, len(_UNITS))
    tenths = -(-size * 10 // (1 << 10 * unit))
    if tenths >= 10240 and unit < len(_UNITS):
        unit += 1
        tenths = 10
    text = f"{tenths // 10}.{tenths % 10}" if tenths < 100 else str(-(-tenths // 10))
    return text + _UNITS[unit - 1]


def canonical(sys: Syscalls, path: str) -> str:
    """The absolute path without links, `.` and `..`; the last component need not exist.

    Raises: as stat(2).
    """
    head, _, tail = path.rstrip("/").rpartition("/")
    directory = path if tail in ("", ".", "..") else (head or ("/" if path[:1] == "/" else "."))
    try:
        found: Any = sys.stat(path)
    except OSError as error:
        if directory == path:
            raise named(error, path) from None
        found = None
    if found is not None and stat.S_ISDIR(found.st_mode):
        return _directory_path(sys, path)
    try:
        target = os.fsdecode(sys.readlink(path))
    except OSError:
        return join(_directory_path(sys, directory), tail)
    return canonical(sys, join(directory, target) if target[:1] != "/" else target)


def _directory_path(sys: Syscalls, path: str) -> str:
    before = sys.open(".", abi.O_PATH | abi.O_DIRECTORY | abi.O_CLOEXEC, 0)
    try:
        sys.chdir(path)
        try:
            return os.fsdecode(sys.getcwd())
        finally:
            sys.fchdir(before)
    except OSError as error:
        raise named(error, path) from None
    finally:
        sys.close(before)


def parse_mode(text: str) -> int:
    """An octal mode. Raises: Usage."""
    try:
        mode = int(text, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o7777:
        raise Usage(f"{text}: an octal mode up to 7777 is needed")
    return mode
