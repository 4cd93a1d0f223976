"""What a live VFS looks like inside, as plain data: dictionaries, lists, text and numbers.

Every view is a function of a task, whose namespace and root it sees with, and is called with the
VFS lock held; it changes nothing and keeps nothing. `VIEWS` has them by the names under which a
shell asks for them.

``mounts`` is the tree of mounts with its peer groups, and where a mount would propagate to;
``objects`` are dentries, inodes, and who holds what; ``explain`` walks a path and tells about every
step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from harness.inspect.explain import explain
from harness.inspect.mounts import mounts, propagate
from harness.inspect.objects import (
    busy,
    check,
    dentries,
    devices,
    fds,
    inode,
    locks,
    refs,
    statistics,
    tasks,
)

View = Callable[..., Any]

VIEWS: Final[dict[str, View]] = {
    view.__name__: view
    for view in (
        busy, check, dentries, devices, explain, fds, inode, locks, mounts, propagate, refs,
        statistics, tasks,
    )
}  # fmt: skip
