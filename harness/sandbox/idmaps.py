"""The ids of a new user namespace. Linux: user_namespaces(7), newuidmap(1)."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from typing import Final, NoReturn

from harness.sandbox.errors import SandboxError

IdMap = Sequence[tuple[int, int, int]]
"""(first id inside, first id outside, how many)."""

_ID_MAX: Final = 0xFFFFFFFF


def check_map(option: str, extents: IdMap) -> None:
    """Raises: SandboxError for an extent that is empty, out of range, or meets another."""
    for index, (inside, outside, count) in enumerate(extents):
        if count < 1 or min(inside, outside) < 0 or max(inside, outside) + count > _ID_MAX:
            raise SandboxError(f"{option}: {inside}:{outside}:{count} is no range of ids")
        for other_inside, other_outside, other_count in extents[:index]:
            if _meet(inside, count, other_inside, other_count) or _meet(
                outside, count, other_outside, other_count
            ):
                raise SandboxError(f"{option}: {inside}:{outside}:{count} meets another range")


def _meet(a: int, a_count: int, b: int, b_count: int) -> bool:
    return a < b + b_count and b < a + a_count


def is_mapped(extents: IdMap, inside: int) -> bool:
    return any(first <= inside < first + count for first, _, count in extents)


class MapWriter:
    """A child in the old user namespace that gives this process its ids in the new one.

    The kernel lets nobody but a process outside write more than its own id. Create it before
    unshare(2), call `write` after it. Root writes the maps itself; a user's own single id is
    written directly, with setgroups(2) denied for the gid; newuidmap(1) and newgidmap(1), which
    look in /etc/subuid and /etc/subgid, do the rest.
    """

    def __init__(self, uid_map: IdMap, gid_map: IdMap) -> None:
        check_map("--uid-map", uid_map)
        check_map("--gid-map", gid_map)
        target = os.getpid()
        start, self._start = os.pipe()
        self._answer, answer = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._start)
            os.close(self._answer)
            _serve(start, answer, target, uid_map, gid_map)
        os.close(start)
        os.close(answer)

    def write(self) -> None:
        """Have the maps written. Raises: SandboxError, which says why they are not."""
        os.write(self._start, b"\0")
        message = self.close()
        if message:
            raise SandboxError(message)

    def close(self) -> str:
        """End the child, and return its complaint."""
        os.close(self._start)
        with os.fdopen(self._answer, "rb") as answer:
            message = answer.read().decode(errors="replace")
        _, status = os.waitpid(self._pid, 0)
        if status and not message:
            return "the id maps could not be written: their writer was killed"
        return message


def _serve(start: int, answer: int, target: int, uid_map: IdMap, gid_map: IdMap) -> NoReturn:
    status = 1
    try:
        if os.read(start, 1):
            _write(target, "uid", uid_map, os.geteuid())
            _write(target, "gid", gid_map, os.getegid())
        status = 0
    except SandboxError as error:
        os.write(answer, str(error).encode())
    except OSError as error:
        os.write(answer, f"the id maps could not be written: {error.strerror}".encode())
    finally:
        os._exit(status)


def _write(target: int, kind: str, extents: IdMap, own: int) -> None:
    is_own = len(extents) == 1 and extents[0][1:] == (own, 1)
    if not is_own and os.geteuid() != 0:
        _run_tool(f"new{kind}map", kind, target, extents)
        return
    if kind == "gid" and os.geteuid() != 0:
        _put(f"/proc/{target}/setgroups", "deny")
    text = "".join(f"{inside} {outside} {count}\n" for inside, outside, count in extents)
    _put(f"/proc/{target}/{kind}_map", text)


def _put(path: str, text: str) -> None:
    # One write(2): the kernel takes a map whole or not.
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _run_tool(tool: str, kind: str, target: int, extents: IdMap) -> None:
    words = [str(number) for extent in extents for number in extent]
    try:
        done = subprocess.run([tool, str(target), *words], stderr=subprocess.PIPE, text=True)
    except FileNotFoundError:
        raise SandboxError(
            f"--{kind}-map needs {tool}, of the package uidmap, for more than one's own id"
        ) from None
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise SandboxError(f"--{kind}-map: {reason}")
