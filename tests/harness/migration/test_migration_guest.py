"""A Linux guest is migrated by QEMU, from one daemon to another.

Not marked as a guest's test: CI, where those must not be skipped, has a QEMU before 8.2, which
migrates no device with vhost-user state. What `make newer` has fetched is used, or what DENTRY_QEMU
names, as words of a command line.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from harness.guest import GuestUnavailable
from harness.guest.cpio import CpioWriter
from harness.guest.initramfs import find_busybox
from harness.guest.kernel import Kernel, find_kernel, module_files, read_module
from harness.guest.kvm import TCG
from harness.guest.newer import find_newer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

MODULES = ("virtiofs", "virtio_pci")
PATIENCE = 300.0
INIT = r"""#!/bin/busybox sh
export PATH=/bin
/bin/busybox --install -s /bin
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
exec </dev/ttyS0 >/dev/ttyS0 2>&1
stty -echo
while read -r module; do insmod "/lib/$module"; done </etc/modules
mkdir /m
mount -t virtiofs fs /m || poweroff -f
cd /m
echo before >kept
ln kept linked
exec 3<>host/open
echo first >&3
echo deleted, but open >gone
exec 4<gone
rm gone
echo doomed >host/doomed
(while echo tick >>ticks; do usleep 50000; done; echo LOST) &
echo READY
while read -r word; do
    case $word in
    delete) exec 5<host/doomed; rm host/doomed; echo DELETED ;;
    close) cat <&5; exec 5<&-; echo CLOSED ;;
    go) break ;;
    esac
