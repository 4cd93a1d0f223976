"""What a Linux guest notices of the trees it lives on, and what the host then sees."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
from guest_on_dentry_support import (
    SHARED,
    SMALL,
    SMALL_SIZE,
    SOURCE,
    TMPFS,
    Place,
    booted,
    check,
    make_source_tree,
    serving,
)

from harness.cli.daemon import ForkedDaemon
from harness.cli.guest_tree import busybox_tree, host_tree
from harness.guest import Guest, GuestConfig, GuestUnavailable, run_guest
from harness.guest.initramfs import find_busybox
from harness.guest.kernel import find_kernel
from harness.guest.qemu import find_qemu

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for device nodes and owners"),
]


@pytest.fixture(scope="module", autouse=True)
def _guests_can_run() -> None:
    try:
        find_qemu(), find_kernel(), find_busybox()
    except GuestUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("shared")
    directory.chmod(0o755)
    return directory


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_source_tree(tmp_path_factory.mktemp("sources") / "tree")


@pytest.fixture(scope="module")
def guest(shared: Path, source: Path) -> Iterator[Guest]:
    with booted(shared, source) as guest:
        yield guest


@pytest.fixture(params=[TMPFS, SHARED], ids=["tmpfs", "passthrough"])
def place(request: pytest.FixtureRequest, guest: Guest, shared: Path) -> Place:
    """An empty directory on each kind of filesystem."""
    name = re.sub(r"\W", "-", request.node.name)
    path = f"{request.param}/{name}"
    check(guest, f"mkdir {path}")
    return Place(guest, path, shared / name if request.param == SHARED else None)


def test_a_created_file_belongs_to_its_creator_and_keeps_its_content(place: Place) -> None:
    place.sh("chmod 777 .; umask 027; su -s /bin/sh nobody -c 'echo content > file; mkdir d'")
    assert place.sh("cat file; stat -c '%A %u %g %s %h' file; stat -c '%A %u' d") == (
        "content\n-rw-r----- 65534 65534 8 1\ndrwxr-x--- 65534\n"
    )
    if place.host:
        status = (place.host / "file").stat()
        assert (place.host / "file").read_text() == "content\n"
        assert (status.st_mode, status.st_uid, status.st_gid) == (0o100640, 65534, 65534)
        assert (place.host / "d").stat().st_mode == 0o40750


def test_a_user_is_refused_what_the_mode_forbids(place: Place) -> None:
    place.sh("echo secret > file; chmod 600 file; mkdir -m 700 closed; touch closed/file")
    script = "cat file; touch new; rm -f file; ls closed; mv closed open; chmod 666 file; echo end"
    assert place.sh(f"su -s /bin/sh nobody -c '{script}' 2>/dev/null") == "end\n"
    assert place.sh("ls; stat -c %a file") == "closed\nfile\n600\n"


def test_a_file_made_in_a_setgid_directory_gets_its_group(place: Place) -> None:
    place.sh("mkdir d; chgrp 77 d; chmod 2777 d; su -s /bin/sh nobody -c 'touch d/f; mkdir d/d'")
    assert place.sh("cd d; stat -c '%u %g %A' f d") == (
        "65534 77 -rw-r--r--\n65534 77 drwxr-sr-x\n"
    )
    if place.host:
        assert (place.host / "d/f").stat().st_gid == 77
        assert (place.host / "d/d").stat().st_mode == 0o42755


def test_rename_replaces_the_target_and_leaves_its_readers_alone(place: Place) -> None:
    script = "echo new > a; echo old > b; exec 3<b; mv a b; cat b; cat <&3; ls"
    assert place.sh(script) == "new\nold\nb\n"
    if place.host:
        assert {path.name: path.read_text() for path in place.host.iterdir()} == {"b": "new\n"}


def test_a_directory_moves_with_all_that_is_in_it(place: Place) -> None:
    place.sh("mkdir -p a/b c; echo deep > a/b/f; cd a/b; mv ../../a ../../c/moved; cat f")
    assert place.sh("cat c/moved/b/f; [ ! -e a ]; mv c c/moved", status=1) == "deep\n"
    assert place.sh("mkdir full empty; touch full/f; mv -T empty full 2>&1 | grep -o 'not empty'")


def test_hard_links_share_one_inode(place: Place) -> None:
    script = "echo one > a; mkdir d; ln a d/b; echo two >> d/b; chmod 604 a; cat a"
    assert place.sh(script) == "one\ntwo\n"
    one, other = place.sh("stat -c '%i %h %a' a d/b").splitlines()
    assert one == other
    assert one.endswith(" 2 604")
    if place.host:
        assert (place.host / "a").samefile(place.host / "d/b")
        assert (place.host / "a").stat().st_nlink == 2
    assert place.sh("rm a; stat -c %h d/b; cat d/b") == "1\none\ntwo\n"


def test_symlinks_are_followed_unless_they_are_asked_for(place: Place) -> None:
    place.sh("mkdir d; echo content > d/f; ln -s d/f link; ln -s nowhere dangling; ln -s loop loop")
    assert place.sh("cat link; readlink link; stat -c '%F %s' link") == (
        "content\nd/f\nsymbolic link 3\n"
    )
    assert "Too many levels" in place.sh("cat loop 2>&1", status=1)
    assert "No such file" in place.sh("cat dangling 2>&1", status=1)
    place.sh("echo through > link; chown -h 7:8 dangling")
    assert place.sh("cat d/f; stat -c %u:%g dangling") == "through\n7:8\n"
    if place.host:
        assert os.readlink(place.host / "link") == "d/f"
        assert (place.host / "dangling").lstat().st_uid == 7


def test_chmod_and_chown_are_seen_at_once(place: Place) -> None:
    place.sh("touch f; mkdir d; chown 12:34 f d; chmod 4751 f; chmod 1777 d")
    assert place.sh("stat -c '%a %u %g' f d") == "4751 12 34\n1777 12 34\n"
    if place.host:
        status = (place.host / "f").stat()
        assert (status.st_mode, status.st_uid, status.st_gid) == (0o104751, 12, 34)
        assert (place.host / "d").stat().st_mode == 0o41777
    # A change of owner takes setuid away, from root's files too.
    assert place.sh("chown 56 f; stat -c '%a %u' f") == "751 56\n"


def test_a_write_by_another_takes_setuid_away(place: Place) -> None:
    place.sh("chmod 777 .; echo x > f; chmod 6777 f; su -s /bin/sh nobody -c 'echo y >> f'")
    assert place.sh("stat -c %a f") == "777\n"
    if place.host:
        assert (place.host / "f").stat().st_mode == 0o100777


def test_times_are_kept_to_the_nanosecond(place: Place) -> None:
    output = place.python(
        "open('f', 'w').close()\n"
        "os.utime('f', ns=(1, 4000000000123456789))\n"
        "print(os.stat('f').st_atime_ns, os.stat('f').st_mtime_ns)\n"
    )
    assert output == "1 4000000000123456789\n"
    if place.host:
        assert (place.host / "f").stat().st_mtime_ns == 4000000000123456789


def test_extended_attributes_are_set_listed_and_removed(place: Place) -> None:
    output = place.python(
        "open('f', 'w').close()\n"
        "os.setxattr('f', 'user.name', b'\\0value')\n"
        "os.setxattr('f', 'user.gone', b'')\n"
        "os.setxattr('f', 'trusted.big', b'x' * 3000)\n"
        "os.setxattr('f', 'user.name', b'new', os.XATTR_REPLACE)\n"
        "os.removexattr('f', 'user.gone')\n"
        "print(sorted(os.listxattr('f')), os.getxattr('f', 'user.name'))\n"
        "print(len(os.getxattr('f', 'trusted.big')))\n"
        "for call in (lambda: os.getxattr('f', 'user.gone'),\n"
        "             lambda: os.setxattr('f', 'user.name', b'', os.XATTR_CREATE)):\n"
        "    try:\n"
        "        call()\n"
        "    except OSError as error:\n"
        "        print(error.strerror)\n"
    )
    assert output == ("['trusted.big', 'user.name'] b'new'\n3000\nNo data available\nFile exists\n")
    if place.host:
        assert os.getxattr(place.host / "f", "user.name") == b"new"
        assert os.getxattr(place.host / "f", "trusted.big") == b"x" * 3000


def test_a_sparse_file_takes_up_its_data_alone(place: Place) -> None:
    output = place.python(
        "with open('f', 'wb') as file:\n"
        "    file.truncate(1 << 40)\n"
        "    file.seek(1 << 39)\n"
        "    file.write(b'data')\n"
        "fd = os.open('f', os.O_RDWR)\n"
        "print(os.fstat(fd).st_size, os.fstat(fd).st_blocks)\n"
        "print(os.lseek(fd, 0, os.SEEK_DATA), os.lseek(fd, 1 << 39, os.SEEK_HOLE))\n"
        "print(os.pread(fd, 8, (1 << 39) - 2), os.pread(fd, 8, (1 << 40) - 3))\n"
    )
    start, end = 1 << 39, (1 << 39) + 4096
    assert output == f"{1 << 40} 8\n{start} {end}\nb'\\x00\\x00data\\x00\\x00' {bytes(3)!r}\n"
    if place.host:
        status = (place.host / "f").stat()
        assert (status.st_size, status.st_blocks) == (1 << 40, 8)


def test_fallocate_reserves_extends_and_punches_holes(place: Place) -> None:
    output = place.userland(
        "fallocate -l 65536 f; stat -c '%s %b' f\n"
        "fallocate -n -o 65536 -l 65536 f; stat -c '%s %b' f\n"
        "printf %8192s x | tr ' ' x > g; fallocate -p -o 4096 -l 4096 g; stat -c '%s %b' g\n"
        "tr -d '\\0' < g | wc -c"
    )
    assert output == "65536 128\n65536 256\n8192 8\n4096\n"


@pytest.mark.slow
def test_ten_thousand_names_in_a_directory_are_listed_whole(place: Place) -> None:
    names = {str(number) for number in range(10_000)}
    if place.host:
        for name in names:
            (place.host / name).touch()
    else:
        place.python("for number in range(10_000):\n    os.mknod(str(number))\n", timeout=120)
    assert sorted(place.sh("ls -a").split()) == sorted({".", "..", *names})


def test_a_directory_can_be_emptied_while_it_is_read(place: Place) -> None:
    place.sh("mkdir many; cd many; seq 500 | xargs touch; ls | wc -l; rm -r ../many")
    assert place.sh("ls") == ""
    if place.host:
        assert os.listdir(place.host) == []


@pytest.mark.slow
def test_256_mib_are_written_and_read_back_with_equal_checksums(place: Place) -> None:
    size, block = 256 << 20, 1 << 20
    output = place.python(
        "import random, zlib\n"
        f"block = random.Random(0).randbytes({block} - 8)\n"
        "checksum = 0\n"
        "file = open('f', 'w+b', buffering=0)\n"
        f"for number in range({size // block}):\n"
        "    data = number.to_bytes(8, 'big') + block\n"
        "    file.write(data)\n"
        "    checksum = zlib.crc32(data, checksum)\n"
        "print(checksum)\n"
        "os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)\n"
        "file.seek(0)\n"
        "checksum = 0\n"
        f"while data := file.read({block}):\n"
        "    checksum = zlib.crc32(data, checksum)\n"
        "print(checksum)\n"
        "print(os.stat('f').st_size)\n",
        timeout=200,
    )
    written, read, length = output.split()
    assert (read, int(length)) == (written, size)
    if place.host:
        checksum = 0
        with open(place.host / "f", "rb", buffering=0) as file:
            while data := file.read(block):
                checksum = zlib.crc32(data, checksum)
        assert checksum == int(written)
    place.sh("rm f")


def test_unaligned_direct_reads_and_writes_agree_with_the_page_cache(place: Place) -> None:
    script = (
        "dd if=/dev/urandom of=a bs=1M count=5 2>/dev/null; truncate -s 4000001 a\n"
        "dd if=a of=b bs=1M iflag=direct 2>/dev/null; cmp a b\n"
        "dd if=a of=c bs=64k oflag=direct 2>/dev/null; cmp a c\n"
        "dd if=a of=d bs=65537 oflag=append conv=notrunc 2>/dev/null; cmp a d; stat -c %s d"
    )
    assert place.userland(script) == "4000001\n"
    if place.host:
        contents = {(place.host / name).read_bytes() for name in "abcd"}
        assert len(contents) == 1


@pytest.mark.slow
def test_a_copied_source_tree_differs_in_nothing(place: Place, source: Path) -> None:
    listing = (
        "find . -type d -printf '%P %y %m %U %G %T@\\n' -o "
        "-printf '%P %y %m %U %G %T@ %s %n %l\\n' | sort"
    )
    original = place.userland(f"cp -a {SOURCE} copy && cd {SOURCE} && {listing}", timeout=120)
    assert len(original.splitlines()) > 30
    assert place.userland(f"cd copy && {listing}") == original
    # A FIFO would be opened by diff, and that waits for a writer.
    assert place.userland(f"diff -r --no-dereference -x fifo {SOURCE} copy", timeout=120) == ""
    assert int(place.userland("stat -c %b copy/sparse")) <= 16
    if place.host:
        copied = place.host / "copy"
        assert (copied / "a name\nof two lines \u00e4").read_bytes() == bytes(range(256))
        assert (copied / "closed/setuid").stat().st_mode == 0o104755
        assert (copied / "case.py").samefile(copied / "relative2")
    place.sh("rm -r copy")
    assert place.sh("ls") == ""


def test_a_device_node_made_in_the_guest_is_the_device(place: Place) -> None:
    place.sh("mknod zero c 1 5; mknod null c 1 3; mknod -m 640 disk b 240 77; mkfifo fifo")
    assert place.sh("head -c 5 zero | xxd -p; echo gone > null; cat null; stat -c '%F' *") == (
        "0000000000\nblock special file\nfifo\ncharacter special file\ncharacter special file\n"
    )
    assert place.sh("stat -c '%t:%T' zero disk") == "1:5\nf0:4d\n"
    if place.host:
        zero, disk = (place.host / "zero").stat(), (place.host / "disk").stat()
        assert stat.S_ISCHR(zero.st_mode)
        assert (zero.st_rdev, disk.st_rdev) == (os.makedev(1, 5), os.makedev(240, 77))
        assert (disk.st_mode, (place.host / "fifo").stat().st_mode) == (0o060640, 0o010644)


def test_a_fifo_joins_two_processes(place: Place) -> None:
    assert place.sh("mkfifo p; (seq 1000 > p) & cat p | wc -l; wait; rm p; ls") == "1000\n"


def test_a_socket_is_bound_and_connected_to(place: Place) -> None:
    output = place.python(
        "import socket\n"
        "with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as client:\n"
        "    listener.bind('s')\n"
        "    listener.listen()\n"
        "    client.connect('s')\n"
        "    client.send(b'hello')\n"
        "    print(listener.accept()[0].recv(9))\n"
    )
    assert "b'hello'" in output
    if place.host:
        assert stat.S_ISSOCK((place.host / "s").stat().st_mode)


def test_an_unlinked_file_lives_while_it_is_open(place: Place) -> None:
    script = (
        "echo one > f; exec 3<>f 4<f; rm f; echo two > f; ls; cat <&3; echo three >&3; cat <&4\n"
        "stat -L -c '%h %s' /proc/self/fd/3; echo four >> /proc/self/fd/3; cat /proc/self/fd/4\n"
        "chmod 600 /proc/self/fd/3; stat -L -c %a /proc/self/fd/4"
    )
    assert place.sh(script) == ("f\none\none\nthree\n0 10\none\nthree\nfour\n600\n")
    assert place.sh("cat f") == "two\n"


def test_a_removed_directory_takes_nothing_new(place: Place) -> None:
    output = place.sh("mkdir d; cd d; rmdir ../d; touch f 2>&1; ls; stat -c %h .", status=0)
    assert "No such file" in output
    assert output.endswith("\n0\n")


def test_two_processes_that_append_lose_nothing(place: Place) -> None:
    script = "for i in $(seq 300); do echo $0 $i >> log; done"
    place.sh(f"sh -c '{script}' a & sh -c '{script}' b & wait")
    lines = [f"{who} {number}" for who in "ab" for number in range(1, 301)]
    assert sorted(place.sh("cat log").splitlines()) == sorted(lines)
    if place.host:
        assert sorted((place.host / "log").read_text().splitlines()) == sorted(lines)


def test_what_is_written_through_a_mapping_reaches_the_file(place: Place) -> None:
    output = place.python(
        "import mmap\n"
        "with open('f', 'w+b') as file:\n"
        "    file.truncate(100000)\n"
        "    with mmap.mmap(file.fileno(), 0) as mapping:\n"
        "        mapping[50000:50007] = b'through'\n"
        "        mapping.flush()\n"
        "        file.seek(99990)\n"
        "        file.write(b'by writing')\n"
        "        file.flush()\n"
        "        print(mapping[-10:])\n"
        "fd = os.open('f', os.O_RDONLY | os.O_DIRECT)\n"
        "data = os.read(fd, 200000)\n"
        "print(len(data), data.replace(b'\\0', b''))\n"
    )
    assert output == "b'by writing'\n100000 b'throughby writing'\n"
    if place.host:
        assert (place.host / "f").read_bytes()[50000:50007] == b"through"


def test_a_lock_excludes_another_process_until_it_is_released(place: Place) -> None:
    output = place.python(
        "import fcntl\n"
        "refused, refuse = os.pipe()\n"
        "for lock in fcntl.flock, fcntl.lockf:\n"
        "    file = open(lock.__name__, 'w+')\n"
        "    lock(file, fcntl.LOCK_EX)\n"
        "    if os.fork() == 0:\n"
        "        other = open(lock.__name__, 'r+')\n"
        "        try:\n"
        "            lock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "        except BlockingIOError:\n"
        "            os.write(refuse, b'refused')\n"
        "        lock(other, fcntl.LOCK_EX)\n"
        "        print(other.read(), flush=True)\n"
        "        os._exit(0)\n"
        "    print(os.read(refused, 9).decode(), flush=True)\n"
        "    file.write('written under ' + lock.__name__)\n"
        "    file.flush()\n"
        "    lock(file, fcntl.LOCK_UN)\n"
        "    os.wait()\n"
    )
    assert output.splitlines() == [
        *("refused", "written under flock"),
        *("refused", "written under lockf"),
    ]


def test_a_lock_goes_with_its_killed_holder(place: Place) -> None:
    output = place.python(
        "import fcntl, signal\n"
        "locked, tell = os.pipe()\n"
        "for lock in fcntl.flock, fcntl.lockf:\n"
        "    holder = os.fork()\n"
        "    if holder == 0:\n"
        "        file = open('f', 'w')\n"
        "        lock(file, fcntl.LOCK_EX)\n"
        "        os.write(tell, b'locked')\n"
        "        signal.pause()\n"
        "    os.read(locked, 9)\n"
        "    if os.fork() == 0:\n"
        "        lock(open('f', 'r+'), fcntl.LOCK_EX)\n"
        "        print('mine', flush=True)\n"
        "        os._exit(0)\n"
        "    os.kill(holder, signal.SIGKILL)\n"
        "    print(sorted(os.wait()[1] for _ in range(2)), flush=True)\n"
    )
    assert output == "mine\n[0, 9]\n" * 2


def test_what_is_outside_of_the_shared_directory_stays_out_of_reach(
    guest: Guest, shared: Path, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_text("of the host")
    depth = "../" * 40
    (shared / "absolute").symlink_to(secret)
    (shared / "climbing").symlink_to(f"{depth}{secret.relative_to('/')}")
    (shared / "parent").symlink_to("..")
    (shared / "proc").symlink_to("/proc/self/root")
    for path in ("absolute", "climbing", f"{depth}{secret}", f"proc{secret}"):
        check(guest, f"[ ! -e {SHARED}/{path} ] && ! cat {SHARED}/{path} 2>/dev/null")
    assert check(guest, f"ls -d {SHARED}/parent/tmpfs; cd {SHARED}/..; pwd -P") == (
        f"{SHARED}/parent/tmpfs\n/tmp\n"
    )
    # A working directory that the host moves out of the shared one.
    (shared / "moving/deep").mkdir(parents=True)
    climb = "cat ../../secret ../secret; echo end"
    waiting = f"until [ -e /tmp/moved ]; do sleep 0.1; done; {climb}"
    check(guest, f"cd {SHARED}/moving/deep; sh -c '{waiting}' >/tmp/climbed 2>&1 &")
    (shared / "moving").rename(tmp_path / "moved")
    seen = check(guest, "touch /tmp/moved; until grep end /tmp/climbed; do sleep 0.1; done")
    assert seen == "end\n"
    assert "of the host" not in check(guest, "cat /tmp/climbed")


def test_a_read_only_passthrough_refuses_every_change(guest: Guest, source: Path) -> None:
    before = sorted(os.listdir(source))
    for command in (
        "touch new", "mkdir new", "rm case.py", "mv case.py new", "ln case.py new",
        "chmod 0 case.py", "ln -s x new", "mknod new p", "chown 1 empty", "rmdir empty",
        "truncate -s 0 case.py",
        "sh -c ': >> case.py'", "touch -d 2000-01-01 case.py",
    ):  # fmt: skip
        done = guest.run(command, cwd=SOURCE)
        assert done.status != 0, command
        assert b"Read-only file system" in done.stderr, (command, done.stderr)
    assert sorted(os.listdir(source)) == before
    assert (source / "case.py").stat().st_size > 0


def test_df_shows_the_size_of_each_filesystem(guest: Guest, shared: Path) -> None:
    check(guest, f"dd if=/dev/zero of={SMALL}/f bs=256k count=1 2>/dev/null")
    used = f"{SMALL_SIZE // 1024} 256 {SMALL_SIZE // 1024 - 256}"
    assert used.split() == check(guest, f"df -k {SMALL} | tail -1").split()[1:4]
    check(guest, f"rm {SMALL}/f")
    host = os.statvfs(shared)
    seen = check(guest, f"stat -f -c '%S %b %c %l' {SHARED}").split()
    assert seen == [str(host.f_frsize), str(host.f_blocks), str(host.f_files), "255"]


def test_a_full_filesystem_says_so_and_loses_nothing(guest: Guest) -> None:
    place = Place(guest, SMALL, None)
    place.sh("echo precious > kept; head -c 2m /dev/urandom > ../data")
    assert "No space left on device" in place.sh("cat ../data 2>&1 > big", status=1)
    size = int(place.sh("stat -c %s big"))
    assert SMALL_SIZE - 3 * 4096 <= size <= SMALL_SIZE
    assert (
        place.userland(
            f"head -c {size} ../data >../expected; dd if=big iflag=direct bs=64k 2>&- | "
            "cmp - ../expected; cat kept"
        )
        == "precious\n"
    )
    # The space comes back with the guest's FORGET, for which unlink(2) does not wait.
    place.sh(
        "rm big ../data ../expected; tries=0\n"
        "until echo enough 2>/dev/null > again || [ $((tries += 1)) -gt 100 ]; do sleep 0.1; done"
    )
    assert place.sh("cat kept again") == "precious\nenough\n"
    place.sh("rm kept again")


def test_what_the_host_changes_appears_within_the_cache_timeout(guest: Guest, shared: Path) -> None:
    (shared / "changing").write_text("old")
    (shared / "vanishing").touch()
    script = f"cd {SHARED}; cat changing; ls vanishing; cat appearing 2>/dev/null; true"
    assert check(guest, script) == "oldvanishing\n"
    (shared / "changing").write_text("new and longer")
    (shared / "changing").chmod(0o640)
    (shared / "vanishing").unlink()
    (shared / "appearing").write_text(" and new")
    time.sleep(1.1)
    script = "cat changing appearing; stat -c ' %a %s' changing; ls -d vanish*"
    assert check(guest, script, cwd=SHARED, status=1) == "new and longer and new 640 14\n"


def test_a_mount_of_the_tree_can_be_unmounted_and_comes_back_with_its_content(
    place: Place,
) -> None:
    mountpoint = os.path.dirname(place.path)
    name = os.path.basename(place.path)
    script = (
        f"echo kept > {name}/f; cd /; umount {mountpoint}; grep -c ' {mountpoint} ' /proc/mounts\n"
        f"cat {place.path}/f; grep -c ' {mountpoint} ' /proc/mounts"
    )
    assert check(place.guest, script, cwd=mountpoint) == "0\nkept\n1\n"


@pytest.mark.slow
def test_a_second_guest_finds_what_the_first_has_left(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    address = tmp_path / "vhost.sock"
    second = (
        *("-chardev", f"socket,id=second,path={address}"),
        *("-device", "vhost-user-fs-pci,chardev=second,tag=second"),
    )
    mount = "mount -t virtiofs second /mnt"

    @contextmanager
    def boot() -> Iterator[Guest]:
        with (
            ForkedDaemon(partial(busybox_tree, [])) as daemon,
            Guest(GuestConfig(daemon.socket, qemu_arguments=second)) as guest,
        ):
            yield guest

    with serving(address, f"type=passthrough,src={tmp_path / 'shared'},dst=/shared"):
        with boot() as guest:
            check(guest, f"{mount} && echo one > /mnt/tmpfs && echo two > /mnt/shared/host")
            check(guest, "umount /mnt/shared; umount /mnt && [ ! -e /mnt/tmpfs ]")
            assert check(guest, f"{mount} && cat /mnt/tmpfs /mnt/shared/host") == "one\ntwo\n"
            # It goes without a word, with a file open.
            check(guest, "echo three > /mnt/left; sleep 1000 </mnt/left >/dev/null 2>&1 &")
            guest.close()
        with boot() as guest:
            assert check(guest, f"{mount} && cat /mnt/tmpfs /mnt/left /mnt/shared/host") == (
                "one\nthree\ntwo\n"
            )
    assert (tmp_path / "shared/host").read_text() == "two\n"


@pytest.mark.slow
def test_the_hosts_own_programs_run_in_a_guest_on_its_root() -> None:
    if not shutil.which("git", path="/usr/bin"):
        pytest.skip("the host has no git")
    script = (
        "cd /tmp && git init -q repo && cd repo && echo text > file && git add file &&"
        "git -c user.name=n -c user.email=e commit -qm first && git fsck && git log --format=%s;"
        "python3 -c 'import os; print(os.uname().sysname, os.getpid() > 0)'; exit 7"
    )
    output: list[bytes] = []
    with ForkedDaemon(partial(host_tree, "/", [])) as daemon:
        status = run_guest(
            GuestConfig(daemon.socket),
            ("/bin/bash", "-c", script),
            stdout=output.append,
            stderr=output.append,
        )
    assert (status, b"".join(output)) == (7, b"first\nLinux True\n")
