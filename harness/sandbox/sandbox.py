"""Entering the sandbox: virtiofsd's steps, in its order."""

from __future__ import annotations

import ctypes
import importlib
import logging
import os
import stat
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EBUSY, ENOSYS, EPERM
from typing import Final

from fsimpl.passthrough.oslib import capget, capset
from harness import linux
from harness.sandbox import capabilities, seccomp
from harness.sandbox.allowed import POLICY
from harness.sandbox.errors import SandboxError
from harness.sandbox.idmaps import IdMap, MapWriter, is_mapped
from harness.sandbox.limits import set_nofile
from harness.sandbox.options import SandboxOptions
from harness.sandbox.waiter import close_all_but, fork_daemon
from vfs import abi

LOG = logging.getLogger(__name__)

# What Python imports only when it prints a traceback.
_LATE_MODULES: Final = (
    "ast", "encodings.ascii", "encodings.latin_1", "encodings.utf_8", "linecache", "tokenize",
    "traceback", "unicodedata",
)  # fmt: skip
_DIRECTORY: Final = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC
_SETGID: Final = capabilities.NAMES.index("setgid")


@dataclass(frozen=True)
class Sandboxed:
    """The serving process's view, from inside. Its descriptors live as long as the process."""

    root: str
    """The shared directory's (or file's) path here."""
    root_fd: int
    """The same, O_PATH."""
    proc_self_fd: int
    """O_PATH of this process's own /proc/self/fd, of which nothing else of /proc is reachable."""
    mountinfo_fd: int
    """/proc/self/mountinfo, to be read from 0 whenever mounts are asked for."""
    nofile: int
    """RLIMIT_NOFILE's soft limit."""
    seccomp: str

    def apply_seccomp(self) -> None:
        """Bind all threads to the allow-list, once everything is open and every thread's work is
        to serve. Raises: SandboxError."""
        seccomp.install(POLICY, self.seccomp)


def enter(options: SandboxOptions, *, at_end: Callable[[], None] | None = None) -> Sandboxed:
    """Confine this process; in mode namespace, return in a child of it.

    To be called before there are threads. In mode namespace the calling process never returns: it
    passes on to the child the signals that it gets, runs ``at_end`` after the child's end, outside
    of the sandbox and with no descriptors but 0, 1 and 2, and ends as the child did. If it dies,
    the child is killed.

    Raises:
        SandboxError: a step that was refused, in this process or in the child.
        RuntimeError: there are threads already.
    """
    if len(os.listdir("/proc/self/task")) > 1:
        raise RuntimeError("a sandbox is entered before there are threads")
    caps = capabilities.wanted(options.modcaps, keep_dac_read_search=options.keep_dac_read_search)
    with _explained("--shared-dir", options.shared_dir):
        os.stat(options.shared_dir)
    preload()
    nofile = set_nofile(options.rlimit_nofile)
    maps = _id_maps(options) if options.mode == "namespace" else None
    if options.mode == "namespace":
        places = _enter_namespaces(options, maps, at_end)
    else:
        _keep_descriptors(options)
        places = _enter_chroot(options) if options.mode == "chroot" else _stay(options)
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    if os.geteuid() == 0 or maps is not None:
        required, _ = capabilities.parse_modcaps(options.modcaps)
        capabilities.reduce_to(caps, required)
    root, root_fd, proc_self_fd, mountinfo_fd = places
    return Sandboxed(root, root_fd, proc_self_fd, mountinfo_fd, nofile, options.seccomp)


_Places = tuple[str, int, int, int]


@contextmanager
def _explained(step: str, argument: str = "") -> Generator[None]:
    try:
        yield
    except OSError as error:
        where = f"{step} {argument}" if argument else step
        raise SandboxError(f"{where}: {error.strerror}") from error


def preload() -> None:
    """Load what Python and the C library would look for later, when it is out of reach."""
    for name in _LATE_MODULES:
        importlib.import_module(name)
    # glibc loads it when a thread ends or is cancelled, and aborts if it can't.
    with suppress(OSError):
        ctypes.CDLL("libgcc_s.so.1")
    # The C library reads /etc/localtime once.
    time.localtime()


