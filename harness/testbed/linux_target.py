"""The kernel below us as a target: real system calls in a mount namespace of their own."""

from __future__ import annotations

import atexit
import errno
import fcntl
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness.testbed import linux_agent
from harness.testbed.host_syscalls import HostSyscalls, is_supported
from harness.testbed.host_sysctls import HostSysctls
from harness.testbed.state import State
from harness.testbed.step import Step
from harness.testbed.target import ROOT_OPTIONS, NoSuchTask, Target, TargetUnavailable
from vfs import abi

_OBSERVER = "observer"
# A call that takes longer is stuck; then the task is killed and the test told.
_ANSWER_SECONDS = 30
_NS_GET_PARENT = 0xB702


class TaskDied(RuntimeError):
    """A task's process is gone though it did not exit."""


class Agent:
    """The interpreter that forks tasks; one serves any number of targets, one after another."""

    def __init__(self) -> None:
        self.sysctls = HostSysctls()
        self.directory = tempfile.mkdtemp(prefix="dentry-testbed-")
        self.control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-m", linux_agent.__name__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
        atexit.register(self.close)

    def start(
        self, sockets: list[socket.socket], options: str, user_namespace: bool = False
    ) -> None:
        """Raises: RuntimeError if the agent is gone."""
        message = pickle.dumps(
            {"directory": self.directory, "options": options, "user_namespace": user_namespace}
        )
        try:
            socket.send_fds(self.control, [message], [end.fileno() for end in sockets])
        except OSError as error:
            raise RuntimeError(f"the agent of the Linux targets has ended: {error}") from None

    def close(self) -> None:
        """End it; tasks of targets that are still open end with their sockets."""
        if self.control.fileno() < 0:
            return
        atexit.unregister(self.close)
        self.control.close()
        self.process.wait()
        os.rmdir(self.directory)


