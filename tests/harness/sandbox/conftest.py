"""Whoever starts the daemon: root, and a user without any privilege."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sandbox_support import USER, become_user, shared_directory

from harness import linux
from vfs import abi


def _user_namespaces_are_allowed() -> bool:
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            become_user()
            linux.unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWNS)
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


@pytest.fixture(autouse=True)
def _needs_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to be others too")


@pytest.fixture(params=(0, USER), ids=("root", "user"))
def uid(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    if value and not _user_namespaces_are_allowed():
        pytest.skip("users may not make user namespaces here")
    return value


@pytest.fixture
def shared(request: pytest.FixtureRequest) -> Iterator[Path]:
    """The shared directory, of the test's `uid`."""
    owner = request.getfixturevalue("uid") if "uid" in request.fixturenames else 0
    with shared_directory(owner) as directory:
        yield directory