def _keep_descriptors(options: SandboxOptions) -> None:
    if options.keep_fds is not None:
        close_all_but((0, 1, 2, *options.keep_fds))


def _drop_groups() -> None:
    """Where that is permitted: a user without a map from newgidmap(1) has to keep them."""
    if capget()[0] >> _SETGID & 1 and os.getgroups():
        try:
            os.setgroups([])
        except PermissionError:
            if os.path.exists("/proc/self/setgroups") and _setgroups_denied():
                return
            raise SandboxError("the supplementary groups could not be dropped") from None


def _setgroups_denied() -> bool:
    with open("/proc/self/setgroups") as file:
        return file.read().strip() == "deny"


def _stay(options: SandboxOptions) -> _Places:
    root_fd = os.open(options.shared_dir, os.O_PATH | os.O_CLOEXEC)
    proc_self_fd = os.open("/proc/self/fd", _DIRECTORY)
    mountinfo_fd = os.open("/proc/self/mountinfo", os.O_RDONLY | os.O_CLOEXEC)
    return os.path.abspath(options.shared_dir), root_fd, proc_self_fd, mountinfo_fd


def _enter_chroot(options: SandboxOptions) -> _Places:
    if os.geteuid() != 0:
        raise SandboxError("--sandbox chroot is for root: a user has namespace, or none")
    _drop_groups()
    with _explained("/proc"):
        proc_self = os.open("/proc/self", _DIRECTORY)
        proc_self_fd = os.open("fd", _DIRECTORY, dir_fd=proc_self)
    with _explained("--sandbox chroot", options.shared_dir):
        os.chroot(options.shared_dir)
        os.chdir("/")
    # Opened from inside, it shows the mounts that are inside.
    mountinfo_fd = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_self)
    os.close(proc_self)
    root_fd = os.open("/", _DIRECTORY)
    return "/", root_fd, proc_self_fd, mountinfo_fd


def _enter_namespaces(
    options: SandboxOptions, maps: tuple[IdMap, IdMap] | None, at_end: Callable[[], None] | None
) -> _Places:
    _drop_groups()
    _unshare(maps)
    with _explained("--sandbox namespace: fork"):
        fork_daemon(at_end)
    _keep_descriptors(options)
    path = os.path.abspath(options.shared_dir)
    is_file = not stat.S_ISDIR(os.stat(path).st_mode)
    # The user may reach it where its root in the namespace may not; and the working directory
    # follows into the new mount namespace.
    with _explained("--shared-dir", path):
        os.chdir("/" if is_file else path)
    if maps is not None:
        _become(options, *maps)
    with _explained("--sandbox namespace: unshare"):
        linux.unshare(abi.CLONE_NEWNS | abi.CLONE_NEWNET)
    with _explained("--sandbox namespace: making / a slave"):
        linux.mount(None, "/", None, abi.MS_REC | abi.MS_SLAVE)
    with _explained("--sandbox namespace: /proc"):
        proc_self, proc_self_fd = _open_proc()
    with _explained("--sandbox namespace: moving the root to", path):
        root, root_fd = _take_place(options, path, is_file)
    mountinfo_fd = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_self)
    os.close(proc_self)
    return root, root_fd, proc_self_fd, mountinfo_fd


def _id_maps(options: SandboxOptions) -> tuple[IdMap, IdMap] | None:
    """The maps of the user namespace that there is to be."""
    if os.geteuid() == 0 and not options.uid_map and not options.gid_map:
        return None
    uid_map = options.uid_map or ((0, os.geteuid(), 1),)
    return uid_map, options.gid_map or ((0, os.getegid(), 1),)


def _unshare(maps: tuple[IdMap, IdMap] | None) -> None:
    if maps is None:
        with _explained("--sandbox namespace: unshare"):
            linux.unshare(abi.CLONE_NEWPID)
        return
    writer = MapWriter(*maps)
    try:
        with _explained("--sandbox namespace: a user namespace"):
            linux.unshare(abi.CLONE_NEWUSER | abi.CLONE_NEWPID)
    except BaseException:
        writer.close()
        raise
    writer.write()


