"""Directories: cookies that hold, link counts, sizes and times as the kernel's tmpfs has them."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from typing import Any

import pytest
from tmpfs_ours import Ours

from vfs import abi


def entries_from(
    ours: Ours, path: str, cookie: int, count: int = 1 << 30
) -> list[tuple[bytes, int]]:
    """``(name, cookie)`` of up to ``count`` entries that a reader at ``cookie`` gets."""
    fd = ours.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        file = ours.task.files.get_file(fd)
        found = []
        with ours.vfs.lock:
            for name, _, _, after in file.iterate(cookie):
                found.append((name, after))
                if len(found) == count:
                    break
        return found
    finally:
        ours.task.close(fd)


def touch(ours: Ours, path: str) -> None:
    ours.task.close(ours.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def test_dots_come_first_with_cookies_one_and_two_and_names_follow(ours: Ours) -> None:
    ours.mkdir("/d")
    for name in "abc":
        touch(ours, f"/d/{name}")
    entries = entries_from(ours, "/d", 0)
    assert entries[:2] == [(b".", 1), (b"..", 2)]
    assert [name for name, _ in entries[2:]] == [b"a", b"b", b"c"]
    assert [cookie for _, cookie in entries[2:]] == [3, 4, 5]


def test_dots_name_the_directory_and_its_parent(ours: Ours) -> None:
    ours.mkdir("/d")
    fd = ours.open("/d", os.O_RDONLY)
    file = ours.task.files.get_file(fd)
    numbers = {name: (ino, kind) for name, ino, kind, _ in file.iterate(0)}
    ours.task.close(fd)
    assert numbers == {
        b".": (ours.lstat("/d").st_ino, stat.S_IFDIR >> 12),
        b"..": (ours.lstat("/").st_ino, stat.S_IFDIR >> 12),
    }


def test_reader_sees_each_name_that_stays_once_while_others_come_and_go(ours: Ours) -> None:
    stays = [f"stay{number}" for number in range(300)]
    for number, name in enumerate(stays):
        touch(ours, "/" + name)
        touch(ours, f"/go{number}")
    seen: list[bytes] = []
    cookie = turn = 0
    while batch := entries_from(ours, "/", cookie, 7):
        seen += [name for name, _ in batch]
        cookie = batch[-1][1]
        for step in range(5):
            if turn * 5 + step < 300:
                ours.unlink(f"/go{turn * 5 + step}")
                touch(ours, f"/come{turn * 5 + step}")
        turn += 1
    assert [name.decode() for name in seen if name.startswith(b"stay")] == stays


def test_replaced_name_keeps_its_place(ours: Ours) -> None:
    for name in "abcd":
        touch(ours, "/" + name)
    before = dict(entries_from(ours, "/", 0))
    ours.rename("/d", "/b")
    ours.rename("/a", "/c", abi.RENAME_EXCHANGE)
    after = dict(entries_from(ours, "/", 0))
    assert after == {name: before[name] for name in (b".", b"..", b"a", b"b", b"c")}


def test_directory_emptied_behind_its_reader_ends_for_the_reader(ours: Ours) -> None:
    for number in range(500):
        touch(ours, f"/{number}")
    cookie = entries_from(ours, "/", 0, 10)[-1][1]
    for number in range(500):
        ours.unlink(f"/{number}")
    assert entries_from(ours, "/", cookie) == []
    touch(ours, "/new")
    assert [name for name, _ in entries_from(ours, "/", cookie)] == [b"new"]


def test_cookie_beyond_the_last_name_ends_the_directory(ours: Ours) -> None:
    touch(ours, "/a")
    assert entries_from(ours, "/", 1 << 62) == []


def test_twenty_thousand_names_are_listed_in_small_steps(ours: Ours) -> None:
    for number in range(20_000):
        touch(ours, f"/{number}")
    names: list[bytes] = []
    cookie = 2
    while batch := entries_from(ours, "/", cookie, 20):
        names += [name for name, _ in batch]
        cookie = batch[-1][1]
    assert names == [b"%d" % number for number in range(20_000)]


Side = Any


def prepare(side: Side) -> None:
    for directory in ("d", "e", "d/sub", "e/sub", "d/other"):
        side.mkdir("/" + directory, 0o755)
    for name in ("d/f", "e/g", "d/victim"):
        close(side, side.open("/" + name, os.O_CREAT | os.O_WRONLY, 0o644))
    fd = side.open("/e/g", os.O_WRONLY)
    (side.task if isinstance(side, Ours) else os).write(fd, b"x" * 5000)
    close(side, fd)
    side.link("/d/f", "/d/f2")


def close(side: Side, fd: int) -> None:
    if isinstance(side, Ours):
        side.task.close(fd)
    else:
        os.close(fd)


WATCHED = ["", "d", "e", "d/f", "d/f2", "e/g", "d/sub", "e/sub", "d/victim", "d/n", "e/n"]
CHANGES: dict[str, Callable[[Side], object]] = {
    "create": lambda s: close(s, s.open("/d/n", os.O_CREAT | os.O_WRONLY, 0o644)),
    "mkdir": lambda s: s.mkdir("/d/n", 0o755),
    "mknod": lambda s: s.mknod("/d/n", stat.S_IFIFO | 0o644),
    "symlink": lambda s: s.symlink("target", "/d/n"),
    "long symlink": lambda s: s.symlink("t" * 128, "/d/n"),
    "link": lambda s: s.link("/d/f", "/e/n"),
    "unlink": lambda s: s.unlink("/d/victim"),
    "unlink one of two": lambda s: s.unlink("/d/f2"),
    "rmdir": lambda s: s.rmdir("/d/sub"),
    "rename": lambda s: s.rename("/d/f", "/d/n"),
    "rename across": lambda s: s.rename("/d/f", "/e/n"),
    "rename over": lambda s: s.rename("/d/f", "/e/g"),
    "rename over one of two": lambda s: s.rename("/e/g", "/d/f2"),
    "rename directory": lambda s: s.rename("/d/sub", "/e/n"),
    "rename directory over directory": lambda s: s.rename("/d/sub", "/e/sub"),
    "rename directory over its sibling": lambda s: s.rename("/d/other", "/d/sub"),
    "exchange": lambda s: s.rename("/d/f", "/e/g", abi.RENAME_EXCHANGE),
    "exchange directory and file": lambda s: s.rename("/d/sub", "/e/g", abi.RENAME_EXCHANGE),
    "exchange in one directory": lambda s: s.rename("/d/sub", "/d/f", abi.RENAME_EXCHANGE),
    "whiteout": lambda s: s.rename("/d/f", "/e/n", abi.RENAME_WHITEOUT),
    "whiteout over": lambda s: s.rename("/d/f", "/e/g", abi.RENAME_WHITEOUT),
    "whiteout in one directory": lambda s: s.rename("/d/f", "/d/n", abi.RENAME_WHITEOUT),
    "set xattr": lambda s: s.setxattr("/d/f", "user.a", b"1"),
    "truncate down": lambda s: s.truncate("/e/g", 100),
    "truncate to the same size": lambda s: s.truncate("/e/g", 5000),
    "truncate an empty file to nothing": lambda s: s.truncate("/d/f", 0),
    "truncate up": lambda s: s.truncate("/d/f", 5000),
}


def snapshot(side: Side) -> dict[str, os.stat_result]:
    found = {}
    for name in WATCHED:
        try:
            found[name] = side.lstat("/" + name)
        except FileNotFoundError:
            continue
    return found


def effect(side: Side, change: Callable[[Side], object]) -> dict[str, object]:
    """Of each name: type, links, size, blocks, device, and which of its inode's times moved."""
    prepare(side)
    before = snapshot(side)
    if not isinstance(side, Ours):
        time.sleep(0.012)  # Linux's coarse clock moves in ticks
    change(side)
    by_number = {status.st_ino: status for status in before.values()}
    result: dict[str, object] = {}
    for name, status in snapshot(side).items():
        old = by_number.get(status.st_ino, status)
        moved = [
            kind
            for kind in ("mtime", "ctime")
            if getattr(status, f"st_{kind}_ns") != getattr(old, f"st_{kind}_ns")
        ]
        result[name] = (
            status.st_mode, status.st_nlink, status.st_size, status.st_blocks, status.st_rdev, moved
        )  # fmt: skip
    result["usage"] = side.usage()
    return result


@pytest.mark.parametrize("name", list(CHANGES))
def test_links_sizes_times_and_usage_change_as_on_the_kernel(
    name: str, make_ours: Callable[..., Ours], make_kernel: Callable
) -> None:
    kernel = make_kernel(size="1m", nr_inodes="40", mode="755")
    ours = make_ours("size=1m,nr_inodes=40,mode=755")
    assert effect(ours, CHANGES[name]) == effect(kernel, CHANGES[name])


def test_replaced_file_has_its_ctime_moved_for_those_who_hold_it_open(ours: Ours) -> None:
    prepare(ours)
    fd = ours.open("/e/g", os.O_RDONLY)
    before = ours.task.fstat(fd)
    ours.rename("/d/f", "/e/g")
    after = ours.task.fstat(fd)
    ours.task.close(fd)
    assert (before.st_nlink, after.st_nlink) == (1, 0)
    assert after.st_ctime_ns > before.st_ctime_ns
