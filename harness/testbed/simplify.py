"""Make the steps of a difference plainer, so that one cause comes down to one script."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, Final

from harness.testbed.step import SIGNATURES, Step
from vfs import abi

_DROPPED_MOUNT_FLAGS: Final = (
    abi.MS_REC, abi.MS_RDONLY, abi.MS_NOSUID, abi.MS_NODEV, abi.MS_NOEXEC, abi.MS_NOATIME,
    abi.MS_NODIRATIME, abi.MS_RELATIME, abi.MS_STRICTATIME, abi.MS_NOSYMFOLLOW,
)  # fmt: skip


def simplify(
    steps: Sequence[Step], still_differs: Callable[[Sequence[Step]], bool]
) -> Sequence[Step]:
    """Change steps one by one, and then all names, as long as ``still_differs`` holds."""
    for index in range(len(steps)):
        changed = True
        while changed:
            changed = False
            for plainer in _plainer(steps[index]):
                candidate = [*steps[:index], plainer, *steps[index + 1 :]]
                if still_differs(candidate):
                    steps = candidate
                    changed = True
                    break
    renamed = _renamed(steps)
    return renamed if renamed != list(steps) and still_differs(renamed) else steps


def _plainer(step: Step) -> Iterator[Step]:
    """The step with one thing about it made plainer."""
    if step.task != "root":
        yield step._replace(task="root")
    if step.call == "clone":
        name, flags, *ids = step.args
        if flags:
            yield step._replace(args=(name, 0, *ids))
        if ids != [0, 0, ()]:
            yield step._replace(args=(name, flags, 0, 0, ()))
        return
    for position, (kind, value) in enumerate(zip(SIGNATURES[step.call], step.args, strict=False)):
        for plainer in _plainer_argument(step.call, kind, value):
            args = (*step.args[:position], plainer, *step.args[position + 1 :])
            yield step._replace(args=args)


def _plainer_argument(call: str, kind: str, value: Any) -> Iterator[Any]:
    if kind == "path" and value not in (None, b"", b"none"):
        if b".." not in value.split(b"/"):
            plain = b"/" + b"/".join(part for part in value.split(b"/") if part not in (b"", b"."))
            if plain != value:
                yield plain
    elif kind == "mount":
        for flag in _DROPPED_MOUNT_FLAGS:
            if value & flag:
                yield value & ~flag
    elif kind == "mode":
        if call == "mkdir" and value != 0o755:
            yield 0o755
    elif kind == "str" and call == "mount" and value not in (None, "tmpfs"):
        yield None


def _renamed(steps: Sequence[Step]) -> list[Step]:
    """Names of one letter become a, b, c in the order in which they appear."""
    names: dict[bytes, bytes] = {}
    letters = (bytes((ord("a") + number,)) for number in count())

    def rename(kind: str, value: Any) -> Any:
        if kind != "path" or not isinstance(value, bytes):
            return value
        parts = value.split(b"/")
        for part in parts:
            if len(part) == 1 and part.isalpha() and part not in names:
                names[part] = next(letters)
        return b"/".join(names.get(part, part) for part in parts)

    return [step._replace(args=(*map(rename, SIGNATURES[step.call], step.args),)) for step in steps]
