"""What a device does with requests that are pending when it is stopped."""

from __future__ import annotations

import threading
from errno import EINTR

import pytest
from vhost_user_support import PARK, Serving, serve_device

from harness.vhost_user.fuse_client import FuseClient


def stop_when_it_waits(serving: Serving) -> threading.Thread:
    def stop() -> None:
        serving.server.arrived.wait(60)
        serving.device.stop()

    thread = threading.Thread(target=stop)
    thread.start()
    return thread


def test_a_device_that_is_stopped_answers_what_waits() -> None:
    with serve_device() as serving, serving.frontend() as frontend:
        frontend.negotiate()
        frontend.share_memory()
        client = FuseClient(frontend, depth=2, timeout=60)
        thread = stop_when_it_waits(serving)
        assert client.request(PARK, 1, b"", 64)[0] == EINTR
        thread.join()
        serving.wait_until_gone()
        assert serving.server.drains == 1
        client.close()


def test_a_device_whose_server_does_not_answer_stops_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harness.vhost_user.backend.END_LIMIT_NS", 1)
    with serve_device() as serving, serving.frontend() as frontend:
        serving.server.drain_answers = False
        frontend.negotiate()
        frontend.share_memory()
        client = FuseClient(frontend, depth=2, timeout=0.5)
        thread = stop_when_it_waits(serving)
        with pytest.raises(TimeoutError):
            client.request(PARK, 1, b"", 64)
        thread.join()
        serving.wait_until_gone()
        client.close()
        # The answers that were never given hold the guest's memory.
        serving.server.parked.clear()
