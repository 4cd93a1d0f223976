"""A tar archive as a source."""

from __future__ import annotations

import bz2
import grp
import gzip
import lzma
import os
import pwd
import re
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Callable
from decimal import Decimal, InvalidOperation
from typing import IO, Any, Final, cast

from fsimpl.ext2.builder.errors import ImageError, printable
from fsimpl.ext2.builder.files import HostFile, HostRoot, SourceFile, SpoolFile
from fsimpl.ext2.builder.tree import Node, Progress
from fsimpl.ext2.xattrs import (
    ACL_ACCESS,
    ACL_DEFAULT,
    ACL_GROUP,
    ACL_GROUP_OBJ,
    ACL_MASK,
    ACL_OTHER,
    ACL_UNDEFINED_ID,
    ACL_USER,
    ACL_USER_OBJ,
    AclEntries,
    format_acl,
)
from vfs import abi

_CHUNK: Final = 1 << 20
_REPORT: Final = 500
_NS: Final = 10**9
_XATTR: Final = "SCHILY.xattr."
_MAJORS: Final = 1 << 12
_MINORS: Final = 1 << 20
_BROKEN: Final = (
    tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, ValueError, OverflowError,
    RecursionError,
)  # fmt: skip
"""What tarfile and the decompressors say of an archive that is none; a long row of headers, too."""
_MAGIC: Final = 6
_UNPACK: Final[dict[bytes, Callable[[IO[bytes]], IO[bytes]]]] = {
    b"\x1f\x8b": lambda file: cast(IO[bytes], gzip.GzipFile(fileobj=file)),
    b"BZh": lambda file: cast(IO[bytes], bz2.BZ2File(file)),
    b"\xfd7zXZ\0": lambda file: cast(IO[bytes], lzma.LZMAFile(file)),  # noqa: SIM115
}
_ACLS: Final = {"SCHILY.acl.access": ACL_ACCESS, "SCHILY.acl.default": ACL_DEFAULT}
_ACL_TAGS: Final = {
    "user": (ACL_USER_OBJ, ACL_USER), "group": (ACL_GROUP_OBJ, ACL_GROUP),
    "mask": (ACL_MASK, 0), "other": (ACL_OTHER, 0),
}  # fmt: skip
_TYPES: Final = {
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}


