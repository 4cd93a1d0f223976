"""The installed filter: it lets a daemon serve, and ends one that does anything else."""

from __future__ import annotations

import inspect
import json
import mmap
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from exercise import Exercise
from sandbox_support import USER, Outcome, Process, attempt, shared_directory, syscall
from sandboxed_daemon import serve

from fsimpl.passthrough import PassthroughType
from harness.sandbox import Sandboxed
from harness.sandbox.seccomp import TRAP_STATUS
from harness.syscall_numbers import numbers
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import FuseClient

HERE = Path(__file__).parent
BEYOND = (
    "add_key", "bpf", "chroot", "execve", "fsopen", "init_module", "io_uring_setup",
    "kexec_load", "keyctl", "kill", "mount", "open_tree", "perf_event_open", "personality",
    "pidfd_open", "pivot_root", "process_vm_writev", "ptrace", "reboot", "setns", "setresuid",
    "setuid", "swapon", "tgkill", "umount2", "unshare", "userfaultfd",
)  # fmt: skip


def after(shared: Path, seccomp: str, name: str, *arguments: Any, mode: str = "none") -> Outcome:
    def probe(sandboxed: Sandboxed) -> str:
        sandboxed.apply_seccomp()
        return attempt(syscall, name, *arguments)

    return Process(probe, shared, seccomp=seccomp, mode=mode).finish()


@pytest.mark.parametrize("name", BEYOND)
def test_a_call_beyond_serving_kills_the_daemon(shared: Path, name: str) -> None:
    outcome = after(shared, "kill", name, 0, 0, 0, 0)
    assert (outcome.code, outcome.result) == (-signal.SIGSYS, None)


def test_the_waiter_dies_of_the_same_signal(shared: Path) -> None:
    assert after(shared, "kill", "ptrace", 0, mode="namespace").code == -signal.SIGSYS


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("ioctl", (0, 0x5412, b"x")),  # TIOCSTI, which types on somebody's terminal
        ("fcntl", (0, 8, 1)),  # F_SETOWN, whom to send signals to
        ("prctl", (35, 0, 0, 0, 0)),  # PR_SET_MM
        ("prlimit64", (1, 7, None, None)),
        ("mmap", (0, 4096, mmap.PROT_READ | mmap.PROT_EXEC, 0x22, -1, 0)),
        ("mprotect", (0, 4096, mmap.PROT_EXEC)),
        ("clone", (signal.SIGCHLD, 0, 0, 0, 0)),  # fork
        ("clone", (0x10900 | 0x10000000, 0, 0, 0, 0)),  # a thread in a new user namespace
    ],
)
def test_an_argument_beyond_serving_kills_the_daemon(
    shared: Path, name: str, arguments: tuple[Any, ...]
) -> None:
    assert after(shared, "kill", name, *arguments).code == -signal.SIGSYS


def test_fork_kills_the_daemon(shared: Path) -> None:
    def probe(sandboxed: Sandboxed) -> None:
        sandboxed.apply_seccomp()
        os.fork()

    assert Process(probe, shared, seccomp="kill").finish().code == -signal.SIGSYS


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="of x86-64")
def test_a_call_by_its_x32_number_kills_the_daemon(shared: Path) -> None:
    def probe(sandboxed: Sandboxed) -> None:
        sandboxed.apply_seccomp()
        numbers(os.uname().machine)["x32 getpid"] = 0x40000000 | 39
        syscall("x32 getpid")

    outcome = Process(probe, shared, mode="none", seccomp="kill").finish()
    assert outcome.code == -signal.SIGSYS


@pytest.mark.parametrize(("name", "error"), [("clone3", "ENOSYS"), ("socket", "EACCES")])
def test_some_calls_are_refused_mildly(shared: Path, name: str, error: str) -> None:
    assert after(shared, "kill", name, 1, 1, 0).result == error


def test_trap_names_the_call_and_the_thread(shared: Path) -> None:
    outcome = after(shared, "trap", "keyctl", 0, 0, mode="namespace")
    assert outcome.code == TRAP_STATUS
    assert outcome.stderr == f"seccomp: keyctl ({250}) refused in MainThread\n" or (
        os.uname().machine != "x86_64"
    )


def test_trap_works_in_a_thread(shared: Path) -> None:
    def probe(sandboxed: Sandboxed) -> None:
        sandboxed.apply_seccomp()
        thread = threading.Thread(target=syscall, args=("personality", -1), name="worker 1")
        thread.start()
        thread.join()

    outcome = Process(probe, shared, seccomp="trap").finish()
    assert outcome.code == TRAP_STATUS
    assert "personality" in outcome.stderr and "refused in worker 1" in outcome.stderr


def test_log_lets_the_call_through(shared: Path) -> None:
    outcome = after(shared, "log", "personality", -1)
    assert (outcome.code, outcome.result) == (0, "done")


def test_none_installs_no_filter(shared: Path) -> None:
    def probe(sandboxed: Sandboxed) -> str:
        sandboxed.apply_seccomp()
        return Path("/proc/self/status").read_text()

    status = Process(probe, shared, seccomp="none", mode="none").finish().result
    assert "Seccomp:\t0" in status and "NoNewPrivs:\t1" in status


