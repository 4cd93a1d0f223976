"""Attaching to and detaching from the host's mount tree: mount(2), fusermount3, fusectl.

A FUSE mount is a descriptor of /dev/fuse bound to a mount point. Root binds it itself; an
ordinary user has the setuid helper fusermount3 do it, which passes the descriptor back.
"""

from __future__ import annotations

import array
import os
import shutil
import socket
import stat
import subprocess
from errno import EBUSY, EINVAL, ENODEV, ENOENT, ENOTCONN, EPERM
from typing import Final, NamedTuple

from harness import linux
from harness.errors import CommandError

MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_NOATIME: Final = 1024

MNT_FORCE: Final = 1
MNT_DETACH: Final = 2
UMOUNT_NOFOLLOW: Final = 8

FUSECTL: Final = "/sys/fs/fuse/connections"
HELPER: Final = "fusermount3"
FUSE_CONF: Final = "/etc/fuse.conf"

_FD_SIZE: Final = array.array("i").itemsize


class HostMountError(CommandError):
    """The host does not let us mount; the message is one line that says what to do."""


class MountOptions(NamedTuple):
    """The options of fuse(8) that belong to the mount, and not to who serves it.

    Without `dev` and `suid` the mount has nodev and nosuid. Without `allow_other` the kernel
    lets in only processes of the mounting user; with it and without `default_permissions` access
    is decided by the server alone.
    """

    allow_other: bool = False
    default_permissions: bool = False
    dev: bool = False
    suid: bool = False
    noexec: bool = False
    noatime: bool = False
    read_only: bool = False
    fsname: str = "dentry"
    subtype: str = "dentry"

    def flags(self) -> int:
        """Return the MS_* flags of mount(2)."""
        return (
            (0 if self.dev else MS_NODEV)
            | (0 if self.suid else MS_NOSUID)
            | (MS_NOEXEC if self.noexec else 0)
            | (MS_NOATIME if self.noatime else 0)
            | (MS_RDONLY if self.read_only else 0)
        )

    def access(self) -> list[str]:
        """Return the options that the fuse filesystem itself reads."""
        names = ("allow_other", "default_permissions")
        return [name for name in names if getattr(self, name)]


class HostMount(NamedTuple):
    """An attached FUSE mount: its descriptor (owned by the holder), place, and connection.

    `connection` is its number below /sys/fs/fuse/connections; `mount_id` that of mountinfo.
    """

    fd: int
    mountpoint: str
    mount_id: int
    connection: int


def attach(mountpoint: str | os.PathLike[str], options: MountOptions) -> HostMount:
    """Mount a new FUSE connection at directory `mountpoint`, unserved; the caller owns the fd.

    Raises:
        HostMountError: whatever is in the way, in one line.
    """
    path = _checked(os.fspath(mountpoint))
    fd = _attach_as_root(path, options) if os.geteuid() == 0 else _attach_as_user(path, options)
    try:
        mount_id, device = _identify(path)
    except BaseException:
        os.close(fd)
        raise
    return HostMount(fd, path, mount_id, device)


def detach(mount: HostMount, *, lazy: bool = False) -> None:
    """Unmount `mount`, unless it is gone already or something else covers it.

    With `lazy` the mount point is freed now and the filesystem lives on for those inside.

    Raises:
        OSError: EBUSY when something in it is in use (not with `lazy`); EPERM.
    """
    try:
        if _mount_id(mount.mountpoint) != mount.mount_id:
            return
    except OSError as error:
        if error.errno == ENOENT:
            return
        raise
    if os.geteuid() == 0:
        flags = UMOUNT_NOFOLLOW | (MNT_DETACH if lazy else 0)
        linux.umount2(mount.mountpoint, flags)
        return
    command = [HELPER, "-u", "-q", *(["-z"] if lazy else []), "--", mount.mountpoint]
    if _run_helper(command).returncode != 0:
        raise OSError(EBUSY, os.strerror(EBUSY), mount.mountpoint)


def have_fusectl() -> None:
    """Mount fusectl where everybody looks for it, if it is not there: no distribution's boot, no
    fusectl. Raises: EPERM without CAP_SYS_ADMIN.
    """
    if not os.path.ismount(FUSECTL):
        linux.mount("fusectl", FUSECTL, "fusectl", 0, "")


