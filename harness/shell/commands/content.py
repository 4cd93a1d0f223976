"""Commands that read and write files, here and on the host."""

from __future__ import annotations

import argparse
import errno
import os
import shlex
import subprocess
import sys as host
import tempfile
from collections.abc import Callable
from functools import partial
from typing import BinaryIO, Final, Literal

from harness.shell.command import Commands, Invocation, Syscalls, Usage, argument, missing
from harness.shell.commands.listing import join
from harness.shell.session import FileReader, named, write_file
from harness.shell.streams import CHUNK, Reader, lines_of, read_all
from harness.shell.views import shown
from vfs import abi

_FOLLOW_SECONDS: Final = 0.2
_SUFFIXES: Final = {"": 1, "b": 512, "k": 1 << 10, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30,
                    "T": 1 << 40}  # fmt: skip
_WIDTH: Final = 16


def register(commands: Commands) -> None:
    """Put the family into the table."""
    add = commands.add

    @add("cat", argument("paths", nargs="*", metavar="FILE"))
    def cat(invocation: Invocation, given: argparse.Namespace) -> None:
        """write files, or the standard input, one after another"""
        for path in given.paths or ["-"]:
            _each(invocation, path, lambda reader: _copy(reader, invocation))

    @add(
        "head",
        argument("-n", type=int, default=10, metavar="N", help="lines (10)"),
        argument("-c", metavar="SIZE", help="bytes instead"),
        argument("paths", nargs="*", metavar="FILE"),
    )
    def head(invocation: Invocation, given: argparse.Namespace) -> None:
        """write the beginning of files"""
        size = None if given.c is None else parse_size(given.c)
        for path in given.paths or ["-"]:
            _heading(invocation, given.paths, path)
            _each(invocation, path, lambda reader: _head(reader, invocation, given.n, size))

    @add(
        "tail",
        argument("-n", type=int, default=10, metavar="N", help="lines (10)"),
        argument("-c", metavar="SIZE", help="bytes instead"),
        argument("-f", action="store_true", help="wait for more, until Ctrl-C"),
        argument("paths", nargs="*", metavar="FILE"),
    )
    def tail(invocation: Invocation, given: argparse.Namespace) -> None:
        """write the end of files"""
        size = None if given.c is None else parse_size(given.c)
        if given.f and len(given.paths) != 1:
            raise Usage("-f: name one file")
        for path in given.paths or ["-"]:
            _heading(invocation, given.paths, path)
            _each(invocation, path, lambda reader: _tail(reader, invocation, given, size))

    @add("wc", argument("-l", action="store_true", help="lines only"),
         argument("-c", action="store_true", help="bytes only"),
         argument("paths", nargs="*", metavar="FILE"))  # fmt: skip
    def wc(invocation: Invocation, given: argparse.Namespace) -> None:
        """count lines, words and bytes"""
        for path in given.paths or ["-"]:
            _each(invocation, path, partial(_count, invocation, given, path))

    @add("hexdump", argument("-n", metavar="SIZE", help="not more than this"),
         argument("-s", metavar="SIZE", default="0", help="skip this first"),
         argument("path", nargs="?", default="-", metavar="FILE"))  # fmt: skip
    def hexdump(invocation: Invocation, given: argparse.Namespace) -> None:
        """show bytes as numbers and as text"""
        limit = None if given.n is None else parse_size(given.n)
        skip = parse_size(given.s)
        _each(invocation, given.path, lambda reader: _hexdump(reader, invocation, skip, limit))

    @add("dd", argument("operands", nargs="*", metavar="OPERAND"))
    def dd(invocation: Invocation, given: argparse.Namespace) -> None:
        """copy blocks: if=FILE of=FILE bs=SIZE count=N skip=N seek=N conv=notrunc,fsync,sparse"""
        _dd(invocation, given.operands)

    @add("put", argument("source", metavar="HOST-FILE"), argument("target", metavar="FILE"))
    def put(invocation: Invocation, given: argparse.Namespace) -> None:
        """copy a file of the host into the tree"""
        target = _into(invocation.sys, given.source, given.target)
        with _host_open(given.source, "rb") as source:
            mode = os.fstat(source.fileno()).st_mode & 0o777
            with write_file(invocation.sys, target, abi.O_TRUNC, mode) as writer:
                while data := source.read(CHUNK):
                    writer.write(data)

    @add("get", argument("source", metavar="FILE"), argument("target", metavar="HOST-FILE"))
    def get(invocation: Invocation, given: argparse.Namespace) -> None:
        """copy a file of the tree to the host"""
        target = given.target
        if os.path.isdir(target):
            target = os.path.join(target, given.source.rstrip("/").rpartition("/")[2])
        with FileReader(invocation.sys, given.source) as reader, _host_open(target, "wb") as file:
            while data := reader.read():
                file.write(data)

    @add("edit", argument("path", metavar="FILE"))
    def edit(invocation: Invocation, given: argparse.Namespace) -> int:
        """change a file with the host's $EDITOR (vi)"""
        return _edit(invocation, given.path)


