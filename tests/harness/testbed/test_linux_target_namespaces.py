"""Mount operations: Linux agrees with itself about all of them, and the VFS with Linux."""

from __future__ import annotations

import errno
import gc
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from harness.testbed.compare import (
    EVERYTHING_AFTER_EACH_STEP,
    MOUNTS_AFTER_EACH_STEP,
    Difference,
    run,
)
from harness.testbed.linux_target import Agent, LinuxTarget, TaskDied
from harness.testbed.mount_table import Row, parse_mountinfo, rename_tables
from harness.testbed.step import Step, parse_script
from harness.testbed.target import NoSuchTask, TargetUnavailable
from harness.testbed.vfs_target import VfsTarget
from vfs import abi

PROPAGATION = """
root: mkdir("/a", 0o755)
root: mkdir("/b", 0o755)
root: mkdir("/c", 0o755)
root: mount("one", "/a", "tmpfs", 0, "size=1m")
root: mount(None, "/a", None, MS_SHARED, None)
root: mkdir("/a/m", 0o755)
root: clone("alice", CLONE_NEWNS, 0, 0, ())
alice: mount(None, "/a", None, MS_SLAVE, None)
alice: mount(None, "/a", None, MS_SHARED, None)
root: mount("/a", "/b", None, MS_BIND, None)
root: mount("two words", "/a/m", "tmpfs", MS_NOSUID|MS_NOEXEC, "size=2m")
root: mountinfo()
alice: mountinfo()
alice: mounts()
alice: mountstats()
root: mount(None, "/b/m", None, MS_UNBINDABLE, None)
root: mount("/b", "/c", None, MS_BIND|MS_REC, None)
root: mount("/b/m", "/c", None, MS_BIND, None)
alice: umount2("/a/m", 0)
alice: statmount_at("/a", STATMOUNT_SB_BASIC|STATMOUNT_MNT_BASIC|STATMOUNT_PROPAGATE_FROM|STATMOUNT_MNT_ROOT|STATMOUNT_MNT_POINT|STATMOUNT_FS_TYPE|STATMOUNT_MNT_NS_ID|STATMOUNT_MNT_OPTS|STATMOUNT_SB_SOURCE|STATMOUNT_OPT_ARRAY|STATMOUNT_SUPPORTED_MASK)
root: listmount(LSMT_ROOT, 0, 100, 0, 0)
root: listmount(LSMT_ROOT, 0, 100, 0, LISTMOUNT_REVERSE)
root: listmount_at("/", 0)
root: umount2("/a", MNT_DETACH)
alice: chroot("/a")
alice: mountinfo()
alice: exit()
"""  # noqa: E501

DESCRIPTORS = """
root: mkdir("/a", 0o755)
root: mkdir("/b", 0o755)
root: fsopen("tmpfs", FSOPEN_CLOEXEC)
root: fsconfig(0, FSCONFIG_SET_STRING, "size", "1m", 0)
root: fsconfig(0, FSCONFIG_SET_STRING, "source", "made here", 0)
root: fsconfig(0, FSCONFIG_SET_FLAG, "nonsense", None, 0)
root: read(0, 1000)
root: read(0, 1000)
root: fsconfig(0, FSCONFIG_CMD_CREATE, None, None, 0)
root: fsmount(0, FSMOUNT_CLOEXEC, MOUNT_ATTR_NODEV|MOUNT_ATTR_NOATIME)
root: poll(0, POLLIN|POLLOUT)
root: poll(1, POLLIN|POLLOUT)
root: poll(77, POLLIN)
root: mkdirat(1, "d", 0o755)
root: openat(1, "f", O_RDWR|O_CREAT, 0o644)
root: move_mount(1, "", AT_FDCWD, "/a", MOVE_MOUNT_F_EMPTY_PATH)
root: mount_setattr(AT_FDCWD, "/a", AT_RECURSIVE, (MOUNT_ATTR_NOSUID, 0, MS_SHARED, 0))
root: mount_setattr(AT_FDCWD, "/a", 0, (0, 0, 0, 0))
root: open_tree(AT_FDCWD, "/a", OPEN_TREE_CLONE|OPEN_TREE_CLOEXEC|AT_RECURSIVE)
root: mount_setattr(AT_FDCWD, "/a", 0, None)
root: statx(3, "", AT_EMPTY_PATH, STATX_MTIME|STATX_CTIME|STATX_MNT_ID_UNIQUE)
root: statx(3, "", AT_EMPTY_PATH, STATX_MNT_ID_UNIQUE)
root: statmount_at("/a", STATMOUNT_MNT_BASIC)
root: umount2("/a", MNT_DETACH)
root: write(2, b"still here")
root: pread64(2, 100, 0)
root: move_mount(3, "", AT_FDCWD, "/b", MOVE_MOUNT_F_EMPTY_PATH)
root: fspick(AT_FDCWD, "/b", FSPICK_NO_AUTOMOUNT)
root: fsconfig(4, FSCONFIG_SET_FLAG, "ro", None, 0)
root: fsconfig(4, FSCONFIG_CMD_RECONFIGURE, None, None, 0)
root: mkdir("/b/e", 0o755)
root: open_tree_attr(AT_FDCWD, "/b", OPEN_TREE_CLONE, (MOUNT_ATTR_RDONLY, 0, 0, 0))
root: fchdir(5)
root: mountinfo()
root: close(5)
root: getcwd()
root: umount2("/b", 0)
"""

