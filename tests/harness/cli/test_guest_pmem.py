"""`dentry guest --pmem-ext2`, with a guest and without."""

from __future__ import annotations

import hashlib
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.cli.main import main
from harness.cli.pmem import parse_pmem_specs
from harness.errors import UsageError

_LIST = (
    "cd {}; find . -exec stat -c '%n|%f|%u|%g|%s|%Y|%h|%t:%T' {{}} + | sort; "
    "find . -type l -exec readlink {{}} \\; | sort; find . -type f -exec sha256sum {{}} + | sort; "
    "stat -c %y file"
)


def guest(*words: str, cwd: Path, timeout: float = 180) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "harness.cli", "guest", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=timeout,
    )
    return done.returncode, done.stdout, done.stderr


def make_tree(top: Path) -> None:
    (top / "directory" / "below").mkdir(parents=True)
    (top / "file").write_bytes(b"content " * 5000)
    os.utime(top / "file", ns=(10**18, 4_000_000_000_123_456_789))
    (top / "directory" / "name with \xe4 and spaces").write_bytes(os.urandom(70_000))
    (top / "empty").touch(0o600)
    os.link(top / "file", top / "directory" / "link")
    (top / "short").symlink_to("file")
    (top / "long").symlink_to("x" * 200)
    os.mkfifo(top / "fifo")
    os.mknod(top / "device", stat.S_IFCHR | 0o640, os.makedev(10, 300))
    os.chown(top / "empty", 12345, 54321)
    os.chmod(top / "directory", 0o1770)
    with (top / "sparse").open("wb") as file:
        file.truncate(5 << 20)
        file.seek(3 << 20)
        file.write(b"in the middle")
    # ext2 has a directory of that name, and so that both have it, the source does.
    (top / "lost+found").mkdir(0o700)


@pytest.mark.guest
def test_the_tree_in_the_guests_memory_is_the_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    make_tree(source)
    here = subprocess.run(
        ("busybox", "sh", "-c", _LIST.format(source)), capture_output=True, text=True, check=True
    )
    spec = f"{source},dst=/mnt/a place,dax,label=tree"
    script = "grep /dev/pmem /proc/mounts >&2; " + _LIST.format("'/mnt/a place'")
    status, stdout, stderr = guest("--pmem-ext2", spec, "--", "sh", "-c", script, cwd=tmp_path)
    assert status == 0, stderr
    assert _sizes_of_directories_left_out(stdout) == _sizes_of_directories_left_out(here.stdout)
    kind, options = stderr.split()[2:4]
    assert stderr.count("\n") == 1
    assert kind in ("ext2", "ext4")
    assert options.startswith("ro,")
    assert "dax" in options


def _sizes_of_directories_left_out(listing: str) -> list[str]:
    rows = []
    for line in listing.splitlines():
        words = line.split("|")
        if len(words) == 8 and stat.S_ISDIR(int(words[1], 16)):
            words[4] = ""
        rows.append("|".join(words))
    return rows


@pytest.mark.guest
def test_a_guest_begins_before_its_images_are_built_and_has_all_of_them(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    words = ("--pmem-ext2", f"{tmp_path / 'one'},size=16m", "--pmem-ext2", f"{tmp_path / 'two'}")
    script = "cat /mnt/pmem0/file /mnt/pmem1/file; sha256sum /host/one/file; ! touch /mnt/pmem0/x"
    status, stdout, stderr = guest(*words, "--", "sh", "-c", script, cwd=tmp_path)
    assert status == 0, stderr
    assert stdout == f"onetwo{hashlib.sha256(b'one').hexdigest()}  /host/one/file\n"
    assert "Read-only" in stderr


@pytest.mark.guest
def test_an_image_that_fails_while_the_guest_boots_is_what_the_user_is_told(
    tmp_path: Path,
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "big").write_bytes(os.urandom(4 << 20))
    status, stdout, stderr = guest("--pmem-ext2", f"{source},size=2m", "--", "true", cwd=tmp_path)
    assert (status, stdout) == (2, "")
    assert stderr.count("\n") == 1
    assert f"--pmem-ext2 {source},size=2m: the image needs" in stderr


@pytest.mark.guest
def test_a_killed_dentry_guest_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("up")
    words = ("guest", "--pmem-ext2", f"{tmp_path},size=16m", "--", "sh", "-c")
    with subprocess.Popen(
        (sys.executable, "-m", "harness.cli", *words, "cat /mnt/pmem0/file; sleep 3600"),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read(2) == b"up"
        below = _descendants(process.pid)
        # QEMU, the tree's daemon, and the builder between its waiter and its pid namespace's init.
        assert len(below) >= 5
        process.kill()
        deadline = time.monotonic() + 60
        while any(map(_lives, below)):
            assert time.monotonic() < deadline, [pid for pid in below if _lives(pid)]
            time.sleep(0.05)


def _descendants(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    found = [int(word) for word in text.split()]
    return found + [below for child in found for below in _descendants(child)]


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_words_of_the_option() -> None:
    (spec, other) = parse_pmem_specs(['"/a,b",dst=/x//y/,size=2m,label=name,dax', "/c"])
    assert spec[1:] == ("/a,b", "/x/y", 2 << 20, b"name", True)
    assert other[1:] == ("/c", "/mnt/pmem1", None, b"", False)


@pytest.mark.parametrize(
    ("text", "reason"),
    (
        ("", "begin with a directory"),
        (",dax", "begin with a directory"),
        ("/a,dst=x", "absolute"),
        ("/a,dst=/x/../y", "absolute"),
        ("/a,dst=/", "root already"),
        ("/a,dax=1", "write dst="),
        ("/a,size", "write dst="),
        ("/a,size=big", "big"),
        ("/a,size=1k", "less than a block"),
        ("/a,dax,dax", "given twice"),
        ('"/a', "quotes"),
    ),
)
def test_malformed_words_are_errors_of_use(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_pmem_specs([text])


def test_two_images_at_one_place_are_refused() -> None:
    with pytest.raises(UsageError, match="is taken"):
        parse_pmem_specs(["/a,dst=/x", "/b,dst=/x/"])


def test_a_directory_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["guest", "--pmem-ext2", str(tmp_path / "nosuch"), "--", "true"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
