"""What a sandbox is asked to be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from harness.sandbox.capabilities import parse_modcaps
from harness.sandbox.errors import SandboxError
from harness.sandbox.idmaps import IdMap, check_map, is_mapped

MODES: Final = ("namespace", "chroot", "none")
SECCOMP_MODES: Final = ("kill", "log", "trap", "none")


@dataclass(frozen=True, kw_only=True)
class SandboxOptions:
    """The options of virtiofsd's sandbox, and crosvm's.

    Raises (when made):
        SandboxError: an option that is malformed, or that the mode can't honour.
    """

    shared_dir: str
    """What the daemon is to reach, and nothing else. In mode namespace it may be a file."""
    mode: str = "namespace"
    uid_map: IdMap = ()
    """With a map there is a user namespace, even for root; a user always gets one. The default
    of a missing map is one's own id as 0."""
    gid_map: IdMap = ()
    uid: int = 0
    gid: int = 0
    """Who the daemon becomes in the user namespace; one that is not 0 has to be in the maps."""
    modcaps: str = ""
    """As ``+sys_admin:-chown``."""
    rlimit_nofile: int | None = None
    """Descriptors; 0 keeps the limit, None is as many as virtiofsd would take."""
    seccomp: str = "kill"
    keep_dac_read_search: bool = False
    """For open_by_handle_at(2): file handles that are not ``never``."""
    keep_fds: Iterable[int] | None = None
    """Besides 0, 1 and 2; all others are closed. None closes nothing."""
    skip_pivot_root: bool = False
    """Namespaces only: the tree stays the host's (crosvm's ``--skip-pivot-root``)."""

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise SandboxError(f"--sandbox {self.mode}: choose one of {', '.join(MODES)}")
        if self.seccomp not in SECCOMP_MODES:
            raise SandboxError(
                f"--seccomp {self.seccomp}: choose one of {', '.join(SECCOMP_MODES)}"
            )
        if not self.shared_dir or "\0" in self.shared_dir:
            raise SandboxError(f"--shared-dir {self.shared_dir!r}: name a directory")
        if self.mode != "namespace" and (self.uid_map or self.gid_map):
            raise SandboxError(f"--sandbox {self.mode} has no id maps: they need namespace")
        if self.mode != "namespace" and self.skip_pivot_root:
            raise SandboxError(f"--sandbox {self.mode} has no pivot_root to skip")
        check_map("--uid-map", self.uid_map)
        check_map("--gid-map", self.gid_map)
        for option, extents, inside in (
            ("uid", self.uid_map, self.uid),
            ("gid", self.gid_map, self.gid),
        ):
            if inside and not is_mapped(extents, inside):
                raise SandboxError(
                    f"--{option} {inside}: the user namespace has no such id: "
                    f"add it with --{option}-map"
                )
        parse_modcaps(self.modcaps)
