"""Whoever of the two processes dies, nothing of the other is left, nor any mount."""

from __future__ import annotations

import mmap
import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from pmem_support import OPTIONS, builder_of, children, closing, gone, status, traces, until

from harness.pmem import BuilderDied, launch

WAIT = 60.0
AS_FILE = (False, pytest.param(True, marks=pytest.mark.fuse))

_USER = """
import sys, time
from harness.pmem import launch
image = launch(sys.argv[1], as_file=sys.argv[2] == "file")
if sys.argv[3] == "ready":
    image.wait()
print(image.pid, flush=True)
time.sleep(3600)
"""


@pytest.mark.parametrize("as_file", AS_FILE)
def test_a_killed_builder_is_told_of_and_reaped(source: Path, as_file: bool) -> None:
    with launch(source, as_file=as_file) as image:
        image.wait(WAIT)
        os.kill(builder_of(image.pid), signal.SIGKILL)
        # What is in order is told first.
        until(lambda: _died(image.poll), "no word of a builder's death")
        with pytest.raises(BuilderDied, match="killed by SIGKILL"):
            image.poll()
        assert gone(image.pid)
    assert not traces()


def test_a_builder_whose_waiter_is_killed_dies_too(source: Path) -> None:
    with launch(source) as image:
        image.wait(WAIT)
        inside = children(image.pid)
        assert len(inside) == 2
        os.kill(image.pid, signal.SIGKILL)
        until(lambda: all(map(gone, inside)), "a builder outlived its waiter")
        until(lambda: _died(image.poll), "no word of a builder's death")


def test_one_who_asks_a_dead_builder_for_files_is_told(source: Path) -> None:
    with launch(source) as image:
        image.wait(WAIT)
        os.kill(builder_of(image.pid), signal.SIGKILL)
        until(lambda: gone(image.pid), "the waiter lives on")
        with pytest.raises(BuilderDied, match="SIGKILL"):
            image.descriptors([0])


@pytest.mark.parametrize("how", ("memory", pytest.param("file", marks=pytest.mark.fuse)))
@pytest.mark.parametrize("when", ("ready", "early"))
def test_nothing_is_left_when_the_user_of_an_image_is_killed(
    source: Path, how: str, when: str
) -> None:
    words = (sys.executable, "-c", _USER, source, how, when)
    with subprocess.Popen(words, stdout=subprocess.PIPE) as user:
        assert user.stdout is not None
        waiter = int(user.stdout.readline())
        inside = children(waiter)
        user.kill()
    until(lambda: all(map(gone, (waiter, *inside))), "a builder outlived its user")
    assert not traces()


@pytest.mark.parametrize("as_file", AS_FILE)
def test_a_cancelled_image_leaves_nothing(as_file: bool) -> None:
    before = len(os.listdir("/proc/self/fd"))
    image = launch("/usr", as_file=as_file)
    image.cancel()
    assert gone(image.pid)
    with pytest.raises(ChildProcessError):
        os.waitpid(image.pid, 0)
    image.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert not traces()


def test_a_user_that_leaves_without_having_listened_is_no_error(
    source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for _ in range(10):
        with launch(source) as image:
            poll = select.poll()
            poll.register(image, select.POLLIN)
            assert poll.poll(WAIT * 1000)
            # It waits for what it may be asked for, behind messages that nobody has read.
            builder = builder_of(image.pid)
            until(lambda pid=builder: status(pid, "State")[:1] == "S", "the builder never waits")
    assert capfd.readouterr().err == ""


@pytest.mark.fuse
def test_a_file_of_an_image_can_be_closed_after_its_builder(source: Path) -> None:
    with launch(source, OPTIONS, as_file=True) as image:
        fd, size = image.open()
        with closing([fd]):
            with mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
                assert memory[1080:1082] == b"\x53\xef"
            image.close()
            with pytest.raises(OSError):
                os.pread(fd, 4096, size - 4096)


def _died(poll: object) -> bool:
    assert callable(poll)
    try:
        poll()
    except BuilderDied:
        return True
    return False