def test_threads_that_exist_are_bound_too(shared: Path) -> None:
    def probe(sandboxed: Sandboxed) -> None:
        go = threading.Event()

        def work() -> None:
            go.wait()
            syscall("personality", -1)

        thread = threading.Thread(target=work)
        thread.start()
        sandboxed.apply_seccomp()
        go.set()
        thread.join()

    assert Process(probe, shared, seccomp="kill").finish().code == -signal.SIGSYS


def test_a_filter_cannot_be_loosened_from_inside(shared: Path) -> None:
    def probe(sandboxed: Sandboxed) -> None:
        sandboxed.apply_seccomp()
        sandboxed.apply_seccomp()

    assert Process(probe, shared, seccomp="kill").finish().code == -signal.SIGSYS


# A daemon at work

can_be_told = pytest.mark.skipif(
    "links" not in inspect.signature(PassthroughType).parameters,
    reason="the passthrough finds /proc/self/fd by its path only",
)


@contextmanager
def client_of(sock: socket.socket) -> Iterator[FuseClient]:
    with Frontend(sock) as frontend:
        frontend.negotiate()
        frontend.share_memory()
        client = FuseClient(frontend, timeout=60)
        client.init(flags=0xFFFFFFFF, flags2=0x1FFF)
        yield client
        client.close()


@contextmanager
def daemon(
    directory: Path, mode: str, seccomp: str, *before: str, data: str = ""
) -> Iterator[FuseClient]:
    """A client of a sandboxed daemon, which exits with status 0 at the end."""
    ours, theirs = socket.socketpair()
    command = [
        sys.executable, str(HERE / "sandboxed_daemon.py"), str(theirs.fileno()),
        str(directory), mode, seccomp, data,
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[2])}
    with theirs:
        process = subprocess.Popen(
            [*before, *command], pass_fds=[theirs.fileno()], env=environment,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
    try:
        with client_of(ours) as client:
            yield client
    finally:
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 0, stderr


@can_be_told
@pytest.mark.parametrize("mode", ["namespace", "chroot"])
@pytest.mark.parametrize("data", ["", "inode_file_handles=mandatory"])
def test_the_list_suffices_for_all_that_guests_ask(mode: str, data: str) -> None:
    with shared_directory(0) as shared:
        os.chmod(shared, 0o777)
        with daemon(shared, mode, "kill", data=data) as client:
            for credentials in ((0, 0, 1), (1000, 1000, 1)):
                client.credentials = credentials
                Exercise(client, b"work", devices=credentials[0] == 0).run()
        assert os.listdir(shared) == ["file"]


@can_be_told
@pytest.mark.parametrize("mode", ["namespace", "chroot"])
def test_extended_attributes_need_neither_proc_nor_new_calls(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("WITHOUT_XATTRAT", "1")
    with shared_directory(0) as shared:
        # What a guest calls so is none of the daemon's descriptors.
        (shared / "proc" / "self" / "fd").mkdir(parents=True)
        with daemon(shared, mode, "kill") as client:
            exercise = Exercise(client, b"work")
            exercise.run()
            assert not exercise.skipped & {"SETXATTR", "GETXATTR", "LISTXATTR", "REMOVEXATTR"}


@can_be_told
def test_the_list_suffices_for_a_users_daemon() -> None:
    ours, theirs = socket.socketpair()
    with shared_directory(USER) as shared:
        with theirs:
            fd = theirs.fileno()
            process = Process(
                lambda sandboxed: serve(sandboxed, os.dup(fd)),
                shared, uid=USER, seccomp="kill", keep_fds=(fd,),
            )  # fmt: skip
        with client_of(ours) as client:
            client.credentials = (0, 0, 1)
            Exercise(client, b"work").run()
        outcome = process.finish()
        assert (outcome.code, os.listdir(shared)) == (0, ["file"]), outcome.stderr


@can_be_told
def test_the_collector_finds_what_serving_calls_apart_from_starting() -> None:
    with shared_directory(0) as shared:
        report = shared.parent / "report"
        collect = (sys.executable, "-m", "harness.sandbox.collect", "-o", str(report), "--")
        with daemon(shared, "namespace", "log", *collect) as client:
            Exercise(client, b"work").run()
        found = json.loads(report.read_text())
    starting, serving = found["starting"]["calls"], found["serving"]["calls"]
    assert {"execve", "unshare", "pivot_root", "seccomp"} <= starting.keys()
    assert {"fallocate", "openat2", "recvmsg", "exit_group"} <= serving.keys()
    assert not {"execve", "unshare", "pivot_root"} & serving.keys()
    assert "0x5421" in found["serving"]["arguments"]["ioctl"]


def test_the_collector_passes_the_status_on(tmp_path: Path) -> None:
    report = tmp_path / "report"
    collect = [sys.executable, "-m", "harness.sandbox.collect", "-o", str(report), "--"]
    assert subprocess.run([*collect, "sh", "-c", "kill -9 $$"]).returncode == 137
    assert subprocess.run([*collect, "sh", "-c", "exit 4"]).returncode == 4
    found = json.loads(report.read_text())
    assert found["serving"]["calls"] == {}
    assert found["starting"]["calls"]["exit_group"] == 1
