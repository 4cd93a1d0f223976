"""Commands that make, change and remove names."""

from __future__ import annotations

import argparse
import errno
import os
import re
import stat
from typing import Any, Final

from harness.shell.command import Commands, Invocation, Syscalls, Usage, argument, strerror
from harness.shell.commands.content import parse_size
from harness.shell.commands.listing import join, parse_mode
from harness.shell.session import list_directory, named
from harness.shell.streams import CHUNK
from harness.shell.views import shown
from vfs import abi
from vfs.syscalls.attributes import Stat

_CLAUSE: Final = re.compile(r"([ugoa]*)([-+=])([rwxXst]*)")
_AT: Final = abi.AT_FDCWD
_NOFOLLOW: Final = abi.AT_SYMLINK_NOFOLLOW
_BITS: Final = {"r": 0o444, "w": 0o222, "x": 0o111}
_WHO: Final = {"u": 0o4700, "g": 0o2070, "o": 0o1007}


def register(commands: Commands) -> None:
    """Put the family into the table."""
    add = commands.add

    @add(
        "cp",
        argument("-a", action="store_true", help="directories, and all attributes"),
        argument("-r", "-R", action="store_true", help="directories, too"),
        argument("-p", action="store_true", help="keep mode, owner and times"),
        argument("paths", nargs="+", metavar="PATH"),
    )
    def cp(invocation: Invocation, given: argparse.Namespace) -> None:
        """copy files: SOURCE TARGET, or SOURCE... DIRECTORY"""
        for source, target in _pairs(invocation.sys, given.paths):
            _Copy(invocation, given).copy(source, target)

    @add("mv", argument("-n", action="store_true", help="do not replace"),
         argument("paths", nargs="+", metavar="PATH"))  # fmt: skip
    def mv(invocation: Invocation, given: argparse.Namespace) -> None:
        """move files: SOURCE TARGET, or SOURCE... DIRECTORY"""
        for source, target in _pairs(invocation.sys, given.paths):
            try:
                flags = abi.RENAME_NOREPLACE if given.n else 0
                invocation.sys.renameat2(_AT, source, _AT, target, flags)
            except OSError as error:
                if given.n and error.errno == errno.EEXIST:
                    continue
                if error.errno == errno.EXDEV:
                    _move_across(invocation, source, target)
                else:
                    invocation.fail(f"{source} -> {target}", error)

    @add("rm", argument("-r", "-R", action="store_true", help="directories, too"),
         argument("-f", action="store_true", help="what is not there is removed already"),
         argument("paths", nargs="*", metavar="PATH"))  # fmt: skip
    def rm(invocation: Invocation, given: argparse.Namespace) -> None:
        """remove files"""
        for path in given.paths:
            if path.rstrip("/").rpartition("/")[2] in (".", ".."):
                invocation.complain(f"{path}: neither . nor .. is removed")
                continue
            try:
                _remove(invocation, path, given.r)
            except FileNotFoundError as error:
                if not given.f:
                    invocation.fail(path, error)
            except OSError as error:
                invocation.fail(path if error.filename is None else error.filename, error)

    @add("mkdir", argument("-p", action="store_true", help="and those above; they may exist"),
         argument("-m", metavar="MODE", help="the mode, in octal"),
         argument("paths", nargs="+", metavar="DIRECTORY"))  # fmt: skip
    def mkdir(invocation: Invocation, given: argparse.Namespace) -> None:
        """make directories"""
        mode = None if given.m is None else parse_mode(given.m)
        for path in given.paths:
            try:
                make_directory(invocation.sys, path, given.p)
                if mode is not None:
                    invocation.sys.chmod(path, mode)
            except OSError as error:
                invocation.fail(path, error)

    @add("rmdir", argument("paths", nargs="+", metavar="DIRECTORY"))
    def rmdir(invocation: Invocation, given: argparse.Namespace) -> None:
        """remove empty directories"""
        for path in given.paths:
            try:
                invocation.sys.rmdir(path)
            except OSError as error:
                invocation.fail(path, error)

    @add("ln", argument("-s", action="store_true", help="a symbolic link"),
         argument("-f", action="store_true", help="in the place of what is there"),
         argument("paths", nargs="+", metavar="PATH"))  # fmt: skip
    def ln(invocation: Invocation, given: argparse.Namespace) -> None:
        """link: TARGET NAME, or TARGET... DIRECTORY"""
        for target, name in _pairs(invocation.sys, given.paths):
            try:
                _link(invocation.sys, target, name, given)
            except OSError as error:
                invocation.fail(name, error)

    @add(
        "touch",
        argument("-a", action="store_true", help="the time of access only"),
        argument("-m", action="store_true", help="the time of modification only"),
        argument("-c", action="store_true", help="make nothing"),
        argument("-d", metavar="SECONDS", type=float, help="since 1970, instead of now"),
        argument("paths", nargs="+", metavar="FILE"),
    )
    def touch(invocation: Invocation, given: argparse.Namespace) -> None:
        """set times, and make what is not there"""
        when = None if given.d is None else round(given.d * 10**9)
        for path in given.paths:
            try:
                _touch(invocation.sys, path, given, when)
            except OSError as error:
                invocation.fail(path, error)

    @add("chmod", argument("-R", action="store_true", help="and what is below"),
         argument("mode", metavar="MODE"), argument("paths", nargs="+", metavar="PATH"),
         prefix_chars="\0")  # fmt: skip
    def chmod(invocation: Invocation, given: argparse.Namespace) -> None:
        """set modes, in octal or as u+x,go-w; -R first, for what is below, too"""
        words = [given.mode, *given.paths]
        recursive = words[0] == "-R"
        mode, *paths = words[recursive:]
        check_mode(mode)
        if not paths:
            raise Usage("the names of files are missing")
        _apply(invocation, paths, recursive, lambda path, found: _chmod(
            invocation.sys, path, found, mode))  # fmt: skip

    @add("chown", argument("-R", action="store_true", help="and what is below"),
         argument("-h", action="store_true", help="of symbolic links themselves"),
         argument("owner", metavar="UID[:GID]"),
         argument("paths", nargs="+", metavar="PATH"))  # fmt: skip
    def chown(invocation: Invocation, given: argparse.Namespace) -> None:
        """set owners; :GID sets the group alone"""
        uid, gid = parse_owner(given.owner)
        flags = _NOFOLLOW if given.h or given.R else 0
        _apply(invocation, given.paths, given.R, lambda path, found: invocation.sys.fchownat(
            _AT, path, uid, gid, flags))  # fmt: skip

    @add("mknod", argument("-m", metavar="MODE", help="the mode, in octal"),
         argument("path", metavar="NAME"),
         argument("type", choices=["b", "c", "u", "p"]), argument("major", type=int, nargs="?"),
         argument("minor", type=int, nargs="?"))  # fmt: skip
    def mknod(invocation: Invocation, given: argparse.Namespace) -> None:
        """make a device node (b, c with MAJOR MINOR) or a FIFO (p)"""
        device = 0
        if given.type == "p":
            kind = stat.S_IFIFO
        elif given.minor is None:
            raise Usage("a device has a major and a minor number")
        else:
            kind = stat.S_IFBLK if given.type == "b" else stat.S_IFCHR
            device = abi.makedev(given.major, given.minor)
        _make_node(invocation, given.path, kind, device, given.m)

    @add("mkfifo", argument("-m", metavar="MODE", help="the mode, in octal"),
         argument("paths", nargs="+", metavar="NAME"))  # fmt: skip
    def mkfifo(invocation: Invocation, given: argparse.Namespace) -> None:
        """make FIFOs"""
        for path in given.paths:
            _make_node(invocation, path, stat.S_IFIFO, 0, given.m)

    @add("truncate", argument("-s", required=True, metavar="SIZE", help="such as 64k"),
         argument("paths", nargs="+", metavar="FILE"))  # fmt: skip
    def truncate(invocation: Invocation, given: argparse.Namespace) -> None:
        """give files a size, and make them if they are not there"""
        size = parse_size(given.s)
        for path in given.paths:
            try:
                fd = invocation.sys.open(path, abi.O_WRONLY | abi.O_CREAT | abi.O_CLOEXEC, 0o666)
                try:
                    invocation.sys.ftruncate(fd, size)
                finally:
                    invocation.sys.close(fd)
            except OSError as error:
                invocation.fail(path, error)

    @add("sync")
    def sync(invocation: Invocation, given: argparse.Namespace) -> None:
        """have all that is written reach its place"""
        invocation.sys.sync()

    @add("getfattr", argument("-h", action="store_true", help="of symbolic links themselves"),
         argument("-n", metavar="NAME", help="this one only"),
         argument("paths", nargs="+", metavar="PATH"))  # fmt: skip
    def getfattr(invocation: Invocation, given: argparse.Namespace) -> None:
        """show extended attributes"""
        for path in given.paths:
            try:
                _show_xattrs(invocation, path, given)
            except OSError as error:
                invocation.fail(path, error)

    @add("setfattr", argument("-h", action="store_true", help="of symbolic links themselves"),
         argument("-n", metavar="NAME", help="set this one"),
         argument("-v", metavar="VALUE", default="", help="to this; 0x... are bytes"),
         argument("-x", metavar="NAME", help="remove this one"),
         argument("paths", nargs="+", metavar="PATH"))  # fmt: skip
    def setfattr(invocation: Invocation, given: argparse.Namespace) -> None:
        """set or remove an extended attribute"""
        if (given.n is None) == (given.x is None):
            raise Usage("either -n or -x is needed")
        value = _value(given.v)
        sys = invocation.sys
        for path in given.paths:
            try:
                if given.x is not None:
                    (sys.lremovexattr if given.h else sys.removexattr)(path, given.x)
                else:
                    (sys.lsetxattr if given.h else sys.setxattr)(path, given.n, value, 0)
            except OSError as error:
                invocation.fail(path, error)


