"""What the tests of mounts share: short ways to make mounts, and the mount table as short lines.

``view(root)`` is the mount table of a task as lines like ``"/mnt/a B[/sub] shared:1 master:2"``:
the mount point, the source (left out where it is ``none``, as for the root), what of the filesystem
the mount shows where that is not all of it, and how it propagates. Peer groups are numbered by
first appearance in what is shown, over all the tasks that are shown together; then every line
starts with the task's name, as in ``"other:/mnt shared:1"``.

Lines are sorted by mount point; mounts that are stacked come lowest first. A mount that is not on
the topmost mount of its mount point's directory, because another has covered it since, says which
one it is on: ``"/mnt/a B (on A)"``. The root's line is left out while it is private.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from harness.testbed.mount_table import Row, parse_mountinfo
from harness.testbed.target import TargetTask
from vfs.abi import (
    CLONE_NEWNS,
    CLONE_NEWUSER,
    MS_BIND,
    MS_MOVE,
    MS_PRIVATE,
    MS_REC,
    MS_SHARED,
    MS_SLAVE,
    MS_UNBINDABLE,
)

SHARED, PRIVATE, SLAVE, UNBINDABLE = "shared", "private", "slave", "unbindable"
SHARED_AND_SLAVE = "shared and slave"


# Making mounts


def mkdirs(task: TargetTask, *paths: str) -> None:
    for path in paths:
        task.mkdir(path, 0o755)


def mounted(task: TargetTask, source: str, path: str, *directories: str, flags: int = 0) -> str:
    """Put a new tmpfs on ``path``, which is made if it is missing; ``directories`` go into it."""
    try:
        task.mkdir(path, 0o755)
    except FileExistsError:
        pass
    task.mount(source, path, "tmpfs", flags, "mode=755")
    for directory in directories:
        task.mkdir(f"{path}/{directory}", 0o755)
    return path


def bind(task: TargetTask, source: str, path: str) -> None:
    task.mount(source, path, None, MS_BIND, None)


def rbind(task: TargetTask, source: str, path: str) -> None:
    task.mount(source, path, None, MS_BIND | MS_REC, None)


def move(task: TargetTask, source: str, path: str) -> None:
    task.mount(source, path, None, MS_MOVE, None)


def unmount(task: TargetTask, path: str, flags: int = 0) -> None:
    task.umount2(path, flags)


def change(task: TargetTask, path: str, flags: int) -> None:
    task.mount(None, path, None, flags, None)


def make_shared(task: TargetTask, path: str) -> None:
    change(task, path, MS_SHARED)


def make_private(task: TargetTask, path: str) -> None:
    change(task, path, MS_PRIVATE)


def make_slave(task: TargetTask, path: str) -> None:
    change(task, path, MS_SLAVE)


def make_unbindable(task: TargetTask, path: str) -> None:
    change(task, path, MS_UNBINDABLE)


def make_rshared(task: TargetTask, path: str) -> None:
    change(task, path, MS_SHARED | MS_REC)


def make_rslave(task: TargetTask, path: str) -> None:
    change(task, path, MS_SLAVE | MS_REC)


def make_rprivate(task: TargetTask, path: str) -> None:
    change(task, path, MS_PRIVATE | MS_REC)


def make(task: TargetTask, state: str, path: str, master: str) -> None:
    """Bring the private mount at ``path`` into ``state``.

    A slave's master is the mount at ``master``, made for it; the mount there shows the same.
    """
    if state in (SLAVE, SHARED_AND_SLAVE):
        make_shared(task, path)
        try:
            task.mkdir(master, 0o755)
        except FileExistsError:
            pass
        bind(task, path, master)
        make_slave(task, path)
    if state in (SHARED, SHARED_AND_SLAVE):
        make_shared(task, path)
    if state == UNBINDABLE:
        make_unbindable(task, path)


def new_namespace(task: TargetTask, name: str) -> TargetTask:
    """A task in a copy of ``task``'s mount namespace."""
    return task.clone(name, CLONE_NEWNS)


def less_privileged(task: TargetTask, name: str) -> TargetTask:
    """A task in a copy of ``task``'s mount namespace that a new user namespace owns."""
    return task.clone(name, CLONE_NEWNS | CLONE_NEWUSER)