USER_NAMESPACES = """
root: mkdir("/a", 0o777)
root: mount("one", "/a", "tmpfs", MS_NODEV, None)
root: mount(None, "/", None, MS_SHARED|MS_REC, None)
root: mkdir("/a/m", 0o777)
root: clone("alice", CLONE_NEWNS|CLONE_NEWUSER, 1000, 1000, (100,))
alice: mkdir("/a/n", 0o755)
alice: stat("/a/n")
alice: mount("two", "/a/m", "tmpfs", 0, "size=1m")
alice: umount2("/a", 0)
alice: mount(None, "/a", None, MS_REMOUNT|MS_BIND, None)
alice: mountinfo()
root: mount("three", "/a/m", "tmpfs", 0, "size=3m")
alice: clone("carol", CLONE_NEWNS|CLONE_NEWUSER, 0, 0, ())
carol: stat("/a/n")
carol: umount2("/a/m", MNT_DETACH)
carol: clone("dave", 0, 1001, 1001, ())
dave: mount("four", "/a/m", "tmpfs", 0, None)
dave: unshare(CLONE_NEWUSER|CLONE_NEWNS)
dave: mount("four", "/a/m", "tmpfs", 0, None)
dave: chown("/a/n", 5, 5)
root: nsfd("carol", "mnt")
root: nsfd("carol", "user")
root: fcntl(0, F_GETFD, 0)
root: fstat(0)
root: setns(0, CLONE_NEWNS)
root: mountinfo()
dave: nsfd("carol", "user")
dave: setns(0, CLONE_NEWUSER)
alice: nsfd("root", "user")
alice: setns(0, 0)
carol: exit()
dave: exit()
"""


class Altered(LinuxTarget):
    """Linux, but shared mounts become slaves."""

    name = "altered"

    def perform(self, step: Step) -> Any:
        if step.call == "mount" and step.args[3] == abi.MS_SHARED:
            step = step._replace(args=(*step.args[:3], abi.MS_PRIVATE, step.args[4]))
        return super().perform(step)


@pytest.mark.parametrize("script", [PROPAGATION, DESCRIPTORS, USER_NAMESPACES])
@pytest.mark.parametrize("user_namespace", [False, True])
@pytest.mark.parametrize("observe", [EVERYTHING_AFTER_EACH_STEP, MOUNTS_AFTER_EACH_STEP])
def test_linux_agrees_with_itself(
    linux_agent: Agent, script: str, user_namespace: bool, observe: str
) -> None:
    skip_unless_root()

    def target() -> LinuxTarget:
        return LinuxTarget(linux_agent, user_namespace=user_namespace)

    with target() as one, target() as other:
        found = run(parse_script(script), one, other, observe)
    assert found is None, str(found)


@pytest.mark.parametrize("script", [PROPAGATION, DESCRIPTORS, USER_NAMESPACES])
def test_the_vfs_and_linux_agree_after_each_step(linux_agent: Agent, script: str) -> None:
    skip_unless_root()
    with VfsTarget(tracing=True) as ours, LinuxTarget(linux_agent) as linux:
        found = run(parse_script(script), ours, linux, EVERYTHING_AFTER_EACH_STEP)
    assert found is None, str(found)


def difference(script: str, one: LinuxTarget, other: LinuxTarget) -> Difference | None:
    with one, other:
        return run(parse_script(script), one, other, MOUNTS_AFTER_EACH_STEP)


