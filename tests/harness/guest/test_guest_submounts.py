"""Mounts that are made and unmounted in the tree while a guest runs on it.

The daemon is a thread of the test's process, so that a task of the test's changes the very tree.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from guest_on_dentry_support import check

from harness.cli.guest_tree import busybox_tree
from harness.fuse.server import FuseServer
from harness.guest import Guest, GuestConfig, GuestUnavailable
from harness.guest.initramfs import find_busybox
from harness.guest.kernel import find_kernel
from harness.guest.qemu import find_qemu
from harness.virtiofs import VirtioFsDevice
from vfs.abi import (
    CLONE_NEWNS,
    MNT_DETACH,
    MS_BIND,
    MS_MOVE,
    MS_SHARED,
    O_CREAT,
    O_RDONLY,
    O_WRONLY,
)
from vfs.task import Task

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for device nodes and owners"),
]

BELOW = "what lies below"
ABOVE = "what covers it, and is a good deal longer"
DEADLINE = 30.0
_numbers = itertools.count()


class Place:
    """A directory of the tree, `path`, in which `task` mounts and where the guest looks."""

    def __init__(self, guest: Guest, task: Task, server: FuseServer, path: str) -> None:
        self.guest = guest
        self.task = task
        self.server = server
        self.path = path

    def sh(self, script: str, *, status: int = 0) -> str:
        """Run `script` in the directory, in the guest."""
        return check(self.guest, script, cwd=self.path, status=status)

    def mkdir(self, name: str) -> None:
        self.task.mkdir(f"{self.path}/{name}", 0o755)

    def write(self, name: str, text: str) -> None:
        fd = self.task.open(f"{self.path}/{name}", O_WRONLY | O_CREAT, 0o644)
        self.task.write(fd, text.encode())
        self.task.close(fd)

    def read(self, name: str) -> str:
        fd = self.task.open(f"{self.path}/{name}", O_RDONLY)
        data = self.task.read(fd, 1 << 16)
        self.task.close(fd)
        return bytes(data).decode()

    def cover(self, name: str, text: str = ABOVE) -> None:
        """Mount a tmpfs with a `file` of `text` on directory `name`."""
        self.task.mount("none", f"{self.path}/{name}", "tmpfs")
        self.write(f"{name}/file", text)

    def umount(self, name: str, flags: int = 0) -> None:
        """Unmount `name` as soon as the guest has told of what it closed there."""

        def unmounted() -> bool:
            try:
                self.task.umount2(f"{self.path}/{name}", flags)
            except OSError as error:
                assert error.errno == errno.EBUSY
                return False
            return True

        eventually(unmounted)

    def reads(self, name: str, text: str) -> Callable[[], bool]:
        """Whether the guest sees `text` in file `name`, and its size."""

        def condition() -> bool:
            done = self.guest.run(f"stat -c %s {name} && cat {name}", cwd=self.path)
            return done.stdout.decode() == f"{len(text)}\n{text}"

        return condition

    def mounts(self) -> list[str]:
        """Where the guest's mountinfo has mounts in the directory, relative to it."""
        lines = [line.split() for line in self.sh("cat /proc/self/mountinfo").splitlines()]
        inside = f"{self.path}/"
        return sorted(line[4].removeprefix(inside) for line in lines if line[4].startswith(inside))

    def device(self, name: str) -> int:
        return int(self.sh(f"stat -c %d {name}"))


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds. The guest believes what it was told for a second."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def machine() -> Iterator[tuple[Guest, Task, FuseServer]]:
    """A guest on a tree of this process, the task that made it, and the server in between."""
    try:
        find_qemu(), find_kernel(), find_busybox()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    with busybox_tree([]) as tree:
        server = FuseServer(tree.vfs, tree.root)
        ours, theirs = socket.socketpair()
        with VirtioFsDevice(server) as device:
            thread = threading.Thread(target=device.serve_connection, args=(theirs,))
            thread.start()
            try:
                with Guest(GuestConfig(ours)) as guest:
                    yield guest, tree.task, server
            finally:
                device.stop()
                thread.join(60)
        assert not thread.is_alive()
        server.check()
        tree.vfs.check()


