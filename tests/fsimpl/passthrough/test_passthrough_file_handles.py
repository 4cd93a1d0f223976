"""Inodes whose descriptor was given up are found again by file handle, or are gone for good."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from stat import S_ISDIR

import pytest
from passthrough_kernel import Call, Kernel, by_task, open_descriptors, outcome, tree

from fsimpl.passthrough import PassthroughSuperblock, PassthroughType, oslib
from fsimpl.passthrough.inode import PassthroughInode
from vfs import VirtualFilesystem, abi
from vfs.credentials import CAP_DAC_READ_SEARCH
from vfs.dentry import Dentry
from vfs.namei import step
from vfs.task import Task

MountWith = Callable[..., Task]
pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="opens files by handle: needs root")


def superblock_of(task: Task) -> PassthroughSuperblock:
    superblock = task.fs.root.dentry.superblock
    assert isinstance(superblock, PassthroughSuperblock)
    return superblock


def inode_of(dentry: Dentry) -> PassthroughInode:
    assert isinstance(dentry.inode, PassthroughInode)
    return dentry.inode


def errno_of(call: Callable[[], object]) -> int | None:
    try:
        call()
    except OSError as error:
        return error.errno
    return None


@pytest.fixture
def limited() -> Iterator[Callable[[int], None]]:
    """Sets RLIMIT_NOFILE for the test."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield lambda limit: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Held:
    """Names of a mount's root, held as a client holds what it was told of."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.dentries: list[Dentry] = []

    def look_up(self, name: str, directory: Dentry | None = None) -> Dentry:
        with self.task.vfs.lock:
            dentry = step(directory or self.task.fs.root.dentry, name.encode())
        assert dentry is not None
        self.dentries.append(dentry)
        return dentry

    def park_all(self) -> None:
        budget = superblock_of(self.task).budget
        with self.task.vfs.lock:
            while budget._park_some() or budget._park_some():
                pass

    def close(self) -> None:
        with self.task.vfs.lock:
            while self.dentries:
                self.dentries.pop().put()


@pytest.fixture
def holding() -> Iterator[Callable[[Task], Held]]:
    made: list[Held] = []

    def hold(task: Task) -> Held:
        made.append(Held(task))
        return made[-1]

    yield hold
    for held in made:
        held.close()


def hold_a_tree(
    task: Task, held: Held, shared: Path, directories: int, files: int
) -> list[tuple[Dentry, int]]:
    for number in range(directories):
        (shared / f"d{number}").mkdir()
        for file in range(files):
            os.close(os.open(shared / f"d{number}" / f"f{file}", os.O_CREAT | os.O_WRONLY))
    known = []
    for number in range(directories):
        directory = held.look_up(f"d{number}")
        for file in range(files):
            dentry = held.look_up(f"f{file}", directory)
            known.append((dentry, inode_of(dentry).ino))
    return known


def use_a_tree(task: Task, known: list[tuple[Dentry, int]]) -> None:
    with task.vfs.lock:
        for dentry, ino in known:
            inode = inode_of(dentry)
            inode.refresh()
            assert inode.ino == ino
            again = step(dentry.parent, dentry.name)
            assert again is dentry
            again.put()


@pytest.mark.parametrize("mode", ["prefer", "mandatory"])
def test_a_client_holds_three_thousand_files_with_two_hundred_descriptors(
    mount_with: MountWith,
    shared: Path,
    limited: Callable[[int], None],
    holding: Callable[[Task], Held],
    mode: str,
) -> None:
    limited(200)
    task = mount_with(f"inode_file_handles={mode}")
    held = holding(task)
    known = hold_a_tree(task, held, shared, 20, 150)
    assert open_descriptors() < 200
    use_a_tree(task, known)
    assert len(superblock_of(task).inodes) == 20 * 150 + 20 + 1
    os.close(os.open("/dev/null", os.O_RDONLY))


def test_a_limit_that_sinks_while_mounted_is_obeyed(
    mount_with: MountWith,
    shared: Path,
    limited: Callable[[int], None],
    holding: Callable[[Task], Held],
) -> None:
    task = mount_with()
    limited(256)
    held = holding(task)
    with task.vfs.lock:
        known = []
        for number in range(1000):
            inode = task.fs.root.dentry.inode
            assert isinstance(inode, PassthroughInode)
            new = inode.create(b"f%d" % number, abi.S_IFREG | 0o644, task.cred)
            assert isinstance(new, PassthroughInode)
            known.append(new)
        for new in known:
            new.refresh()
            new.put()
    os.close(os.open("/dev/null", os.O_RDONLY))
    held.look_up("f999")


@pytest.mark.slow
def test_a_client_holds_two_hundred_thousand_files_with_a_thousand_descriptors(
    mount_with: MountWith,
    shared: Path,
    limited: Callable[[int], None],
    holding: Callable[[Task], Held],
) -> None:
    limited(1024)
    task = mount_with("inode_file_handles=prefer")
    held = holding(task)
    known = hold_a_tree(task, held, shared, 200, 1000)
    use_a_tree(task, known[::7])


def test_never_means_that_the_descriptors_run_out(
    mount_with: MountWith,
    shared: Path,
    limited: Callable[[int], None],
    holding: Callable[[Task], Held],
) -> None:
    limited(256)
    task = mount_with("inode_file_handles=never")
    held = holding(task)
    with pytest.raises(OSError) as caught:
        hold_a_tree(task, held, shared, 1, 400)
    assert caught.value.errno == errno.ENFILE
    os.close(os.open("/dev/null", os.O_RDONLY))


def test_everything_works_on_a_file_that_was_parked(
    mount_with: MountWith, shared: Path, holding: Callable[[Task], Held]
) -> None:
    (shared / "d").mkdir()
    (shared / "d" / "f").write_bytes(b"content")
    (shared / "d" / "l").symlink_to("f")
    os.mkfifo(shared / "d" / "p")
    task = mount_with()
    held = holding(task)
    directory = held.look_up("d")
    inodes = [inode_of(held.look_up(name, directory)) for name in ("f", "l", "p")]
    file, link, _ = inodes

    def parked() -> None:
        held.park_all()
        assert [inode.handle.fd for inode in inodes] == [-1, -1, -1]

    for use in (
        lambda: task.chmod("d/f", 0o640),
        lambda: task.chown("d/f", 5, 6),
        lambda: task.truncate("d/f", 5),
        lambda: task.utimensat(abi.AT_FDCWD, "d/f", ((1, 0), (2, 0))),
        lambda: task.setxattr("d/f", "user.a", b"1"),
        lambda: task.link("d/f", "d/hard"),
        lambda: task.close(task.open("d/f", abi.O_RDWR)),
        lambda: task.mkdir("d/sub"),
        lambda: task.rename("d/hard", "d/sub/moved"),
        lambda: task.rename("d/sub", "sub"),
        lambda: task.unlink("sub/moved"),
        lambda: task.rmdir("sub"),
        lambda: task.chmod("d/p", 0o600),
        lambda: task.chmod("d", 0o711),
        lambda: task.close(task.open("d", abi.O_TMPFILE | abi.O_RDWR, 0o600)),
    ):
        parked()
        use()
    parked()
    assert task.readlink("d/l") == b"f"
    assert link.readlink() == b"f"
    host = (shared / "d" / "f").stat()
    assert (host.st_mode & 0o7777, host.st_uid, host.st_gid, host.st_size) == (0o640, 5, 6, 5)
    assert os.getxattr(shared / "d" / "f", "user.a") == b"1"
    parked()
    file.refresh()
    assert file.nlink == 1


def test_a_parked_file_that_the_host_removes_is_stale(
    mount_with: MountWith, shared: Path, holding: Callable[[Task], Held]
) -> None:
    (shared / "f").write_bytes(b"x")
    task = mount_with()
    held = holding(task)
    inode = inode_of(held.look_up("f"))
    held.park_all()
    os.unlink(shared / "f")
    assert errno_of(inode.refresh) == errno.ESTALE
    assert errno_of(lambda: task.stat("f")) == errno.ENOENT


def test_a_new_file_with_the_number_of_a_parked_one_is_another_file(
    mount_with: MountWith, shared: Path, holding: Callable[[Task], Held]
) -> None:
    (shared / "f").write_bytes(b"old")
    task = mount_with()
    held = holding(task)
    old = inode_of(held.look_up("f"))
    held.park_all()
    os.unlink(shared / "f")
    names = []
    for number in range(1000):
        name = f"n{number}"
        (shared / name).write_bytes(b"newer")
        names.append(name)
        if (shared / name).stat().st_ino == old.ino:
            break
    else:
        pytest.skip("this file system is slow to give out numbers again")
    new = inode_of(held.look_up(names[-1]))
    assert new is not old
    assert new.ino == old.ino and new.size == 5
    assert errno_of(old.refresh) == errno.ESTALE
    os.rename(shared / names[-1], shared / "f")
    assert task.stat("f").st_size == 5


def test_a_deleted_file_keeps_its_descriptor_and_so_its_content(
    mount_with: MountWith, shared: Path, holding: Callable[[Task], Held]
) -> None:
    (shared / "f").write_bytes(b"content")
    task = mount_with()
    held = holding(task)
    inode = inode_of(held.look_up("f"))
    held.park_all()
    task.unlink("f")
    held.park_all()
    inode.refresh()
    assert (inode.nlink, inode.size) == (0, 7)
    with task.vfs.lock:
        file = inode.open(task.fs.root.mount, held.dentries[0], abi.O_RDONLY, task.cred)
    buffer = bytearray(10)
    assert file.read([memoryview(buffer)], 0, 0) == 7
    with task.vfs.lock:
        file.put()


def test_one_host_mount_costs_one_descriptor_however_many_files_are_parked(
    mount_with: MountWith, shared: Path, holding: Callable[[Task], Held]
) -> None:
    for number in range(50):
        (shared / f"f{number}").touch()
    task = mount_with()
    held = holding(task)
    before = open_descriptors()
    for number in range(50):
        held.look_up(f"f{number}")
    assert open_descriptors() == before + 50
    held.park_all()
    # The root is parked, too.
    assert open_descriptors() == before - 1
    held.close()
    with task.vfs.lock:
        task.vfs.dcache.shrink_superblock(superblock_of(task))
    held.look_up("f0")
    assert open_descriptors() == before + 1


def test_two_mounts_share_one_budget(
    mount_with: MountWith,
    shared: Path,
    limited: Callable[[int], None],
    holding: Callable[[Task], Held],
) -> None:
    limited(256)
    first, second = mount_with(), mount_with()
    for task in (first, second):
        held = holding(task)
        for number in range(300):
            (shared / f"f{number}").touch()
            held.look_up(f"f{number}")
    assert open_descriptors() < 256


def test_mandatory_is_refused_where_files_have_no_handles(vfs: VirtualFilesystem) -> None:
    before = open_descriptors()
    for mode, expected in (("mandatory", errno.EOPNOTSUPP), ("prefer", None), ("never", None)):

        def mount(mode: str = mode) -> None:
            vfs.create_namespace(
                "passthrough", source=b"/proc", options=f"inode_file_handles={mode}"
            ).put()

        assert errno_of(mount) == expected
    assert open_descriptors() == before


def test_mandatory_refuses_a_file_on_a_mount_without_handles(
    mount_with: MountWith, shared: Path
) -> None:
    (shared / "mnt").mkdir()
    (shared / "ok").touch()
    if subprocess.run(["mount", "-t", "proc", "none", shared / "mnt"]).returncode:
        pytest.skip("no mounts here")
    try:
        task = mount_with("inode_file_handles=mandatory")
        before = open_descriptors()
        assert errno_of(lambda: task.stat("mnt/version")) == errno.EOPNOTSUPP
        assert open_descriptors() == before
        task.stat("ok")
        prefers = mount_with("inode_file_handles=prefer")
        assert prefers.stat("mnt/version").st_mode & abi.S_IFMT == abi.S_IFREG
    finally:
        subprocess.run(["umount", "-l", shared / "mnt"], check=True)


def test_what_has_no_handle_keeps_its_descriptor(
    vfs: VirtualFilesystem, holding: Callable[[Task], Held]
) -> None:
    with vfs.create_namespace("passthrough", source=b"/proc") as namespace:
        task = vfs.create_task(namespace)
    held = holding(task)
    inode = inode_of(held.look_up("version"))
    held.park_all()
    assert inode.handle.fd >= 0
    inode.refresh()


def test_a_process_that_may_not_open_by_handle_keeps_descriptors_or_is_refused(
    shared: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without CAP_DAC_READ_SEARCH prefer is never, and mandatory EPERM."""
    (shared / "f").touch()
    child = os.fork()
    if not child:
        status = 1
        try:
            effective, permitted, _ = oslib.capget()
            kept = ~(1 << CAP_DAC_READ_SEARCH)
            oslib.capset(effective & kept, permitted & kept, 0)
            vfs = VirtualFilesystem()
            vfs.register(PassthroughType())

            def mount(mode: str) -> Task:
                with vfs.create_namespace(
                    "passthrough", source=bytes(shared), options=f"inode_file_handles={mode}"
                ) as namespace:
                    return vfs.create_task(namespace)

            assert errno_of(lambda: mount("mandatory")) == errno.EPERM
            task = mount("prefer")
            held = Held(task)
            inode = inode_of(held.look_up("f"))
            held.park_all()
            assert inode.handle.fd >= 0
            held.close()
            vfs.shutdown()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, capfd.readouterr().err