def _pairs(sys: Syscalls, paths: list[str]) -> list[tuple[str, str]]:
    """Each source with its place: the last path, or, if that is a directory, below it."""
    *sources, target = paths
    if not sources:
        raise Usage(f"{target}: where to is missing")
    try:
        below = stat.S_ISDIR(sys.stat(target).st_mode)
    except OSError:
        below = False
    if not below:
        if len(sources) > 1:
            raise Usage(f"{target}: this is no directory")
        return [(sources[0], target)]
    return [(path, join(target, path.rstrip("/").rpartition("/")[2])) for path in sources]


def make_directory(sys: Syscalls, path: str, above: bool = False) -> None:
    """mkdir(2); with `above` as `mkdir -p`. Raises: as mkdir(2)."""
    if not above:
        sys.mkdir(path, 0o777)
        return
    place = "/" if path.startswith("/") else ""
    for name in path.split("/"):
        if not name:
            continue
        place = join(place, name)
        try:
            sys.mkdir(place, 0o777)
        except FileExistsError:
            if not stat.S_ISDIR(sys.stat(place).st_mode):
                raise


def _link(sys: Syscalls, target: str, name: str, given: argparse.Namespace) -> None:
    if given.f:
        try:
            sys.unlink(name)
        except FileNotFoundError:
            pass
    if given.s:
        sys.symlink(target, name)
    else:
        sys.link(target, name)