class TarSource:
    """A tar archive (ustar, pax or GNU), also a compressed one.

    Content is read where it is in the archive; a compressed one, or one from a pipe, is unpacked to
    a temporary file first. Later members replace earlier ones of the same name. Directories that no
    member makes are root's, of mode 755. Extended attributes are those that pax headers have
    (SCHILY.xattr, SCHILY.acl).
    """

    __slots__ = ("_archive", "_file", "_files", "_path", "_root", "_spool", "_top")

    def __init__(self, path: str | bytes) -> None:
        """Raises: as open(2)."""
        self._path = os.fsencode(path)
        self._file = open(self._path, "rb")  # noqa: SIM115
        self._root: HostRoot | None = None
        self._spool: SpoolFile | None = None
        self._files = 0
        self._top = _directory()

    def close(self) -> None:
        self._file.close()
        if self._root is not None:
            self._root.close()
        if self._spool is not None:
            self._spool.close()

    def scan(self, progress: Progress) -> Node:
        """Raises: ImageError: no archive, a broken one, or members that make no tree."""
        try:
            self._archive = self._find_archive()
            fd = self._archive.open()
            with (
                open(fd, "rb") as file,
                tarfile.open(
                    fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape"
                ) as archive,
            ):
                before = -1
                for member in archive:
                    # A negative size has some versions of tarfile go round in circles.
                    if member.offset_data <= before or member.size < 0:
                        raise ImageError(f"{self._of(member)}: no tar archive: a negative size")
                    before = member.offset_data
                    self._add(member)
                    self._files += 1
                    if not self._files % _REPORT:
                        progress("scan", self._files, 0)
        except _BROKEN as error:
            raise self._broken(error) from None
        except OSError as error:
            # What is no errno is what unpacking says of broken data.
            if error.errno is not None:
                raise
            raise self._broken(error) from None
        progress("scan", self._files, self._files)
        return self._top

    def _broken(self, error: Exception) -> ImageError:
        return ImageError(f"{os.fsdecode(self._path)}: no tar archive: {error}")

    def _find_archive(self) -> SourceFile:
        """Where content can be read later: the archive itself, or what it unpacks to."""
        status = os.fstat(self._file.fileno())
        start = self._file.peek(_MAGIC)[:_MAGIC]
        opener = next((how for magic, how in _UNPACK.items() if start.startswith(magic)), None)
        if opener is None and stat.S_ISREG(status.st_mode):
            directory, name = os.path.split(os.path.realpath(self._path))
            self._root = HostRoot(directory)
            identity = (status.st_dev, status.st_ino)
            return HostFile(self._root, name, identity, status.st_size, status.st_mtime_ns)
        temporary, path = tempfile.mkstemp(prefix="dentry-ext2-")
        os.unlink(path)
        self._spool = SpoolFile(temporary)
        reader: IO[bytes] = self._file if opener is None else opener(self._file)
        while data := reader.read(_CHUNK):
            self._spool.append(data)
        return self._spool

    def _add(self, member: tarfile.TarInfo) -> None:
        path = self._parts(member.name)
        if not path:
            if not member.isdir():
                raise ImageError(f"{self._of(member)}: the root can't be anything but a directory")
            self._describe(self._top, member)
            return
        parent = self._directory(path[:-1], member)
        before = parent.children.get(path[-1])
        if member.islnk():
            node = self._linked(member)
        elif member.isdir() and before is not None and before.is_dir:
            node = before
            self._describe(node, member)
        else:
            node = Node(_TYPES.get(member.type, stat.S_IFREG))
            self._describe(node, member)
            if node.is_regular:
                self._content(member, node)
        parent.children[path[-1]] = node

    def _parts(self, name: str) -> list[bytes]:
        parts = [part for part in _bytes(name).split(b"/") if part not in (b"", b".")]
        if b".." in parts or "\0" in name:
            raise ImageError(f"{printable(_bytes(name))}: a member with '..' or NUL in its name")
        return parts

    def _of(self, member: tarfile.TarInfo) -> str:
        return printable(_bytes(member.name))

    def _directory(self, parts: list[bytes], member: tarfile.TarInfo) -> Node:
        node = self._top
        for part in parts:
            child = node.children.get(part)
            if child is None:
                child = node.children[part] = _directory()
            if not child.is_dir:
                raise ImageError(f"{self._of(member)}: '{printable(part)}' is no directory")
            node = child
        return node

    def _linked(self, member: tarfile.TarInfo) -> Node:
        node: Node | None = self._top
        for part in self._parts(member.linkname):
            node = node.children.get(part) if node is not None else None
        if node is None or node.is_dir:
            target = printable(_bytes(member.linkname))
            raise ImageError(f"{self._of(member)}: a link to '{target}', which is no earlier file")
        return node

    def _describe(self, node: Node, member: tarfile.TarInfo) -> None:
        node.mode = stat.S_IFMT(node.mode) | member.mode & abi.S_IALLUGO
        node.uid, node.gid = member.uid & 0xFFFFFFFF, member.gid & 0xFFFFFFFF
        headers = member.pax_headers
        node.mtime_ns = _time(headers.get("mtime"), member.mtime)
        node.atime_ns = _time(headers.get("atime"), 0, node.mtime_ns)
        node.ctime_ns = _time(headers.get("ctime"), 0, node.mtime_ns)
        node.btime_ns = node.mtime_ns
        if node.mode & abi.S_IFMT in (stat.S_IFCHR, stat.S_IFBLK):
            if not (0 <= member.devmajor < _MAJORS and 0 <= member.devminor < _MINORS):
                raise ImageError(f"{self._of(member)}: no such device numbers")
            node.rdev = abi.makedev(member.devmajor, member.devminor)
        elif node.mode & abi.S_IFMT == stat.S_IFLNK:
            node.target = _bytes(member.linkname)
            if b"\0" in node.target:
                raise ImageError(f"{self._of(member)}: a link with NUL in its target")
        xattrs = {
            _bytes(key.removeprefix(_XATTR)): _bytes(value)
            for key, value in headers.items()
            if key.startswith(_XATTR)
        }
        for key, attribute in _ACLS.items():
            if key in headers:
                try:
                    xattrs[attribute] = format_acl(_text_acl(headers[key]))
                except (KeyError, ValueError):
                    raise ImageError(f"{self._of(member)}: its ACL: {headers[key]!r}") from None
        node.xattrs = list(xattrs.items())

    def _content(self, member: tarfile.TarInfo, node: Node) -> None:
        node.size = member.size
        node.file = self._archive
        # What tarfile knows of a sparse member: (offset, length), the data back to back.
        sparse: list[tuple[int, int]] | None = cast(Any, member.sparse)
        start = member.offset_data
        node.extents = []
        end = 0
        for offset, length in [(0, node.size)] if sparse is None else sparse:
            if offset < end or length < 0 or offset + length > node.size:
                raise ImageError(f"{self._of(member)}: its map of holes makes no sense")
            if start + length > self._archive.size:
                raise ImageError(f"{self._of(member)}: the archive ends in it")
            if length:
                node.extents.append((offset, length, start))
            start += length
            end = offset + length


def _directory() -> Node:
    return Node(stat.S_IFDIR | 0o755)


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text_acl(text: str) -> AclEntries:
    """The entries of an ACL as acl_to_text(3) words it; a fourth field, star's, is the id.

    Raises: KeyError, ValueError.
    """
    entries = []
    for line in re.split("[,\n]", text):
        words = line.partition("#")[0].strip().split(":")
        if words == [""]:
            continue
        kind, who, letters, *numbers = words
        own, named = _ACL_TAGS[kind]
        permissions = sum(4 >> "rwx".index(letter) for letter in letters if letter != "-")
        owner = ACL_UNDEFINED_ID
        if who:
            owner = _id(kind, numbers[0] if numbers else who)
        entries.append((named if who else own, permissions, owner))
    return sorted(entries, key=lambda entry: (entry[0], entry[2]))


def _id(kind: str, who: str) -> int:
    if who.isascii() and who.isdigit():
        return int(who)
    return pwd.getpwnam(who).pw_uid if kind == "user" else grp.getgrnam(who).gr_gid


def _time(text: str | None, seconds: float, otherwise: int | None = None) -> int:
    """Nanoseconds of a pax header, which is exact, or else of what the member has."""
    try:
        if text is not None:
            return int(Decimal(text) * _NS // 1)
        return int(seconds) * _NS if otherwise is None else otherwise
    except (InvalidOperation, OverflowError, ValueError):
        return 0
