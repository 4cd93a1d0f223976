"""``target``: each test that takes it runs on our proc and on Linux's, which vouches for it."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import pytest
from proc_support import register_proc

from harness.testbed.linux_target import Agent, LinuxTarget
from harness.testbed.target import Target, TargetTask, TargetUnavailable
from harness.testbed.vfs_target import VfsTarget


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    try:
        return (yield)
    except TargetUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def linux_agent() -> Iterator[Agent]:
    agent = Agent()
    yield agent
    agent.close()


@pytest.fixture(params=["vfs", "linux"])
def target(request: pytest.FixtureRequest) -> Iterator[Target]:
    """A fresh tmpfs with a task ``root``, and proc on /proc, where only the target's tasks are."""
    if request.param == "vfs":
        ours = VfsTarget(tracing=True)
        register_proc(ours.vfs)
        made: Target = ours
    else:
        try:
            made = LinuxTarget(request.getfixturevalue("linux_agent"))
        except TargetUnavailable as error:
            pytest.skip(str(error))
    with made:
        task = made.task()
        task.mkdir("/proc", 0o755)
        task.mount("proc", "/proc", "proc", 0, "")
        yield made
        made.check()


@pytest.fixture
def root(target: Target) -> TargetTask:
    return target.task()


@pytest.fixture
def alice(root: TargetTask) -> TargetTask:
    """Uid and gid 1000, also of groups 100 and 7."""
    try:
        return root.clone("alice", 0, 1000, 1000, (100, 7))
    except TargetUnavailable as error:
        pytest.skip(str(error))
