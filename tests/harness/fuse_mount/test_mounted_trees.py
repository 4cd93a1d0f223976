"""What a user does to files, through the kernel, on a tmpfs and on a passthrough of ours."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import subprocess
import sys
import unittest
from pathlib import Path

import pytest

SOURCES = Path(unittest.__file__).parent
"""A source tree that nobody works on while it is compared."""

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for device nodes and owners"),
]


def test_a_file_is_created_with_what_was_written(place: Path) -> None:
    (place / "file").write_bytes(b"content")
    assert (place / "file").read_bytes() == b"content"
    status = (place / "file").stat()
    assert status.st_size == 7
    assert stat.S_IMODE(status.st_mode) == 0o644
    assert (status.st_uid, status.st_gid, status.st_nlink) == (0, 0, 1)


def test_exclusive_create_of_what_exists_fails_with_eexist(place: Path) -> None:
    (place / "file").touch()
    with pytest.raises(FileExistsError):
        os.open(place / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def test_rename_replaces_the_target_at_once(place: Path) -> None:
    (place / "old").write_text("new content")
    (place / "target").write_text("old content")
    with open(place / "target") as still_open:
        (place / "old").rename(place / "target")
        assert still_open.read() == "old content"
    assert (place / "target").read_text() == "new content"
    assert os.listdir(place) == ["target"]


def test_rename_of_a_directory_into_itself_fails_with_einval(place: Path) -> None:
    (place / "a/b").mkdir(parents=True)
    with pytest.raises(OSError) as caught:
        (place / "a").rename(place / "a/b/c")
    assert caught.value.errno == errno.EINVAL


def test_rename_onto_a_nonempty_directory_fails_with_enotempty(place: Path) -> None:
    (place / "a").mkdir()
    (place / "b/c").mkdir(parents=True)
    with pytest.raises(OSError) as caught:
        (place / "a").rename(place / "b")
    assert caught.value.errno == errno.ENOTEMPTY


def test_hard_links_share_inode_data_and_count(place: Path) -> None:
    (place / "one").write_text("x")
    os.link(place / "one", place / "two")
    with open(place / "two", "a") as file:
        file.write("y")
    assert (place / "one").read_text() == "xy"
    first, second = (place / "one").stat(), (place / "two").stat()
    assert (first.st_ino, first.st_nlink) == (second.st_ino, 2)
    (place / "one").unlink()
    assert (place / "two").stat().st_nlink == 1


def test_symlinks_are_followed_and_loops_end_with_eloop(place: Path) -> None:
    (place / "file").write_text("x")
    (place / "link").symlink_to("file")
    assert os.readlink(place / "link") == "file"
    assert (place / "link").read_text() == "x"
    (place / "loop").symlink_to("loop")
    with pytest.raises(OSError) as caught:
        (place / "loop").read_text()
    assert caught.value.errno == errno.ELOOP


def test_modes_and_owners_are_kept_and_chown_clears_setuid(place: Path) -> None:
    file = place / "file"
    file.touch()
    file.chmod(0o4711)
    assert stat.S_IMODE(file.stat().st_mode) == 0o4711
    os.chown(file, 1000, 1001)
    status = file.stat()
    assert (status.st_uid, status.st_gid) == (1000, 1001)
    assert stat.S_IMODE(status.st_mode) == 0o711


def test_what_another_user_creates_is_that_users(place: Path) -> None:
    place.chmod(0o777)
    subprocess.run(["touch", place / "file"], check=True, user=1000, group=1001, extra_groups=[])
    status = (place / "file").stat()
    assert (status.st_uid, status.st_gid) == (1000, 1001)
    shared = place / "shared"
    shared.mkdir()
    os.chown(shared, 0, 4000)
    shared.chmod(0o2777)
    subprocess.run(["mkdir", shared / "d"], check=True, user=1000, group=1001, extra_groups=[])
    status = (shared / "d").stat()
    assert (status.st_uid, status.st_gid) == (1000, 4000)
    assert status.st_mode & stat.S_ISGID


def test_another_user_is_refused_by_the_mode(place: Path) -> None:
    (place / "secret").write_text("x")
    (place / "secret").chmod(0o600)
    result = subprocess.run(
        ["cat", place / "secret"], user=1000, group=1000, extra_groups=[], capture_output=True
    )
    assert b"Permission denied" in result.stderr


def test_times_are_set_to_the_nanosecond(place: Path) -> None:
    (place / "file").touch()
    os.utime(place / "file", ns=(1_234_567_890_123_456_789, 1_000_000_000_000_000_001))
    status = (place / "file").stat()
    assert status.st_atime_ns == 1_234_567_890_123_456_789
    assert status.st_mtime_ns == 1_000_000_000_000_000_001


def test_user_xattrs_are_set_listed_and_removed(place: Path) -> None:
    file = place / "file"
    file.touch()
    os.setxattr(file, "user.one", b"1")
    os.setxattr(file, "trusted.two", b"\0" * 100)
    assert os.getxattr(file, "user.one") == b"1"
    assert sorted(os.listxattr(file)) == ["trusted.two", "user.one"]
    with pytest.raises(OSError) as caught:
        os.setxattr(file, "user.one", b"2", os.XATTR_CREATE)
    assert caught.value.errno == errno.EEXIST
    os.removexattr(file, "user.one")
    with pytest.raises(OSError) as caught:
        os.getxattr(file, "user.one")
    assert caught.value.errno == errno.ENODATA


def test_a_sparse_file_has_few_blocks_and_finds_its_holes(place: Path) -> None:
    with open(place / "sparse", "wb") as file:
        file.seek(1 << 30)
        file.write(b"end")
    status = (place / "sparse").stat()
    assert status.st_size == (1 << 30) + 3
    assert status.st_blocks * 512 < 1 << 20
    fd = os.open(place / "sparse", os.O_RDONLY)
    try:
        assert os.lseek(fd, 0, os.SEEK_DATA) == 1 << 30
        assert os.lseek(fd, 0, os.SEEK_HOLE) == 0
        assert os.pread(fd, 4, 1 << 29) == b"\0" * 4
    finally:
        os.close(fd)


def test_punching_a_hole_frees_blocks_and_reads_as_zeros(place: Path) -> None:
    (place / "file").write_bytes(b"x" * (1 << 20))
    command = ["fallocate", "--punch-hole", "-o", "4096", "-l", str((1 << 20) - 8192)]
    subprocess.run([*command, place / "file"], check=True)
    data = (place / "file").read_bytes()
    assert data == b"x" * 4096 + b"\0" * ((1 << 20) - 8192) + b"x" * 4096
    assert (place / "file").stat().st_blocks * 512 <= 65536


def test_truncate_grows_with_zeros_and_shrinks(place: Path) -> None:
    file = place / "file"
    file.write_bytes(b"abcdef")
    os.truncate(file, 3)
    os.truncate(file, 6)
    assert file.read_bytes() == b"abc\0\0\0"


def test_an_unlinked_file_lives_while_it_is_open(place: Path) -> None:
    fd = os.open(place / "file", os.O_RDWR | os.O_CREAT)
    try:
        os.unlink(place / "file")
        os.write(fd, b"still here")
        assert os.pread(fd, 100, 0) == b"still here"
        assert os.fstat(fd).st_nlink == 0
    finally:
        os.close(fd)
    assert os.listdir(place) == []


def test_an_unnamed_file_gets_a_name_by_linkat(place: Path) -> None:
    fd = os.open(place, os.O_TMPFILE | os.O_RDWR)
    try:
        os.write(fd, b"x")
        assert os.listdir(place) == []
        # Python follows the link only where it has to call linkat(2).
        os.link(f"/proc/self/fd/{fd}", place / "named", src_dir_fd=fd, follow_symlinks=True)
    finally:
        os.close(fd)
    assert (place / "named").read_bytes() == b"x"


def test_ten_thousand_files_are_listed_whole(place: Path) -> None:
    script = "import sys\nfor i in range(10000): open(f'{sys.argv[1]}/file-{i:05}', 'x').close()"
    subprocess.run([sys.executable, "-c", script, place], check=True)
    assert sorted(os.listdir(place)) == [f"file-{i:05}" for i in range(10000)]
    sizes = {entry.stat().st_size for entry in os.scandir(place)}
    assert sizes == {0}


@pytest.mark.slow
def test_a_quarter_gibibyte_comes_back_as_it_was_written(place: Path) -> None:
    block = os.urandom(1 << 20)
    written = hashlib.sha256()
    with open(place / "large", "wb", buffering=0) as file:
        for number in range(256):
            data = number.to_bytes(8, "little") + block[8:]
            written.update(data)
            assert file.write(data) == len(data)
        os.fsync(file.fileno())
    result = subprocess.run(["sha256sum", place / "large"], capture_output=True, check=True)
    assert result.stdout.split()[0].decode() == written.hexdigest()


def test_a_shared_mapping_and_a_write_see_each_other(place: Path) -> None:
    script = (
        "import mmap, os, sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "with mmap.mmap(fd, 8192) as area:\n"
        "    area[4096:4101] = b'stored'[:5]\n"
        "    assert os.pread(fd, 5, 4096) == b'store'\n"
        "    os.pwrite(fd, b'written', 0)\n"
        "    assert area[:7] == b'written'\n"
        "    area.flush()\n"
    )
    (place / "file").write_bytes(bytes(8192))
    subprocess.run([sys.executable, "-c", script, place / "file"], check=True)
    assert (place / "file").read_bytes()[4096:4101] == b"store"


def test_device_nodes_work_and_fifos_carry_data(place: Path) -> None:
    os.mknod(place / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(place / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    assert (place / "null").stat().st_rdev == os.makedev(1, 3)
    (place / "null").write_bytes(b"gone")
    assert (place / "null").read_bytes() == b""
    fd = os.open(place / "zero", os.O_RDONLY)
    assert os.read(fd, 5) == b"\0" * 5
    os.close(fd)
    os.mkfifo(place / "fifo")
    with subprocess.Popen(["cat", place / "fifo"], stdout=subprocess.PIPE) as reader:
        (place / "fifo").write_bytes(b"through")
        assert reader.communicate()[0] == b"through"


def test_a_program_runs_from_the_mount(place: Path) -> None:
    (place / "script").write_text("#!/bin/sh\necho ran\n")
    (place / "script").chmod(0o755)
    assert subprocess.check_output([place / "script"]) == b"ran\n"


def test_locks_of_two_processes_exclude_each_other(place: Path) -> None:
    script = (
        "import fcntl, sys\n"
        "file = open(sys.argv[1], 'r+')\n"
        "{lock}(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    (place / "file").touch()
    for lock in ("fcntl.flock", "fcntl.lockf"):
        command = [sys.executable, "-c", script.format(lock=lock), place / "file"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as first:
            assert first.stdout is not None
            assert first.stdout.readline() == "locked\n"
            second = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
            assert b"BlockingIOError" in second.stderr
            first.communicate()
        third = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True)
        assert third.stdout == b"locked\n"


def test_copy_of_a_source_tree_does_not_differ(place: Path) -> None:
    subprocess.run(["cp", "-a", SOURCES, place / "copy"], check=True)
    subprocess.run(["diff", "-r", SOURCES, place / "copy"], check=True)


def test_tar_and_back_does_not_differ(place: Path) -> None:
    subprocess.run(["cp", "-a", SOURCES, place / "tree"], check=True)
    os.symlink("util.py", place / "tree/link")
    os.link(place / "tree/case.py", place / "tree/hard")
    subprocess.run(["tar", "-C", place, "-cf", place / "tree.tar", "tree"], check=True)
    (place / "out").mkdir()
    subprocess.run(["tar", "-C", place / "out", "-xpf", place / "tree.tar"], check=True)
    subprocess.run(["diff", "-r", place / "tree", place / "out/tree"], check=True)
    command = ["tar", "-C", place / "out", "--compare", "-f", place / "tree.tar"]
    subprocess.run(command, check=True)
    assert (place / "out/tree/hard").stat().st_nlink == 2


def test_a_clone_of_a_repository_passes_fsck(place: Path) -> None:
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}
    origin = place / "origin"

    def git(*words: str | Path) -> str:
        command = ["git", "-c", "user.name=n", "-c", "user.email=e@x", "-c", "safe.directory=*"]
        result = subprocess.run(
            [*command, *words], env=environment, capture_output=True, text=True, check=True
        )
        return result.stdout

    subprocess.run(["cp", "-a", SOURCES, origin], check=True)
    git("init", "-q", origin)
    git("-C", origin, "add", ".")
    git("-C", origin, "commit", "-q", "-m", "first")
    git("clone", "-q", "--no-local", origin, place / "clone")
    git("-C", place / "clone", "fsck", "--full", "--strict")
    assert git("-C", place / "clone", "status", "--porcelain") == ""
    git("-C", place / "clone", "gc", "-q")
    assert git("-C", place / "clone", "fsck", "--full") == ""


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_concurrent_writers_leave_a_sound_database(place: Path, journal: str) -> None:
    script = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], timeout=60, isolation_level=None)\n"
        "for number in range(50):\n"
        "    db.execute('begin immediate')\n"
        "    (count,) = db.execute('select value from counter').fetchone()\n"
        "    db.execute('update counter set value = ?', (count + 1,))\n"
        "    db.execute('insert into log values (?, ?)', (int(sys.argv[2]), number))\n"
        "    db.execute('commit')\n"
        "db.close()\n"
    )
    setup = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1])\n"
        "assert db.execute(f'pragma journal_mode={sys.argv[2]}').fetchone() == (sys.argv[2],)\n"
        "db.execute('create table counter (value)')\n"
        "db.execute('insert into counter values (0)')\n"
        "db.execute('create table log (writer, number)')\n"
        "db.commit()\n"
        "db.close()\n"
    )
    check = (
        "import sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1])\n"
        "assert db.execute('pragma integrity_check').fetchone() == ('ok',)\n"
        "assert db.execute('select value from counter').fetchone() == (200,)\n"
        "assert db.execute('select count(*) from log').fetchone() == (200,)\n"
        "db.close()\n"
    )
    database = place / "db"
    subprocess.run([sys.executable, "-c", setup, database, journal], check=True)
    writers = [
        subprocess.Popen([sys.executable, "-c", script, database, str(number)])
        for number in range(4)
    ]
    assert [writer.wait() for writer in writers] == [0] * 4
    subprocess.run([sys.executable, "-c", check, database], check=True)
