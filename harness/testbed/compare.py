"""Run a sequence on two targets, step by step, and report the first difference."""

from __future__ import annotations

import errno
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from harness.testbed.state import Renamer, State, lines_of, time_contradictions
from harness.testbed.step import Step, format_bytes, format_script
from harness.testbed.target import NoSuchTask, Target, TargetUnavailable
from vfs.syscalls.attributes import Stat, StatfsResult, Statx
from vfs.syscalls.names import DirectoryRecord

AT_END = "at the end"
AFTER_EACH_STEP = "after each step"
NEVER = "never"
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
    """Where two targets part: the step, both answers, both states (None if not observed)."""

    steps: Sequence[Step]
    at: int
    names: tuple[str, str]
    answers: tuple[Answer, Answer]
    states: tuple[State | None, State | None]
    reason: str

    def __str__(self) -> str:
        left, right = self.names
        width = max(len(left), len(right))
        parts = [
            f"{self.reason} (step {self.at + 1} of {len(self.steps)})",
            f"  {self.steps[self.at]}" if self.steps else "",
            f"    {left:{width}}  {self.answers[0]}",
            f"    {right:{width}}  {self.answers[1]}",
        ]
        if self.states[0] is not None and self.states[1] is not None:
            parts.append(side_by_side(self.states[0], self.states[1], self.names))
        parts.append("\nScript:\n" + format_script(self.steps[: self.at + 1]))
        return "\n".join(parts)


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


class Normalizer:
    """Makes one target's answers comparable: numbers without meaning are renamed, times dropped."""

    def __init__(self) -> None:
        self._inode, self._device, self._mount = Renamer(), Renamer(), Renamer()

    def __call__(self, value: Any) -> Any:
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
                return value._replace(
                    stx_ino=self._inode((value.stx_dev, value.stx_ino)),
                    stx_dev=self._device(value.stx_dev),
                    stx_mnt_id=self._mount(value.stx_mnt_id),
                    stx_attributes_mask=0,
                    stx_atime_ns=0,
                    stx_btime_ns=0,
                    stx_ctime_ns=0,
                    stx_mtime_ns=0,
                )
            case StatfsResult():
                return value._replace(f_fsid=0)
            case [DirectoryRecord(), *_]:
                return sorted((entry.d_name, entry.d_type) for entry in value)
            case list():
                return sorted(value)
        return value


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

    After each step both targets' invariants are checked; ``observe`` says when their whole states
    are compared too. Raises: NoSuchTask.
    """
    names = one.name, other.name
    normalizers = Normalizer(), Normalizer()
    nothing = Answer()
    for index, step in enumerate(steps):
        raw = perform(one, step), perform(other, step)
        answers = (
            raw[0]._replace(value=normalizers[0](raw[0].value)),
            raw[1]._replace(value=normalizers[1](raw[1].value)),
        )
        for target in (one, other):
            try:
                target.check()
            except AssertionError as error:
                reason = f"{target.name}: invariant broken: {error}"
                return Difference(steps, index, names, answers, (None, None), reason)
        if answers[0] != answers[1] or answers[0].crash:
            states = (None, None) if answers[0].crash else (one.observe(), other.observe())
            return Difference(steps, index, names, answers, states, "Answers differ")
        if observe == AFTER_EACH_STEP:
            here, there = one.observe(), other.observe()
            if not states_agree(here, there):
                return Difference(steps, index, names, answers, (here, there), "States differ")
    if observe == AT_END:
        here, there = one.observe(), other.observe()
        if not states_agree(here, there):
            states, reason = (here, there), "States differ"
            return Difference(steps, len(steps) - 1, names, (nothing, nothing), states, reason)
    return None


def minimize(
    steps: Sequence[Step], still_differs: Callable[[Sequence[Step]], bool]
) -> Sequence[Step]:
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
