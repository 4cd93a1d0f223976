"""Who a caller is on the host: ownership, refusals, and nothing left behind in the thread."""

from __future__ import annotations

import errno
import faulthandler
import os
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from passthrough_kernel import Call, by_kernel, by_task, tree

from fsimpl.passthrough import PassthroughSuperblock, oslib
from fsimpl.passthrough.identity import HostIdentity
from vfs import Credentials, VirtualFilesystem, abi
from vfs.credentials import CAP_FULL_SET
from vfs.task import Task

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="acts as other users: needs root")


def thread_identity() -> tuple[object, ...]:
    """What the kernel says about the calling thread."""
    status = Path("/proc/thread-self/status").read_text().splitlines()
    return tuple(line for line in status if line.startswith(("Uid", "Gid", "Groups", "CapEff")))


def write_file(name: str, flags: int = os.O_CREAT | os.O_WRONLY, mode: int = 0o666) -> Call:
    def call(api: Task) -> None:
        fd = api.open(name, flags, mode)
        try:
            api.write(fd, b"data")
        finally:
            api.close(fd)

    return call


def populate(directory: Path) -> None:
    """What the scenarios below find: directories and files of several owners."""
    directory.chmod(0o755)
    for name, mode, uid, gid in (
        ("open", 0o777, 0, 0),
        ("sticky", 0o1777, 0, 0),
        ("setgid", 0o2777, 0, 2000),
        ("mine", 0o755, 1000, 1000),
        ("groups", 0o770, 0, 3000),
        ("roots", 0o700, 0, 0),
    ):
        (directory / name).mkdir()
        os.chown(directory / name, uid, gid)
        (directory / name).chmod(mode)
    for name, mode, uid, gid in (
        ("sticky/roots", 0o666, 0, 0),
        ("sticky/mine", 0o666, 1000, 1000),
        ("open/roots", 0o644, 0, 0),
        ("open/suid", 0o6777, 0, 1000),
        ("open/mine", 0o600, 1000, 1000),
        ("open/minesuid", 0o6755, 1000, 1000),
        ("groups/file", 0o660, 0, 3000),
        ("open/forgroup", 0o640, 0, 3000),
        ("roots/file", 0o666, 0, 0),
    ):
        (directory / name).write_bytes(b"content")
        os.chown(directory / name, uid, gid)
        (directory / name).chmod(mode)


SCENARIOS: dict[str, list[Call]] = {
    "making": [
        write_file("open/new"),
        write_file("mine/new", mode=0o600),
        write_file("roots/new"),
        write_file("sticky/new"),
        write_file("setgid/new", mode=0o2775),
        write_file("new"),
        write_file("open/unreadable", mode=0),
        lambda api: api.mkdir("setgid/dir", 0o755),
        lambda api: api.mkdir("open/dir", 0o1777),
        lambda api: api.mkdir("roots/dir", 0o777),
        lambda api: api.symlink("anywhere", "setgid/link"),
        lambda api: api.symlink("anywhere", "roots/link"),
        lambda api: api.mknod("open/fifo", 0o010644, 0),
        lambda api: api.mknod("setgid/socket", 0o140755, 0),
        lambda api: api.mknod("open/device", 0o020666, os.makedev(1, 3)),
        lambda api: api.mknod("open/whiteout", 0o020000, 0),
    ],
    "removing": [
        lambda api: api.unlink("sticky/roots"),
        lambda api: api.unlink("sticky/mine"),
        lambda api: api.unlink("open/roots"),
        lambda api: api.unlink("roots/file"),
        lambda api: api.unlink("groups/file"),
        lambda api: api.rmdir("mine"),
        lambda api: api.rmdir("open"),
    ],
    "renaming": [
        lambda api: api.rename("sticky/roots", "open/moved"),
        lambda api: api.rename("open/mine", "sticky/roots"),
        lambda api: api.rename("open/mine", "mine/moved"),
        lambda api: api.rename("mine", "open/mine2"),
        lambda api: api.link("open/mine", "open/hard"),
        lambda api: api.link("roots/file", "open/hard2"),
    ],
    "attributes": [
        lambda api: api.chmod("open/mine", 0o4711),
        lambda api: api.chmod("open/roots", 0o777),
        lambda api: api.chmod("open/minesuid", 0o6711),
        lambda api: api.chown("open/mine", 1001, -1),
        lambda api: api.chown("open/mine", -1, 3000),
        lambda api: api.chown("open/minesuid", -1, 1000),
        lambda api: api.fchownat(abi.AT_FDCWD, "open/roots", 1000, 1000, abi.AT_SYMLINK_NOFOLLOW),
        lambda api: api.truncate("open/mine", 3),
        lambda api: api.truncate("open/roots", 3),
        lambda api: api.truncate("open/suid", 2),
        lambda api: api.truncate("open/minesuid", 2),
    ],
    "opening": [
        write_file("open/roots", os.O_WRONLY),
        write_file("open/mine", os.O_WRONLY | os.O_APPEND),
        write_file("open/suid", os.O_WRONLY),
        write_file("open/minesuid", os.O_WRONLY | os.O_TRUNC),
        write_file("groups/file", os.O_RDWR),
        write_file("open/forgroup", os.O_WRONLY),
        lambda api: api.close(api.open("open/forgroup", os.O_RDONLY)),
        lambda api: api.close(api.open("roots/file", os.O_RDONLY)),
        lambda api: sorted(api.listdir("sticky")),
        lambda api: sorted(api.listdir("groups")),
        lambda api: api.stat("groups/file").st_size,
        lambda api: api.stat("roots/file").st_size,
    ],
}


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize(
    ("uid", "gid", "groups"),
    [(0, 0, [0]), (1000, 1000, []), (1000, 1000, [3000]), (1001, 3000, [2000])],
)
def test_calls_leave_what_the_kernel_leaves_for_a_process_with_these_ids(
    inside: Task, shared: Path, tmp_path: Path, scenario: str, uid: int, gid: int, groups: list[int]
) -> None:
    twin = tmp_path / "twin"
    twin.mkdir()
    populate(shared)
    populate(twin)
    task = inside.clone(cred=Credentials(uid, gid, tuple(groups)))
    before = thread_identity()
    outcomes = by_task(task, SCENARIOS[scenario])
    assert thread_identity() == before
    assert outcomes == by_kernel(twin, uid, gid, groups, SCENARIOS[scenario])
    assert tree(shared) == tree(twin)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_the_umask_of_the_process_takes_nothing_from_what_a_task_makes(
    inside: Task, shared: Path, umask: int
) -> None:
    old = os.umask(umask)
    try:
        inside.mkdir("dir", 0o777)
        inside.close(inside.open("file", abi.O_CREAT | abi.O_WRONLY, 0o666))
        inside.mknod("fifo", abi.S_IFIFO | 0o666)
    finally:
        os.umask(old)
    modes = {path.name: path.stat().st_mode & 0o7777 for path in shared.iterdir()}
    assert modes == {"dir": 0o777, "file": 0o666, "fifo": 0o666}


