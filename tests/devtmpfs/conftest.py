"""A VFS with a devtmpfs on /dev, a task in it, and the standard devices at hand."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import devtmpfs
from fsimpl.tmpfs import TmpfsType
from vfs.clock import VirtualClock
from vfs.namespace import MountNamespace
from vfs.task import Task
from vfs.virtual_filesystem import VirtualFilesystem


class Machine:
    """One VirtualFilesystem from power-on to shutdown, which verifies the counts."""

    def __init__(self) -> None:
        self.clock = VirtualClock()
        self.vfs = VirtualFilesystem(clock=self.clock, tracing=True)
        self.vfs.register(TmpfsType())
        self.standard = devtmpfs.install(self.vfs)
        self.namespace: MountNamespace = self.vfs.create_namespace("tmpfs")
        self.task: Task = self.vfs.create_task(self.namespace)
        self.task.mkdir("/dev")
        self.task.mount("devtmpfs", "/dev", "devtmpfs")

    def shutdown(self) -> None:
        self.vfs.check()
        self.task.exit()
        with self.vfs.lock:
            self.namespace.put()
        self.vfs.shutdown()


@pytest.fixture
def machine() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.shutdown()


@pytest.fixture
def task(machine: Machine) -> Task:
    return machine.task
