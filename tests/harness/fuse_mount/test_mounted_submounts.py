"""What this kernel's programs notice of mounts that are made in the tree while they use it.

They are told at once, so the trees here are served with caches that would hold for a day.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from mounted_submounts_support import Client, Mounted, eventually, is_blocked, mounted

from harness.fuse import abi
from harness.fuse.cache import AUTO
from harness.fuse.dev_fuse import FuseMount
from vfs.abi import (
    AT_FDCWD,
    CLONE_NEWNS,
    MNT_DETACH,
    MOVE_MOUNT_BENEATH,
    MOVE_MOUNT_F_EMPTY_PATH,
    MS_BIND,
    MS_MOVE,
    MS_PRIVATE,
    MS_REC,
    MS_SHARED,
    OPEN_TREE_CLONE,
)
from vfs.task import Task

if TYPE_CHECKING:
    from tests.harness.fuse_mount.conftest import OneFileServer

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount with default_permissions"),
]

BELOW = "what lies below"
ABOVE = "what covers it, and is a good deal longer"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Mounted]:
    """A tree with directory `mnt` and its `file`, of which the client knows all there is."""
    with mounted(tmp_path) as place:
        place.task.mkdir("/mnt")
        place.write("/mnt/file", BELOW)
        know(place.client)
        place.settle()
        yield place


@pytest.fixture
def other_namespace(tmp_path: Path) -> Iterator[Mounted]:
    """As `place`, but the client is in a copy of the task's namespace, whose root is shared."""

    def export(task: Task) -> Task:
        task.mount(None, "/", None, MS_SHARED)
        return task.clone(CLONE_NEWNS)

    with mounted(tmp_path, export=export) as place:
        place.task.mkdir("/mnt")
        place.write("/mnt/file", BELOW)
        know(place.client)
        place.settle()
        yield place


def know(client: Client) -> None:
    """Have the client's kernel cache `mnt`, its listing, and attributes and pages of `mnt/file`."""
    assert "file" in client.list("mnt")
    assert client.size("mnt/file") == len(client.read("mnt/file"))


def cover(place: Mounted) -> None:
    """Mount a tmpfs with another `file` on `mnt`."""
    place.task.mount("none", "/mnt", "tmpfs")
    place.write("/mnt/file", ABOVE)


def reads(place: Mounted, path: str, text: str) -> Callable[[], bool]:
    def condition() -> bool:
        client = place.client
        try:
            return client.read(path) == text and client.size(path) == len(text)
        except FileNotFoundError:
            # Mounted, and not filled yet when the client looked.
            return False

    return condition


def test_a_mount_appears_and_an_unmount_uncovers_what_was_there(place: Mounted) -> None:
    for _ in range(3):
        cover(place)
        place.write("/mnt/new", "only above")
        eventually(reads(place, "mnt/file", ABOVE))
        assert place.client.list("mnt") == ["file", "new"]
        place.check()
        place.umount("/mnt")
        eventually(reads(place, "mnt/file", BELOW))
        assert place.client.list("mnt") == ["file"]
        assert place.client.errno("os.stat('mnt/new')") == errno.ENOENT


def test_a_mount_appears_in_a_listing_with_its_own_attributes(place: Mounted) -> None:
    listing = "{e.name: e.stat(follow_symlinks=False).st_ino for e in os.scandir('.')}['mnt']"
    below = place.client.do(listing)
    cover(place)
    eventually(lambda: place.client.do(listing) != below)
    place.umount("/mnt")
    eventually(lambda: place.client.do(listing) == below)


def test_an_open_directory_goes_on_showing_what_it_was_opened_on(place: Mounted) -> None:
    fd = place.client.open("mnt", "os.O_DIRECTORY")
    cover(place)
    place.write("/mnt/new", "only above")
    eventually(reads(place, "mnt/file", ABOVE))
    assert place.client.do(f"os.listdir({fd})") == ["file"]
    assert place.client.do(f"os.stat('file', dir_fd={fd}).st_size") == len(BELOW)
    place.client.close(fd)


def test_a_mount_that_a_client_merely_knows_is_unmounted_and_gone(place: Mounted) -> None:
    before = place.live()
    cover(place)
    for index in range(500):
        place.write(f"/mnt/{index}", str(index))
    eventually(reads(place, "mnt/file", ABOVE))
    assert place.client.do("sum(os.stat('mnt/%d' % i).st_size for i in range(500))") == 1390
    place.umount("/mnt")
    assert place.live() == before
    eventually(lambda: not place.server.nodes.stale)
    assert place.client.list("mnt") == ["file"]


