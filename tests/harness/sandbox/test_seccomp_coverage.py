"""The allow-list against what daemons call: everything, and little else."""

from __future__ import annotations

import json
import os
import platform
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from exercise import Exercise
from sandbox_support import shared_directory

from harness.sandbox.allowed import CHECKS, POLICY
from harness.sandbox.collect import ARGUMENTS
from harness.vhost_user import message as wire
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import ROOT, FuseClient

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="daemons of root's"),
    pytest.mark.skipif(platform.machine() != "x86_64", reason="what is unseen is x86-64's"),
]

HERE = Path(__file__).parent
EVERY_FLAG = {"flags": 0xFFFFFFFF, "flags2": 0x1FFF}

UNSEEN = {
    "of other C libraries, kernels and architectures": """
        epoll_pwait fchmodat2 fstat gettimeofday newfstatat openat ppoll preadv pwritev
        renameat rseq sched_yield set_robust_list
    """,
    "of Python and the C library, at a time of their own": """
        brk clock_gettime clock_nanosleep exit getcwd getrandom gettid madvise mprotect mremap poll
        prctl restart_syscall sched_getaffinity sigaltstack sysinfo
    """,
    "of mounts that are made while others are served": """
        capget getegid geteuid getgid getgroups getuid pread64
    """,
    "of guests that act with groups, or on files with ACLs": "faccessat2 setgroups",
    "of frontends that send the state of a device, or by other calls": "getsockopt read recvfrom",
    "of files that are written and sought in other ways": "lseek preadv2 pwritev2",
    "at an end without a waiter": "unlink",
}
"""What is on the list and may not be called below, and why it is on the list."""


@contextmanager
def collecting(
    report: Path, command: list[str | Path], sock: socket.socket, **environment: str
) -> Iterator[subprocess.Popen[str]]:
    """A daemon for the other end of `sock`, whose calls are written to `report`; it ends well."""
    collect = [sys.executable, "-m", "harness.sandbox.collect", "-o", report, "--"]
    process = subprocess.Popen(
        [*collect, sys.executable, *command],
        pass_fds=[sock.fileno()], stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(HERE.parents[2]), **environment},
    )  # fmt: skip
    sock.close()
    try:
        yield process
    finally:
        try:
            _, stderr = process.communicate(timeout=120)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, stderr


def exercise(client: FuseClient, *, devices: bool = True) -> None:
    for credentials in ((0, 0, 1), (1000, 1000, 1)):
        client.credentials = credentials
        Exercise(client, b"work", devices=devices and credentials[0] == 0).run()


def through_vhost_user(report: Path, shared: Path) -> None:
    """Two rings and threads, dirty logging, inflight memory, a channel, the state of the device;
    file handles; and a signal at the end.
    """
    ours, theirs = socket.socketpair()
    words = ("--fd", str(theirs.fileno()), "--shared-dir", shared, "--seccomp", "log", "--tag", "t")
    more = (
        "--thread-pool-size=2",
        "--inode-file-handles=mandatory",
        "--rlimit-nofile=700",
        "--xattr",
    )
    many = shared / "many"
    many.mkdir()
    for number in range(800):
        (many / str(number)).touch()
    command = ["-m", "harness.cli", "virtiofsd", *words, *more, "--xattr"]
    with collecting(report, command, theirs) as process, Frontend(ours, timeout=60) as frontend:
        frontend.negotiate(extra=wire.F_INFLIGHT_SHMFD | wire.F_LOG_SHMFD | wire.F_DEVICE_STATE)
        frontend.share_memory()
        frontend.track_inflight(2, 256)
        client = FuseClient(frontend, timeout=60)
        client.init(**EVERY_FLAG)
        frontend.start_log()
        exercise(client)
        # More than it has descriptors for.
        top = client.lookup(ROOT, b"many").nodeid
        nodes = [client.lookup(top, b"%d" % number).nodeid for number in range(800)]
        for node in nodes:
            client.release(node, client.open(node))
        frontend.stop_log()
        client.close()
        (daemon,) = (
            int(pid)
            for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        )
        os.kill(daemon, signal.SIGTERM)
        process.wait(timeout=120)


