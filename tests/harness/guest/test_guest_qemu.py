"""QEMU's command line, and the life of its process."""

import itertools
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from harness.guest.errors import GuestUnavailable
from harness.guest.guest import Guest, GuestConfig
from harness.guest.kvm import TCG
from harness.guest.qemu import Machine, QemuProcess, find_qemu, qemu_arguments

MACHINE = Machine(
    kernel=Path("/boot/vmlinuz"),
    initramfs=Path("/proc/self/fd/7"),
    filesystem=Path("/run/a,b.sock"),
    tag="tag",
    console=Path("/proc/self/fd/8"),
    accelerator=TCG,
    ports={"dentry.control": 9},
)


def values(arguments: list[str], option: str) -> list[str]:
    return [value for name, value in itertools.pairwise(arguments) if name == option]


def test_guest_memory_is_shared_and_as_large_as_asked() -> None:
    arguments = qemu_arguments(replace(MACHINE, memory=768 << 20))
    assert values(arguments, "-m") == [f"{768 << 20}B"]
    assert values(arguments, "-object") == [
        f"memory-backend-memfd,id=mem,size={768 << 20},share=on"
    ]


def test_commas_in_paths_are_doubled() -> None:
    assert "socket,id=fs,path=/run/a,,b.sock" in values(qemu_arguments(MACHINE), "-chardev")


def test_a_connected_descriptor_takes_the_place_of_a_path() -> None:
    arguments = qemu_arguments(replace(MACHINE, filesystem=11))
    assert "socket,id=fs,fd=11" in values(arguments, "-chardev")


def test_a_terminal_comes_before_the_ports() -> None:
    devices = values(qemu_arguments(replace(MACHINE, terminal=12)), "-device")
    names = [device.partition(",")[0] for device in devices]
    assert names.index("virtconsole") < names.index("virtserialport")


def test_a_missing_qemu_names_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GuestUnavailable, match="qemu-system-x86"):
        find_qemu()


@pytest.mark.parametrize("change", [{}, {"tag": "x" * 37}])
def test_a_guest_without_a_daemon_or_with_a_long_tag_is_one_line(
    tmp_path: Path, change: dict[str, str]
) -> None:
    with pytest.raises(GuestUnavailable) as caught:
        Guest(replace(GuestConfig(tmp_path / "none.sock", qemu=Path("/bin/false")), **change))
    assert "\n" not in str(caught.value)


def test_closing_ends_the_process_and_its_pidfd() -> None:
    with tempfile.TemporaryFile() as messages:
        process = QemuProcess(Path("/bin/sleep"), ["100"], pass_fds=(), messages=messages)
        assert process.poll() is None
        process.close()
        process.close()
    assert process.poll() == -signal.SIGTERM
    assert process.pidfd == -1


KILLED_PARENT = """
import os, signal, tempfile
from pathlib import Path
from harness.guest.qemu import QemuProcess
with tempfile.TemporaryFile() as messages:
    process = QemuProcess(Path("/bin/sleep"), ["100"], pass_fds=(), messages=messages)
    os.write(1, b"%d" % process.pid)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_process_dies_with_a_parent_that_is_killed() -> None:
    parent = subprocess.run([sys.executable, "-c", KILLED_PARENT], capture_output=True, check=False)
    assert parent.returncode == -signal.SIGKILL
    pid = int(parent.stdout)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
            os.kill(pid, 0)
        except (ProcessLookupError, FileNotFoundError):
            return
        time.sleep(0.02)
    pytest.fail(f"process {pid} outlived its parent")