def _become(options: SandboxOptions, uid_map: IdMap, gid_map: IdMap) -> None:
    """Who it is to be in the user namespace, with all capabilities there; root by default, if that
    has one.
    """
    with _explained("--sandbox namespace: becoming another in the user namespace"):
        # The kernel takes them from who ceases to be root.
        linux.prctl(linux.PR_SET_KEEPCAPS, 1)
        if is_mapped(gid_map, options.gid):
            os.setresgid(options.gid, options.gid, options.gid)
        if is_mapped(uid_map, options.uid):
            os.setresuid(options.uid, options.uid, options.uid)
        linux.prctl(linux.PR_SET_KEEPCAPS, 0)
        _, permitted, inheritable = capget()
        capset(permitted, permitted, inheritable)
        # Who changes its id is not dumpable, and its /proc/self/fd the real root's.
        linux.prctl(linux.PR_SET_DUMPABLE, 1)
        _drop_groups()


def _open_proc() -> tuple[int, int]:
    """(/proc/self, a mount of /proc/self/fd alone), O_PATH both."""
    own = True
    try:
        linux.mount("proc", "/proc", "proc", abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC)
    except OSError as error:
        # In a container whose /proc is partly covered no user may mount another. The one that is
        # there has our own directory too, and the mount below leads nowhere else.
        if error.errno not in (EPERM, EBUSY):
            raise
        own = False
    proc_self = os.open("/proc/self", _DIRECTORY)
    proc_self_fd = linux.open_tree(abi.AT_FDCWD, "/proc/self/fd", abi.OPEN_TREE_CLONE)
    if own:
        # A shared directory above it must not show it.
        linux.umount2("/proc", abi.MNT_DETACH)
    return proc_self, proc_self_fd


def _take_place(options: SandboxOptions, path: str, is_file: bool) -> tuple[str, int]:
    """Make the shared directory the root; return its new name, and an O_PATH descriptor."""
    if options.skip_pivot_root:
        os.chdir("/")
        return path, os.open(path, os.O_PATH | os.O_CLOEXEC)
    flags = abi.OPEN_TREE_CLONE | abi.AT_RECURSIVE
    if is_file:
        tree = linux.open_tree(abi.AT_FDCWD, path, flags)
        _shut_devices(tree)
        root = _hang_file(tree, os.path.basename(path))
    else:
        tree = linux.open_tree(abi.AT_FDCWD, "", flags | abi.AT_EMPTY_PATH)
        _shut_devices(tree)
        linux.move_mount(tree, abi.AT_FDCWD, "", abi.MOVE_MOUNT_T_EMPTY_PATH)
        os.fchdir(tree)
        root = "/"
    _pivot()
    return root, tree


def _shut_devices(tree: int) -> None:
    """Guests may make device nodes, and open them with drivers of their own; the daemon, which
    has CAP_MKNOD for that, is never to open one."""
    try:
        linux.mount_setattr(tree, abi.MOUNT_ATTR_NODEV | abi.MOUNT_ATTR_NOSUID)
    except OSError as error:
        if error.errno != ENOSYS:
            raise
        LOG.warning("before Linux 5.12 the daemon can open device nodes of the shared directory")


def _hang_file(tree: int, name: str) -> str:
    """Mount ``tree``, of a file, in an empty read-only directory, and go there."""
    flags = abi.MS_NOSUID | abi.MS_NODEV | abi.MS_NOEXEC
    linux.mount("tmpfs", "/proc", "tmpfs", flags, "mode=755,size=4k")
    os.chdir("/proc")
    os.close(os.open(name, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    linux.move_mount(tree, abi.AT_FDCWD, name, 0)
    linux.mount(None, "/proc", None, flags | abi.MS_REMOUNT | abi.MS_RDONLY)
    return f"/{name}"


def _pivot() -> None:
    """The working directory becomes the root, and the old root is gone."""
    old = os.open("/", _DIRECTORY)
    linux.pivot_root(".", ".")
    os.fchdir(old)
    # As a slave, or the host's tree would be unmounted with it.
    linux.mount(None, ".", None, abi.MS_REC | abi.MS_SLAVE)
    linux.umount2(".", abi.MNT_DETACH)
    os.close(old)
    os.chdir("/")
