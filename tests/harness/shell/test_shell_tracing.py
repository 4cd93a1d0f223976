"""`trace`: lines about what happens, and scripts that replay it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.testbed.step import parse_script
from harness.testbed.vfs_target import VfsTarget
from vfs import VirtualFilesystem
from vfs.task import Task

Run = Callable[..., tuple[int, str, str]]


def test_a_commands_calls_are_shown_in_straces_look(sh: Run) -> None:
    status, output, errors = sh("trace on syscalls -- mkdir /d")
    assert (status, errors) == (0, "")
    assert '] mkdir("/d", 0o777) = 0 <0.' in output
    status, output, _ = sh(
        "trace on stat* lstat* newfstatat failed -- cat /none; trace on -- false"
    )
    assert status == 1
    assert sh("trace on syscalls failed -- cat /none")[1].rstrip().endswith(">")
    assert "-1 ENOENT (No such file or directory)" in sh("trace on failed -- cat /none")[1]


def test_a_filter_chooses_what_is_shown(sh: Run) -> None:
    sh("mkdir /m")
    lines = sh("trace on vfs -- mount -t tmpfs none /m")[1].splitlines()
    assert len(lines) == 1 and lines[0].endswith("] mount tmpfs /m")
    assert sh("trace on umount -- umount /m")[1].endswith("] umount /m\n")
    lines = sh("trace on open openat -- cp /none /other")[1].splitlines()
    assert all("] open" in line for line in lines)
    assert len(sh("trace on -n 2 -- ls -a /")[1].splitlines()) == 2 + sh("ls -a /")[1].count("\n")


def test_others_are_watched_for_a_while_or_so_many_events(sh: Run, vfs: VirtualFilesystem,
                                                         task: Task) -> None:  # fmt: skip
    assert sh("trace on -t 0") == (0, "", "")
    task.mkdir("/m", 0o755)
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.01):
            task.mount("none", "/m", "tmpfs", 0)
            task.umount2("/m", 0)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        status, output, errors = sh("trace on vfs mount -n 3")
    finally:
        stop.set()
        thread.join()
    assert (status, errors) == (0, "")
    assert output == f"[{task.pid}] mount tmpfs /m\n" * 3


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("on a=b", "a=b: no topic"),
        ("on --help", "--help: no topic"),
        ("on -n 0", "positive"),
        ("on -t x", "a number is needed"),
        ("off", "nothing is being saved"),
        ("save", "name of a file"),
        ("save /nonexistent/f", "/nonexistent/f: No such file or directory"),
        ("save f fuse", "only system calls"),
        ("on --", "a command"),
    ],
)
def test_a_wrong_word_is_one_line(sh: Run, words: str, said: str) -> None:
    status, output, errors = sh(f"trace {words}")
    assert status in (1, 2) and output == ""
    assert errors.startswith("trace: ") and said in errors and errors.count("\n") == 1


SCRIPT = r"""
trace save {file}
mkdir -p /d/e /d/m
echo "some text" > /d/e/f
ln -s e/f /d/link
cat /d/link
as 1000:100,27 cat /none
as 1000:100 mkdir /d/not-mine
mount -t tmpfs -o size=1m none /d/m
touch /d/m/new
cd /d
mv m/new m/newer
chmod 600 link
setfattr -n user.x -v "a b" m/newer
trace off
"""


def test_what_was_saved_is_replayed_with_the_same_answers(sh: Run, tmp_path: Path,
                                                          task: Task) -> None:  # fmt: skip
    script = tmp_path / "script"
    _, output, _ = sh(SCRIPT.format(file=script))
    assert output.splitlines()[-1].endswith(f" calls in {script}")
    steps = parse_script(script.read_text())
    assert any(step.call == "exit" for step in steps)
    with VfsTarget() as target:
        for step in steps:
            try:
                target.perform(step)
            except OSError:
                continue
        replayed = target.tasks["root"]
        for path in ("/d", "/d/m", "/d/m/newer", "/d/link"):
            mine, theirs = task.stat(path), replayed.stat(path)
            assert (mine.st_mode, mine.st_size, mine.st_uid) == (
                theirs.st_mode, theirs.st_size, theirs.st_uid,
            )  # fmt: skip
        assert replayed.getxattr("/d/m/newer", "user.x") == b"a b"


def test_dentry_test_runs_what_was_saved(sh: Run, tmp_path: Path) -> None:
    script = tmp_path / "script"
    sh(f"trace save {script} -- mkdir -p /a/b; rmdir /a/b")
    sh(f"trace save {tmp_path / 'other'} mkdir -- mkdir /c")
    assert [step.call for step in parse_script((tmp_path / "other").read_text())] == [
        "clone", "mkdir",
    ]  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-m", "harness.cli", "test", "run", "--target", "vfs", str(script)],
        capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "200"},
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    assert '"/a", 0o777) = 0\n' in result.stdout and '"/a/b", 0o777) = 0\n' in result.stdout


def test_the_end_of_the_shell_ends_what_is_saved(tmp_path: Path) -> None:
    script = tmp_path / "script"
    result = subprocess.run(
        [sys.executable, "-m", "harness.cli", "shell", "-c", f"trace save {script}; mkdir /x"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert 'mkdir("/x", 0o777)' in script.read_text()
