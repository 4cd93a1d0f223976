"""Reading directories: everything once, at the host's own cookies, while names come and go."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from vfs import abi
from vfs.file import DirectoryEntry
from vfs.task import Task


def names_of(task: Task, fd: int, size: int = 32768) -> list[bytes]:
    found = []
    while records := task.getdents64(fd, size):
        found += [record.d_name for record in records]
    return found


def test_a_large_directory_is_listed_whole_and_once_through_small_buffers(
    inside: Task, shared: Path
) -> None:
    expected = {b".", b".."}
    for number in range(2500):
        name = f"{'n' * (number % 60)}{number}"
        (shared / name).touch()
        expected.add(name.encode())
    fd = inside.open("/", abi.O_RDONLY)
    for size in (300, 32768):
        inside.lseek(fd, 0, abi.SEEK_SET)
        names = names_of(inside, fd, size)
        assert len(names) == len(expected)
        assert set(names) == expected


def test_each_cookie_leads_to_the_entries_that_follow_it(inside: Task, shared: Path) -> None:
    for number in range(1200):
        (shared / f"file{number}").touch()
    fd = inside.open("/", abi.O_RDONLY)
    records = []
    while more := inside.getdents64(fd):
        records += more
    for index in (0, 1, 600, 1100, len(records) - 2):
        inside.lseek(fd, records[index].d_off, abi.SEEK_SET)
        following = names_of(inside, fd)
        assert following == [record.d_name for record in records[index + 1 :]]
    inside.lseek(fd, records[-1].d_off, abi.SEEK_SET)
    assert inside.getdents64(fd) == []


def test_entries_that_stay_are_seen_once_while_others_are_removed_between_reads(
    inside: Task, shared: Path
) -> None:
    for number in range(1500):
        (shared / f"keep{number}").touch()
        (shared / f"drop{number}").touch()
    fd = inside.open("/", abi.O_RDONLY)
    seen: list[bytes] = []
    removed = 0
    while records := inside.getdents64(fd, 4096):
        seen += [record.d_name for record in records]
        for _ in range(100):
            if removed < 1500:
                (shared / f"drop{removed}").unlink()
                removed += 1
    kept = [name for name in seen if name.startswith(b"keep")]
    assert len(kept) == len(set(kept)) == 1500


def test_a_rewound_directory_shows_what_was_made_since(inside: Task, shared: Path) -> None:
    (shared / "old").touch()
    fd = inside.open("/", abi.O_RDONLY)
    assert b"old" in names_of(inside, fd)
    (shared / "new").touch()
    inside.lseek(fd, 0, abi.SEEK_SET)
    assert b"new" in names_of(inside, fd)


def test_entries_carry_the_hosts_inode_numbers_and_types(inside: Task, shared: Path) -> None:
    (shared / "f").touch()
    (shared / "d").mkdir()
    (shared / "l").symlink_to("f")
    os.mkfifo(shared / "p")
    (shared / "\udcff\udcfe").touch()
    fd = inside.open("/", abi.O_RDONLY)
    found = {record.d_name: record for record in inside.getdents64(fd)}
    for name in (b"f", b"d", b"l", b"p", b"\xff\xfe"):
        host = os.lstat(bytes(shared) + b"/" + name)
        assert found[name].d_ino == host.st_ino
        assert found[name].d_type == stat.S_IFMT(host.st_mode) >> 12


def test_two_readings_through_one_description_do_not_disturb_each_other(
    inside: Task, shared: Path
) -> None:
    for number in range(3000):
        (shared / f"file{number}").touch()
    file = inside.files.get_file(inside.open("/", abi.O_RDONLY))
    expected = list(file.iterate(0))
    seen: list[list[DirectoryEntry]] = [[], []]
    iterators = [file.iterate(0), file.iterate(expected[1499][3])]
    for number in range(1502):
        for entries, iterator in zip(seen, iterators, strict=True):
            entries.append(next(iterator))
        if number % 100 == 99:
            # One comes back with the last cookie it was given, the other with the one before.
            iterators = [file.iterate(seen[0][-1][3]), file.iterate(seen[1][-2][3])]
            seen[1].pop()
    assert seen[0] == expected[:1502]
    assert seen[1] == expected[1500 : 1500 + len(seen[1])]


def test_two_readers_of_one_directory_do_not_disturb_each_other(inside: Task, shared: Path) -> None:
    for number in range(1500):
        (shared / f"file{number}").touch()
    first, second = inside.open("/", abi.O_RDONLY), inside.open("/", abi.O_RDONLY)
    seen: dict[int, list[bytes]] = {first: [], second: []}
    for _ in range(1000):
        for fd, size in ((first, 500), (second, 3000)):
            seen[fd] += [record.d_name for record in inside.getdents64(fd, size)]
    assert len(seen[first]) == len(set(seen[first])) == 1502
    assert sorted(seen[first]) == sorted(seen[second])
