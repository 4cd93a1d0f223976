"""What the pages about the shell say is so."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from harness.fuse.host_mount import have_fusectl
from harness.shell.commands import all_commands
from harness.shell.pictures import PICTURES, picture

TOP = Path(__file__).parents[3]
LESSONS = re.split(r"(?m)^## ", (TOP / "docs/tutorial.md").read_text())[1:]
DENTRY = [sys.executable, "-m", "harness.cli"]


def sessions(lesson: str) -> str:
    """The commands of a lesson, and what they print."""
    return "".join(re.findall(r"(?ms)^```console\n(.*?)^```$", lesson))


def test_there_are_ten_lessons() -> None:
    assert [lesson.split(".")[0] for lesson in LESSONS] == [str(n) for n in range(1, 11)]


@pytest.mark.parametrize("lesson", LESSONS[:9], ids=lambda lesson: lesson.split("\n")[0])
def test_a_lesson_goes_as_the_page_shows(lesson: str) -> None:
    page = sessions(lesson)
    commands = re.findall(r"(?m)^\$ (.*)$", page)
    assert commands
    script = "\n".join(f"echo {shlex.quote('$ ' + command)}\n{command}" for command in commands)
    done = subprocess.run(
        [*DENTRY, "shell"], input=script, stdout=-1, stderr=subprocess.STDOUT, text=True
    )
    assert done.stdout == page


@pytest.mark.fuse
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts, which needs root")
def test_the_lesson_with_a_kernel_goes_as_the_page_shows(tmp_path: Path) -> None:
    have_fusectl()
    lines = iter(sessions(LESSONS[9]).splitlines())
    env = {**os.environ, "PYTHONPATH": str(TOP)}
    daemon = None
    output: list[str] = []
    try:
        for line in lines:
            prompt, _, command = line.partition("$ ")
            if prompt not in ("host", "dentry"):
                assert output.pop(0) == line
                continue
            assert not output
            if command.endswith("&"):
                words = shlex.split(command)[1:-1]
                daemon = subprocess.Popen([*DENTRY, *words], cwd=tmp_path, env=env)
                deadline = time.monotonic() + 60
                while not os.path.ismount(tmp_path / "mnt"):
                    assert time.monotonic() < deadline and daemon.poll() is None
                    time.sleep(0.01)
                continue
            if prompt == "dentry":
                argv = [*DENTRY, "shell", "--connect", "control", "-c", command]
            else:
                argv = ["sh", "-c", command]
            done = subprocess.run(argv, cwd=tmp_path, env=env, stdout=-1, text=True, timeout=60)
            assert done.returncode == 0
            output = done.stdout.splitlines()
        assert not output and daemon is not None
        assert daemon.wait(60) == 0
    finally:
        if daemon is not None and daemon.poll() is None:
            daemon.terminate()
            daemon.wait(60)


def test_every_command_is_on_the_page_with_its_line_of_help() -> None:
    page = (TOP / "docs/shell.md").read_text()
    rows = re.findall(r"(?m)^\| `([\w-]+)` \| (.*) \|$", page)
    assert dict(rows) == {name: command.summary for name, command in all_commands().items()}
    assert len(rows) == len(all_commands())


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_can_be_drawn_and_is_shown(name: str) -> None:
    assert f"docs/pictures/{name}.svg" in (TOP / "README.md").read_text()
    assert (TOP / "docs/pictures" / f"{name}.svg").read_text().startswith("<svg")
    drawn = picture(*PICTURES[name])
    # Something is in colour beside the frame's own.
    assert len(set(re.findall(r"fill: (#\w+)", drawn))) >= 2
