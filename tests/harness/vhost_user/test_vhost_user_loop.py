"""The serving thread: when it watches rings, and that it stops when told."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from vhost_user_support import ECHO, EchoServer, serve_device

from harness.vhost_user.fuse_client import FuseClient
from harness.vhost_user.loop import PollWindow, ServiceLoop
from harness.virtiofs import VirtioFsDevice


def test_poll_window_opens_after_a_short_sleep_and_not_after_a_long_one() -> None:
    window = PollWindow(50_000)
    window.slept(1_000_000)
    assert window.window_ns == 0
    window.slept(30_000)
    assert window.window_ns == 50_000


def test_watching_in_vain_is_tried_less_and_less_until_it_succeeds() -> None:
    window = PollWindow(50_000)
    gaps = []
    for _ in range(5):
        sleeps = 0
        while not window.window_ns:
            window.slept(30_000)
            sleeps += 1
        gaps.append(sleeps)
        window.slept(80_000)
    assert gaps == [1, 2, 3, 5, 9]
    for _ in range(100_000):
        window.slept(30_000)
    opened = sum(window.window_ns > 0 for _ in range(10_000) if window.slept(30_000) is None)
    assert opened < 12
    window.succeeded()
    while not window.window_ns:
        window.slept(30_000)
    window.slept(80_000)
    window.slept(30_000)
    window.slept(30_000)
    assert window.window_ns == 50_000


def test_poll_window_of_limit_zero_never_opens() -> None:
    window = PollWindow(0)
    window.slept(1)
    assert window.window_ns == 0


@pytest.mark.parametrize("poll_limit_ns", [0, 50_000, 5_000_000])
def test_no_request_is_lost_whether_the_ring_is_watched_or_not(poll_limit_ns: int) -> None:
    with serve_device(poll_limit_ns=poll_limit_ns) as serving, serving.frontend() as frontend:
        frontend.negotiate()
        frontend.share_memory()
        client = FuseClient(frontend, depth=8, timeout=60, spin_ns=0)
        for depth in (1, 2, 8):
            requests = [(ECHO, 1, b"%06d" % number) for number in range(2000)]
            replies = list(client.batch(requests, 6, depth))
            assert replies == [(0, payload) for _, _, payload in requests]


def test_timer_fires_once_after_its_delay() -> None:
    loop = ServiceLoop(0)
    fired = []

    def fire() -> None:
        fired.append(1)
        loop.set_timer(1_000_000, loop.stop)

    loop.set_timer(1_000_000, fire)
    loop.run()
    loop.close()
    assert fired == [1]


def test_stop_before_run_is_not_lost() -> None:
    loop = ServiceLoop(0)
    loop.stop()
    loop.run()
    loop.close()


def test_completion_after_close_is_dropped() -> None:
    loop = ServiceLoop(0)
    loop.close()
    thread = threading.Thread(target=loop.complete, args=(object(), 1))
    thread.start()
    thread.join()
    loop.stop()


def test_device_stops_from_a_signal_handler(tmp_path: object) -> None:
    path = f"{tmp_path}/sock"
    with VirtioFsDevice(EchoServer()) as device:
        previous = signal.signal(signal.SIGUSR1, lambda *_: device.stop())
        timer = threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGUSR1))
        timer.start()
        try:
            device.serve_path(path)
        finally:
            timer.join()
            signal.signal(signal.SIGUSR1, previous)
    assert not os.path.exists(path)