class _Task:
    """A task's process: its socket, and a pidfd that tells when it is gone."""

    __slots__ = ("connection", "name", "pid", "pidfd", "poller", "slot")

    def __init__(self, name: str, slot: int, connection: Connection) -> None:
        self.name = name
        self.slot = slot
        self.connection = connection
        self.pid = 0
        self.pidfd = -1
        self.poller = select.poll()
        self.poller.register(connection.fileno(), select.POLLIN)

    def started(self, pid: int) -> None:
        """Raises: OSError where there are no pidfds."""
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.poller.register(self.pidfd, select.POLLIN)

    def answer(self) -> tuple[int, Any] | None:
        """What it answers; None if it died. Raises: TimeoutError."""
        ready = self.poller.poll(_ANSWER_SECONDS * 1000)
        if not ready:
            raise TimeoutError
        if all(fd == self.pidfd for fd, _ in ready):
            return None
        try:
            number, value = self.connection.recv()
        except (EOFError, ConnectionResetError):
            return None
        return number, value

    def kill(self) -> None:
        """With all that it holds it is gone when this returns."""
        if self.pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
            self.wait()

    def wait(self) -> None:
        """Until its process has given everything back. Raises: TimeoutError."""
        gone = select.poll()
        gone.register(self.pidfd, select.POLLIN)
        if not gone.poll(_ANSWER_SECONDS * 1000):
            raise TimeoutError(f"process {self.pid} does not end")

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class LinuxTarget(Target):
    """A target on the host kernel: every task is a process, and its calls are the kernel's.

    It has a mount and a pid namespace of its own, and a user namespace if asked for: then there are
    all ids, but no device nodes and no trusted xattrs, and the root mount is locked. A user always
    gets one, and there is only one id in it, so that tasks with other credentials cannot be had.
    """

    name = "linux"

    def __init__(
        self, agent: Agent, options: str = ROOT_OPTIONS, *, user_namespace: bool = False
    ) -> None:
        """Raises: TargetUnavailable."""
        if not is_supported():
            raise TargetUnavailable("the test bed makes raw system calls on x86-64 Linux only")
        user = os.geteuid() != 0
        self._has_every_id = not user and _has_every_id()
        self._root_is = b",uid=%d,gid=%d" % (os.geteuid(), os.getegid()) if user else b""
        pairs = [socket.socketpair() for _ in range(linux_agent.SLOTS)]
        agent.start([theirs for _, theirs in pairs], options, user_namespace or user)
        for _, theirs in pairs:
            theirs.close()
        self._connections = [Connection(mine.detach()) for mine, _ in pairs]
        self._free_slots = list(range(1, len(pairs)))
        self._observer = _Task(_OBSERVER, 0, self._connections[0])
        self._tasks: dict[str, _Task] = {}
        self._exited: set[str] = set()
        self._sysctls = agent.sysctls
        self._sysctls.acquire()
        self._closed = False
        self._host = HostSyscalls()
        try:
            try:
                self._start(self._observer)
                self._clone(self._observer, "root", 0, 0, 0, ())
            except (OSError, TaskDied) as error:
                reason = error.strerror if isinstance(error, OSError) else error
                raise TargetUnavailable(f"no target on this kernel: {reason}") from None
        except BaseException:
            self.close()
            raise

    def _task(self, name: str) -> _Task:
        task = self._tasks.get(name)
        if task is None:
            raise NoSuchTask(
                f"task {name} has exited" if name in self._exited else f"no task {name}"
            )
        return task

    def _start(self, task: _Task) -> None:
        """Wait for a new task. Raises: OSError if it could not become what it should be."""
        number, value = self._answer(task)
        if number:
            reason, pid = value
            if pid is not None:
                with suppress(ProcessLookupError):
                    task.started(pid)
                    task.wait()
                task.close()
            raise OSError(number, reason)
        task.started(value)

    def _answer(self, task: _Task) -> tuple[int, Any]:
        try:
            answer = task.answer()
        except TimeoutError:
            task.kill()
            raise TimeoutError(f"task {task.name} does not come back from a call") from None
        if answer is None:
            raise TaskDied(f"task {task.name} (process {task.pid}) was killed or crashed")
        if answer[0] == -1:
            raise RuntimeError(f"task {task.name} failed:\n{answer[1]}")
        return answer

    def _call(
        self, task: _Task, call: str, args: tuple[Any, ...] = (), passing: int | None = None
    ) -> Any:
        """Have a task make a call; the descriptor ``passing`` goes with it."""
        task.connection.send((call, args))
        if passing is not None:
            end = socket.socket(fileno=task.connection.fileno())
            try:
                socket.send_fds(end, [b"!"], [passing])
            finally:
                end.detach()
        number, value = self._answer(task)
        if number == errno.ENOSYS:
            raise TargetUnavailable(f"this kernel has no {call}")
        if number:
            raise OSError(number, os.strerror(number))
        return value

    def _clone(
        self, parent: _Task, name: str, flags: int, uid: int, gid: int, groups: tuple[int, ...]
    ) -> None:
        if name in self._tasks or name in self._exited or name == _OBSERVER:
            raise ValueError(f"task {name} exists")
        if not self._free_slots:
            raise TargetUnavailable(f"more than {len(self._connections) - 1} tasks")
        slot = self._free_slots[0]
        self._call(parent, "clone", (slot, flags, uid, gid, groups))
        task = _Task(name, slot, self._connections[slot])
        try:
            self._start(task)
        except OSError as error:
            if not self._has_every_id:
                raise TargetUnavailable(f"task {name}: {error.strerror}") from None
            raise
        self._free_slots.remove(slot)
        self._tasks[name] = task
        if flags & abi.CLONE_NEWUSER:
            self._map_ids(task)

    def _map_ids(self, task: _Task) -> None:
        """Every id is itself in the task's user namespace, which is new."""
        own = os.open(f"/proc/{task.pid}/ns/user", os.O_RDONLY)
        try:
            parent = fcntl.ioctl(own, _NS_GET_PARENT)
        finally:
            os.close(own)
        try:
            self._call(self._observer, "map_ids", (task.pid,), parent)
        finally:
            os.close(parent)

    def perform(self, step: Step) -> Any:
        task = self._task(step.task)
        match step.call:
            case "clone":
                self._clone(task, *step.args)
                return None
            case "exit":
                self._call(task, "exit")
                self._exit(task)
                return None
            case "nsfd":
                return self._nsfd(task, *step.args)
            case "mountinfo" | "mounts" | "mountstats":
                return self._proc_file(task, step.call)
        value = self._call(task, step.call, step.args)
        if step.call == "unshare" and step.args[0] & abi.CLONE_NEWUSER:
            self._map_ids(task)
        return value

    def _exit(self, task: _Task) -> None:
        task.wait()
        task.close()
        del self._tasks[task.name]
        self._exited.add(task.name)
        self._free_slots.append(task.slot)

    def _nsfd(self, caller: _Task, name: str, kind: str) -> int:
        if kind not in ("mnt", "user"):
            raise ValueError(f"no namespace {kind!r}")
        # Opened here: a task may not always look at another one.
        path = f"/proc/{self._task(name).pid}/ns/{kind}"
        fd = self._host.openat(abi.AT_FDCWD, path.encode(), abi.O_RDONLY, 0)
        try:
            return int(self._call(caller, "receive_fd", passing=fd))
        finally:
            os.close(fd)

    def observe(self) -> State:
        tree = self._call(self._observer, "observe_tree")
        tasks = {name: self._call(task, "observe_task") for name, task in self._tasks.items()}
        return State(tree, tasks)

    def _read_mountinfo(self) -> dict[str, bytes]:
        return {name: self._proc_file(task, "mountinfo") for name, task in self._tasks.items()}

    def _proc_file(self, task: _Task, name: str) -> bytes:
        text = _contents(f"/proc/{task.pid}/{name}")
        if self._root_is:
            # What is uid 0 to the task is not to tmpfs, which shows the ids that are not 0.
            text = text.replace(self._root_is, b"")
        return text

    def check(self) -> None:
        """The kernel checks itself."""

    def sysctl(self, name: str) -> int:
        return self._sysctls.get(name)

    def set_sysctl(self, name: str, value: int) -> None:
        """Of the whole host. Raises: TargetUnavailable if that is not ours to set."""
        self._sysctls.set(name, value)

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            self._observer.kill()
        finally:
            for task in (self._observer, *self._tasks.values()):
                task.close()
            for connection in self._connections:
                connection.close()
            self._sysctls.release()


def _has_every_id() -> bool:
    """Whether our user namespace lets a task be who it likes."""
    return all(
        Path(f"/proc/self/{name}_map").read_text().split() == ["0", "0", "4294967295"]
        for name in ("uid", "gid")
    )


def _contents(path: str) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while part := os.read(fd, 1 << 16):
            parts.append(part)
        return b"".join(parts)
    finally:
        os.close(fd)
