"""Steps print as a script that a person can read, and read back as the same steps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from harness.testbed.step import (
    SIGNATURES,
    Step,
    format_script,
    format_step,
    make_step,
    parse_script,
    parse_step,
)
from harness.testbed.strategies import file_sequences
from vfs import abi

# What a target does with its tasks, rather than a task with its system.
TARGETS_OWN = {"clone", "exit", "mountinfo", "mounts", "mountstats", "nsfd"}


@settings(max_examples=50, deadline=None)
@given(steps=file_sequences())
def test_every_sequence_reads_back_as_it_was(steps: list[Step]) -> None:
    assert parse_script(format_script(steps, "a comment\nof two lines")) == steps


@pytest.mark.parametrize(
    "line",
    [
        'root: mkdirat(AT_FDCWD, "d", 0o755)',
        'alice: openat(3, "d/f", O_RDWR|O_CREAT|O_EXCL, 0o644)',
        'root: openat(AT_FDCWD, ".", O_TMPFILE|O_RDWR, 0o600)',
        'root: write(0, b"x" * 5000)',
        'root: setxattr("f", "user." + "n" * 250, b"", XATTR_CREATE)',
        'root: mknodat(AT_FDCWD, "p", S_IFIFO|0o600, 0)',
        'root: mkdirat(AT_FDCWD, b"\\xff", 0o755)',
        'root: mkdirat(AT_FDCWD, b"\\xff/" + b"n" * 250, 0o755)',
        "root: lseek(0, -1, SEEK_END)",
        "root: utimensat(0, None, ((1, 2), (3, 4)), 0)",
        'root: mount(None, "/", None, MS_RDONLY|MS_REMOUNT, None)',
        'root: clone("alice", CLONE_FS, 1000, 1000, (100,))',
        'root: clone("alice", CLONE_NEWNS|CLONE_NEWUSER, 1000, 1000, ())',
        'root: mount("a", "b", None, MS_BIND|MS_REC, None)',
        'root: mount(None, "/", None, MS_REC|MS_SHARED, None)',
        'root: open_tree(AT_FDCWD, "a", OPEN_TREE_CLONE|AT_RECURSIVE)',
        'root: open_tree_attr(AT_FDCWD, "a", OPEN_TREE_CLONE, (MOUNT_ATTR_RDONLY, 0, 0, 0))',
        'root: move_mount(3, "", AT_FDCWD, "b", MOVE_MOUNT_F_EMPTY_PATH|MOVE_MOUNT_BENEATH)',
        'root: mount_setattr(-1, "/", AT_RECURSIVE, '
        "(MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY|MOUNT_ATTR_NOEXEC, MS_PRIVATE, 0))",
        'root: mount_setattr(0, "", AT_EMPTY_PATH, None)',
        'root: fsopen("tmpfs", FSOPEN_CLOEXEC)',
        'root: fsconfig(0, FSCONFIG_SET_STRING, "size", "1m", 0)',
        "root: fsconfig(0, FSCONFIG_CMD_CREATE, None, None, 0)",
        "root: fsmount(0, FSMOUNT_CLOEXEC, MOUNT_ATTR_NODEV|MOUNT_ATTR_NOATIME)",
        'root: fspick(AT_FDCWD, "/", FSPICK_NO_AUTOMOUNT)',
        "root: setns(3, CLONE_NEWNS)",
        'root: nsfd("alice", "mnt")',
        "root: listmount(LSMT_ROOT, 0, 100, 0, LISTMOUNT_REVERSE)",
        'root: statmount_at("/a", STATMOUNT_SB_BASIC|STATMOUNT_MNT_BASIC)',
        "root: poll(0, POLLIN|POLLERR)",
    ],
)
def test_a_line_reads_and_prints_alike(line: str) -> None:
    assert format_step(parse_step(line)) == line


def test_flags_may_be_written_as_expressions() -> None:
    step = parse_step('root: open("f", O_RDWR | O_CREAT, 0o600 | 0o44)')
    assert step == make_step("root", "open", "f", abi.O_RDWR | abi.O_CREAT, 0o644)


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("mkdir('d')", "expected 'task: call"),
        ("root: mkdir", "expected a call"),
        ("root: reboot()", "no such call: reboot"),
        ("root: open(__import__('os'), 0, 0)", "not a constant"),
        ("root: getcwd(1)", "takes 0 arguments"),
        ("root: mkdir('d'", "was never closed"),
    ],
)
def test_a_bad_line_is_refused_with_its_number(line: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=r"line 2: .*") as info:
        parse_script("# comment\n" + line)
    assert complaint in str(info.value)


def test_every_call_of_a_script_exists_on_both_targets() -> None:
    from harness.task_calls import TaskCalls
    from harness.testbed.host_syscalls import HostSyscalls
    from vfs.task import Task

    for call in SIGNATURES.keys() - TARGETS_OWN:
        assert hasattr(HostSyscalls(), call), call
        assert hasattr(TaskCalls, call) or hasattr(Task, call), call