def test_an_open_file_keeps_the_mount_busy_until_it_is_closed(place: Mounted) -> None:
    cover(place)
    eventually(reads(place, "mnt/file", ABOVE))
    fd = place.client.open("mnt/file")
    with pytest.raises(OSError) as caught:
        place.task.umount2("/mnt")
    assert caught.value.errno == errno.EBUSY
    place.client.close(fd)
    place.umount("/mnt")
    eventually(reads(place, "mnt/file", BELOW))


def test_a_lazily_unmounted_file_is_read_and_written_until_it_is_closed(place: Mounted) -> None:
    before = place.live()
    cover(place)
    eventually(reads(place, "mnt/file", ABOVE))
    fd = place.client.open("mnt/file", "os.O_RDWR")
    place.task.umount2("/mnt", MNT_DETACH)
    eventually(reads(place, "mnt/file", BELOW))
    assert place.client.pread(fd) == ABOVE
    assert place.client.do(f"os.pwrite({fd}, b'WHAT', 0)") == 4
    assert place.client.pread(fd, 4) == "WHAT"
    assert place.client.do(f"os.fstat({fd}).st_size") == len(ABOVE)
    assert place.client.read("mnt/file") == BELOW
    place.client.close(fd)
    eventually(lambda: place.live() == before)


def test_a_working_directory_keeps_nothing_busy_and_is_stale_afterwards(place: Mounted) -> None:
    cover(place)
    eventually(reads(place, "mnt/file", ABOVE))
    place.client.do("os.chdir('mnt')")
    assert place.client.read("file") == ABOVE
    place.umount("/mnt")
    for code in ("os.listdir('.')", "open('file')", "open('new', 'w')", "os.mkdir('new')"):
        # What the kernel takes for deleted it need not ask about.
        assert place.client.errno(code) in (errno.ESTALE, errno.ENOENT)
    place.client.do(f"os.chdir({place.mount.mountpoint!r})")
    assert place.client.read("mnt/file") == BELOW


def test_a_working_directory_that_is_covered_and_uncovered_stays_itself(place: Mounted) -> None:
    place.client.do("os.chdir('mnt')")
    cover(place)
    root = place.mount.mountpoint
    eventually(reads(place, f"{root}/mnt/file", ABOVE))
    assert place.client.read("file") == BELOW
    assert place.client.errno("os.getcwd()") == errno.ENOENT
    place.umount("/mnt")
    eventually(reads(place, f"{root}/mnt/file", BELOW))
    assert place.client.do("os.getcwd()") == f"{root}/mnt"


def test_mounts_within_a_mount_come_and_go_with_it(place: Mounted) -> None:
    cover(place)
    place.task.mkdir("/mnt/inner")
    place.task.mount("none", "/mnt/inner", "tmpfs")
    place.write("/mnt/inner/deep", "deep")
    eventually(reads(place, "mnt/file", ABOVE))
    assert place.client.read("mnt/inner/deep") == "deep"
    place.umount("/mnt/inner")
    eventually(lambda: place.client.list("mnt/inner") == [])
    place.task.mount("none", "/mnt/inner", "tmpfs")
    place.write("/mnt/inner/other", "other")
    eventually(lambda: place.client.list("mnt/inner") == ["other"])
    place.task.umount2("/mnt", MNT_DETACH)
    eventually(reads(place, "mnt/file", BELOW))
    assert place.client.list("mnt") == ["file"]


def test_a_lazily_unmounted_tree_comes_apart_for_those_inside_too(place: Mounted) -> None:
    cover(place)
    place.task.mkdir("/mnt/inner")
    place.write("/mnt/inner/below", "")
    place.task.mount("none", "/mnt/inner", "tmpfs")
    place.write("/mnt/inner/deep", "deep")
    eventually(reads(place, "mnt/file", ABOVE))
    place.client.do("os.chdir('mnt')")
    fds = [place.client.open("."), place.client.open("inner/deep")]
    assert place.client.list("inner") == ["deep"]
    place.task.umount2("/mnt", MNT_DETACH)
    eventually(lambda: place.client.list("inner") == ["below"])
    assert place.client.pread(fds[1]) == "deep"
    for fd in fds:
        place.client.close(fd)


def test_mounts_are_stacked_and_taken_off_one_by_one(place: Mounted) -> None:
    texts = [BELOW]
    for index in range(3):
        place.task.mount("none", "/mnt", "tmpfs")
        texts.append(str(index) * (index + 1))
        place.write("/mnt/file", texts[-1])
        eventually(reads(place, "mnt/file", texts[-1]))
    while texts:
        eventually(reads(place, "mnt/file", texts.pop()))
        if texts:
            place.umount("/mnt")


