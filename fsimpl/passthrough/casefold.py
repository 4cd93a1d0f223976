"""Names found whatever the case of their ASCII letters. crosvm: ``ascii_casefold``."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from fsimpl.passthrough import oslib
from vfs import abi

if TYPE_CHECKING:
    from fsimpl.passthrough.descriptors import DescriptorBudget
    from fsimpl.passthrough.handle import HostHandle

DEFAULT_TIMEOUT_NS: Final = 5 * 10**9
_LIST_FLAGS: Final = abi.O_RDONLY | abi.O_DIRECTORY


class FoldedNames:
    """What the names of one directory are really, by their lower case; of several that differ in
    case only, the first in byte order.

    Listed when first asked, and anew ``timeout_ns`` later, because the host adds names too; what is
    changed through us is noted at once. An exact name never needs it.
    """

    __slots__ = ("_expires_ns", "_names", "timeout_ns")

    def __init__(self, timeout_ns: int) -> None:
        self.timeout_ns = timeout_ns
        self._names: dict[bytes, bytes] = {}
        self._expires_ns = -1

    def find(self, name: bytes, directory: HostHandle, budget: DescriptorBudget) -> bytes | None:
        """What ``name`` is called on the host, if it is known there. Raises: what listing does."""
        now = time.monotonic_ns()
        if now >= self._expires_ns:
            self._names = _fold(_list(directory, budget))
            self._expires_ns = now + self.timeout_ns
        return self._names.get(name.lower())

    def add(self, name: bytes) -> None:
        """``name`` came to be."""
        folded = name.lower()
        known = self._names.get(folded)
        if known is None or name < known:
            self._names[folded] = name

    def discard(self, name: bytes) -> None:
        """``name`` is gone; another that differs in case only may be left, so look again."""
        if self._names.pop(name.lower(), None) is not None:
            self._expires_ns = -1


def _fold(names: Iterable[bytes]) -> dict[bytes, bytes]:
    return {name.lower(): name for name in sorted(names, reverse=True)}


def _list(directory: HostHandle, budget: DescriptorBudget) -> list[bytes]:
    fd = budget.open(directory, _LIST_FLAGS)
    try:
        buffer = oslib.DirentBuffer()
        names: list[bytes] = []
        while chunk := buffer.read(fd):
            names += [entry[0] for entry in oslib.dirents(chunk, 0)]
        return names
    finally:
        os.close(fd)
