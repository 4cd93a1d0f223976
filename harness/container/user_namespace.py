"""The user namespace of a container, and who is who in it."""

from __future__ import annotations

import os
import pwd
from errno import ENOSPC, EPERM
from pathlib import Path
from typing import Final, NamedTuple

from fsimpl.passthrough import oslib
from harness import linux
from harness.container.errors import ContainerError
from vfs import abi
from vfs.credentials import CAP_SETFCAP, CAP_SETGID, CAP_SETUID

_MAPPING: Final = 1 << CAP_SETUID | 1 << CAP_SETGID | 1 << CAP_SETFCAP
"""What the kernel asks of who maps more than itself; the last one for mapping root."""


class Identity(NamedTuple):
    """Whom the command runs as: ids as they are inside.

    With `every_id` each id of this host is itself inside. Otherwise there is one user and one
    group, which are ours, by whatever numbers; all others are the overflow ids (nobody).
    """

    uid: int
    gid: int
    every_id: bool
    keep_groups: bool


def choose_identity(uid: int | None, gid: int | None) -> Identity:
    """Return who the command is, where None is: as we are.

    Without `gid`, a `uid` comes with its primary group of this host, or a group of its number.
    """
    every_id = oslib.capget()[0] & _MAPPING == _MAPPING
    keep_groups = uid is None and gid is None
    if gid is None:
        gid = os.getegid() if uid is None else _primary_group(uid)
    return Identity(os.geteuid() if uid is None else uid, gid, every_id, keep_groups)


def enter_user_namespace(identity: Identity) -> None:
    """Move this process, which must have one thread, into a new user namespace with its maps.

    Raises:
        ContainerError: the kernel refuses.
    """
    try:
        if identity.every_id:
            _enter_with_all()
        else:
            _enter_alone(identity)
    except OSError as error:
        raise ContainerError(f"can't make a user namespace: {_explained(error)}") from None


def drop_capabilities() -> None:
    """Give up every capability in the user namespace."""
    oslib.capset(0, 0, 0)


def _primary_group(uid: int) -> int:
    try:
        return pwd.getpwuid(uid).pw_gid
    except (KeyError, OverflowError):
        return uid


def _enter_alone(identity: Identity) -> None:
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(abi.CLONE_NEWUSER)
    own = Path("/proc/self")
    # Who could drop a group could also reach what is forbidden to that group.
    (own / "setgroups").write_text("deny")
    (own / "gid_map").write_text(f"{identity.gid} {gid} 1")
    (own / "uid_map").write_text(f"{identity.uid} {uid} 1")


def _enter_with_all() -> None:
    """The maps have to be written from outside, where our capabilities count."""
    go, ready = os.pipe()
    target = os.getpid()
    helper = os.fork()
    if helper == 0:
        status = EPERM
        try:
            os.close(ready)
            if os.read(go, 1):
                _copy_maps(target)
            status = 0
        except OSError as error:
            status = error.errno or EPERM
        finally:
            os._exit(status)
    os.close(go)
    try:
        linux.unshare(abi.CLONE_NEWUSER)
        os.write(ready, b"x")
    finally:
        os.close(ready)
        status = os.waitstatus_to_exitcode(os.waitpid(helper, 0)[1])
    if status:
        number = status if status > 0 else EPERM
        raise OSError(number, os.strerror(number))


def _copy_maps(target: int) -> None:
    for name in ("uid_map", "gid_map"):
        ranges = [line.split() for line in Path("/proc/self", name).read_text().splitlines()]
        text = "".join(f"{first} {first} {count}\n" for first, _, count in ranges)
        Path("/proc", str(target), name).write_text(text)


def _explained(error: OSError) -> str:
    hint = ""
    if error.errno == EPERM:
        hint = " (is kernel.unprivileged_userns_clone 0, or AppArmor in the way, or this a chroot?)"
    elif error.errno == ENOSPC:
        hint = " (user.max_user_namespaces)"
    return f"{error.strerror}{hint}"
