"""The kernel below us as a target: real system calls in a mount namespace of their own."""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness.testbed import linux_agent
from harness.testbed.host_syscalls import is_supported
from harness.testbed.state import State
from harness.testbed.step import Step
from harness.testbed.target import ROOT_OPTIONS, NoSuchTask, Target, TargetUnavailable

_SLOTS = 8
_OBSERVER = "observer"
# A call that takes longer is stuck; then the task is killed and the test told.
_ANSWER_SECONDS = 30
_SYSCTLS = Path("/proc/sys/fs")


class Agent:
    """The interpreter that forks tasks; one serves any number of targets, one after another."""

    def __init__(self) -> None:
        self.directory = tempfile.mkdtemp(prefix="dentry-testbed-")
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", linux_agent.__name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self.close)

    def start(self, sockets: list[socket.socket], options: str) -> None:
        message = pickle.dumps({"directory": self.directory, "options": options})
        socket.send_fds(self.control, [message], [end.fileno() for end in sockets])

    def close(self) -> None:
        """End it; tasks of targets that are still open end with their sockets."""
        if self.control.fileno() < 0:
            return
        atexit.unregister(self.close)
        self.control.close()
        self.process.wait()
        os.rmdir(self.directory)


class LinuxTarget(Target):
    """A target on the host kernel: every task is a process, and its calls are the kernel's.

    As root it is a mount namespace; as a user a user namespace too, in which there is only one id,
    so that tasks with other credentials cannot be had.
    """

    name = "linux"

    def __init__(self, agent: Agent, options: str = ROOT_OPTIONS) -> None:
        """Raises: TargetUnavailable."""
        if not is_supported():
            raise TargetUnavailable("the test bed makes raw system calls on x86-64 Linux only")
        pairs = [socket.socketpair() for _ in range(_SLOTS)]
        agent.start([theirs for _, theirs in pairs], options)
        for _, theirs in pairs:
            theirs.close()
        self._connections = [Connection(mine.detach()) for mine, _ in pairs]
        self._slots = {"root": 0}
        self._pids: dict[str, int] = {}
        self._old_sysctls: dict[str, int] = {}
        try:
            self._pids["root"] = self._started("root")
            self._clone("root", _OBSERVER, 0, 0, 0, ())
        except BaseException:
            self.close()
            raise

    def _started(self, name: str) -> int:
        number, value = self._answer(name)
        if number:
            raise TargetUnavailable(f"task {name}: {value}")
        return int(value)

    def _answer(self, name: str) -> tuple[int, Any]:
        connection = self._connections[self._slots[name]]
        if not connection.poll(_ANSWER_SECONDS):
            if name in self._pids:
                os.kill(self._pids[name], signal.SIGKILL)
            raise TimeoutError(f"task {name} does not come back from a call")
        number, value = connection.recv()
        if number == -1:
            raise RuntimeError(f"task {name} failed:\n{value}")
        return number, value

    def _call(self, task: str, call: str, args: tuple[Any, ...]) -> Any:
        self._connections[self._slots[task]].send((call, args))
        number, value = self._answer(task)
        if number:
            raise OSError(number, os.strerror(number))
        return value

    def _clone(
        self, task: str, name: str, flags: int, uid: int, gid: int, groups: tuple[int, ...]
    ) -> None:
        if name in self._slots:
            raise ValueError(f"task {name} exists")
        slot = len(self._slots)
        if slot >= _SLOTS:
            raise TargetUnavailable(f"more than {_SLOTS - 1} tasks")
        pid = self._call(task, "clone", (slot, flags, uid, gid, groups))
        self._slots[name] = slot
        self._pids[name] = pid
        self._started(name)

    def perform(self, step: Step) -> Any:
        if step.task not in self._slots:
            raise NoSuchTask(f"no task {step.task}")
        if step.call == "clone":
            self._clone(step.task, *step.args)
            return None
        return self._call(step.task, step.call, step.args)

    def observe(self) -> State:
        tree = self._call(_OBSERVER, "observe_tree", ())
        tasks = {
            name: self._call(name, "observe_task", ())
            for name, slot in self._slots.items()
            if name != _OBSERVER and not self._connections[slot].closed
        }
        return State(tree, tasks)

    def check(self) -> None:
        """The kernel checks itself."""

    def sysctl(self, name: str) -> int:
        return int((_SYSCTLS / name).read_text())

    def set_sysctl(self, name: str, value: int) -> None:
        """Of the whole host. Raises: TargetUnavailable if that is not ours to set."""
        old = self.sysctl(name)
        if value != old:
            try:
                (_SYSCTLS / name).write_text(str(value))
            except OSError as error:
                raise TargetUnavailable(f"fs.{name}: {error.strerror}") from None
            self._old_sysctls.setdefault(name, old)

    def close(self) -> None:
        for name, value in self._old_sysctls.items():
            (_SYSCTLS / name).write_text(str(value))
        self._old_sysctls.clear()
        for connection in self._connections:
            connection.close()
