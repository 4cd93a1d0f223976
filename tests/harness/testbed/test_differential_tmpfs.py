"""Random sequences of calls on the VFS with tmpfs and on the kernel's tmpfs answer the same.

``DENTRY_FUZZ_EXAMPLES=20000`` runs longer, on other sequences each time. A difference is reported
with the script that reproduces it, cut down to the steps that it needs.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, Phase, given, settings

from harness.testbed.compare import AFTER_EACH_STEP, AT_END, Difference, minimize, run
from harness.testbed.linux_target import Agent, LinuxTarget
from harness.testbed.step import Step
from harness.testbed.strategies import file_sequences
from harness.testbed.target import NoSuchTask
from harness.testbed.vfs_target import VfsTarget

EXAMPLES = int(os.environ.get("DENTRY_FUZZ_EXAMPLES", "0"))
SYSCTLS = ("protected_symlinks", "protected_hardlinks", "protected_regular", "protected_fifos")


def difference(steps: Sequence[Step], agent: Agent, observe: str) -> Difference | None:
    """The first difference, if there is one. Raises if the VFS leaks a reference."""
    with LinuxTarget(agent) as linux, VfsTarget() as ours:
        for name in SYSCTLS:
            ours.set_sysctl(name, linux.sysctl(name))
        return run(steps, ours, linux, observe)


def report(steps: Sequence[Step], agent: Agent) -> str:
    """The difference after the first step that makes one, with as few steps before as possible."""
    found = difference(steps, agent, AFTER_EACH_STEP)
    if found is None:
        return "The states differed at the end, and not when looked at after each step.\n"
    reason, call = found.reason, found.steps[found.at].call

    def still_differs(some: Sequence[Step]) -> bool:
        try:
            other = difference(some, agent, AFTER_EACH_STEP)
        except NoSuchTask:
            return False
        return other is not None and (other.reason, other.steps[other.at].call) == (reason, call)

    needed = minimize(steps[: found.at + 1], still_differs)
    return str(difference(needed, agent, AFTER_EACH_STEP) or found)


@pytest.mark.slow
@pytest.mark.timeout(0 if EXAMPLES else 300)
@pytest.mark.usefixtures("every_id")
@settings(
    max_examples=EXAMPLES or 400,
    derandomize=not EXAMPLES,
    phases=[Phase.generate],
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(steps=file_sequences(60))
def test_random_calls_on_tmpfs_answer_as_on_the_kernels_tmpfs(
    steps: list[Step], linux_agent: Agent
) -> None:
    if difference(steps, linux_agent, AT_END) is not None:
        pytest.fail(report(steps, linux_agent), pytrace=False)


@pytest.mark.slow
@pytest.mark.timeout(0 if EXAMPLES else 300)
@pytest.mark.usefixtures("every_id")
@settings(
    max_examples=EXAMPLES or 200,
    derandomize=not EXAMPLES,
    phases=[Phase.generate],
    database=None,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
@given(steps=file_sequences(60, mounts=True))
def test_random_mounts_of_tmpfs_answer_as_on_the_kernel(
    steps: list[Step], linux_agent: Agent
) -> None:
    if difference(steps, linux_agent, AT_END) is not None:
        pytest.fail(report(steps, linux_agent), pytrace=False)
