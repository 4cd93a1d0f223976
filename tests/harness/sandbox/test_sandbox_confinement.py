"""What a daemon that was taken over could try, from inside and with seccomp off."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import stat
from pathlib import Path
from typing import Any

from sandbox_support import attempt, confined, syscall

from harness import linux
from harness.sandbox import Sandboxed
from vfs import abi

HOST_PATHS = ("/etc/passwd", "/root", "/proc/1/root", "/dev/null", "/sys", "/tmp")


def test_the_root_is_the_shared_directory_and_no_host_path_resolves(shared: Path, uid: int) -> None:
    def probe(sandboxed: Sandboxed) -> Any:
        names = os.listdir("/")
        host = [attempt(os.stat, path) for path in (*HOST_PATHS, str(shared))]
        return sandboxed.root, names, Path("/file").read_text(), os.getcwd(), host

    root, names, text, cwd, host = confined(probe, shared, uid=uid)
    assert (root, names, text, cwd) == ("/", ["file"], "inside", "/")
    assert set(host) == {"ENOENT"}


def test_no_way_up_leads_out(shared: Path, uid: int) -> None:
    def probe(sandboxed: Sandboxed) -> Any:
        ways = [os.stat("/" + "../" * count).st_ino for count in range(5)]
        ways.append(os.stat("../..", dir_fd=sandboxed.root_fd).st_ino)
        above = os.listdir(os.open("../..", os.O_RDONLY, dir_fd=sandboxed.proc_self_fd))
        return ways, above

    ways, above = confined(probe, shared, uid=uid)
    assert set(ways) == {os.stat(shared).st_ino}
    # Above the directory of its descriptors are its descriptors.
    assert above and all(name.isdigit() for name in above)


def test_the_mounts_of_the_host_are_gone_from_mountinfo(shared: Path, uid: int) -> None:
    def probe(sandboxed: Sandboxed) -> Any:
        return os.pread(sandboxed.mountinfo_fd, 65536, 0).decode()

    lines = confined(probe, shared, uid=uid).splitlines()
    assert [line.split()[4] for line in lines] == ["/"]
    assert {"nodev", "nosuid"} <= set(lines[0].split()[5].split(","))


def test_proc_self_fd_reopens_what_is_open(shared: Path, uid: int) -> None:
    def probe(sandboxed: Sandboxed) -> Any:
        path_only = os.open("/file", os.O_PATH)
        fd = os.open(str(path_only), os.O_RDONLY, dir_fd=sandboxed.proc_self_fd)
        return os.read(fd, 100).decode()

    assert confined(probe, shared, uid=uid) == "inside"


def test_only_the_descriptors_to_keep_are_open(shared: Path, uid: int) -> None:
    with open("/etc/passwd") as leaked, open("/dev/null") as kept:

        def probe(sandboxed: Sandboxed) -> Any:
            return [attempt(os.fstat, file.fileno()) for file in (leaked, kept)]

        found = confined(probe, shared, uid=uid, keep_fds=(kept.fileno(),))
    assert found == ["EBADF", "done"]


def test_processes_outside_can_be_neither_seen_nor_signalled(shared: Path, uid: int) -> None:
    outside = os.getpid()

    def probe(_: Sandboxed) -> Any:
        everyone = attempt(os.kill, -1, 0)
        return os.getpid(), os.getppid(), attempt(os.kill, outside, 0), everyone

    # 1 is the namespace's init, which kill(-1) spares.
    assert confined(probe, shared, uid=uid) == [2, 0, "ESRCH", "ESRCH"]


def test_the_init_beside_it_is_out_of_its_reach(shared: Path, uid: int) -> None:
    def probe(_: Sandboxed) -> Any:
        buffer = ctypes.create_string_buffer(16)
        vector = (ctypes.c_uint64 * 2)(ctypes.addressof(buffer), 16)
        address = ctypes.addressof(vector)
        os.kill(1, signal.SIGKILL)  # which the kernel does not deliver to an init
        return [
            attempt(syscall, "ptrace", 16, 1, 0, 0),  # PTRACE_ATTACH
            attempt(syscall, "ptrace", 0x4206, 1, 0, 0),  # PTRACE_SEIZE
            attempt(syscall, "process_vm_readv", 1, address, 1, address, 1, 0),
            attempt(linux.pidfd_getfd, os.pidfd_open(1), 0),
        ]

    assert confined(probe, shared, uid=uid) == ["EPERM"] * 4


def test_the_network_of_the_host_is_not_there(shared: Path, uid: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as tcp, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(b"\0dentry-sandbox-%d" % os.getpid())
        abstract.listen()

        def probe(_: Sandboxed) -> Any:
            to_tcp = attempt(socket.socket().connect, tcp_name)
            to_abstract = attempt(socket.socket(socket.AF_UNIX).connect, abstract_name)
            return to_tcp, to_abstract, socket.if_nameindex()

        tcp_name, abstract_name = tcp.getsockname(), abstract.getsockname()
        to_tcp, to_abstract, interfaces = confined(probe, shared, uid=uid)
    assert (to_tcp, to_abstract) == ("ENETUNREACH", "ECONNREFUSED")
    assert "lo" in [name for _, name in interfaces]
    assert not [name for _, name in interfaces if name.startswith(("eth", "en", "wl"))]


def test_the_tree_cannot_be_changed_by_mounts_or_chroot(shared: Path, uid: int) -> None:
    def probe(_: Sandboxed) -> Any:
        os.mkdir("/jail")
        return {
            "mount": attempt(linux.mount, "proc", "/jail", "proc", 0),
            "bind": attempt(linux.mount, "/", "/jail", None, 4096),
            "remount": attempt(linux.mount, None, "/", None, abi.MS_REMOUNT | 4096),
            "umount": attempt(linux.umount2, "/", abi.MNT_DETACH),
            "open_tree": attempt(linux.open_tree, -100, "/", abi.OPEN_TREE_CLONE),
            "fsopen": attempt(syscall, "fsopen", b"tmpfs", 0),
            "unshare mounts": attempt(linux.unshare, abi.CLONE_NEWNS),
            "unshare network": attempt(linux.unshare, abi.CLONE_NEWNET),
            "chroot": attempt(os.chroot, "/jail"),
            "pivot_root": attempt(linux.pivot_root, "/", "/jail"),
        }

    refusals = confined(probe, shared, uid=uid)
    assert set(refusals.values()) == {"EPERM"}, refusals


def test_the_machine_cannot_be_administered(shared: Path, uid: int) -> None:
    def probe(_: Sandboxed) -> Any:
        handle = bytes([8, 0, 0, 0, 1, 0, 0, 0]) + bytes(8)
        return {
            "open_by_handle_at": attempt(syscall, "open_by_handle_at", 0, handle, 0),
            "sethostname": attempt(syscall, "sethostname", b"x", 1),
            "settimeofday": attempt(syscall, "settimeofday", bytes(16), None),
            "reboot": attempt(syscall, "reboot", 0, 0, 0, None),
            "swapon": attempt(syscall, "swapon", b"/file", 0),
            "syslog": attempt(syscall, "syslog", 5, None, 0),
            "kexec_load": attempt(syscall, "kexec_load", 0, 0, None, 0),
            "perf_event_open": attempt(syscall, "perf_event_open", bytes(128), 1, -1, -1, 0),
            "init_module": attempt(syscall, "init_module", b"", 0, b""),
            "raw socket": attempt(socket.socket, socket.AF_INET, socket.SOCK_RAW, 1),
            "nice": attempt(os.setpriority, os.PRIO_PROCESS, 0, -20),
        }

    refusals = confined(probe, shared, uid=uid)
    # ENOSYS is a kernel without the call; and EINVAL is how an unreadable perf attribute looks.
    assert set(refusals.values()) <= {"EPERM", "EACCES", "ENOSYS", "EINVAL"}, refusals
    assert refusals["open_by_handle_at"] == refusals["reboot"] == "EPERM"


def test_a_device_node_of_the_hosts_disk_cannot_be_opened(shared: Path, uid: int) -> None:
    device = os.stat("/dev").st_dev if os.major(os.stat("/").st_dev) == 0 else os.stat("/").st_dev

    def probe(_: Sandboxed) -> Any:
        made = attempt(os.mknod, "/disk", stat.S_IFBLK | 0o600, device)
        return made, attempt(os.open, "/disk", os.O_RDONLY)

    found = confined(probe, shared, uid=uid)
    # A user namespace's root makes no devices; root makes one, for its guest alone.
    assert found == (["EPERM", "ENOENT"] if uid else ["done", "EACCES"])


def test_a_users_daemon_owns_no_other_ids(shared: Path) -> None:
    os.chown(shared, 1000, 1000)

    def probe(_: Sandboxed) -> Any:
        return attempt(os.setuid, 1), attempt(os.setgid, 1), attempt(os.chown, "/file", 1, 1)

    assert confined(probe, shared, uid=1000) == ["EINVAL", "EINVAL", "EINVAL"]


def test_no_privileges_come_back(shared: Path, uid: int) -> None:
    def probe(_: Sandboxed) -> Any:
        refused = [
            attempt(linux.prctl, linux.PR_CAP_AMBIENT, 2, cap)  # PR_CAP_AMBIENT_RAISE
            for cap in (0, 21)
        ]
        return linux.prctl(linux.PR_GET_NO_NEW_PRIVS), refused

    assert confined(probe, shared, uid=uid) == [1, ["EPERM", "EPERM"]]