def through_crosvms_device(report: Path, shared: Path) -> None:
    """With an allow-list, told over its socket; packed rings."""
    path = shared.parent / "allow"
    ours, theirs = socket.socketpair()
    words = ("--fd", str(theirs.fileno()), "--shared-dir", shared, "--tag", "t")
    own = ("--uid-map=0 0 65536", "--gid-map=0 0 65536", "--allowlist-socket-path", path)
    cfg = ("--cfg", "rewrite-security-xattrs,cache=always,ascii_casefold")
    command = ["-m", "harness.cli", "device", "fs", *words, *own, *cfg]
    with collecting(report, command, theirs), Frontend(ours, timeout=60) as frontend:
        frontend.negotiate(packed=True, extra=wire.F_INFLIGHT_SHMFD)
        frontend.share_memory()
        frontend.track_inflight(2, 256)
        client = FuseClient(frontend, timeout=60)
        client.init(**EVERY_FLAG)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as control:
            control.settimeout(60)
            control.connect(os.fspath(path))
            control.send(b'{"AddPaths": {"paths": ["/"]}}')
            assert control.recv(100) == b'"Ok"'
        # A user namespace has no device nodes.
        exercise(client, devices=False)
        client.readdirplus(ROOT, client.opendir(ROOT), 0, 4096)
        client.close()


def through_an_old_kernel(report: Path, shared: Path) -> None:
    """One without calls for extended attributes by descriptor."""
    ours, theirs = socket.socketpair()
    script = HERE / "sandboxed_daemon.py"
    command = [script, str(theirs.fileno()), shared, "namespace", "log", ""]
    with (
        collecting(report, command, theirs, WITHOUT_XATTRAT="1"),
        Frontend(ours, timeout=60) as frontend,
    ):
        frontend.negotiate()
        frontend.share_memory()
        client = FuseClient(frontend, timeout=60)
        client.init(**EVERY_FLAG)
        exercise(client)
        client.close()


Way = Callable[[Path, Path], None]


def serving(way: Way) -> tuple[set[str], dict[str, list[str]]]:
    with shared_directory(0) as shared:
        os.chmod(shared, 0o777)
        report = shared.parent / "report"
        way(report, shared)
        found = json.loads(report.read_text())["serving"]
    return set(found["calls"]), found["arguments"]


@pytest.fixture(scope="module")
def seen() -> tuple[set[str], dict[str, set[int]]]:
    """What all of them called, and with which telling arguments."""
    calls: set[str] = set()
    arguments: dict[str, set[int]] = {}
    for way in (through_vhost_user, through_crosvms_device, through_an_old_kernel):
        more, values = serving(way)
        calls |= more
        for name, texts in values.items():
            arguments.setdefault(name, set()).update(int(text, 16) for text in texts)
    return calls, arguments


def test_all_that_daemons_call_is_on_the_list(
    seen: tuple[set[str], dict[str, set[int]]],
) -> None:
    calls, arguments = seen
    # Nothing would be proved by daemons that had nothing to do.
    assert {"preadv2", "recvmsg", "getxattr", "setfsuid", "open_by_handle_at", "memfd_create"} <= (
        calls
    )
    assert calls - POLICY.allowed - CHECKS.keys() - POLICY.refused.keys() == set()
    for name, checks in CHECKS.items():
        for check in checks:
            if check.argument != ARGUMENTS[name]:
                continue
            bad = {
                hex(value)
                for value in arguments.get(name, ())
                if value & check.mask not in check.values
            }
            assert not bad, name


def test_what_no_daemon_called_is_on_the_list_for_a_reason(
    seen: tuple[set[str], dict[str, set[int]]],
) -> None:
    calls, _ = seen
    excused = {name for names in UNSEEN.values() for name in names.split()}
    assert sorted((POLICY.allowed | CHECKS.keys()) - calls - excused) == []
    assert excused <= POLICY.allowed | CHECKS.keys()