def acl(*entries: tuple[int, int, int]) -> bytes:
    """A posix_acl xattr of (tag, permissions, id) entries; acl(5)."""
    packed = (2).to_bytes(4, "little")
    for tag, permissions, subject in entries:
        packed += tag.to_bytes(2, "little") + permissions.to_bytes(2, "little")
        packed += subject.to_bytes(4, "little")
    return packed


USER_OBJ, USER, GROUP_OBJ, MASK, OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
NOBODY = 0xFFFFFFFF


def set_acl(path: Path, which: str, value: bytes) -> None:
    try:
        os.setxattr(path, f"system.posix_acl_{which}", value)
    except OSError:
        pytest.skip("the file system under the temporary directory has no POSIX ACLs")


def test_an_acl_that_grants_or_denies_a_user_counts_as_on_the_host(
    inside: Task, shared: Path
) -> None:
    for name, mode, permissions in (("granted", 0o600, 6), ("denied", 0o666, 0)):
        path = shared / name
        path.write_bytes(b"x")
        path.chmod(mode)
        base = mode >> 6 & 7
        set_acl(
            path,
            "access",
            acl((USER_OBJ, base, NOBODY), (USER, permissions, 1000), (GROUP_OBJ, mode & 7, NOBODY),
                (MASK, 6, NOBODY), (OTHER, mode & 7, NOBODY)),
        )  # fmt: skip
    calls: list[Call] = [
        write_file("granted", os.O_RDWR),
        write_file("denied", os.O_RDWR),
        lambda api: api.close(api.open("denied", os.O_RDONLY)),
        lambda api: api.close(api.open("granted", os.O_RDONLY)),
    ]
    for uid in (1000, 1001):
        task = inside.clone(cred=Credentials(uid, uid))
        assert by_task(task, calls) == by_kernel(shared, uid, uid, [], calls)


def test_a_default_acl_decides_the_mode_of_what_is_made_whatever_the_process_umask(
    inside: Task, shared: Path
) -> None:
    entries = acl(
        (USER_OBJ, 7, NOBODY), (GROUP_OBJ, 5, NOBODY), (OTHER, 0, NOBODY)
    )  # fmt: skip
    set_acl(shared, "default", entries)
    old = os.umask(0o077)
    try:
        inside.close(inside.open("file", abi.O_CREAT | abi.O_WRONLY, 0o666))
    finally:
        os.umask(old)
    assert (shared / "file").stat().st_mode & 0o7777 == 0o640


