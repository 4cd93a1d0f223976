"""The examples in docs/devices.md are run as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from vfs.device import Device

if TYPE_CHECKING:
    from tests.devtmpfs.conftest import Machine

REPOSITORY = Path(__file__).parents[2]
TEXT = (REPOSITORY / "docs" / "devices.md").read_text()
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


def test_the_hello_program_prints_what_the_page_says() -> None:
    (language, program), (_, output) = BLOCKS[:2]
    assert language == "python"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == output


def test_a_reader_of_the_mailbox_waits_for_a_message(machine: Machine) -> None:
    program = next(text for _, text in BLOCKS if "class Mailbox" in text)
    namespace: dict[str, type[Device]] = {}
    exec(program, namespace)
    machine.vfs.devices.register(namespace["Mailbox"]())
    task = machine.task
    fd = task.open("/dev/mailbox", os.O_RDWR)
    got: list[bytes] = []
    reader = threading.Thread(target=lambda: got.append(task.read(fd, 99)))
    reader.start()
    task.write(fd, b"first")
    task.write(fd, b"second")
    reader.join(60)
    assert got == [b"first"]
    assert task.read(fd, 3) == b"sec"
    task.close(fd)