def test_a_bind_shows_the_same_files_in_both_places(place: Mounted) -> None:
    place.task.mkdir("/other")
    place.write("/other/file", ABOVE)
    place.task.mount("/other", "/mnt", None, MS_BIND)
    eventually(reads(place, "mnt/file", ABOVE))
    place.client.do("os.rename('mnt/file', 'mnt/renamed')")
    assert place.client.list("other") == ["renamed"]
    assert place.client.errno("os.rename('mnt/renamed', 'other/x')") == errno.EXDEV
    place.umount("/mnt")
    eventually(reads(place, "mnt/file", BELOW))


def test_a_recursive_bind_shows_what_is_mounted_below(place: Mounted) -> None:
    place.task.mkdir("/other")
    place.task.mkdir("/other/sub")
    place.task.mount("none", "/other/sub", "tmpfs")
    place.write("/other/sub/deep", "deep")
    place.task.mount("/other", "/mnt", None, MS_BIND | MS_REC)
    eventually(lambda: place.client.list("mnt") == ["sub"])
    assert place.client.read("mnt/sub/deep") == "deep"
    place.umount("/mnt/sub")
    eventually(lambda: place.client.list("mnt/sub") == [])
    assert place.client.read("other/sub/deep") == "deep"


def test_a_file_is_covered_by_another(place: Mounted) -> None:
    place.write("/other", ABOVE)
    place.task.mount("/other", "/mnt/file", None, MS_BIND)
    eventually(reads(place, "mnt/file", ABOVE))
    place.umount("/mnt/file")
    eventually(reads(place, "mnt/file", BELOW))
    assert place.client.read("other") == ABOVE


def test_a_mount_moves_with_what_the_client_knows_of_it(place: Mounted) -> None:
    cover(place)
    place.task.mkdir("/elsewhere")
    assert place.client.list("elsewhere") == []
    eventually(reads(place, "mnt/file", ABOVE))
    fd = place.client.open("mnt/file")
    place.task.mount("/mnt", "/elsewhere", None, MS_MOVE)
    eventually(reads(place, "mnt/file", BELOW))
    eventually(reads(place, "elsewhere/file", ABOVE))
    assert place.client.pread(fd) == ABOVE
    place.client.close(fd)


def test_a_detached_tree_is_attached_where_the_client_looks(place: Mounted) -> None:
    place.task.mkdir("/other")
    place.task.mount("none", "/other", "tmpfs")
    place.write("/other/file", ABOVE)
    fd = place.task.open_tree(AT_FDCWD, "/other", OPEN_TREE_CLONE)
    place.task.umount2("/other")
    place.task.move_mount(fd, "", AT_FDCWD, "/mnt", MOVE_MOUNT_F_EMPTY_PATH)
    place.task.close(fd)
    eventually(reads(place, "mnt/file", ABOVE))
    place.umount("/mnt")
    eventually(reads(place, "mnt/file", BELOW))


def test_what_is_mounted_beneath_is_seen_once_the_top_is_gone(place: Mounted) -> None:
    cover(place)
    eventually(reads(place, "mnt/file", ABOVE))
    place.task.mkdir("/other")
    place.task.mount("none", "/other", "tmpfs")
    place.write("/other/file", "in between")
    place.task.move_mount(AT_FDCWD, "/other", AT_FDCWD, "/mnt", MOVE_MOUNT_BENEATH)
    eventually(reads(place, "mnt/file", ABOVE))
    place.umount("/mnt")
    eventually(reads(place, "mnt/file", "in between"))
    place.umount("/mnt")
    eventually(reads(place, "mnt/file", BELOW))


def test_mounts_of_another_namespace_appear_where_they_propagate_to(
    other_namespace: Mounted,
) -> None:
    place = other_namespace
    before = place.live()
    cover(place)
    place.task.mkdir("/mnt/inner")
    place.task.mount("none", "/mnt/inner", "tmpfs")
    place.write("/mnt/inner/deep", "deep")
    eventually(reads(place, "mnt/file", ABOVE))
    eventually(reads(place, "mnt/inner/deep", "deep"))
    place.umount("/mnt/inner")
    eventually(lambda: place.client.list("mnt/inner") == [])
    place.umount("/mnt")
    eventually(reads(place, "mnt/file", BELOW))
    place.settle()
    assert place.live() == before


def test_a_file_open_in_another_namespace_keeps_the_mounts_of_both_busy(
    other_namespace: Mounted,
) -> None:
    place = other_namespace
    cover(place)
    eventually(reads(place, "mnt/file", ABOVE))
    fd = place.client.open("mnt/file")
    with pytest.raises(OSError) as caught:
        place.task.umount2("/mnt")
    assert caught.value.errno == errno.EBUSY
    place.task.umount2("/mnt", MNT_DETACH)
    eventually(reads(place, "mnt/file", BELOW))
    assert place.client.pread(fd) == ABOVE
    place.client.close(fd)


