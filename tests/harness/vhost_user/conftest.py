"""A device with an echo server, a client of it, and a watch on descriptors."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from vhost_user_support import Serving, open_descriptors, serve_device

from harness.vhost_user.fuse_client import FuseClient


@pytest.fixture(autouse=True)
def no_descriptor_leak() -> Iterator[None]:
    """Every test gives back the descriptors it opened."""
    before = open_descriptors()
    yield
    after = open_descriptors()
    assert len(after) <= len(before), f"leaked: {after}, before: {before}"


@pytest.fixture
def serving() -> Iterator[Serving]:
    with serve_device() as serving:
        yield serving


@pytest.fixture
def client(serving: Serving) -> Iterator[FuseClient]:
    with serving.frontend() as frontend:
        frontend.negotiate()
        frontend.share_memory()
        client = FuseClient(frontend, depth=8, timeout=60)
        yield client
        client.close()
