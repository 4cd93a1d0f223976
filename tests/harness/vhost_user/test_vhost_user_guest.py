"""QEMU as the frontend: packed rings, and a virtual machine that is paused."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from harness.cli.daemon import ForkedDaemon
from harness.cli.guest_tree import busybox_tree
from harness.guest.errors import GuestUnavailable
from harness.guest.guest import Guest, GuestConfig
from harness.guest.initramfs import find_busybox
from harness.guest.kernel import find_kernel
from harness.guest.qemu import find_qemu

pytestmark = pytest.mark.guest


class Monitor:
    """QEMU's QMP socket."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
        self._file = self._socket.makefile("rw")
        self._file.readline()
        self.execute("qmp_capabilities")

    def execute(self, command: str, **arguments: object) -> object:
        self._file.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._file.flush()
        while True:
            answer = json.loads(self._file.readline())
            if "return" in answer:
                return answer["return"]
            assert "error" not in answer, answer

    def close(self) -> None:
        self._file.close()
        self._socket.close()


@contextmanager
def booted(tmp_path: Path, *arguments: str) -> Iterator[tuple[Guest, Monitor]]:
    try:
        find_qemu(), find_kernel(), find_busybox()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    path = tmp_path / "qmp"
    extra = ("-qmp", f"unix:{path},server=on,wait=off", *arguments)
    with ForkedDaemon(partial(busybox_tree, [])) as daemon:
        config = GuestConfig(daemon.socket, tag="dentry", qemu_arguments=extra)
        with Guest(config) as guest:
            monitor = Monitor(path)
            try:
                yield guest, monitor
            finally:
                monitor.close()


def virtio_status(monitor: Monitor) -> dict[str, object]:
    devices = monitor.execute("x-query-virtio")
    assert isinstance(devices, list)
    (device,) = [
        d for d in devices if d["name"] in ("vhost-user-fs", "virtio-fs", "virtio-user-fs")
    ]
    status = monitor.execute("x-query-virtio-status", path=device["path"])
    assert isinstance(status, dict)
    return status


@pytest.mark.parametrize("packed", ["off", "on"])
def test_guest_works_on_after_a_pause(tmp_path: Path, packed: str) -> None:
    option = f"vhost-user-fs-device.packed={packed}"
    with booted(tmp_path, "-global", option) as (guest, monitor):
        script = (
            "echo kept > /tmp/file; exec 7</tmp/file; (while :; do sleep 1; done) <&7 & cat <&7"
        )
        assert guest.run(script)[:2] == (0, b"kept\n")
        negotiated = json.dumps(virtio_status(monitor)["guest-features"])
        assert ("PACKED" in negotiated) == (packed == "on")
        for _ in range(2):
            monitor.execute("stop")
            monitor.execute("cont")
            assert guest.run("cat /tmp/file; ls /dev/null")[:2] == (0, b"kept\n/dev/null\n")
        write = "dd if=/dev/urandom of=/tmp/big bs=1M count=8 2>/dev/null; sync; md5sum /tmp/big"
        _, first, _ = guest.run(write)
        monitor.execute("stop")
        monitor.execute("cont")
        assert guest.run("echo 3 > /proc/sys/vm/drop_caches; md5sum /tmp/big")[1] == first
