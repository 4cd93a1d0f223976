"""Which paths of a shared directory a client may see. crosvm: ``PathAllowlist``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

NONE: Final = 0
"""Not there."""
TRAVERSE: Final = 1
"""There, as a way to what is allowed, and not to be changed."""
FULL: Final = 2
"""Allowed, or below what is."""


def split_path(path: bytes) -> tuple[bytes, ...] | None:
    """The names in ``path``, from the shared directory, with ``.`` and ``..`` resolved as text;
    None if it leads above it.
    """
    names: list[bytes] = []
    for name in path.split(b"/"):
        if name == b"..":
            if not names:
                return None
            names.pop()
        elif name not in (b"", b"."):
            names.append(name)
    return tuple(names)


class _Node:
    __slots__ = ("children", "full")

    def __init__(self) -> None:
        self.full = False
        self.children: dict[bytes, _Node] = {}


class PathAllowlist:
    """A trie of the paths that are allowed; none at first.

    One thread may change it while others ask: a change is a new trie, whole.
    """

    __slots__ = ("_paths", "_root")

    def __init__(self) -> None:
        self._paths: frozenset[tuple[bytes, ...]] = frozenset()
        self._root = _Node()

    def add(self, paths: Iterable[bytes]) -> bytes | None:
        """Allow ``paths`` and what is below; or none of them, and return the first bad one."""
        found = set(self._paths)
        for path in paths:
            names = split_path(path)
            if names is None:
                return path
            found.add(names)
        self._take(found)
        return None

    def remove(self, paths: Iterable[bytes]) -> bytes | None:
        """Take back what ``add`` was given; or none of it, and return the first that it was not."""
        found = set(self._paths)
        for path in paths:
            names = split_path(path)
            if names is None or names not in found:
                return path
            found.remove(names)
        self._take(found)
        return None

    def _take(self, paths: set[tuple[bytes, ...]]) -> None:
        root = _Node()
        for names in paths:
            node = root
            for name in names:
                node = node.children.setdefault(name, _Node())
            node.full = True
        self._paths = frozenset(paths)
        self._root = root

    def level(self, names: Sequence[bytes] | None) -> int:
        """``NONE``, ``TRAVERSE`` or ``FULL`` for a path; None is one that nobody knows."""
        node = self._find(names)
        if node is None:
            return NONE
        if node.full:
            return FULL
        return TRAVERSE if node.children else NONE

    def visible(self, names: Sequence[bytes] | None) -> frozenset[bytes] | None:
        """What a listing of a directory shows; None: all."""
        node = self._find(names)
        if node is None:
            return frozenset()
        return None if node.full else frozenset(node.children)

    def _find(self, names: Sequence[bytes] | None) -> _Node | None:
        """The node of a path, or of the allowed one above it."""
        if names is None:
            return None
        node: _Node | None = self._root
        for name in names:
            if node is None or node.full:
                break
            node = node.children.get(name)
        return node