def random_call(random: Random) -> Call:
    """One call on a few names in two levels, of those that use one, two or three inodes."""

    def name() -> str:
        return random.choice(["", "a/", "b/", "a/a/"]) + random.choice("abcd")

    one, two, mode = name(), name(), random.choice([0o600, 0o644, 0o755])

    def write(api: Task) -> None:
        fd = api.open(one, os.O_CREAT | os.O_WRONLY, mode)
        try:
            api.write(fd, two.encode())
        finally:
            api.close(fd)

    def read(api: Task) -> bytes:
        fd = api.open(one, os.O_RDONLY)
        try:
            return bytes(api.read(fd, 100))
        finally:
            api.close(fd)

    calls: list[Call] = [
        write,
        write,
        read,
        lambda api: api.mkdir(one, mode | 0o700),
        lambda api: api.mkdir(one, mode | 0o700),
        lambda api: api.unlink(one),
        lambda api: api.rmdir(one),
        lambda api: api.rename(one, two),
        lambda api: api.rename(one, two),
        lambda api: api.link(one, two),
        lambda api: api.symlink(two, one),
        lambda api: api.truncate(one, 3),
        lambda api: api.stat(one).st_size if not S_ISDIR(api.stat(one).st_mode) else None,
        lambda api: sorted(map(os.fsencode, api.listdir(one))),
    ]
    return random.choice(calls)


def test_calls_on_inodes_that_lose_their_descriptors_do_what_the_host_does(
    mount_with: MountWith, shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before every new descriptor all are given up that can be."""
    task = mount_with()
    budget = superblock_of(task).budget
    parked = 0

    def require() -> None:
        nonlocal parked
        for handle in budget.parkable:
            handle.used = False
        parked += budget._park_some()

    monkeypatch.setattr(type(budget), "require", lambda self: require())
    host = tmp_path / "host"
    host.mkdir(mode=0o755)
    random = Random(4)
    calls = [random_call(random) for _ in range(1500)]
    umask = os.umask(0)
    here = os.getcwd()
    try:
        os.chdir(host)
        expected = [outcome(call, Kernel()) for call in calls]
    finally:
        os.chdir(here)
        os.umask(umask)
    assert by_task(task, calls) == expected
    assert tree(shared) == tree(host)
    assert parked > 300


@pytest.mark.parametrize("word", ["sometimes", "", "PREFER"])
def test_another_word_for_file_handles_is_refused(mount_with: MountWith, word: str) -> None:
    assert errno_of(lambda: mount_with(f"inode_file_handles={word}")) == errno.EINVAL