def test_a_private_mount_of_another_namespace_is_not_seen(other_namespace: Mounted) -> None:
    place = other_namespace
    place.task.mount(None, "/", None, MS_PRIVATE)
    cover(place)
    place.task.mkdir("/mnt/dir")
    assert reads(place, "mnt/file", BELOW)()
    assert place.client.list("mnt") == ["file"]


def test_what_the_client_has_mounted_itself_goes_with_the_name_it_was_on(place: Mounted) -> None:
    there = Path(place.mount.mountpoint) / "mnt"
    place.client.do(
        f"import ctypes; ctypes.CDLL(None).mount(b'own', {os.fsencode(there)!r}, b'tmpfs', 0, None)"
    )
    assert place.client.list("mnt") == []
    cover(place)
    eventually(reads(place, "mnt/file", ABOVE))


def test_without_a_word_from_the_server_entries_time_out(tmp_path: Path) -> None:
    with mounted(tmp_path, cache=AUTO) as place:
        place.server.notify = None
        place.task.mkdir("/mnt")
        place.write("/mnt/file", BELOW)
        know(place.client)
        cover(place)
        eventually(reads(place, "mnt/file", ABOVE))
        place.umount("/mnt")
        # A file that is not open is asked for, and its node is gone: that is noticed at once.
        assert place.client.read("mnt/file") == BELOW
        eventually(reads(place, "mnt/file", BELOW))


def test_clients_that_are_busy_everywhere_see_one_tree_or_the_other(
    place: Mounted, caplog: pytest.LogCaptureFixture
) -> None:
    script = f"""
import errno
seen, errors = set(), set()
for number in range(300):
    try:
        for directory, _, files in os.walk("."):
            for name in files:
                seen.add(open(os.path.join(directory, name)).read())
        os.close(os.open("mnt/made-%d" % number, os.O_CREAT | os.O_EXCL))
        os.unlink("mnt/made-%d" % number)
    except OSError as error:
        errors.add(error.errno)
assert seen <= {{"", {BELOW!r}, {ABOVE!r}}}, seen
assert errors <= {{errno.ENOENT, errno.ESTALE}}, errors
"""
    mounts = [place.live()[kind] for kind in ("Mount", "TmpfsSuperblock")]
    finished = threading.Event()

    def work() -> None:
        place.client.do(script)
        finished.set()

    client = threading.Thread(target=work)
    client.start()
    while client.is_alive():
        cover(place)
        place.task.umount2("/mnt", MNT_DETACH)
    client.join()
    assert finished.is_set()
    eventually(reads(place, "mnt/file", BELOW))
    place.settle()
    place.check()
    # Below directories that it had open the client may know files that are long gone, but no mount
    # is kept for that.
    after = place.live()
    assert [after[kind] for kind in ("Mount", "TmpfsSuperblock")] == mounts
    assert not caplog.records


def test_a_mount_beside_a_name_that_is_being_made_holds_up_neither(place: Mounted) -> None:
    """The kernel holds the directory's lock for the one, and needs it for our word of the other."""
    with place.vfs.lock:
        place.client.start("os.mkdir('new')")
        eventually(lambda: place.client.waits_in("mkdir"))
        cover(place)
        eventually(lambda: is_blocked("fuse-notifier"))
    place.client.finish()
    eventually(reads(place, "mnt/file", ABOVE))
    assert place.client.list(".") == ["mnt", "new"]


def test_a_notification_that_waits_for_a_client_ends_with_the_connection(
    tmp_path: Path, one_file: OneFileServer
) -> None:
    with Client() as client, FuseMount(tmp_path, one_file) as mount:
        assert client.size(f"{tmp_path}/file") == one_file.SIZE
        client.start(f"os.stat('{tmp_path}/block')")
        assert one_file.blocked.wait(60)
        payload = abi.NOTIFY_INVAL_ENTRY_OUT.pack(1, 4, 0) + b"file\0"
        mount.post_notify(abi.NOTIFY_INVAL_ENTRY, payload)
        eventually(lambda: is_blocked("fuse-notifier"))
        mount.abort()
        with pytest.raises(OSError) as caught:
            client.finish()
        assert caught.value.errno == errno.ECONNABORTED
        eventually(lambda: not is_blocked("fuse-notifier"))
        one_file.gate.set()
    mount.post_notify(abi.NOTIFY_INVAL_ENTRY, payload)
