"""The agent that makes system calls on the host kernel."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from harness.testbed.linux_target import Agent, LinuxTarget
from harness.testbed.target import TargetUnavailable


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