def _touch(sys: Syscalls, path: str, given: argparse.Namespace, when: int | None) -> None:
    if not given.c:
        try:
            sys.close(sys.open(path, abi.O_WRONLY | abi.O_CREAT | abi.O_CLOEXEC, 0o666))
        except IsADirectoryError:
            pass
    wanted = (0, abi.UTIME_NOW) if when is None else divmod(when, 10**9)
    both = given.a == given.m
    times = [wanted if both or this else (0, abi.UTIME_OMIT) for this in (given.a, given.m)]
    try:
        sys.utimensat(_AT, path, times, 0)
    except FileNotFoundError:
        if not given.c:
            raise


def _remove(invocation: Invocation, path: str, recursive: bool) -> None:
    sys = invocation.sys
    if not recursive or not stat.S_ISDIR(sys.lstat(path).st_mode):
        sys.unlink(path)
        return
    for name in list_directory(sys, path):
        below = join(path, name)
        try:
            _remove(invocation, below, True)
        except OSError as error:
            raise error if error.filename is not None else named(error, below) from None
    sys.rmdir(path)


def _apply(invocation: Invocation, paths: list[str], recursive: bool, change: Any) -> None:
    """`change(path, attributes)` for each path, and with `recursive` for what is below: first
    what is below, so that a directory may be closed by it. Links below are left alone.
    """
    for path in paths:
        try:
            found: Stat = invocation.sys.lstat(path)
            if recursive and stat.S_ISDIR(found.st_mode):
                names = list_directory(invocation.sys, path)
                _apply(invocation, [join(path, name) for name in names], True, change)
            change(path, found)
        except OSError as error:
            invocation.fail(path, error)


