"""Damaged images of ext2 and ext4: each is mounted, and all of it is looked at.

An input is one or more Scribbles with the same number, made to a sound image; an empty one cuts it
off at its place. Places are where the reader looks, mostly.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
import subprocess
import tempfile
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Final

from fsimpl.ext2 import Ext2Superblock, Ext2Type
from fsimpl.tmpfs import TmpfsType
from harness.fuzz.case import Case, Outcome, Scribble, Step
from harness.fuzz.fuse import Broken
from harness.fuzz.words import ODD_32
from harness.testbed.choices import Choices
from vfs import Credentials, VirtualFilesystem, abi
from vfs.errors import InvariantViolation
from vfs.task import Task

IMAGES: Final[dict[str, tuple[str, ...]]] = {
    "ext2": ("-t", "ext2", "-b", "1024", "-I", "256", "-N", "128", "-g", "512"),
    "ext4": ("-t", "ext4", "-b", "1024", "-I", "256", "-N", "128", "-O", "^has_journal,ea_inode"),
    "old": ("-t", "ext2", "-b", "1024", "-I", "128", "-N", "128", "-O", "^filetype"),
    "wide": ("-t", "ext4", "-b", "4096", "-N", "64", "-O", "^has_journal,meta_bg,^resize_inode"),
}
"""By name: what mke2fs is told."""
_SIZE: Final = "1536K"
_UUID: Final = "6d1b2fd4-1d5c-4f7c-9a61-5f3d3ae9f5a1"
_TIME: Final = "1700000000"
_PLACE: Final = "/image"
_ALLOWED: Final = frozenset((errno.EUCLEAN, errno.EIO))
_ON_MOUNT: Final = _ALLOWED | {errno.EINVAL, errno.EROFS}
_MOST_PATHS: Final = 2000
_READ: Final = 1 << 16
_SEEKS: Final = 40


class Ext2Fuzzer:
    """Cases of damaged images. Takes mke2fs and e2fsck, and makes the same images everywhere."""

    target: Final = "ext2"

    def __init__(self, scratch: Path | None = None) -> None:
        """``scratch`` is an empty directory; None: one of our own."""
        self._own = None
        if scratch is None:
            self._own = tempfile.TemporaryDirectory(prefix="dentry-fuzz-")
            scratch = Path(self._own.name)
        self._scratch = scratch
        self._images: dict[str, _Sound] = {}
        # Complaints are counted, not shown.
        logging.getLogger("fsimpl.ext2").addHandler(logging.NullHandler())

    def close(self) -> None:
        for image in self._images.values():
            image.close()
        if self._own is not None:
            self._own.cleanup()

    def _image(self, name: str) -> _Sound:
        if name not in self._images:
            self._images[name] = _Sound(self._scratch / name, IMAGES[name])
        return self._images[name]

    def run(self, choices: Choices, inputs: int) -> Outcome:
        """See ``Fuzzer``."""
        name = choices.one_of(list(IMAGES))
        image = self._image(name)
        steps = [step for number in range(inputs) for step in _damage(choices, image, number)]
        return self.replay(Case(self.target, {"image": name}, tuple(steps)))

    def replay(self, case: Case) -> Outcome:
        """See ``Fuzzer``."""
        image = self._image(case.settings["image"])
        answers: Counter[tuple[str, str]] = Counter()
        count = 0
        failure = ""
        for _, steps in groupby(case.steps, key=_number):
            count += 1
            try:
                image.damage(list(steps))
                answers += explore(image.path)
            except (Broken, InvariantViolation) as error:
                failure = f"{type(error).__name__}: {error}"
            except Exception:
                failure = traceback.format_exc()
            finally:
                image.restore()
            if failure:
                break
        return Outcome(case, count, answers, failure)


def _number(step: Step) -> int:
    return step.number


class _Sound:
    """An image that was sound, and can be again. ``places`` are the bytes that are
    not 0 in each block that the reader looks at.
    """

    def __init__(self, path: Path, arguments: Sequence[str]) -> None:
        self.path = path
        _make(path, arguments)
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._bytes = path.read_bytes()
        self._changed: list[tuple[int, int]] = []
        blocks: set[int] = set()
        explore(path, blocks)
        size = max(1024, 1024 << self._bytes[1024 + 24])
        self.places = []
        for start in sorted({1024, *(block * size for block in blocks)}):
            used = [place for place in range(start, start + size) if self._bytes[place]]
            if used:
                self.places.append(used)

    def __len__(self) -> int:
        return len(self._bytes)

    def word(self, place: int) -> bytes:
        """The four bytes at ``place``."""
        return self._bytes[place : place + 4]

    def damage(self, steps: Sequence[Step]) -> None:
        for step in steps:
            assert isinstance(step, Scribble)
            if step.data:
                os.pwrite(self._fd, step.data, step.place)
                self._changed.append((step.place, step.place + len(step.data)))
            else:
                os.ftruncate(self._fd, step.place)
                self._changed.append((step.place, len(self._bytes)))

    def restore(self) -> None:
        for start, end in self._changed:
            os.pwrite(self._fd, self._bytes[start:end], start)
        os.ftruncate(self._fd, len(self._bytes))
        self._changed.clear()

    def close(self) -> None:
        os.close(self._fd)


def _make(path: Path, arguments: Sequence[str]) -> None:
    """An image with all that the reader knows, the same each time."""
    environment = os.environ | {"E2FSPROGS_FAKE_TIME": _TIME, "TZ": "UTC"}
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        tree = Path(directory)
        _plant(tree)
        for planted in (tree, *tree.rglob("*")):
            os.utime(planted, (int(_TIME),) * 2, follow_symlinks=False)
        options = ("-q", "-F", "-U", _UUID, "-E", f"hash_seed={_UUID}", "-d", directory)
        _call(["mke2fs", *options, *arguments, str(path), _SIZE], environment)
    # Which builds the index of the large directory, and may say 1 for having changed something.
    _call(["e2fsck", "-fyD", str(path)], environment, 1)


def _call(command: list[str], environment: dict[str, str], changed: int = 0) -> None:
    done = subprocess.run(
        command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )
    if done.returncode & ~changed:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr}")


def _plant(tree: Path) -> None:
    (tree / "small").write_bytes(b"small")
    with (tree / "fragments").open("wb") as file:
        for place in range(0, 700, 2):
            file.seek(place << 10)
            file.write(b"%d" % place)
        file.truncate(1 << 28)
    with (tree / "sparse").open("wb") as file:
        for place in (0, 11, 12, 267, 268, 65803, 65804, 70000):
            file.seek(place << 10)
            file.write(b"%d" % place)
    (tree / "fast").symlink_to("small")
    (tree / "slow").symlink_to("s" * 200)
    os.mkfifo(tree / "fifo")
    (tree / "a" / "b" / "c").mkdir(parents=True)
    (tree / "a" / "hard").hardlink_to(tree / "small")
    many = tree / "many"
    many.mkdir()
    # Links to one file, because inodes are few.
    for number in range(60):
        (many / f"{number:03}{'n' * 150}").hardlink_to(tree / "small")
    acl = struct.pack("<I", 2) + b"".join(
        struct.pack("<HHI", *entry)
        for entry in ((1, 6, -1 & 0xFFFFFFFF), (2, 4, 1000), (4, 4, -1 & 0xFFFFFFFF),
                      (16, 7, -1 & 0xFFFFFFFF), (32, 0, -1 & 0xFFFFFFFF))
    )  # fmt: skip
    attributes = {"user.a": b"a", "user.large": b"l" * 700, "system.posix_acl_access": acl}
    for name, value in attributes.items():
        for owner in (tree / "small", tree / "a"):
            try:
                os.setxattr(owner, name, value)
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise


def _damage(choices: Choices, image: _Sound, number: int) -> Iterator[Scribble]:
    """What is done to ``image`` for one input."""
    if choices.chance(2):
        yield Scribble(number, choices.integer(0, len(image)), b"")
    for _ in range(choices.integer(1, choices.weighted(((6, 1), (3, 4), (1, 30))))):
        if choices.chance(10):
            place = choices.integer(0, len(image) - 8)
        elif choices.chance(20):
            place = choices.one_of(image.places)[0] + choices.integer(0, 255)
        else:
            place = choices.one_of(choices.one_of(image.places))
        kind = choices.integer(0, 5)
        aligned = place & ~3
        old = image.word(place)[:1] or b"\0"
        if kind == 0:
            yield Scribble(number, place, bytes((old[0] ^ 1 << choices.integer(0, 7),)))
        elif kind == 1:
            yield Scribble(number, place, bytes((choices.integer(0, 255),)))
        elif kind == 2:
            yield Scribble(number, aligned, struct.pack("<I", choices.one_of(ODD_32)))
        elif kind == 3:
            other = choices.one_of(choices.one_of(image.places))
            yield Scribble(number, aligned, image.word(other & ~3))
        elif kind == 4:
            yield Scribble(number, aligned, struct.pack("<I", choices.integer(0, 1600)))
        else:
            yield Scribble(number, place, bytes(choices.one_of((2, 4, 12, 128))))


def explore(image: Path, blocks: set[int] | None = None) -> Counter[tuple[str, str]]:
    """Mount ``image``, look at all of it twice, as root and as somebody, and count the answers.

    The blocks of metadata that were read are added to ``blocks``. Raises: Broken.
    """
    answers: Counter[tuple[str, str]] = Counter()
    vfs = VirtualFilesystem()
    vfs.register(TmpfsType())
    vfs.register(Ext2Type())
    with vfs.create_namespace("tmpfs") as namespace:
        task = vfs.create_task(namespace)
    task.mkdir(_PLACE, 0o755)
    try:
        task.mount(image, _PLACE, "ext2")
    except OSError as error:
        if error.errno not in _ON_MOUNT:
            raise Broken(f"mount: {error}") from error
        answers["mount", errno.errorcode[error.errno]] += 1
    else:
        answers["mount", ""] += 1
        superblock = vfs.superblocks[-1]
        assert isinstance(superblock, Ext2Superblock)
        _Walk(task, answers, superblock).walk()
        user = task.clone(cred=Credentials(1000, 1000))
        _Walk(user, answers, superblock, frozenset((errno.EACCES,))).walk()
        if blocks is not None:
            blocks.update(superblock.cached_blocks())
        vfs.check()
        user.exit()
        task.umount2(_PLACE, 0)
    vfs.shutdown()
    return answers


class _Walk:
    """Everything that can be asked of a tree."""

    def __init__(
        self,
        task: Task,
        answers: Counter[tuple[str, str]],
        superblock: Ext2Superblock,
        allowed: frozenset[int] = frozenset(),
    ) -> None:
        self._task = task
        self._answers = answers
        self._superblock = superblock
        self._allowed = _ALLOWED | allowed
        self._paths = 0
        self._seen: set[int] = set()

    def _ask(self, call: str, *arguments: object, also: int = 0, **more: object) -> Any:
        """The answer of the task's ``call``; None for an error that may be, as ``also`` may."""
        try:
            answer = getattr(self._task, call)(*arguments, **more)
        except OSError as error:
            number = error.errno or 0
            if number not in self._allowed and number != also:
                raise Broken(f"{call}: {error}") from error
            if number in _ALLOWED and not self._superblock.complaints:
                raise Broken(f"{call}: {error}, and nothing in the log") from error
            self._answers[call, errno.errorcode[number]] += 1
            return None
        self._answers[call, ""] += 1
        return answer

    def walk(self) -> None:
        self._ask("statfs", _PLACE)
        todo = [_PLACE]
        while todo and self._paths < _MOST_PATHS:
            path = todo.pop()
            self._paths += 1
            # A name in a listing need not be found by the index.
            status = self._ask("lstat", path, also=errno.ENOENT)
            if status is None:
                continue
            if status.st_ino in self._seen:
                continue
            self._seen.add(status.st_ino)
            kind = status.st_mode & abi.S_IFMT
            self._attributes(path)
            if kind == abi.S_IFDIR:
                todo += [f"{path}/{name}" for name in self._list(path)]
                self._ask("lstat", f"{path}/no such name", also=errno.ENOENT)
            elif kind == abi.S_IFLNK:
                self._ask("readlink", path)
            elif kind == abi.S_IFREG:
                self._content(path, status.st_size)

    def _attributes(self, path: str) -> None:
        names = self._ask("listxattr", path, follow=False) or ()
        for name in [*names, b"user.none"]:
            self._ask("getxattr", path, name, follow=False, also=errno.ENODATA)

    def _list(self, path: str) -> list[str]:
        fd = self._ask("open", path, os.O_RDONLY | os.O_DIRECTORY)
        found: list[str] = []
        if fd is None:
            return found
        while records := self._ask("getdents64", fd, 1000):
            found += [os.fsdecode(r.d_name) for r in records]
            if len(found) > _MOST_PATHS:
                break
        self._task.close(fd)
        return [name for name in found if name not in (".", "..")]

    def _content(self, path: str, size: int) -> None:
        fd = self._ask("open", path, os.O_RDONLY)
        if fd is None:
            return
        for place in {0, size // 2, max(size - 100, 0)}:
            data = self._ask("pread64", fd, _READ, place)
            if data is not None and len(data) > max(size - place, 0):
                raise Broken(f"{path}: more than there is at {place}")
        at: int | None = 0
        for _ in range(_SEEKS):
            at = self._ask("lseek", fd, at, os.SEEK_DATA, also=errno.ENXIO)
            if at is None:
                break
            at = self._ask("lseek", fd, at, os.SEEK_HOLE, also=errno.ENXIO)
            if at is None:
                break
        self._task.close(fd)