@pytest.fixture
def place(machine: tuple[Guest, Task, FuseServer]) -> Place:
    """A directory with `mnt` and its `file`, of which the guest knows all there is."""
    guest, task, server = machine
    path = f"/mnt/{next(_numbers)}"
    task.mkdir(path, 0o755)
    place = Place(guest, task, server, path)
    place.mkdir("mnt")
    place.write("mnt/file", BELOW)
    assert place.sh("ls mnt; cat mnt/file") == f"file\n{BELOW}"
    return place


def test_a_mount_appears_as_a_submount_and_is_gone_after_the_unmount(place: Place) -> None:
    devices = {place.device("mnt")}
    assert devices == {place.device(".")}
    for text in (ABOVE, "another, shorter", ABOVE * 3):
        place.cover("mnt", text)
        place.write("mnt/new", "only above")
        eventually(place.reads("mnt/file", text))
        assert place.mounts() == ["mnt"]
        assert place.sh("ls mnt") == "file\nnew\n"
        assert place.device("mnt") not in devices
        place.server.check()
        place.umount("mnt")
        # What the guest does not know by heart it asks for, and hears that all of that is gone.
        assert place.sh("cat mnt/file") == BELOW
        assert place.mounts() == []
        assert place.reads("mnt/file", BELOW)()
        assert place.sh("ls mnt") == "file\n"
        assert place.device("mnt") in devices


def test_a_mount_that_the_guest_merely_knows_is_unmounted_and_gone(place: Place) -> None:
    vfs = place.task.vfs
    eventually(lambda: not place.server.handles.descriptions())
    before = vfs.ledger.live["Mount"], vfs.ledger.live["Inode"]
    superblocks = len(vfs.superblocks)
    place.cover("mnt")
    for index in range(500):
        place.write(f"mnt/{index}", str(index))
    eventually(place.reads("mnt/file", ABOVE))
    assert place.sh("cat mnt/[0-9]* | wc -c") == "1390\n"
    known = len(place.server.nodes.by_id)
    place.umount("mnt")
    assert (vfs.ledger.live["Mount"], vfs.ledger.live["Inode"]) == before
    assert len(vfs.superblocks) == superblocks
    assert len(place.server.nodes.stale) >= 500
    assert len(place.server.nodes.by_id) <= known - 500
    assert place.sh("cat mnt/file") == BELOW
    eventually(lambda: not place.server.nodes.stale)
    place.server.check()


def test_an_open_file_keeps_the_mount_busy_until_it_is_closed(place: Place) -> None:
    place.cover("mnt")
    eventually(place.reads("mnt/file", ABOVE))
    pid = place.sh("exec 3<mnt/file; sleep 1000 & echo $!").strip()
    with pytest.raises(OSError) as caught:
        place.task.umount2(f"{place.path}/mnt")
    assert caught.value.errno == errno.EBUSY
    place.sh(f"kill {pid}")
    place.umount("mnt")
    assert place.sh("cat mnt/file") == BELOW


def test_a_lazily_unmounted_file_is_read_and_written_until_it_is_closed(place: Place) -> None:
    vfs = place.task.vfs
    place.cover("mnt")
    eventually(place.reads("mnt/file", ABOVE))
    superblocks = len(vfs.superblocks)
    place.sh(
        "mkfifo go come; exec 3<>mnt/file 4<mnt/file;"
        "{ read line <go; printf NEW >&3; cat <&4 >result; stat -c %s -L /proc/self/fd/3 >>result;"
        " echo done >come; } &"
    )
    place.task.umount2(f"{place.path}/mnt", MNT_DETACH)
    eventually(place.reads("mnt/file", BELOW))
    assert place.sh("echo >go; read line <come; cat result") == f"NEW{ABOVE[3:]}{len(ABOVE)}\n"
    assert place.sh("cat mnt/file") == BELOW
    eventually(lambda: len(vfs.superblocks) == superblocks - 1)


def test_a_working_directory_keeps_nothing_busy_and_is_stale_afterwards(place: Place) -> None:
    place.cover("mnt")
    eventually(place.reads("mnt/file", ABOVE))
    place.sh(
        "mkfifo go come; here=$PWD; exec >result 2>&1; cd mnt;"
        "{ read line <$here/go; ls; cat file; echo x >new; mkdir dir; cd $here; cat mnt/file;"
        " echo done >come; } &"
    )
    eventually(lambda: not place.server.handles.directories)
    place.umount("mnt")
    result = place.sh("echo >go; read line <come; cat result").splitlines()
    assert len(result) == 5, result
    for line in result[:4]:
        assert "Stale file handle" in line or "No such file or directory" in line
    assert result[4] == BELOW
    assert place.mounts() == []


