"""Sessions of the shell, on a VFS of this process and through a control socket."""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness.control.client import RemoteKernel
from harness.control.kernel import Kernel, LocalKernel
from harness.control.server import ControlServer
from harness.shell.commands import all_commands
from harness.shell.session import Exit, Session
from harness.shell.streams import BufferedWriter, Bytes
from harness.virtiofs import listen
from vfs import VirtualFilesystem
from vfs.task import Task

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(params=["own", "connected"])
def kernel(
    request: pytest.FixtureRequest, tmp_path: Path, vfs: VirtualFilesystem, task: Task
) -> Iterator[Kernel]:
    if request.param == "own":
        with LocalKernel(vfs, task) as kernel:
            yield kernel
        return
    path = str(tmp_path / "control")
    with (
        ControlServer(listen(path), lambda: LocalKernel(vfs, task)),
        RemoteKernel(path) as remote,
    ):
        yield remote


@pytest.fixture
def sh(kernel: Kernel) -> Iterator[Run]:
    """Runs a script in one session: its status, what it wrote, what it complained about."""
    output, errors = io.BytesIO(), io.BytesIO()
    streams = BufferedWriter(output.write), BufferedWriter(errors.write)
    with Session(kernel, all_commands(), Bytes(), *streams) as session:

        def run(script: str, stdin: bytes = b"") -> tuple[int, str, str]:
            session.stdin = Bytes(stdin)
            try:
                status = session.run(script)
            except Exit as end:
                status = end.status
            for stream in streams:
                stream.flush()
            result = status, os.fsdecode(output.getvalue()), os.fsdecode(errors.getvalue())
            for buffer in (output, errors):
                buffer.seek(0)
                buffer.truncate()
            return result

        yield run