def test_capabilities_without_uid_0_make_the_host_call_succeed_and_the_file_the_callers(
    inside: Task, shared: Path
) -> None:
    (shared / "roots").mkdir(mode=0o700)
    task = inside.clone(cred=Credentials(1000, 1000, caps=CAP_FULL_SET))
    task.mkdir("roots/dir", 0o755)
    task.mknod("roots/null", abi.S_IFCHR | 0o600, abi.makedev(1, 3))
    for name in ("dir", "null"):
        made = (shared / "roots" / name).stat()
        assert (made.st_uid, made.st_gid) == (1000, 1000)


def test_root_without_capabilities_is_refused_by_the_host_identity_too(shared: Path) -> None:
    (shared / "others").mkdir()
    os.chown(shared / "others", 1000, 1000)
    (shared / "others").chmod(0o700)
    with HostIdentity().assume(Credentials(0, 0, caps=0)), pytest.raises(PermissionError):
        (shared / "others" / "new").mkdir()
    (shared / "others" / "new").mkdir()


def test_rename_with_whiteout_leaves_a_whiteout_of_the_callers(
    inside: Task, inside_user: Task, shared: Path
) -> None:
    os.chown(shared, 1000, 1000)
    (shared / "a").write_bytes(b"")
    os.chown(shared / "a", 1000, 1000)
    inside_user.renameat2(abi.AT_FDCWD, "a", abi.AT_FDCWD, "b", abi.RENAME_WHITEOUT)
    whiteout = (shared / "a").lstat()
    assert (whiteout.st_mode & abi.S_IFMT, whiteout.st_rdev) == (abi.S_IFCHR, 0)
    assert (whiteout.st_uid, whiteout.st_gid) == (1000, 1000)
    assert inside.stat("a").st_uid == 1000
    assert (shared / "b").exists()


def test_no_identity_is_assumed_for_the_process_itself() -> None:
    identity = HostIdentity()
    assert identity.assume(Credentials.root()) is identity.own


def test_the_thread_is_itself_again_after_a_call_that_failed(
    inside_user: Task, inside: Task, shared: Path
) -> None:
    before = thread_identity()
    with pytest.raises(PermissionError):
        inside_user.mkdir("refused", 0o755)
    assert thread_identity() == before
    assert not (shared / "refused").exists()


def test_an_id_that_cannot_be_taken_on_fails_with_eoverflow_and_changes_nothing() -> None:
    before = thread_identity()
    with pytest.raises(OSError) as caught, HostIdentity().assume(Credentials(0xFFFFFFFF, 1000)):
        pytest.fail("entered")
    assert caught.value.errno == errno.EOVERFLOW
    assert thread_identity() == before


def test_a_thread_that_cannot_become_itself_again_ends_the_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    child = os.fork()
    if not child:
        faulthandler.disable()
        os.dup2(os.open("/dev/null", os.O_WRONLY), 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with HostIdentity().assume(Credentials(1000, 1000)):

            def refuse(uid: int) -> None:
                raise OSError(1, "refused")

            monkeypatch.setattr(oslib, "setfsuid", refuse)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGABRT


def test_two_threads_with_different_callers_never_mix_them_up(
    vfs: VirtualFilesystem, inside: Task, shared: Path
) -> None:
    shared.chmod(0o777)
    failures: list[BaseException] = []

    def maker(uid: int, groups: tuple[int, ...]) -> Callable[[], None]:
        task = inside.clone(cred=Credentials(uid, uid + 1, groups))
        task.mkdir(f"of{uid}", 0o755)

        def run() -> None:
            try:
                for number in range(150):
                    task.mkdir(f"of{uid}/d{number}", 0o755)
                    task.close(task.open(f"of{uid}/f{number}", abi.O_CREAT | abi.O_RDWR, 0o600))
                assert thread_identity() == expected
            except BaseException as error:
                failures.append(error)

        return run

    expected = thread_identity()
    threads = [
        threading.Thread(target=maker(*who)) for who in ((1000, ()), (1001, (5, 6)), (0, ()))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for uid in (1000, 1001, 0):
        owners = {(p.stat().st_uid, p.stat().st_gid) for p in (shared / f"of{uid}").iterdir()}
        assert owners == {(uid, uid + 1)}


def test_identities_in_parallel_threads_without_the_vfs_lock_are_each_threads_own(
    superblock: PassthroughSuperblock,
) -> None:
    inside_both = threading.Barrier(2)
    seen: dict[int, tuple[int, int]] = {}

    def run(uid: int) -> None:
        with superblock.identity.assume(Credentials(uid, uid)):
            inside_both.wait(60)
            seen[uid] = (oslib.getfsuid(), oslib.getfsgid())
            inside_both.wait(60)

    threads = [threading.Thread(target=run, args=(uid,)) for uid in (1000, 1001)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {1000: (1000, 1000), 1001: (1001, 1001)}
    assert (oslib.getfsuid(), oslib.getfsgid()) == (os.geteuid(), os.getegid())