def _chmod(sys: Syscalls, path: str, found: Stat, mode: str) -> None:
    if stat.S_ISLNK(found.st_mode):
        found = sys.stat(path)
    sys.chmod(path, changed_mode(mode, found.st_mode))


def check_mode(text: str) -> None:
    """Raises: Usage for what `changed_mode` does not understand."""
    changed_mode(text, 0)


def changed_mode(text: str, before: int) -> int:
    """The permission bits after a chmod to `text`, octal or symbolic, as chmod(1) has it; the
    umask does not count. Raises: Usage.
    """
    if text.isdecimal():
        return parse_mode(text)
    mode = stat.S_IMODE(before)
    for clause in text.split(","):
        match = _CLAUSE.fullmatch(clause)
        if match is None:
            raise Usage(f"{text}: a mode such as 644 or u+x,go-w is needed")
        who, operator, letters = match.groups()
        who = "ugo" if not who or "a" in who else who
        mask = 0
        for letter in who:
            mask |= _WHO[letter]
        bits = 0
        for letter in letters:
            bits |= _BITS.get(letter, 0)
        if "X" in letters and (stat.S_ISDIR(before) or mode & 0o111):
            bits |= 0o111
        bits |= 0o6000 if "s" in letters else 0
        bits &= mask & ~0o1000
        bits |= 0o1000 if "t" in letters else 0
        if operator == "+":
            mode |= bits
        elif operator == "-":
            mode &= ~bits
        else:
            # A directory keeps its set-id bits, unless they are named.
            cleared = mask & ~0o7000 if stat.S_ISDIR(before) and "s" not in letters else mask
            mode = mode & ~cleared | bits
    return mode


def parse_owner(text: str) -> tuple[int, int]:
    """UID, UID:GID or :GID; -1 is what is to stay. Raises: Usage."""
    uid, _, gid = text.partition(":")
    if not (uid or gid) or any(part and not part.isdecimal() for part in (uid, gid)):
        raise Usage(f"{text}: numbers are needed, as 1000, 1000:100 or :100")
    return int(uid or -1), int(gid or -1)


def _make_node(invocation: Invocation, path: str, kind: int, device: int, mode: str | None) -> None:
    bits = 0o666 if mode is None else parse_mode(mode)
    try:
        invocation.sys.mknod(path, kind | bits, device)
        if mode is not None:
            invocation.sys.chmod(path, bits)
    except OSError as error:
        invocation.fail(path, error)


def _show_xattrs(invocation: Invocation, path: str, given: argparse.Namespace) -> None:
    sys = invocation.sys
    names = (sys.llistxattr if given.h else sys.listxattr)(path)
    names = sorted(names) if given.n is None else [os.fsencode(given.n)]
    if not names:
        return
    lines = []
    for name in names:
        value = (sys.lgetxattr if given.h else sys.getxattr)(path, name)
        try:
            text = value.decode("ascii")
        except UnicodeDecodeError:
            text = ""
        plain = text.isprintable() and (text or not value)
        lines.append(f"{os.fsdecode(name)}=" + (f'"{text}"' if plain else f"0x{value.hex()}"))
    invocation.print(f"# file: {shown(path)}")
    for line in lines:
        invocation.print(line)
    invocation.print()


def _value(text: str) -> bytes:
    if text[:2] in ("0x", "0X"):
        try:
            return bytes.fromhex(text[2:])
        except ValueError:
            raise Usage(f"{text}: pairs of hexadecimal digits are needed") from None
    return os.fsencode(text)