def test_a_mount_table_that_differs_is_shown_with_the_rows_marked(linux_agent: Agent) -> None:
    found = difference(PROPAGATION, LinuxTarget(linux_agent), Altered(linux_agent))
    assert found is not None
    assert found.reason == "Mount tables differ"
    assert found.steps[found.at].call == "mount"
    marked = [line for line in str(found).splitlines() if line.startswith("  !")]
    assert len(marked) == 2
    assert "linux" in marked[0] and "at '/a'" in marked[0] and "[shared:1]" in marked[0]
    assert "altered" in marked[1] and "at '/a'" in marked[1] and "[]" in marked[1]


def test_of_two_structures_only_the_fields_that_differ_are_shown(linux_agent: Agent) -> None:
    class Liar(LinuxTarget):
        def perform(self, step: Step) -> Any:
            value = super().perform(step)
            return value._replace(mnt_attr=5) if step.call == "statmount_at" else value

    found = difference(
        'root: statmount_at("/", STATMOUNT_SB_BASIC|STATMOUNT_MNT_BASIC)',
        LinuxTarget(linux_agent),
        Liar(linux_agent),
    )
    assert found is not None
    assert "Statmount(mnt_attr=0)" in str(found)
    assert "Statmount(mnt_attr=5)" in str(found)


def test_a_user_namespace_is_owned_by_the_ids_given_and_has_every_id(linux_agent: Agent) -> None:
    with LinuxTarget(linux_agent) as target:
        skip_unless_root()
        alice = target.task().clone("alice", abi.CLONE_NEWUSER, 1000, 1001, (5, 7))
        pid = target._tasks["alice"].pid
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{name}") as file:
                assert file.read().split() == ["0", "0", "4294967295"]
        alice.mkdir("d", 0o755)
        stat = alice.stat("d")
        assert (stat.st_uid, stat.st_gid) == (1000, 1001)
        with open(f"/proc/{pid}/status") as file:
            status = dict(line.rstrip("\n").split(":\t", 1) for line in file if ":\t" in line)
        assert status["Groups"].split() == ["5", "7"]
        assert int(status["CapEff"], 16).bit_count() >= 40


def test_a_namespace_of_another_task_opens_at_the_lowest_free_number(linux_agent: Agent) -> None:
    with LinuxTarget(linux_agent) as target:
        root = target.task()
        alice = root.clone("alice", abi.CLONE_NEWNS)
        root.mkdir("d", 0o755)
        assert [root.nsfd("alice", "mnt"), root.nsfd("root", "mnt")] == [0, 1]
        assert root.fcntl(0, abi.F_GETFL, 0) & abi.O_ACCMODE == abi.O_RDONLY
        assert root.fstat(0).st_ino != root.fstat(1).st_ino
        alice.mount("none", "/d", "tmpfs", 0, None)
        assert len(target.observe_mounts()["root"]) == 1
        root.setns(0, abi.CLONE_NEWNS)
        tables = target.observe_mounts()
        assert tables["root"] == tables["alice"]
        assert [row.mount_point for row in tables["root"]] == [b"/", b"/d"]
        root.setrlimit_nofile(2)
        with pytest.raises(OSError, match="Too many open files"):
            root.nsfd("alice", "mnt")


def test_a_task_that_has_exited_makes_no_further_calls(linux_agent: Agent) -> None:
    with LinuxTarget(linux_agent) as target:
        root = target.task()
        root.mkdir("d", 0o755)
        root.mount("none", "/d", "tmpfs", 0, None)
        alice = root.clone("alice")
        alice.chdir("/d")
        with pytest.raises(OSError, match="busy"):
            root.umount2("/d", 0)
        alice.exit()
        root.umount2("/d", 0)
        assert list(target.observe().tasks) == ["root"]
        with pytest.raises(NoSuchTask, match="task alice has exited"):
            alice.getcwd()
        with pytest.raises(ValueError, match="task alice exists"):
            root.clone("alice")


def test_a_task_that_was_killed_is_told_from_one_that_hangs(linux_agent: Agent) -> None:
    with LinuxTarget(linux_agent) as target:
        root = target.task()
        alice = root.clone("alice")
        os.kill(target._tasks["alice"].pid, signal.SIGKILL)
        with pytest.raises(TaskDied, match=r"task alice .* was killed"):
            alice.getcwd()
        assert root.getcwd() == b"/"


