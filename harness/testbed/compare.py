"""Run a sequence on two targets, step by step, and report the first difference."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from harness.testbed.mount_table import (
    MountTables,
    Renaming,
    rename_tables,
    tables_side_by_side,
)
from harness.testbed.state import Renamer, State, lines_of, time_contradictions
from harness.testbed.step import Step, format_bytes, format_script
from harness.testbed.target import NoSuchTask, Target, TargetUnavailable
from vfs import abi
from vfs.syscalls.attributes import Stat, StatfsResult, Statx
from vfs.syscalls.mount_query import Statmount
from vfs.syscalls.names import DirectoryRecord

_T = TypeVar("_T")

AT_END = "at the end"
AFTER_EACH_STEP = "after each step"
# The mount tables after each step, and everything at the end.
MOUNTS_AFTER_EACH_STEP = "mounts after each step"
EVERYTHING_AFTER_EACH_STEP = "everything after each step"
NEVER = "never"
_WITH_MOUNTS: Final = (MOUNTS_AFTER_EACH_STEP, EVERYTHING_AFTER_EACH_STEP)
_WITH_STATES: Final = (AFTER_EACH_STEP, EVERYTHING_AFTER_EACH_STEP)
_LONGEST_VALUE = 300


class Answer(NamedTuple):
    """What a call answered: a value, an errno, or (``crash``) a traceback of ours."""

    value: Any = None
    error: int = 0
    crash: str = ""

    def __str__(self) -> str:
        if self.crash:
            return "CRASH\n" + self.crash
        if self.error:
            return errno.errorcode.get(self.error, str(self.error))
        text = format_bytes(self.value) if isinstance(self.value, bytes) else repr(self.value)
        return text if len(text) < _LONGEST_VALUE else text[:_LONGEST_VALUE] + "..."


class Difference(NamedTuple):
    """Where two targets part: the step, both answers, both states and all mount tables (None if not
    observed).
    """

    steps: Sequence[Step]
    at: int
    names: tuple[str, str]
    answers: tuple[Answer, Answer]
    states: tuple[State | None, State | None]
    reason: str
    mounts: tuple[MountTables, MountTables] | None = None

    def __str__(self) -> str:
        width = max(map(len, self.names))
        parts = [
            f"{self.reason} (step {self.at + 1} of {len(self.steps)})",
            f"  {self.steps[self.at]}" if self.steps else "",
        ]
        for name, text in zip(self.names, _answers(*self.answers), strict=True):
            parts.append(f"    {name:{width}}  {text}")
        if self.states[0] is not None and self.states[1] is not None:
            parts.append(side_by_side(self.states[0], self.states[1], self.names))
        if self.mounts is not None:
            parts.append(tables_side_by_side(*self.mounts, self.names))
        parts.append("\nScript:\n" + format_script(self.steps[: self.at + 1]))
        return "\n".join(parts)


def _answers(one: Answer, other: Answer) -> tuple[str, str]:
    """Both as text; of two structures only the fields that differ, of two tables the rows."""
    here, there = one.value, other.value
    if here == there or type(here) is not type(there) or not isinstance(here, tuple):
        return str(one), str(other)
    fields = getattr(here, "_fields", None)
    if fields is None:
        left, right = ([str(row) for row in rows] for rows in (here, there))
        return (
            "; ".join(row for row in left if row not in right) or "(the same rows)",
            "; ".join(row for row in right if row not in left) or "(the same rows)",
        )
    differ = [i for i, name in enumerate(fields) if here[i] != there[i]]
    texts = [", ".join(f"{fields[i]}={value[i]!r}" for i in differ) for value in (here, there)]
    return f"{type(here).__name__}({texts[0]})", f"{type(here).__name__}({texts[1]})"


class TargetsDiffer(AssertionError):
    """Raised with a ``Difference``'s text."""