def parse_size(text: str) -> int:
    """A number of bytes with a suffix of dd(1). Raises: Usage."""
    digits = text.rstrip("bkKMGT")
    factor = _SUFFIXES.get(text[len(digits) :])
    if not digits.isdecimal() or factor is None:
        raise Usage(f"{text}: a size such as 4096, 64k or 1M is needed")
    return int(digits) * factor


def _each(invocation: Invocation, path: str, use: Callable[[Reader], None]) -> None:
    """Have `use` read a file, or the standard input if it is `-`."""
    if path == "-":
        use(invocation.stdin)
        return
    try:
        with FileReader(invocation.sys, path) as reader:
            use(reader)
    except BrokenPipeError:
        raise
    except OSError as error:
        if error.filename != path:
            raise
        invocation.fail(path, error)


def _copy(reader: Reader, invocation: Invocation) -> None:
    while data := reader.read():
        invocation.stdout.write(data)
        if invocation.stdout.is_terminal:
            invocation.stdout.flush()


def _heading(invocation: Invocation, paths: list[str], path: str) -> None:
    if len(paths) > 1:
        first = path is paths[0]
        invocation.print(f"{'' if first else chr(10)}==> {shown(path)} <==")


def _head(reader: Reader, invocation: Invocation, lines: int, size: int | None) -> None:
    if size is not None:
        while size > 0 and (data := reader.read()):
            invocation.stdout.write(data[:size])
            size -= len(data)
        return
    if lines > 0:
        for number, line in enumerate(lines_of(reader), 1):
            invocation.stdout.write(line)
            if number == lines:
                return


def _tail(
    reader: Reader, invocation: Invocation, given: argparse.Namespace, size: int | None
) -> None:
    kept = bytearray()
    while data := reader.read():
        kept += data
        if size is not None and len(kept) > size:
            del kept[: len(kept) - size]
        elif size is None and len(kept) > 4 * CHUNK:
            del kept[: _last_lines(kept, given.n)]
    start = 0 if size is not None else _last_lines(kept, given.n)
    invocation.stdout.write(bytes(kept[start:]))
    while given.f:
        invocation.stdout.flush()
        invocation.sleep(_FOLLOW_SECONDS)
        while data := reader.read():
            invocation.stdout.write(data)


def _last_lines(data: bytearray, count: int) -> int:
    """Where the last `count` lines begin."""
    if count <= 0:
        return len(data)
    at = len(data) - data.endswith(b"\n")
    for _ in range(count):
        at = data.rfind(b"\n", 0, at)
        if at < 0:
            return 0
    return at + 1


def _count(invocation: Invocation, given: argparse.Namespace, path: str, reader: Reader) -> None:
    lines = words = size = 0
    for line in lines_of(reader):
        lines += line.endswith(b"\n")
        words += len(line.split())
        size += len(line)
    numbers = [lines] * given.l + [size] * given.c or [lines, words, size]
    name = "" if path == "-" else " " + shown(path)
    invocation.print(" ".join(map(str, numbers)) + name)


def _hexdump(reader: Reader, invocation: Invocation, skip: int, limit: int | None) -> None:
    """As hexdump -C: a repeated line is a star."""
    at, rest, before, starred = 0, b"", b"", False

    def line(data: bytes) -> None:
        nonlocal before, starred
        if data == before and len(data) == _WIDTH:
            if not starred:
                invocation.print("*")
            starred = True
            return
        before, starred = data, False
        numbers = [f"{byte:02x}" for byte in data] + ["  "] * (_WIDTH - len(data))
        left, right = " ".join(numbers[:8]), " ".join(numbers[8:])
        text = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in data)
        invocation.print(f"{at:08x}  {left}  {right}  |{text}|")

    while (limit is None or limit > 0) and (data := reader.read()):
        skipped = min(skip, len(data))
        skip -= skipped
        at += skipped
        data = data[skipped:] if limit is None else data[skipped : skipped + limit]
        limit = None if limit is None else limit - len(data)
        rest += data
        whole = len(rest) - len(rest) % _WIDTH
        for start in range(0, whole, _WIDTH):
            line(rest[start : start + _WIDTH])
            at += _WIDTH
        rest = rest[whole:]
    if rest:
        line(rest)
        at += len(rest)
    invocation.print(f"{at:08x}")


def _dd(invocation: Invocation, operands: list[str]) -> None:
    values = {"if": "", "of": "", "bs": "512", "count": "", "skip": "0", "seek": "0", "conv": ""}
    for operand in operands:
        name, equals, value = operand.partition("=")
        if not equals or name not in values:
            raise Usage(f"{operand}: there are {', '.join(values)}")
        values[name] = value
    size = parse_size(values["bs"])
    if not size:
        raise Usage("bs=0: a block needs a byte")
    limit = parse_size(values["count"]) if values["count"] else None
    conversions = set(values["conv"].split(",")) - {""}
    if unknown := conversions - {"notrunc", "fsync", "sparse"}:
        raise Usage(f"conv={min(unknown)}: there are notrunc, fsync and sparse")
    sys = invocation.sys
    source = _Blocks(sys, values["if"], invocation.stdin)
    try:
        target = _open_target(sys, values["of"], conversions)
        try:
            moved = _move_blocks(invocation, source, target, values, size, limit, conversions)
        finally:
            if target is not None:
                sys.close(target)
    finally:
        source.close()
    whole, partial = divmod(moved, size)
    blocks = f"{whole}+{int(partial > 0)}"
    invocation.stderr.write(
        f"{blocks} records in\n{blocks} records out\n{moved} bytes copied\n".encode()
    )