def test_many_targets_one_after_another_leave_nothing_behind(linux_agent: Agent) -> None:
    agent = linux_agent.process.pid

    def things() -> dict[str, list[str]]:
        return {
            "our descriptors": os.listdir("/proc/self/fd"),
            "the agent's descriptors": os.listdir(f"/proc/{agent}/fd"),
            "processes": Path(f"/proc/{agent}/task/{agent}/children").read_text().split(),
            "our mounts": Path("/proc/self/mountinfo").read_text().splitlines(),
            "the agent's mounts": Path(f"/proc/{agent}/mountinfo").read_text().splitlines(),
        }

    gc.collect()
    before = things()
    for _ in range(10):
        with LinuxTarget(linux_agent) as target:
            root = target.task()
            alice = root.clone("alice", abi.CLONE_NEWNS | abi.CLONE_NEWUSER)
            root.clone("bob", abi.CLONE_FILES)
            root.open(".", abi.O_PATH)
            root.nsfd("alice", "mnt")
            alice.mkdir("d", 0o755)
            alice.mount("none", "/d", "tmpfs", 0, None)
            alice.open_tree(abi.AT_FDCWD, "/d", abi.OPEN_TREE_CLONE)
            alice.exit()
            with pytest.raises(OSError, match="Invalid argument"):
                root.clone("carol", abi.CLONE_NEWNS | abi.CLONE_FS)
            root.clone("carol")
    assert things() == before


def test_slots_of_tasks_that_exited_are_used_again(linux_agent: Agent) -> None:
    with LinuxTarget(linux_agent) as target:
        root = target.task()
        for number in range(20):
            root.clone(f"task{number}").exit()
        for number in range(15):
            root.clone(f"other{number}")
        with pytest.raises(TargetUnavailable, match="more than 16 tasks"):
            root.clone("one_more")


@pytest.mark.parametrize("kind", ["linux", "vfs"])
def test_mount_max_limits_the_mounts_of_a_namespace(kind: str, linux_agent: Agent) -> None:
    skip_unless_root()
    with LinuxTarget(linux_agent) if kind == "linux" else VfsTarget() as target:
        before = target.sysctl("mount_max")
        target.set_sysctl("mount_max", 1000)
        root = target.task()
        root.mkdir("d", 0o755)
        root.mount("none", "/d", "tmpfs", 0, None)
        root.mkdir("d/d", 0o755)
        # Each time there are twice as many below /d; 512 and the root are the most.
        for _ in range(9):
            root.mount("/d", "/d/d", None, abi.MS_BIND | abi.MS_REC, None)
        with pytest.raises(OSError) as info:
            root.mount("/d", "/d/d", None, abi.MS_BIND | abi.MS_REC, None)
        assert info.value.errno == errno.ENOSPC
    if kind == "linux":
        with LinuxTarget(linux_agent) as after:
            assert after.sysctl("mount_max") == before


def test_mountinfo_of_odd_names_is_read_back() -> None:
    text = (
        b"36 35 98:0 /a\\040b /m\\040\\011\\134x ro,noatime shared:7 master:1 propagate_from:2 "
        b"- ext3 /dev/a\\040b rw,x=\\054\n"
        b"37 36 0:5 / / rw unbindable - tmpfs  rw\n"
    )
    first, second = parse_mountinfo(text)
    assert first == Row(
        36, 35, 98 << 20, b"/a b", b"/m \t\\x", b"ro,noatime", 7, 1, 2, False, b"ext3",
        b"/dev/a b", b"rw,x=,",
    )  # fmt: skip
    assert (second.source, second.unbindable, second.shared) == (b"", True, 0)
    with pytest.raises(ValueError, match="not a line of mountinfo"):
        parse_mountinfo(b"1 2 3\n")


def test_tables_of_tasks_are_renamed_together() -> None:
    tables = rename_tables(
        {
            "one": b"50 40 0:9 / / rw shared:8 - tmpfs a rw\n",
            "two": b"70 60 0:9 / / rw master:8 - tmpfs a rw\n71 70 0:3 / /d rw shared:2 - x y rw\n",
        }
    )
    rows = [(r.id, r.parent, r.dev, r.shared, r.master) for t in tables.values() for r in t]
    assert rows == [(1, 2, 1, 1, 0), (3, 4, 1, 0, 1), (5, 3, 2, 2, 0)]


def skip_unless_root() -> None:
    if os.geteuid():
        pytest.skip("only root has further ids")
