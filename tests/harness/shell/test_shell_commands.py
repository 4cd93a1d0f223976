"""File commands: the same scripts in our shell and in the host's, with coreutils, side by side."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from vfs.task import Task

Run = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    "script",
    [
        "echo a b 'c  d'; echo -n x; echo; echo '' y",
        "echo x > f; cat f; echo y >> f; cat f f; cat < f; cat - < f",
        "echo one | cat | cat; echo two | cat - f 2> e; cat e > /dev/null; echo",
        "mkdir d; cd d; echo x > y; cd ..; cat d/y; ls d; ls",
        "mkdir -p a/b/c a/b; ls -R a; rmdir a/b/c; ls a/b; rmdir a || echo no; ls",
        "echo x > a; ln a b; ln -s a c; ln -s none d; ls; cat b c; readlink c d; cat d || echo no",
        "mkdir d; ln -s ../d/e d/f; readlink -f d/f | tail -c 5; readlink -f d/../d | tail -c 3",
        "for=1; echo $for; A=1 B=2; echo $A$B; A=3 true; echo $A; echo ${A}x\"$B\"'$B'",
        "false; echo $?; true; echo $?; false || echo or; true && echo and; ! true; echo $?",
        "false && echo no || echo yes; true || echo no && echo yes",
        "set -e; false || true; ! true; false && true; echo still; false; echo never",
        "cat <<END\nx $? \\$y\n  z\nEND\ncat <<'END'\n$x\nEND",
        "echo 1 > a1; echo 2 > a2; echo 3 > b; cat a*; echo *; echo nothing*; echo ?; echo [ab]*",
        "mkdir d; echo x > d/.h; echo y > d/v; echo d/*; echo d/.h*; ls d; ls -A d",
        "echo a > f; wc -l < f; wc -c < f",
        "head -c 5 < big; echo; head -n 2 big; tail -n 2 big; tail -c 7 big; head -n 0 big",
        "cat big | head -n 1; wc -l big; cat big big | wc -c",
        "echo x > a; cp a b; cat b; mkdir d; cp a b d; ls d; cp a d/c; cat d/c",
        "mkdir -p s/t; echo 1 > s/a; ln -s a s/l; ln s/a s/b; cp -r s r; ls -R r; cat r/l r/b",
        "mkdir -p s/t; echo 1 > s/a; ln s/a s/b; cp -a s r; find r -links 2 | wc -l",
        "echo 1 > a; echo 2 > b; mv a b; cat b; ls; mkdir d; mv b d; ls d; mv d e; cat e/b; ls",
        "echo 1 > a; echo 2 > b; mv -n a b; cat a b",
        "mkdir -p d/e; echo > d/x; rm d || echo no; rm -r d; ls; rm x || echo no; rm -f x; ls",
        "touch a; ls; touch -c b; ls; truncate -s 3 a; wc -c a; truncate -s 1k c; wc -c < c",
        "echo hello > a; dd if=a of=b bs=2 count=2 2> e; cat b; echo; dd if=a bs=1 skip=3 2> e",
        "echo hello > a; echo XY > b; dd if=b of=a bs=1 seek=1 count=1 conv=notrunc 2> e; cat a; "
        "dd if=b of=a bs=1 seek=2 count=1 2> e; cat a",
        "mkdir -p d/.h d/s; echo > d/a; echo > d/.h/b; find d | wc -l; find d -name 'a*'; "
        "find d -type f; find d -maxdepth 1 -type d -name s; find d -empty -type d; find d/s",
        "mkfifo p; find . -type p; chmod 600 p; ls p",
        "mkdir d; chmod a-rwx,u+rwx d; chmod u=rwX,go=rX d; find d -name d",
        "cd none || echo no; cd .; cat none || echo no; ls none || echo no; mkdir big || echo no",
        "echo a > f 2>&1; cat f; cat nothing > g 2>&1 || cat g | wc -l",
        "sleep 0; echo done",
    ],
)  # fmt: skip
def test_a_script_does_what_it_does_in_the_hosts_shell(
    sh: Run, tmp_path: Path, script: str
) -> None:
    big = "".join(f"line {number}\n" for number in range(20000))
    directory = tmp_path / "host"
    directory.mkdir()
    (directory / "big").write_text(big)
    expected = subprocess.run(
        ["bash", "--posix", "-c", script],
        cwd=directory,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert sh("mkdir -p /work /dev; cd /work; truncate -s 0 /dev/null") == (0, "", "")
    assert sh("cat > big", big.encode()) == (0, "", "")
    status, output, errors = sh(script)
    assert (output, status) == (expected.stdout, expected.returncode), errors
    assert bool(errors) == bool(expected.stderr)


def test_the_status_of_what_is_not_there_and_of_wrong_words(sh: Run) -> None:
    assert sh("nothing") == (
        127,
        "",
        "dentry: nothing: there is no such command; `help` lists them\n",
    )
    status, output, errors = sh("ls --nonsense")
    assert (status, output) == (2, "") and errors.startswith("ls: ") and errors.count("\n") == 1
    assert sh("cat /a /b; echo $?") == (
        0, "1\n", "cat: /a: No such file or directory\ncat: /b: No such file or directory\n",
    )  # fmt: skip
    assert sh("echo 'x")[0] == 2
    assert sh("exit 3; echo no") == (3, "", "")


def test_attributes_are_shown(sh: Run) -> None:
    sh("mkdir /d; echo hello > /d/f; chown 1000:100 /d/f; chmod 4751 /d/f; ln /d/f /d/g")
    sh("ln -s f /d/l; mknod /d/n c 1 3; mkfifo /d/p; touch -d 0 /d/f")
    lines = sh("ls -l /d")[1].splitlines()
    assert [line.split() for line in lines[1:]][:3] == [
        ["-rwsr-x--x", "2", "1000", "100", "6", "Jan", "1", "1970", "f"],
        ["-rwsr-x--x", "2", "1000", "100", "6", "Jan", "1", "1970", "g"],
        [*lines[3].split()[:8], "l", "->", "f"],
    ]
    assert lines[4].split()[4:6] == ["1,", "3"] and lines[5].startswith("prw-r--r--")
    assert "Access: (4751/-rwsr-x--x)  Uid: 1000  Gid: 100" in sh("stat /d/f")[1]
    assert "Modify: 1970-01-01 00:00:00.000000000 +0000" in sh("stat /d/f")[1]
    numbers = {line.split()[1]: line.split()[0] for line in sh("ls -i /d")[1].splitlines()}
    assert numbers["f"] == numbers["g"] != numbers["l"]
    assert sh("ls --zero -a /d") == (0, "\0".join([".", "..", *"fglnp", ""]), "")


def test_names_that_would_break_a_line_are_escaped(sh: Run) -> None:
    assert sh("echo > '/a\nb'; ls /")[1] == "a\\nb\n"
    assert sh("ls --zero /")[1] == "a\nb\0"


def test_extended_attributes(sh: Run) -> None:
    sh("echo > /f; setfattr -n user.a -v text /f; setfattr -n user.b -v 0x00ff /f")
    assert sh("getfattr /f") == (0, '# file: /f\nuser.a="text"\nuser.b=0x00ff\n\n', "")
    assert sh("setfattr -x user.a /f; getfattr -n user.a /f") == (
        1, "", "getfattr: /f: No data available\n",
    )  # fmt: skip


def test_copies_keep_everything_that_a_says(sh: Run, task: Task) -> None:
    sh("mkdir -p /s/d; echo 1 > /s/a; ln /s/a /s/b; chmod 2750 /s/d; chmod 4711 /s/a")
    sh("chown 7:8 /s/a; setfattr -n user.x -v y /s/a; ln -s a /s/l; mkfifo /s/p; touch -d 5 /s/a")
    sh("truncate -s 1M /s/a; touch -d 5 /s/d")
    assert sh("cp -a /s /r") == (0, "", "")
    for name in ("", "/a", "/d", "/p"):
        source, copy = task.lstat("/s" + name), task.lstat("/r" + name)
        # Being read changed the source's time of access.
        other = {"st_ino": 0, "st_ctime_ns": 0, "st_atime_ns": 0}
        assert copy._replace(**other) == source._replace(**other)
    assert task.stat("/r/a").st_atime_ns == 5 * 10**9
    assert task.stat("/r/a").st_ino == task.stat("/r/b").st_ino
    assert task.getxattr("/r/a", "user.x") == b"y"
    assert task.stat("/r/a").st_blocks < 100


def test_a_directory_is_not_copied_into_itself(sh: Run) -> None:
    sh("mkdir -p /s/d; echo > /s/f")
    assert "not copied into itself" in sh("cp -r /s /s/copy")[2]
    assert sh("find /s | wc -l")[1] == "6\n"


def test_a_move_to_another_filesystem_copies(sh: Run, task: Task) -> None:
    task.mkdir("/t")
    task.mount("none", "/t", "tmpfs")
    sh("mkdir -p /s/d; echo 1 > /s/d/f; ln -s f /s/d/l")
    assert sh("mv /s /t; find /t | wc -l; cat /t/s/d/l; ls /") == (0, "5\n1\nt\n", "")


def test_put_and_get_carry_files_between_host_and_tree(sh: Run, tmp_path: Path) -> None:
    source = tmp_path / "from"
    source.write_bytes(bytes(range(256)) * 1000)
    source.chmod(0o640)
    target = tmp_path / "to"
    assert sh(f"mkdir /d; put {source} /d; get /d/from {target}; ls -l /d")[0] == 0
    assert target.read_bytes() == source.read_bytes()
    assert sh(f"put {tmp_path}/none /") == (
        1, "", f"put: host: {tmp_path}/none: No such file or directory\n",
    )  # fmt: skip


def test_endless_input_is_read_as_far_as_it_is_wanted(sh: Run, task: Task) -> None:
    task.mkdir("/dev")
    task.mount("none", "/dev", "devtmpfs")
    assert sh("cat /dev/zero | head -c 5 | wc -c") == (0, "5\n", "")
    assert sh("dd if=/dev/zero of=/f bs=1k count=3; wc -c < /f")[1] == "3072\n"


def test_hexdump(sh: Run) -> None:
    script = "dd if=/dev/null 2> /e; truncate -s 64 /f; echo 'the end' >> /f; hexdump /f"
    assert sh(script)[1].splitlines() == [
        "00000000  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00  |................|",
        "*",
        "00000040  74 68 65 20 65 6e 64 0a                           |the end.|",
        "00000048",
    ]
    assert sh("hexdump -s 64 -n 3 /f")[1].splitlines()[0].endswith("|the|")


def test_usage_and_trees(sh: Run) -> None:
    sh("mkdir -p /d/e; dd if=/big of=/d/f bs=1 count=0 2> /x; truncate -s 4 /d/g; echo x > /d/h")
    assert sh("du -s /d")[1] == "4\t/d\n"
    assert sh("tree /d")[1] == "/d\n├── e\n├── g\n└── h\n"
    assert sh("df /d")[1].splitlines()[1].startswith("tmpfs")


def test_what_could_not_be_written_is_told_by_the_redirection(sh: Run, task: Task) -> None:
    task.mkdir("/dev")
    task.mount("none", "/dev", "devtmpfs")
    assert sh("echo x > /dev/full") == (1, "", "dentry: /dev/full: No space left on device\n")
    assert sh("echo still") == (0, "still\n", "")