def side_by_side(one: State, other: State, names: tuple[str, str]) -> str:
    """Both states, line by line; what differs stands twice, behind ``!``."""
    left, right = lines_of(one), lines_of(other)
    shown = ["state:"]
    for key in sorted(left.keys() | right.keys()):
        here, there = left.get(key, "-"), right.get(key, "-")
        if here == there:
            shown.append(f"    {key:20} {here}")
        else:
            width = max(map(len, names))
            shown.append(f"  ! {key:20} {names[0]:{width}} {here}")
            shown.append(f"  ! {'':20} {names[1]:{width}} {there}")
    for path, here, there in time_contradictions(one, other):
        shown.append(f"  ! {path:20} {names[0]}: {here}; {names[1]}: {there}")
    return "\n".join(shown)


def states_agree(one: State, other: State) -> bool:
    return lines_of(one) == lines_of(other) and not any(time_contradictions(one, other))


# Calls after which every mount and superblock that there was is still there.
_KEEP_MOUNTS: Final = frozenset(
    (
        "access", "faccessat2", "fcntl", "fgetxattr", "flistxattr", "fstat", "fstatfs",
        "getcwd", "getdents64", "getxattr", "lgetxattr", "listmount", "listmount_at", "listxattr",
        "llistxattr", "lseek", "lstat", "mkdir", "mkdirat", "mountinfo", "mounts", "mountstats",
        "newfstatat", "nsfd", "poll", "pread64", "preadv2", "read", "readlink", "readlinkat",
        "stat", "statfs", "statmount", "statmount_at", "statx", "umask", "write",
    )
)  # fmt: skip
_MAKE_MOUNTS: Final = frozenset(("clone", "fsconfig", "mount", "open_tree", "unshare"))


class Normalizer:
    """Makes one target's answers comparable: numbers without meaning are renamed, times dropped.

    A number keeps its name as long as Linux cannot have given it to something else: old mount ids,
    peer groups, devices and inodes of other superblocks are forgotten when a mount may have gone.
    Unique mount ids and ids of namespaces hold to the end.
    """

    def __init__(self) -> None:
        self._unique_mount, self._namespace = Renamer(), Renamer()
        self._has_mounts = False
        self._forget()

    def _forget(self) -> None:
        self._inode, self._device, self._mounts = Renamer(), Renamer(), Renaming()

    def __call__(self, step: Step, value: Any) -> Any:
        """``value``, which ``step`` answered."""
        if step.call in _MAKE_MOUNTS:
            self._has_mounts = True
        if self._has_mounts and step.call not in _KEEP_MOUNTS:
            self._forget()
        match value:
            case Stat():
                return value._replace(
                    st_ino=self._inode((value.st_dev, value.st_ino)),
                    st_dev=self._device(value.st_dev),
                    st_atime_ns=0,
                    st_mtime_ns=0,
                    st_ctime_ns=0,
                )
            case Statx():
                unique = value.stx_mask & abi.STATX_MNT_ID_UNIQUE
                mount = self._unique_mount if unique else self._mounts.mount
                return value._replace(
                    stx_ino=self._inode((value.stx_dev, value.stx_ino)),
                    stx_dev=self._device(value.stx_dev),
                    stx_mnt_id=mount(value.stx_mnt_id),
                    stx_attributes_mask=0,
                    stx_atime_ns=0,
                    stx_btime_ns=0,
                    stx_ctime_ns=0,
                    stx_mtime_ns=0,
                )
            case Statmount():
                return self._statmount(value)
            case StatfsResult():
                return value._replace(f_fsid=0)
            case [DirectoryRecord(), *_]:
                return sorted((entry.d_name, entry.d_type) for entry in value)
            case list() if step.call in ("listmount", "listmount_at"):
                return [self._unique_mount(mount_id) for mount_id in value]
            case list():
                return sorted(value)
            case bytes() if step.call == "mountinfo":
                return rename_tables({step.task: value})[step.task]
        return value

    def _statmount(self, answer: Statmount) -> Statmount:
        rename = self._mounts
        return answer._replace(
            sb_dev_major=0,
            sb_dev_minor=self._device(abi.makedev(answer.sb_dev_major, answer.sb_dev_minor)),
            mnt_id=self._unique_mount(answer.mnt_id),
            mnt_parent_id=self._unique_mount(answer.mnt_parent_id),
            mnt_id_old=rename.mount(answer.mnt_id_old),
            mnt_parent_id_old=rename.mount(answer.mnt_parent_id_old),
            mnt_peer_group=rename.group(answer.mnt_peer_group),
            mnt_master=rename.group(answer.mnt_master),
            propagate_from=rename.group(answer.propagate_from),
            mnt_ns_id=self._namespace(answer.mnt_ns_id),
        )