def test_mounts_within_a_mount_come_and_go_with_it(place: Place) -> None:
    place.cover("mnt")
    place.mkdir("mnt/inner")
    place.cover("mnt/inner", "deep")
    eventually(place.reads("mnt/file", ABOVE))
    eventually(place.reads("mnt/inner/file", "deep"))
    assert place.mounts() == ["mnt", "mnt/inner"]
    assert len({place.device(name) for name in (".", "mnt", "mnt/inner")}) == 3
    place.umount("mnt/inner")
    assert place.sh("cat mnt/inner/file 2>/dev/null", status=1) == ""
    assert place.mounts() == ["mnt"]
    place.cover("mnt/inner", "deep again")
    eventually(place.reads("mnt/inner/file", "deep again"))
    place.umount("mnt", MNT_DETACH)
    eventually(place.reads("mnt/file", BELOW))
    assert place.mounts() == []


def test_mounts_are_stacked_and_taken_off_one_by_one(place: Place) -> None:
    texts = [BELOW]
    for index in range(3):
        texts.append(str(index) * (index + 1))
        place.cover("mnt", texts[-1])
        eventually(place.reads("mnt/file", texts[-1]))
        assert place.mounts() == ["mnt"]
    for text in reversed(texts[:-1]):
        place.umount("mnt")
        assert place.sh("cat mnt/file") == text


def test_a_bind_is_a_submount_with_the_same_files(place: Place) -> None:
    place.mkdir("other")
    place.write("other/file", ABOVE)
    place.task.mount(f"{place.path}/other", f"{place.path}/mnt", None, MS_BIND)
    eventually(place.reads("mnt/file", ABOVE))
    assert place.mounts() == ["mnt"]
    place.sh("echo changed >mnt/file")
    assert place.read("other/file") == "changed\n"
    place.umount("mnt")
    assert place.sh("cat mnt/file other/file") == f"{BELOW}changed\n"


def test_a_file_is_covered_by_another(place: Place) -> None:
    place.write("other", ABOVE)
    place.task.mount(f"{place.path}/other", f"{place.path}/mnt/file", None, MS_BIND)
    eventually(place.reads("mnt/file", ABOVE))
    place.umount("mnt/file")
    assert place.sh("cat mnt/file") == BELOW
    assert place.reads("mnt/file", BELOW)()


def test_a_mount_moves_with_what_the_guest_has_open_in_it(place: Place) -> None:
    place.cover("mnt")
    place.mkdir("elsewhere")
    eventually(place.reads("mnt/file", ABOVE))
    place.sh("mkfifo go come; exec 3<mnt/file; { read x <go; cat <&3 >result; echo >come; } &")
    place.task.mount(f"{place.path}/mnt", f"{place.path}/elsewhere", None, MS_MOVE)
    eventually(place.reads("mnt/file", BELOW))
    eventually(place.reads("elsewhere/file", ABOVE))
    assert place.mounts() == ["elsewhere"]
    assert place.sh("echo >go; read x <come; cat result") == ABOVE
    place.umount("elsewhere")
    assert place.sh("cat elsewhere/file 2>/dev/null", status=1) == ""
    assert place.mounts() == []


def test_mounts_of_another_namespace_appear_where_they_propagate_to(place: Place) -> None:
    place.cover("mnt")
    place.mkdir("mnt/inner")
    place.task.mount(None, f"{place.path}/mnt", None, MS_SHARED)
    elsewhere = Place(place.guest, place.task.clone(CLONE_NEWNS), place.server, place.path)
    eventually(place.reads("mnt/file", ABOVE))
    elsewhere.cover("mnt/inner", "from elsewhere")
    eventually(place.reads("mnt/inner/file", "from elsewhere"))
    assert place.mounts() == ["mnt", "mnt/inner"]
    elsewhere.umount("mnt/inner")
    assert place.sh("ls mnt/inner") == ""
    assert place.mounts() == ["mnt"]
    elsewhere.umount("mnt")
    # Its parent is shared with nobody, and the guest's own mount stays.
    assert place.reads("mnt/file", ABOVE)()
    elsewhere.task.exit()
    place.umount("mnt")
    assert place.sh("cat mnt/file") == BELOW
