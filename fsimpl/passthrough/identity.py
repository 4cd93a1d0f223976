"""Acting as the caller for the length of one host call. Linux: override_creds."""

from __future__ import annotations

import os
import sys

from fsimpl.passthrough import oslib
from vfs.credentials import (
    CAP_DAC_OVERRIDE,
    CAP_FS_SET,
    CAP_FSETID,
    CAP_SETGID,
    CAP_SETUID,
    Credentials,
)

_CAN_SWITCH = 1 << CAP_SETUID | 1 << CAP_SETGID
# With these, groups change nothing about what a call may do or how it owns what it makes.
_GROUP_BLIND = 1 << CAP_DAC_OVERRIDE | 1 << CAP_FSETID


class HostIdentity:
    """Who this process is on the host, and how a thread of it acts as somebody else.

    Read once, from the thread that mounts: all threads that enter the filesystem must be it. A
    process without CAP_SETUID and CAP_SETGID acts as itself for every caller; what the VFS allows
    the host may then still refuse, and what is made belongs to the process's user.

    A signal handler that raises, as Python's own for SIGINT does in the main thread, can strike
    between two steps of going back; serve callers with other ids from threads without one.
    """

    __slots__ = (
        "effective", "fixed_up", "fsgid", "fsuid", "groups", "inheritable", "own", "permitted",
        "switches",
    )  # fmt: skip

    def __init__(self) -> None:
        self.fsuid = oslib.getfsuid()
        self.fsgid = oslib.getfsgid()
        self.groups = frozenset(os.getgroups())
        self.effective, self.permitted, self.inheritable = oslib.capget()
        self.switches = self.effective & _CAN_SWITCH == _CAN_SWITCH
        # Whether setfsuid(2) alone takes the file system capabilities away, and gives them back.
        self.fixed_up = (
            self.fsuid == 0
            and (self.effective ^ self.permitted) & CAP_FS_SET == 0
            and not oslib.get_securebits() & oslib.SECBIT_NO_SETUID_FIXUP
        )
        self.own = Own()

    def capable(self, cap: int) -> bool:
        """Whether the process's effective set has ``cap``."""
        return bool(self.effective >> cap & 1)

    def is_own(self, cred: Credentials) -> bool:
        """Whether the process as it is does what ``cred`` would."""
        own_caps = self.effective & CAP_FS_SET
        return (
            cred.fsuid == self.fsuid
            and cred.fsgid == self.fsgid
            and cred.caps & self.permitted & CAP_FS_SET == own_caps
            and (own_caps & _GROUP_BLIND == _GROUP_BLIND or cred.groups == self.groups)
        )

    def can_be(self, cred: Credentials) -> bool:
        """Whether ``assume(cred)`` acts as ``cred`` truly."""
        return self.switches or self.is_own(cred)

    def assume(self, cred: Credentials) -> Own | Assumed:
        """For ``with``: the calling thread's file system ids, groups and the capabilities that
        setfsuid(2) touches are ``cred``'s inside. No system call where they are so already.

        Raises (on entering): EOVERFLOW for an id that this user namespace does not have.
        """
        if not self.switches or self.is_own(cred):
            return self.own
        return Assumed(self, cred)


class Own:
    """The process's own identity: nothing to change, nothing to restore."""

    __slots__ = ()

    def __enter__(self) -> None:
        pass

    def __exit__(self, *exc: object) -> None:
        pass


class Assumed:
    """One thread's stay in another identity.

    Leaving restores all of it or ends the process: a thread that keeps a caller's groups, or the
    daemon's when it should not, would do the next request as the wrong one. The system calls are
    the raw ones, because those of glibc change every thread.
    """

    __slots__ = ("caps", "cred", "groups", "identity", "restore_caps")

    def __init__(self, identity: HostIdentity, cred: Credentials) -> None:
        self.identity = identity
        self.cred = cred
        # CAP_SETUID and CAP_SETGID stay, for the way back.
        wanted = cred.caps & identity.permitted & CAP_FS_SET
        caps = identity.effective & ~CAP_FS_SET | wanted
        leaves_root = identity.fixed_up and cred.fsuid != 0
        self.caps = None if leaves_root and not wanted else caps
        self.restore_caps = not leaves_root
        blind = wanted & _GROUP_BLIND == _GROUP_BLIND
        self.groups = None if blind or cred.groups == identity.groups else cred.groups

    def __enter__(self) -> None:
        # Every change makes a new struct cred (2 µs), so none is made in vain.
        identity, cred = self.identity, self.cred
        try:
            if self.groups is not None:
                oslib.setgroups(self.groups)
            if cred.fsgid != identity.fsgid:
                oslib.setfsgid(cred.fsgid)
            if cred.fsuid != identity.fsuid:
                oslib.setfsuid(cred.fsuid)
            if self.caps is not None:
                oslib.capset(self.caps, identity.permitted, identity.inheritable)
        except BaseException:
            self._restore_or_abort()
            raise

    def __exit__(self, *exc: object) -> None:
        self._restore_or_abort()

    def _restore_or_abort(self) -> None:
        try:
            self._restore()
        except OSError as error:
            print(f"cannot restore the identity of a thread: {error}", file=sys.stderr, flush=True)
            os.abort()
        except BaseException:
            # A signal handler's exception in the middle; every step may be done twice.
            self._restore_or_abort()
            raise

    def _restore(self) -> None:
        identity, cred = self.identity, self.cred
        if cred.fsuid != identity.fsuid:
            oslib.setfsuid(identity.fsuid)
        if self.restore_caps:
            oslib.capset(identity.effective, identity.permitted, identity.inheritable)
        if cred.fsgid != identity.fsgid:
            oslib.setfsgid(identity.fsgid)
        if self.groups is not None:
            oslib.setgroups(identity.groups)
