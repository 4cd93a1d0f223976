"""A tree as a value, to be compared: of the host, and of an image that the host's kernel mounts."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

LOST_AND_FOUND = b"lost+found"


class Entry(NamedTuple):
    """What there is to see of a file. ``same_as`` is the first of its names; times but atime."""

    mode: int
    owner: tuple[int, int]
    rdev: int
    nlink: int
    same_as: bytes
    times: tuple[int, int]
    content: object
    xattrs: tuple[tuple[str, bytes], ...]


def snapshot(top: Path, *, lost_and_found: bool = True) -> dict[bytes, Entry]:
    """Every file below ``top``, itself as b"". With ``lost_and_found`` False without that of the
    root, and without the link that it has to the root.
    """
    found: dict[bytes, Entry] = {}
    names: dict[tuple[int, int], bytes] = {}
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        whole = os.path.join(os.fsencode(top), path) if path else os.fsencode(top)
        status = os.lstat(whole)
        nlink = status.st_nlink
        if stat.S_ISDIR(status.st_mode):
            inside = sorted(os.listdir(whole))
            if not path and not lost_and_found and LOST_AND_FOUND in inside:
                inside.remove(LOST_AND_FOUND)
            # What a directory counts is up to the file system; Linux's tmpfs and ext4 count so.
            nlink = 0
            waiting += [os.path.join(path, name) for name in reversed(inside)]
            content: object = inside
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(whole)
        elif stat.S_ISREG(status.st_mode):
            content = (status.st_size, _digest(whole, status.st_size))
        else:
            content = None
        found[path] = Entry(
            status.st_mode,
            (status.st_uid, status.st_gid),
            status.st_rdev,
            nlink,
            names.setdefault((status.st_dev, status.st_ino), path),
            (status.st_mtime_ns, status.st_ctime_ns),
            content,
            tuple(
                (name, os.getxattr(whole, name, follow_symlinks=False))
                for name in sorted(os.listxattr(whole, follow_symlinks=False))
            ),
        )
    return found


def _digest(path: bytes, size: int) -> str:
    """Of where data is and what it is; block-wise, so that holes need not be in the same places."""
    digest = hashlib.sha256()
    zeros = bytes(4096)
    with open(path, "rb") as file:
        end = 0
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            for offset in range(start // 4096 * 4096, end, 4096):
                block = os.pread(file.fileno(), 4096, offset)
                if block != zeros[: len(block)]:
                    digest.update(b"%d " % offset)
                    digest.update(block)
    return digest.hexdigest()


@contextmanager
def loop_mounted(image: Path, where: Path, options: str = "ro") -> Iterator[Path]:
    """The image, mounted by the host's kernel. Needs root and loop devices."""
    where.mkdir(exist_ok=True)
    subprocess.run(
        ["mount", "-o", f"loop,{options}", "-t", "ext2", str(image), str(where)], check=True
    )
    try:
        yield where
    finally:
        subprocess.run(["umount", str(where)], check=True)


def fsck(image: Path) -> None:
    """Fail unless e2fsck finds nothing at all to say."""
    done = subprocess.run(
        ["e2fsck", "-fn", str(image)], capture_output=True, text=True, errors="replace"
    )
    assert done.returncode == 0, done.stdout + done.stderr
