"""The agent that makes system calls on the host kernel."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from harness.testbed.linux_target import Agent, LinuxTarget
from harness.testbed.target import TargetUnavailable


@pytest.fixture(scope="session")
def every_id() -> None:
    """For sequences of tasks with several ids, of which a user's namespace has one."""
    if os.geteuid():
        pytest.skip("a user's namespace has one id: run as root")


@pytest.fixture(scope="session")
def linux_agent() -> Iterator[Agent]:
    agent = Agent()
    try:
        LinuxTarget(agent).close()
    except TargetUnavailable as error:
        pytest.skip(str(error))
    else:
        yield agent
    finally:
        agent.close()
