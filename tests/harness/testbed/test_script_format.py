"""Steps print as a script that a person can read, and read back as the same steps."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from harness.testbed.generate import sequences
from harness.testbed.step import (
    SIGNATURES,
    Step,
    format_script,
    format_step,
    make_step,
    parse_script,
    parse_step,
)
from vfs import abi


@settings(max_examples=50, deadline=None)
@given(steps=sequences())
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
        "root: lseek(0, -1, SEEK_END)",
        "root: utimensat(0, None, ((1, 2), (3, 4)), 0)",
        'root: mount(None, "/", None, MS_RDONLY|MS_REMOUNT, None)',
        'root: clone("alice", CLONE_FS, 1000, 1000, (100,))',
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
    from harness.testbed.host_syscalls import HostSyscalls
    from harness.testbed.vfs_target import TaskCalls
    from vfs.task import Task

    for call in SIGNATURES.keys() - {"clone", "exit"}:
        assert hasattr(HostSyscalls(), call), call
        assert hasattr(TaskCalls, call) or hasattr(Task, call), call
