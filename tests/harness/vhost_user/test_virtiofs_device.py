"""The device's socket and what it refuses to be made with."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from errno import EADDRINUSE, EINVAL, EMFILE
from pathlib import Path

import pytest
from vhost_user_support import ECHO, EchoServer, serve_device

from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import FuseClient
from harness.virtiofs import VirtioFsDevice, listen


def test_socket_is_private_to_its_owner_and_the_umask_is_restored(tmp_path: Path) -> None:
    before = os.umask(0o022)
    try:
        with listen(tmp_path / "sock"):
            assert stat.S_IMODE(os.stat(tmp_path / "sock").st_mode) == 0o700
        assert os.umask(0o022) == 0o022
    finally:
        os.umask(before)


def test_socket_with_a_live_daemon_is_refused_and_stays(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with listen(path) as first:
        with pytest.raises(OSError) as caught:
            listen(path)
        assert caught.value.errno == EADDRINUSE
        first.setblocking(False)
        first.accept()[0].close()


def test_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    listen(path).close()
    with serve_device(path) as serving, serving.frontend() as frontend:
        frontend.negotiate()


def test_file_that_is_no_socket_is_refused_and_stays(tmp_path: Path) -> None:
    path = tmp_path / "sock"
    path.write_text("precious")
    with pytest.raises(OSError) as caught:
        listen(path)
    assert caught.value.errno == EADDRINUSE
    assert path.read_text() == "precious"


def test_socket_is_unlinked_at_the_end_unless_another_took_its_place(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with serve_device(path) as serving, serving.frontend() as frontend:
        frontend.negotiate()
    assert not os.path.exists(path)
    with serve_device(path) as serving:
        with serving.frontend() as frontend:
            frontend.negotiate()
        os.rename(path, path + ".old")
        other = listen(path)
    assert os.path.exists(path)
    other.close()


def test_listening_socket_from_elsewhere_is_served_and_left_open(tmp_path: Path) -> None:
    path = str(tmp_path / "sock")
    with listen(path) as listener, VirtioFsDevice(EchoServer()) as device:
        thread = threading.Thread(target=device.serve, args=(listener,))
        thread.start()
        with Frontend.connect(path) as frontend:
            frontend.negotiate()
            frontend.share_memory()
            client = FuseClient(frontend, depth=2, timeout=60)
            assert client.request(ECHO, 1, b"x", 1) == (0, b"x")
        device.stop()
        thread.join()
        assert listener.fileno() >= 0
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(path)


@pytest.mark.parametrize("tag", ["", "x" * 37])
def test_tag_of_a_wrong_length_is_refused(tag: str) -> None:
    with pytest.raises(OSError) as caught:
        VirtioFsDevice(EchoServer(), tag)
    assert caught.value.errno == EINVAL


@pytest.mark.parametrize("queues", [0, 128])
def test_number_of_queues_out_of_range_is_refused(queues: int) -> None:
    with pytest.raises(OSError) as caught:
        VirtioFsDevice(EchoServer(), "tag", queues)
    assert caught.value.errno == EINVAL


class Exhausted(socket.socket):
    """A listener that finds no free descriptor."""

    refused = 0
    exhausted = True

    def accept(self) -> tuple[socket.socket, object]:
        if self.exhausted:
            self.refused += 1
            raise OSError(EMFILE, os.strerror(EMFILE))
        return super().accept()


@pytest.mark.parametrize(("pause_ns", "passes"), [(60_000_000_000, False), (1_000_000, True)])
def test_want_of_descriptors_pauses_accepting_until_it_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pause_ns: int, passes: bool
) -> None:
    monkeypatch.setattr("harness.virtiofs.ACCEPT_PAUSE_NS", pause_ns)
    path = str(tmp_path / "sock")
    with Exhausted(socket.AF_UNIX) as listener, VirtioFsDevice(EchoServer()) as device:
        listener.bind(path)
        listener.listen()
        thread = threading.Thread(target=device.serve, args=(listener,))
        thread.start()
        with socket.socket(socket.AF_UNIX) as early:
            early.connect(path)
            while listener.refused < (2 if passes else 1):
                time.sleep(0.01)
            # Long enough to be refused some thousand times by one that goes on trying.
            time.sleep(0.1)
            assert passes or listener.refused == 1
        listener.exhausted = False
        if passes:
            with Frontend.connect(path) as frontend:
                frontend.negotiate()
        device.stop()
        thread.join()