class _Blocks:
    """The source of a dd: a file of the tree, from any offset, or the standard input."""

    def __init__(self, sys: Syscalls, path: str, stdin: Reader) -> None:
        self._sys = sys
        self._stdin = stdin
        self._rest = b""
        self._fd = -1
        if path:
            try:
                self._fd = sys.open(path, abi.O_RDONLY | abi.O_CLOEXEC, 0)
            except OSError as error:
                raise named(error, path) from None

    def skip(self, size: int) -> None:
        if self._fd >= 0:
            try:
                self._sys.lseek(self._fd, size, os.SEEK_CUR)
                return
            except OSError as error:
                if error.errno != errno.ESPIPE:
                    raise
        while size > 0 and (data := self.read(min(size, CHUNK))):
            size -= len(data)

    def read(self, size: int) -> bytes:
        """A block, or what is left of it."""
        found = b""
        while len(found) < size:
            data = self._read(size - len(found))
            if not data:
                break
            found += data
        return found

    def _read(self, size: int) -> bytes:
        if self._fd >= 0:
            data: bytes = self._sys.read(self._fd, size)
            return data
        data, self._rest = self._rest or self._stdin.read(), b""
        data, self._rest = data[:size], data[size:]
        return data

    def close(self) -> None:
        if self._fd >= 0:
            self._sys.close(self._fd)


def _open_target(sys: Syscalls, path: str, conversions: set[str]) -> int | None:
    if not path:
        return None
    flags = abi.O_WRONLY | abi.O_CREAT | abi.O_CLOEXEC
    try:
        fd: int = sys.open(path, flags, 0o666)
        return fd
    except OSError as error:
        raise named(error, path) from None


def _move_blocks(
    invocation: Invocation,
    source: _Blocks,
    target: int | None,
    values: dict[str, str],
    size: int,
    limit: int | None,
    conversions: set[str],
) -> int:
    sys = invocation.sys
    source.skip(parse_size(values["skip"]) * size)
    if target is not None:
        start = parse_size(values["seek"]) * size
        # As dd(1): what is before the place to write at stays, and what is behind it goes.
        if "notrunc" not in conversions and values["of"]:
            try:
                sys.ftruncate(target, start)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise named(error, values["of"]) from None
        if start:
            sys.lseek(target, start, os.SEEK_SET)
    moved = 0
    hole = False
    while limit is None or limit > 0:
        data = source.read(size)
        if not data:
            break
        limit = None if limit is None else limit - 1
        moved += len(data)
        if target is None:
            invocation.stdout.write(data)
            continue
        hole = "sparse" in conversions and not any(data)
        if hole:
            sys.lseek(target, len(data), os.SEEK_CUR)
            continue
        while data:
            data = data[sys.write(target, data) :]
    if target is not None:
        if hole:
            sys.ftruncate(target, sys.lseek(target, 0, os.SEEK_CUR))
        if "fsync" in conversions:
            sys.fsync(target)
    return moved


def _into(sys: Syscalls, source: str, target: str) -> str:
    """`target`, or the place of that name in it if it is a directory."""
    try:
        fd = sys.open(target, abi.O_PATH | abi.O_DIRECTORY | abi.O_CLOEXEC, 0)
    except OSError:
        return target
    sys.close(fd)
    return join(target, source.rstrip("/").rpartition("/")[2])


def _host_open(path: str, mode: Literal["rb", "wb"]) -> BinaryIO:
    try:
        return open(path, mode)
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"host: {path}") from None


def _edit(invocation: Invocation, path: str) -> int:
    if not host.stdin.isatty():
        raise Usage("an editor needs a terminal")
    editor = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    sys = invocation.sys
    try:
        with FileReader(sys, path) as reader:
            before = read_all(reader)
    except FileNotFoundError:
        before = b""
    name = path.rstrip("/").rpartition("/")[2]
    if not name:
        raise missing(path)
    with tempfile.TemporaryDirectory(prefix="dentry-edit-") as directory:
        copy = os.path.join(directory, name)
        with open(copy, "wb") as file:
            file.write(before)
        invocation.stdout.flush()
        try:
            status = subprocess.run([*editor, copy]).returncode
        except OSError as error:
            raise OSError(error.errno, error.strerror, f"host: {editor[0]}") from None
        if status:
            invocation.complain(f"{editor[0]} ended with {status}: {path} is as it was")
            return status if status > 0 else 128 - status
        with open(copy, "rb") as file:
            after = file.read()
    if after != before:
        with write_file(sys, path, abi.O_TRUNC) as writer:
            writer.write(after)
    return 0
