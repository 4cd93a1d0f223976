"""``target``: each test that takes it runs on the VFS and on Linux, which vouches for the test."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import suppress

import pytest

from harness.testbed.linux_target import Agent, LinuxTarget
from harness.testbed.target import Target, TargetTask, TargetUnavailable
from harness.testbed.vfs_target import VfsTarget

SYSCTLS = ("protected_symlinks", "protected_hardlinks", "protected_regular", "protected_fifos")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """A user has no other credentials on Linux; tests that want some are skipped there."""
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
    """A fresh tmpfs with a task ``root``, and fs.protected_* off."""
    if request.param == "vfs":
        made: Target = VfsTarget(tracing=True)
    else:
        try:
            made = LinuxTarget(request.getfixturevalue("linux_agent"))
        except TargetUnavailable as error:
            pytest.skip(str(error))
    with made:
        for name in SYSCTLS:
            # What a user cannot set concerns several users, whom a user cannot have either.
            with suppress(TargetUnavailable):
                made.set_sysctl(name, 0)
        yield made
        made.check()


@pytest.fixture
def every_id(target: Target) -> None:
    """For tests of what takes further ids than the caller's own, which a user has none of on Linux
    (nor sees: the host's root is 65534 there).
    """
    if isinstance(target, LinuxTarget) and os.geteuid():
        pytest.skip("a user's namespace has one id: run as root")


@pytest.fixture
def root(target: Target) -> TargetTask:
    return target.task()


@pytest.fixture
def alice(root: TargetTask) -> TargetTask:
    """Uid and gid 1000, also of group 100; forked from ``root`` before it did anything."""
    return clone(root, "alice", 1000, (100,))


@pytest.fixture
def bob(root: TargetTask) -> TargetTask:
    """Uid and gid 1001."""
    return clone(root, "bob", 1001, ())


def clone(root: TargetTask, name: str, uid: int, groups: tuple[int, ...]) -> TargetTask:
    try:
        return root.clone(name, 0, uid, uid, groups)
    except TargetUnavailable as error:
        pytest.skip(str(error))