# The mount table


def table(task: TargetTask) -> tuple[Row, ...]:
    """What the task's mountinfo shows, in its order."""
    return parse_mountinfo(task.mountinfo())


def mounts_at(task: TargetTask, path: str) -> list[Row]:
    """The mounts whose mount point is ``path``, lowest first."""
    rows = table(task)
    wanted = os.fsencode(path)
    depths = {row.id: _depth(rows, row) for row in rows}
    return sorted(
        (row for row in rows if row.mount_point == wanted), key=lambda row: depths[row.id]
    )


def mount_at(task: TargetTask, path: str) -> Row:
    """The topmost mount at ``path``."""
    return mounts_at(task, path)[-1]


def peers(task: TargetTask, path: str, other: TargetTask, other_path: str) -> bool:
    """Whether the topmost mounts at both places are in one peer group."""
    group = mount_at(task, path).shared
    return group != 0 and group == mount_at(other, other_path).shared


def propagation(task: TargetTask, path: str) -> str:
    """``view``'s tags of the topmost mount at ``path`` alone, as in ``"shared:1 master:2"``."""
    return _tags(mount_at(task, path), {})


def state(task: TargetTask, path: str) -> str:
    """Which of the kernel document's five states the topmost mount at ``path`` is in."""
    row = mount_at(task, path)
    if row.shared and row.master:
        return SHARED_AND_SLAVE
    if row.shared or row.master:
        return SHARED if row.shared else SLAVE
    return UNBINDABLE if row.unbindable else PRIVATE


def points(task: TargetTask) -> list[str]:
    """Every mount's mount point, sorted, the root's left out."""
    return sorted(os.fsdecode(row.mount_point) for row in table(task) if row.mount_point != b"/")


def view(*tasks: TargetTask) -> list[str]:
    """The mount tables of the tasks as lines; see the module."""
    groups: dict[int, int] = {}
    lines = []
    for task in tasks:
        prefix = f"{task.name}:" if len(tasks) > 1 else ""
        lines += [prefix + line for line in _lines(table(task), groups)]
    return lines


def _lines(rows: tuple[Row, ...], groups: dict[int, int]) -> Iterator[str]:
    depths = {row.id: _depth(rows, row) for row in rows}
    tops: dict[bytes, Row] = {}
    for row in rows:
        known = tops.get(row.mount_point)
        if known is None or depths[known.id] < depths[row.id]:
            tops[row.mount_point] = row
    by_id = {row.id: row for row in rows}
    for row in sorted(rows, key=lambda row: (row.mount_point, depths[row.id])):
        parts = [os.fsdecode(row.mount_point)]
        shown = "" if row.source == b"none" else os.fsdecode(row.source)
        if row.root != b"/":
            shown += f"[{os.fsdecode(row.root)}]"
        parts += [part for part in (shown, _tags(row, groups)) if part]
        parent = by_id.get(row.parent)
        if parent is not None and not _is_visible(row, parent, tops):
            parts.append(f"(on {os.fsdecode(parent.source)})")
        if parts != ["/"]:
            yield " ".join(parts)


def _tags(row: Row, groups: dict[int, int]) -> str:
    numbers = {
        name: groups.setdefault(group, len(groups) + 1)
        for name, group in (
            ("shared", row.shared),
            ("master", row.master),
            ("propagate_from", row.propagate_from),
        )
        if group
    }
    tags = [f"{name}:{number}" for name, number in numbers.items()]
    return " ".join([*tags, "unbindable"] if row.unbindable else tags)


def _depth(rows: tuple[Row, ...], row: Row) -> int:
    parents = {other.id: other.parent for other in rows}
    depth = 0
    at = row.id
    while at in parents and parents[at] != at:
        at = parents[at]
        depth += 1
    return depth


def _is_visible(row: Row, parent: Row, tops: dict[bytes, Row]) -> bool:
    """Whether ``parent`` is what one would take for the mount that ``row`` is on: the topmost of
    the closest mount point above, or the next one lower where both are stacked.
    """
    if parent.mount_point == row.mount_point:
        return True
    above = row.mount_point
    while above != b"/":
        above = above.rpartition(b"/")[0] or b"/"
        if above in tops:
            return tops[above] is parent
    return True