def perform(target: Target, step: Step) -> Answer:
    """The step's answer on ``target``, raw."""
    try:
        return Answer(target.perform(step))
    except OSError as error:
        if error.errno is None:
            raise
        return Answer(error=error.errno)
    except (NoSuchTask, TargetUnavailable):
        raise
    except Exception:
        return Answer(crash=traceback.format_exc())


def run(
    steps: Sequence[Step], one: Target, other: Target, observe: str = AT_END
) -> Difference | None:
    """Run ``steps`` on two fresh targets. Returns the first difference, or None.

    After each step both targets' invariants are checked; ``observe`` says when their whole states,
    or their mount tables, are compared too. Raises: NoSuchTask.
    """
    names = one.name, other.name
    normalizers = Normalizer(), Normalizer()
    nothing = Answer()
    for index, step in enumerate(steps):
        raw = perform(one, step), perform(other, step)
        answers = (
            raw[0]._replace(value=normalizers[0](step, raw[0].value)),
            raw[1]._replace(value=normalizers[1](step, raw[1].value)),
        )
        for target in (one, other):
            try:
                target.check()
            except AssertionError as error:
                reason = f"{target.name}: invariant broken: {error}"
                return Difference(steps, index, names, answers, (None, None), reason)
        if answers[0] != answers[1] or answers[0].crash:
            reason = "Answers differ"
            if answers[0].crash or answers[1].crash:
                return Difference(steps, index, names, answers, (None, None), reason)
            states = one.observe(), other.observe()
            mounts = _mounts(one, other) if observe in _WITH_MOUNTS else None
            return Difference(steps, index, names, answers, states, reason, mounts)
        if observe in _WITH_MOUNTS:
            mounts = _mounts(one, other)
            if mounts[0] != mounts[1]:
                reason = "Mount tables differ"
                return Difference(steps, index, names, answers, (None, None), reason, mounts)
        if observe in _WITH_STATES:
            here, there = one.observe(), other.observe()
            if not states_agree(here, there):
                return Difference(steps, index, names, answers, (here, there), "States differ")
    if observe in (AT_END, MOUNTS_AFTER_EACH_STEP):
        here, there = one.observe(), other.observe()
        if not states_agree(here, there):
            states, reason = (here, there), "States differ"
            return Difference(steps, len(steps) - 1, names, (nothing, nothing), states, reason)
    return None


def _mounts(one: Target, other: Target) -> tuple[MountTables, MountTables]:
    return one.observe_mounts(), other.observe_mounts()


def minimize(steps: Sequence[_T], still_differs: Callable[[Sequence[_T]], bool]) -> Sequence[_T]:
    """Drop steps, half of them, then fewer at once, while ``still_differs`` holds."""
    size = max(len(steps) // 2, 1)
    while True:
        shrunk = False
        end = len(steps)
        while end > 0:
            shorter = [*steps[: max(end - size, 0)], *steps[end:]]
            if still_differs(shorter):
                steps = shorter
                shrunk = True
            end -= size
        if size > 1:
            size //= 2
        elif not shrunk:
            return steps