def abort(mount: HostMount) -> bool:
    """End the connection: clients in a call get ECONNABORTED, later ones ENOTCONN.

    Neither a busy server nor a hung client can hold it up. Returns whether the kernel was told;
    it may not be for a user where fusectl is not mounted.
    """
    control = f"{FUSECTL}/{mount.connection}/abort"
    try:
        if os.geteuid() == 0:
            have_fusectl()
        fd = os.open(control, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        # Ended by now, or no fusectl: then an abort is what MNT_FORCE does first.
        return os.path.ismount(FUSECTL) or _force(mount)
    except OSError:
        return _force(mount)
    try:
        os.write(fd, b"1")
    finally:
        os.close(fd)
    return True


def _force(mount: HostMount) -> bool:
    try:
        if _mount_id(mount.mountpoint) == mount.mount_id:
            linux.umount2(mount.mountpoint, MNT_FORCE | MNT_DETACH | UMOUNT_NOFOLLOW)
    except OSError:
        return False
    return True


def _checked(mountpoint: str) -> str:
    """Return the canonical path of a directory to mount on."""
    path = os.path.realpath(mountpoint)
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        if error.errno == ENOTCONN:
            raise HostMountError(
                f"{mountpoint}: a FUSE mount whose server died is here: unmount it first"
                f" (umount -l, or {HELPER} -u)"
            ) from None
        if error.errno == ENOENT:
            raise HostMountError(
                f"{mountpoint}: no such directory: make the mount point first"
            ) from None
        raise HostMountError(f"{mountpoint}: {error.strerror}") from None
    if not stat.S_ISDIR(mode):
        raise HostMountError(f"{mountpoint}: not a directory, and only a directory can be covered")
    return path


def _attach_as_root(path: str, options: MountOptions) -> int:
    try:
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (ENOENT, ENODEV):
            raise HostMountError(
                "/dev/fuse is missing: load the module with `modprobe fuse`"
            ) from None
        raise HostMountError(f"can't open /dev/fuse: {error.strerror}") from None
    data = [
        *(f"fd={fd}", f"rootmode={stat.S_IFDIR:o}"),
        *(f"user_id={os.getuid()}", f"group_id={os.getgid()}"),
        *options.access(),
    ]
    try:
        linux.mount(
            options.fsname, path, f"fuse.{options.subtype}", options.flags(), ",".join(data)
        )
    except OSError as error:
        os.close(fd)
        hint = ": CAP_SYS_ADMIN is needed, which a container may lack" * (error.errno == EPERM)
        raise HostMountError(f"can't mount on {path}: {error.strerror}{hint}") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def _run_helper(command: list[str], **environment: str) -> subprocess.CompletedProcess[bytes]:
    """Run fusermount3 to its end.

    With `close_fds` the child would close our descriptors before it is another program, while this
    process stands still for it: one that is open on a mount we serve would wait for us for ever.
    """
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={**os.environ, **environment},
        close_fds=False,
        check=False,
    )


def _attach_as_user(path: str, options: MountOptions) -> int:
    helper = shutil.which(HELPER)
    if helper is None:
        raise HostMountError(
            f"{HELPER} is needed to mount as an ordinary user: install the Debian package fuse3"
        )
    for name in ("dev", "suid"):
        if getattr(options, name):
            raise HostMountError(f"only root can mount with option '{name}'")
    if options.allow_other and not _user_allow_other():
        raise HostMountError(
            f"option 'allow_other' is for root, unless {FUSE_CONF} has a line user_allow_other"
        )
    words = [f"fsname={options.fsname}", f"subtype={options.subtype}", *options.access()]
    flags = {"ro": options.read_only, "noexec": options.noexec, "noatime": options.noatime}
    words += [name for name, given in flags.items() if given]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours:
        with theirs:
            theirs.set_inheritable(True)
            result = _run_helper(
                [helper, "-o", ",".join(words), "--", path], _FUSE_COMMFD=str(theirs.fileno())
            )
        if result.returncode != 0:
            said = " ".join(result.stderr.decode(errors="replace").split())
            raise HostMountError(said or f"{HELPER} failed with status {result.returncode}")
        return _receive_fd(ours)


def _receive_fd(sock: socket.socket) -> int:
    _, ancillary, _, _ = sock.recvmsg(1, socket.CMSG_SPACE(_FD_SIZE), socket.MSG_CMSG_CLOEXEC)
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            return array.array("i", data[:_FD_SIZE])[0]
    raise HostMountError(f"{HELPER} succeeded but passed no descriptor")


def _user_allow_other() -> bool:
    try:
        with open(FUSE_CONF) as conf:
            return any(line.strip() == "user_allow_other" for line in conf)
    except OSError:
        return False


def _identify(path: str) -> tuple[int, int]:
    """Return mount id and minor device number (the connection's) of the mount at `path`.

    stat(2) would ask the server, which is not there yet; opening with O_PATH does not.
    """
    mount_id = _mount_id(path)
    with open("/proc/self/mountinfo") as mountinfo:
        for line in mountinfo:
            fields = line.split(" ", 3)
            if int(fields[0]) == mount_id:
                return mount_id, int(fields[2].partition(":")[2])
    raise OSError(EINVAL, f"mount {mount_id} is not in mountinfo", path)


def _mount_id(path: str) -> int:
    fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as fdinfo:
            for line in fdinfo:
                key, _, value = line.partition(":")
                if key == "mnt_id":
                    return int(value)
    finally:
        os.close(fd)
    raise OSError(EINVAL, "no mnt_id in fdinfo", path)