class _Copy:
    """One source of a `cp`: what is linked twice in it is linked in the copy, too."""

    def __init__(self, invocation: Invocation, given: argparse.Namespace) -> None:
        self.invocation = invocation
        self.sys = invocation.sys
        self.recursive = given.a or given.r
        self.keep = given.a or given.p
        self.everything = given.a
        self.made: dict[tuple[int, int], str] = {}

    def copy(self, source: str, target: str) -> None:
        """Copy what is at and below `source`; what can't be is complained about."""
        try:
            self._copy(source, target)
        except OSError as error:
            path = source if error.filename is None else error.filename
            self.invocation.fail(path, error)

    def _copy(self, source: str, target: str) -> None:
        sys = self.sys
        found: Stat = sys.lstat(source) if self.recursive else sys.stat(source)
        mode = found.st_mode
        if stat.S_ISDIR(mode):
            if not self.recursive:
                raise Usage(f"{source}: a directory needs -r")
            self._directory(source, target, found)
            return
        identity = found.st_dev, found.st_ino
        if self.everything and found.st_nlink > 1 and identity in self.made:
            sys.link(self.made[identity], target)
            return
        if stat.S_ISREG(mode):
            self._file(source, target, found)
        else:
            try:
                if stat.S_ISLNK(mode):
                    sys.symlink(sys.readlink(source), target)
                else:
                    sys.mknod(target, mode, found.st_rdev)
            except OSError as error:
                raise named(error, target) from None
        self.made[identity] = target
        if self.keep:
            self._attributes(source, target, found)

    def _directory(self, source: str, target: str, found: Stat) -> None:
        try:
            # Not yet its own mode: it might not let us in.
            self.sys.mkdir(target, found.st_mode & 0o777 | 0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise named(error, target) from None
        inside = self.sys.lstat(target)
        for name in sorted(list_directory(self.sys, source)):
            below = join(source, name)
            there = self.sys.lstat(below)
            if (there.st_dev, there.st_ino) == (inside.st_dev, inside.st_ino):
                self.invocation.complain(f"{below}: a directory is not copied into itself")
                continue
            self.copy(below, join(target, name))
        if self.keep:
            self._attributes(source, target, found)
        else:
            mask = self.sys.umask(0)
            self.sys.umask(mask)
            self.sys.chmod(target, found.st_mode & 0o777 & ~mask)

    def _file(self, source: str, target: str, found: Stat) -> None:
        sys = self.sys
        reading = sys.open(source, abi.O_RDONLY | abi.O_CLOEXEC, 0)
        try:
            try:
                there = sys.stat(target)
            except OSError:
                there = None
            if there is not None and (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino):
                raise Usage(f"{source} and {target} are the same file")
            flags = abi.O_WRONLY | abi.O_CREAT | abi.O_TRUNC | abi.O_CLOEXEC
            try:
                writing = sys.open(target, flags, found.st_mode & 0o777)
            except OSError as error:
                raise named(error, target) from None
            try:
                self._content(reading, writing, found.st_size, target)
            finally:
                sys.close(writing)
        finally:
            sys.close(reading)

    def _content(self, reading: int, writing: int, size: int, target: str) -> None:
        """Data where there is data: holes stay holes."""
        sys = self.sys
        end = 0
        while True:
            try:
                start = sys.lseek(reading, end, os.SEEK_DATA)
                end = sys.lseek(reading, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                break
            sys.lseek(reading, start, os.SEEK_SET)
            sys.lseek(writing, start, os.SEEK_SET)
            left = end - start
            try:
                while left > 0 and (data := sys.read(reading, min(left, CHUNK))):
                    left -= len(data)
                    while data:
                        data = data[sys.write(writing, data) :]
            except OSError as error:
                raise named(error, target) from None
        sys.ftruncate(writing, size)

    def _attributes(self, source: str, target: str, found: Stat) -> None:
        """The owner first, which clears set-id bits; the times last."""
        sys = self.sys
        try:
            sys.fchownat(_AT, target, found.st_uid, found.st_gid, _NOFOLLOW)
        except OSError as error:
            # Only root may give files away, and cp(1) does not mind either.
            if error.errno != errno.EPERM:
                raise named(error, target) from None
        if self.everything:
            for name in sys.llistxattr(source):
                try:
                    sys.lsetxattr(target, name, sys.lgetxattr(source, name), 0)
                except OSError as error:
                    text = f"{target}: {os.fsdecode(name)}: {strerror(error)}"
                    self.invocation.complain(text)
        if not stat.S_ISLNK(found.st_mode):
            sys.chmod(target, stat.S_IMODE(found.st_mode))
        times = [divmod(when, 10**9) for when in (found.st_atime_ns, found.st_mtime_ns)]
        sys.utimensat(_AT, target, times, _NOFOLLOW)


def _move_across(invocation: Invocation, source: str, target: str) -> None:
    """To another filesystem: copied, and removed if all went well."""
    before = invocation.status
    invocation.status = 0
    given = argparse.Namespace(a=True, r=True, p=True)
    _Copy(invocation, given).copy(source, target)
    if invocation.status == 0:
        invocation.status = before
        try:
            _remove(invocation, source, True)
        except OSError as error:
            invocation.fail(source, error)
