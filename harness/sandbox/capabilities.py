"""Which capabilities the daemon keeps, and giving up the rest. Linux: capabilities(7)."""

from __future__ import annotations

import logging
from errno import EINVAL
from typing import Final

from fsimpl.passthrough.oslib import capget, capset
from harness import linux
from harness.sandbox.errors import SandboxError

LOG = logging.getLogger(__name__)

NAMES: Final = (
    "chown", "dac_override", "dac_read_search", "fowner", "fsetid", "kill", "setgid", "setuid",
    "setpcap", "linux_immutable", "net_bind_service", "net_broadcast", "net_admin", "net_raw",
    "ipc_lock", "ipc_owner", "sys_module", "sys_rawio", "sys_chroot", "sys_ptrace", "sys_pacct",
    "sys_admin", "sys_boot", "sys_nice", "sys_resource", "sys_time", "sys_tty_config", "mknod",
    "lease", "audit_write", "audit_control", "setfcap", "mac_override", "mac_admin", "syslog",
    "wake_alarm", "block_suspend", "audit_read", "perfmon", "bpf", "checkpoint_restore",
)  # fmt: skip
"""In the order of their numbers."""

KEPT: Final = frozenset(
    NAMES.index(name)
    for name in (
        "chown", "dac_override", "fowner", "fsetid", "setgid", "setuid", "mknod", "setfcap"
    )
)  # fmt: skip
DAC_READ_SEARCH: Final = NAMES.index("dac_read_search")
_SETPCAP: Final = NAMES.index("setpcap")
_MAX: Final = 63


def parse_modcaps(text: str) -> tuple[frozenset[int], frozenset[int]]:
    """(added, removed) of ``--modcaps=+sys_admin:-chown``; of one named twice the last counts.

    Raises:
        SandboxError: a word without + or -, or that names no capability.
    """
    added: set[int] = set()
    removed: set[int] = set()
    for word in text.split(":") if text else ():
        sign, name = word[:1], word[1:].lower()
        if sign not in ("+", "-") or not name:
            raise SandboxError(
                f"--modcaps: '{word}': write + or - and a capability, as +sys_admin:-chown"
            )
        try:
            cap = NAMES.index(name.removeprefix("cap_"))
        except ValueError:
            raise SandboxError(
                f"--modcaps: there is no capability '{word[1:]}'; capabilities(7) has their names"
            ) from None
        (added if sign == "+" else removed).add(cap)
        (removed if sign == "+" else added).discard(cap)
    return frozenset(added), frozenset(removed)


def wanted(modcaps: str, *, keep_dac_read_search: bool) -> frozenset[int]:
    """What the daemon keeps. Raises: SandboxError, as `parse_modcaps`."""
    added, removed = parse_modcaps(modcaps)
    base = KEPT | {DAC_READ_SEARCH} if keep_dac_read_search else KEPT
    return (base | added) - removed


def reduce_to(caps: frozenset[int], required: frozenset[int]) -> None:
    """Give up everything but ``caps``, in all five sets of the calling thread.

    Effective and permitted become ``caps``, as far as they are permitted; nothing is inheritable
    or ambient, because nothing is ever executed; the bounding set is ``caps`` at most.

    Raises:
        SandboxError: one of ``required`` is not permitted to this process.
    """
    _, permitted, _ = capget()
    for cap in sorted(caps):
        if not permitted >> cap & 1:
            if cap in required:
                raise SandboxError(
                    f"--modcaps: this process does not have {NAMES[cap]} itself: leave it away"
                )
            LOG.warning("running without the capability %s, which this process lacks", NAMES[cap])
    mask = sum(1 << cap for cap in caps) & permitted
    if permitted >> _SETPCAP & 1:
        for cap in range(_MAX + 1):
            try:
                if cap not in caps and linux.prctl(linux.PR_CAPBSET_READ, cap):
                    linux.prctl(linux.PR_CAPBSET_DROP, cap)
            except OSError as error:
                if error.errno != EINVAL:
                    raise
                break  # the first number after the kernel's last capability
    linux.prctl(linux.PR_CAP_AMBIENT, linux.PR_CAP_AMBIENT_CLEAR_ALL)
    capset(mask, mask, 0)