done
echo WORD
echo second >&3
cat host/open
cat <&4
cat linked
kill %1
echo after >>kept
cat linked
ls host
echo END
sync
poweroff -f
"""


def qemu() -> list[str]:
    """The words that start a QEMU that can do it; skips where there is none."""
    try:
        default = str(find_newer().qemu)
    except GuestUnavailable:
        default = "qemu-system-x86_64"
    words = shlex.split(os.environ.get("DENTRY_QEMU") or default)
    if shutil.which(words[0]) is None:
        pytest.skip(f"no {words[0]}")
    said = subprocess.run([*words, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r"version (\d+)\.(\d+)", said)
    assert found is not None, said
    if (int(found[1]), int(found[2])) < (8, 2):
        pytest.skip(f"QEMU {found[1]}.{found[2]}: 8.2 is the first to migrate vhost-user-fs")
    return words


def initramfs(kernel: Kernel) -> bytes:
    archive = CpioWriter()
    for directory in ("bin", "dev", "etc", "lib", "proc"):
        archive.directory(directory)
    archive.device("dev/console", stat.S_IFCHR, 5, 1)
    archive.file("bin/busybox", find_busybox().read_bytes(), 0o755)
    names = []
    for path in module_files(kernel, MODULES):
        names.append(path.name.partition(".ko")[0] + ".ko")
        archive.file(f"lib/{names[-1]}", read_module(path))
    archive.file("etc/modules", "".join(f"{name}\n" for name in names).encode())
    archive.file("init", INIT.encode(), 0o755)
    return archive.finish()


class Machine:
    """One QEMU: its serial line and its monitor."""

    def __init__(self, directory: Path) -> None:
        self.said = ""
        self.serial = connected(directory / "serial")
        with connected(directory / "qmp") as sock:
            self.monitor = sock.makefile("rwb")
        self.command("qmp_capabilities")

    def command(self, name: str, **arguments: Any) -> Any:
        line = json.dumps({"execute": name, "arguments": arguments})
        self.monitor.write(line.encode() + b"\n")
        self.monitor.flush()
        while True:
            answer = json.loads(self.monitor.readline())
            if "error" in answer:
                raise AssertionError(answer["error"])
            if "return" in answer:
                return answer["return"]

    def migrate(self, uri: str) -> str:
        """How it ended: completed or failed."""
        self.command("migrate", uri=uri)
        deadline = time.monotonic() + PATIENCE
        while (status := self.command("query-migrate")["status"]) not in ("completed", "failed"):
            assert time.monotonic() < deadline, status
            time.sleep(0.1)
        return str(status)

    def wait_for(self, text: str) -> None:
        """Until the guest has said it."""
        self.serial.settimeout(PATIENCE)
        deadline = time.monotonic() + PATIENCE
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            data = self.serial.recv(4096)
            assert data, self.said
            self.said += data.decode(errors="replace").replace("\r", "")


def connected(path: Path) -> socket.socket:
    deadline = time.monotonic() + PATIENCE
    while True:
        sock = socket.socket(socket.AF_UNIX)
        try:
            sock.connect(str(path))
        except OSError:
            sock.close()
            assert time.monotonic() < deadline, f"nobody listens at {path}"
            time.sleep(0.05)
        else:
            return sock


@contextmanager
def process(words: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(words, stdin=subprocess.DEVNULL) as running:
        try:
            yield running
        finally:
            running.kill()


def start(
    stack: ExitStack, place: Path, program: list[str], share: Path, archive: Path, *more: str
) -> tuple[Machine, subprocess.Popen[bytes]]:
    """A daemon and a machine on it."""
    place.mkdir()
    daemon = [
        *(sys.executable, "-m", "harness.cli", "serve", "--socket-path", str(place / "fs")),
        *("--mount", "type=tmpfs,dst=/,mode=755"),
        *("--mount", f"type=passthrough,src={share},dst=/host"),
    ]  # fmt: skip
    running = stack.enter_context(process(daemon))
    deadline = time.monotonic() + PATIENCE
    while not (place / "fs").exists():
        assert running.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    size = 256 << 20
    words = [
        *program, "-M", "q35", *TCG, "-smp", "1", "-m", f"{size}B",
        "-object", f"memory-backend-memfd,id=mem,size={size},share=on", "-numa", "node,memdev=mem",
        "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none",
        "-kernel", str(find_kernel(needed=MODULES).image), "-initrd", str(archive),
        "-append", "console=ttyS0 quiet panic=-1 cryptomgr.notests",
        "-chardev", f"socket,id=serial,path={place}/serial,server=on,wait=off",
        "-serial", "chardev:serial", "-qmp", f"unix:{place}/qmp,server=on,wait=off",
        "-chardev", f"socket,id=fs,path={place}/fs",
        "-device", "vhost-user-fs-pci,chardev=fs,tag=fs", *more,
    ]  # fmt: skip
    stack.enter_context(process(words))
    machine = Machine(place)
    stack.callback(machine.serial.close)
    stack.callback(machine.monitor.close)
    return machine, running


def test_qemu_migrates_a_guest_if_it_can_and_the_guest_notices_nothing(tmp_path: Path) -> None:
    program = qemu()
    try:
        archive = initramfs(find_kernel(needed=MODULES))
    except GuestUnavailable as error:
        pytest.skip(str(error))
    share = tmp_path / "share"
    share.mkdir()
    image = tmp_path / "initramfs"
    image.write_bytes(archive)
    with ExitStack() as stack:

        def begin(name: str, *more: str) -> tuple[Machine, subprocess.Popen[bytes]]:
            return start(stack, tmp_path / name, program, share, image, *more)

        def begin_target(name: str) -> tuple[Machine, subprocess.Popen[bytes]]:
            return begin(name, "-incoming", f"unix:{tmp_path}/to-{name}")

        machine, daemon = begin("source")
        machine.wait_for("READY")
        # A deleted file of the host is a reason to stay, and not to stop.
        machine.serial.sendall(b"delete\n")
        machine.wait_for("DELETED")
        begin_target("never")
        assert machine.migrate(f"unix:{tmp_path}/to-never") == "failed"
        machine.serial.sendall(b"close\n")
        machine.wait_for("doomed\nCLOSED")
        for name in ("second", "third"):
            target, other = begin_target(name)
            assert machine.migrate(f"unix:{tmp_path}/to-{name}") == "completed"
            machine.command("quit")
            machine, daemon = target, other
        machine.serial.sendall(b"go\n")
        machine.wait_for("END")
        assert daemon.poll() is None
    assert machine.said.partition("WORD\n")[2].partition("END")[0].splitlines() == [
        "first", "second", "deleted, but open", "before", "before", "after", "open",
    ]  # fmt: skip
    assert "LOST" not in machine.said
