"""A tree of this process mounted on this host, and a client of it in a process of its own.

The client is another process because the test is the server: a system call on the mount that Python
makes without giving up the interpreter would wait for itself.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from fsimpl.passthrough import PassthroughType
from fsimpl.tmpfs import TmpfsType
from harness.fuse.cache import ALWAYS, CachePolicy
from harness.fuse.dev_fuse import FuseMount
from harness.fuse.host_mount import MountOptions
from harness.fuse.server import FuseServer
from harness.syscall_numbers import number
from vfs.abi import O_CREAT, O_TRUNC, O_WRONLY
from vfs.mount import VirtualDentry
from vfs.task import Task
from vfs.virtual_filesystem import VirtualFilesystem

_AGENT = """
import json, os, sys
names = {"os": os, "fds": {}}
for line in sys.stdin:
    try:
        code = json.loads(line)
        try:
            value = eval(code, names)
        except SyntaxError:
            value = exec(code, names)
        answer = {"value": value}
    except OSError as error:
        answer = {"errno": error.errno}
    except Exception as error:
        answer = {"bug": repr(error)}
    print(json.dumps(answer), flush=True)
"""

DEADLINE = 30.0


class Client:
    """A process whose working directory is the mount's root. Ends, however it stands, with `with`.

    A path of its methods is relative to the mount, or whatever `chdir` made of it.
    """

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _AGENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._fds = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.kill()
        self._process.communicate()

    def waits_in(self, call: str) -> bool:
        """Whether it waits in the kernel, in the system call of that name (proc(5), syscall)."""
        waits = Path(f"/proc/{self._process.pid}/syscall").read_text().split()[0]
        return waits == str(number(call))

    def start(self, code: str) -> None:
        """Have an expression evaluated, or statements run, whose result `finish` waits for."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(code) + "\n")
        self._process.stdin.flush()

    def finish(self) -> Any:
        """The result of what was started. Raises: OSError, if it did."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the client died"
        answer = json.loads(line)
        if "errno" in answer:
            raise OSError(answer["errno"], "the client's")
        assert "bug" not in answer, answer
        return answer["value"]

    def do(self, code: str) -> Any:
        """Evaluate or run, and wait."""
        self.start(code)
        return self.finish()

    def read(self, path: str) -> str:
        text: str = self.do(f"open({path!r}).read()")
        return text

    def list(self, path: str) -> list[str]:
        names: list[str] = self.do(f"sorted(os.listdir({path!r}))")
        return names

    def size(self, path: str) -> int:
        size: int = self.do(f"os.stat({path!r}).st_size")
        return size

    def open(self, path: str, flags: str = "os.O_RDONLY") -> int:
        fd: int = self.do(f"os.open({path!r}, {flags})")
        return fd

    def pread(self, fd: int, count: int = 4096, offset: int = 0) -> str:
        text: str = self.do(f"os.pread({fd}, {count}, {offset}).decode()")
        return text

    def close(self, fd: int) -> None:
        self.do(f"os.close({fd})")

    def errno(self, code: str) -> int:
        """The errno that `code` fails with, 0 if it does not."""
        try:
            self.do(code)
        except OSError as error:
            assert error.errno is not None
            return error.errno
        return 0


class Mounted:
    """`task` changes the tree, `client` sees it at `mountpoint`, by what `server` tells."""

    def __init__(self, vfs: VirtualFilesystem, task: Task, root: VirtualDentry) -> None:
        self.vfs = vfs
        self.task = task
        self.root = root
        self.server: FuseServer
        self.mount: FuseMount
        self.client: Client

    def write(self, path: str, text: str) -> None:
        """Make file `path` of the tree, with content `text`."""
        fd = self.task.open(path, O_WRONLY | O_CREAT | O_TRUNC, 0o644)
        self.task.write(fd, text.encode())
        self.task.close(fd)

    def umount(self, path: str) -> None:
        """Unmount `path`, on which the client has nothing open."""
        self.settle()
        self.task.umount2(path)

    def settle(self) -> None:
        """Wait until the client's kernel has told of every close, which it does when it likes."""
        eventually(lambda: not self.server.handles.descriptions())

    def live(self) -> dict[str, int]:
        """How many objects of each kind there are."""
        with self.vfs.lock:
            return dict(self.vfs.ledger.live)

    def check(self) -> None:
        self.server.check()
        self.vfs.check()


@contextmanager
def mounted(
    mountpoint: Path,
    *,
    cache: CachePolicy = ALWAYS,
    export: Callable[[Task], Task] | None = None,
) -> Iterator[Mounted]:
    """Mount a tmpfs of ours at `mountpoint`, and start a client in it.

    What the client is told holds for a day unless the server takes it back (`cache`). `export`
    makes another task of the task, in whose namespace the client then is. At the end every
    reference must have come back.
    """
    vfs = VirtualFilesystem(tracing=True)
    for fstype in (TmpfsType(), PassthroughType()):
        vfs.register(fstype)
    with Client() as client:
        with vfs.create_namespace("tmpfs", options="mode=755") as namespace:
            task = vfs.create_task(namespace)
            exported = task if export is None else export(task)
            root = VirtualDentry(exported.fs.root.mount, exported.fs.root.dentry)
            place = Mounted(vfs, task, root)
            place.client = client
            place.server = FuseServer(vfs, root, cache=cache)
            options = MountOptions(default_permissions=True, dev=True, suid=True)
            place.mount = FuseMount(mountpoint, place.server, options=options)
            place.server.notify = place.mount.post_notify
            with place.mount:
                try:
                    client.do(f"os.chdir({str(mountpoint)!r})")
                    yield place
                    place.check()
                finally:
                    client.__exit__()
        vfs.shutdown()


def eventually(condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds: what the client's kernel does on its own takes a moment."""
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


def is_blocked(name: str) -> bool:
    """Whether our thread `name` sleeps uninterruptibly, in the kernel. See proc(5), stat."""
    for thread in threading.enumerate():
        if thread.name == name:
            text = Path(f"/proc/self/task/{thread.native_id}/stat").read_text()
            return text.rpartition(")")[2].split()[0] == "D"
    return False
