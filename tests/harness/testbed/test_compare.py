"""A difference between two targets is found, and reported so that it can be understood and run."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.testbed.compare import AFTER_EACH_STEP, AT_END, Difference, minimize, run
from harness.testbed.linux_target import Agent, LinuxTarget
from harness.testbed.runner import run_file
from harness.testbed.step import Step, make_step, parse_script
from harness.testbed.target import TargetUnavailable
from harness.testbed.vfs_target import VfsTarget
from vfs import abi

SCRIPT = """
root: mkdirat(AT_FDCWD, "d", 0o755)
root: chmod("d", 0o1777)
root: clone("alice", 0, 1000, 1000, (100,))
alice: openat(AT_FDCWD, "d/f", O_RDWR|O_CREAT, 0o644)
alice: write(0, b"x" * 5000)
alice: pwrite64(0, b"y" * 10, 100000)
root: setxattr("d/f", "user.a", b"1", 0)
root: symlink("abc", "d/s")
root: mknod("d/p", S_IFIFO|0o644, 0)
root: link("d/f", "d/g")
alice: chdir("d")
alice: rmdir("/d")
"""


class Altered(VfsTarget):
    """A VFS that answers one call as it likes."""

    name = "altered"

    def __init__(self, call: str, answer: Callable[[VfsTarget, Step], Any]) -> None:
        super().__init__()
        self.call = call
        self.answer = answer

    def perform(self, step: Step) -> Any:
        return self.answer(self, step) if step.call == self.call else super().perform(step)


def compare(
    call: str, answer: Callable[[VfsTarget, Step], Any], observe: str = AFTER_EACH_STEP
) -> Difference | None:
    with VfsTarget() as good, Altered(call, answer) as bad:
        return run(parse_script(SCRIPT), good, bad, observe)


def test_the_same_system_twice_does_not_differ() -> None:
    with VfsTarget() as one, VfsTarget() as other:
        assert run(parse_script(SCRIPT), one, other, AFTER_EACH_STEP) is None


@pytest.mark.usefixtures("every_id")
def test_the_vfs_and_linux_do_not_differ(linux_agent: Agent) -> None:
    with VfsTarget() as one, LinuxTarget(linux_agent) as other:
        assert run(parse_script(SCRIPT), one, other, AFTER_EACH_STEP) is None


def test_another_errno_is_reported_with_the_step_both_answers_and_the_script() -> None:
    def refuse(target: VfsTarget, step: Step) -> None:
        raise PermissionError(1, os.strerror(1))

    found = compare("rmdir", refuse)
    assert found is not None
    text = str(found)
    assert "Answers differ (step 12 of 12)" in text
    assert "vfs      EACCES" in text
    assert "altered  EPERM" in text
    script = text.split("Script:\n")[1]
    assert parse_script(script) == parse_script(SCRIPT)


def test_a_silent_difference_of_the_state_is_marked_in_both_columns() -> None:
    def forget(target: VfsTarget, step: Step) -> None:
        """Answers as if it had set the attribute."""

    found = compare("setxattr", forget)
    assert found is not None
    assert found.reason == "States differ"
    assert found.at == 6
    marked = [line for line in str(found).splitlines() if line.startswith("  !")]
    assert len(marked) == 2
    assert "user.a" in marked[0]
    assert "user.a" not in marked[1]
    found_at_end = compare("setxattr", forget, AT_END)
    assert found_at_end is not None


def test_times_in_the_opposite_order_are_a_difference() -> None:
    old, new = ((5, 0), (9, 0)), ((9, 0), (5, 0))

    def swap(target: VfsTarget, step: Step) -> None:
        VfsTarget.perform(target, step._replace(args=(abi.AT_FDCWD, b"/", new, 0)))

    steps = [make_step("root", "utimensat", abi.AT_FDCWD, "/", old, 0)]
    with VfsTarget() as good, Altered("utimensat", swap) as bad:
        found = run(steps, good, bad)
    assert found is not None
    assert "atime < mtime" in str(found)
    assert "atime > mtime" in str(found)


def test_a_crash_of_ours_is_a_difference_with_its_traceback() -> None:
    def crash(target: VfsTarget, step: Step) -> None:
        raise KeyError("oh")

    with Altered("rmdir", crash) as bad, VfsTarget() as good:
        found = run(parse_script(SCRIPT), bad, good)
    assert found is not None
    assert "KeyError: 'oh'" in str(found)


def test_minimize_keeps_only_the_steps_that_matter() -> None:
    steps = [make_step("root", "umask", number) for number in range(50)]
    wanted = [steps[7], steps[31]]
    assert minimize(steps, lambda some: all(step in some for step in wanted)) == wanted


@pytest.mark.usefixtures("every_id")
def test_a_script_in_a_file_runs(tmp_path: Path, linux_agent: Agent) -> None:
    script = tmp_path / "script"
    script.write_text(SCRIPT)
    assert run_file(script) is None
    assert run_file(script, ("vfs", "vfs")) is None


def test_a_file_with_a_bad_script_or_an_unknown_target_is_refused(tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text("root: nothing()\n")
    with pytest.raises(ValueError, match="line 1: no such call: nothing"):
        run_file(script)
    script.write_text(SCRIPT)
    with pytest.raises(ValueError, match="no target 'bsd'"):
        run_file(script, ("vfs", "bsd"))


def test_tasks_that_do_not_exist_and_names_taken_are_refused(linux_agent: Agent) -> None:
    with VfsTarget() as ours, LinuxTarget(linux_agent) as linux:
        for target in (ours, linux):
            with pytest.raises(ValueError, match="no task nobody"):
                target.perform(make_step("nobody", "getcwd"))
            with pytest.raises(ValueError, match="task root exists"):
                target.task().clone("root")


def test_a_linux_target_leaves_no_mount_and_no_process_behind(linux_agent: Agent) -> None:
    with LinuxTarget(linux_agent) as target:
        target.task().mkdir("d", 0o755)
        pids = [task.pid for task in target._tasks.values()]
        assert os.listdir(linux_agent.directory) == []
        assert linux_agent.directory not in Path("/proc/self/mountinfo").read_text()
    for pid in pids:
        for _ in range(1000):
            if not os.path.exists(f"/proc/{pid}"):
                break
            os.sched_yield()
        else:
            pytest.fail(f"task process {pid} lives on")


def test_options_that_linux_refuses_make_the_target_unavailable(linux_agent: Agent) -> None:
    with pytest.raises(TargetUnavailable):
        LinuxTarget(linux_agent, "no-such-option=1")
