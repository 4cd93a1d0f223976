"""Reference counts that behaviour hangs on, and the ledger that finds who forgot one.

EBUSY on umount, deleted but open files, lazy unmounts and FORGET from a guest all depend on exact
counts, so Python's own are not enough: a ``RefCounted`` dies when its holders say so.
"""

from __future__ import annotations

import sys
from collections import Counter
from types import CodeType, FrameType
from typing import Final, Self

from vfs.errors import InvariantViolation

_DEPTH: Final = 5
"""Lines of a stack that are remembered."""


class Ledger:
    """How many objects of each kind live in one VirtualFilesystem, and on demand, who holds them.

    With ``tracing`` on, every ``get`` is remembered with the line that made it and every ``put``
    takes the latest one back, so a leak is reported as the stacks that are still owed.
    """

    __slots__ = ("_counts", "held", "tracing")

    def __init__(self, tracing: bool = False) -> None:
        # By class: a Counter of names would cost an open and its release another 0.4 us.
        self._counts: dict[type, int] = {}
        self.tracing = tracing
        self.held: dict[RefCounted, list[list[tuple[CodeType, int]]]] = {}

    @property
    def live(self) -> Counter[str]:
        """How many objects live, by the name of their class."""
        live: Counter[str] = Counter()
        for kind, count in self._counts.items():
            if count:
                live[kind.__name__] += count
        return live

    def born(self, obj: object) -> None:
        """Count ``obj``, which now lives."""
        counts = self._counts
        kind = obj.__class__
        counts[kind] = counts[kind] + 1 if kind in counts else 1

    def died(self, obj: object) -> None:
        """Uncount ``obj``; more deaths than births is a bug of ours."""
        kind = obj.__class__
        left = self._counts.get(kind, 0) - 1
        if left < 0:
            raise InvariantViolation(f"{kind.__name__}: released more often than made")
        self._counts[kind] = left
        if self.tracing and isinstance(obj, RefCounted):
            self.held.pop(obj, None)

    def took(self, obj: RefCounted) -> None:
        """Remember the caller's line as a holder of ``obj`` (only when tracing)."""
        frame: FrameType | None = sys._getframe(2)
        where: list[tuple[CodeType, int]] = []
        while frame is not None and len(where) < _DEPTH:
            where.append((frame.f_code, frame.f_lineno))
            frame = frame.f_back
        self.held.setdefault(obj, []).append(where)

    def gave(self, obj: RefCounted) -> None:
        """Take back the latest acquisition of ``obj`` (only when tracing)."""
        holders = self.held.get(obj)
        if holders:
            holders.pop()
            if not holders:
                del self.held[obj]

    def holders(self, obj: RefCounted) -> list[str]:
        """The lines that took what is held of ``obj``, oldest first; none without tracing."""
        return [_described(where) for where in self.held.get(obj, ())]

    def report(self) -> str:
        """What lives, and under tracing, who took it: one line a kind, one line a holder."""
        lines = [f"{kind}: {count} live" for kind, count in sorted(self.live.items())]
        for obj in self.held:
            lines.extend(f"  {obj!r} held by {where}" for where in self.holders(obj))
        return "\n".join(lines)


def _described(where: list[tuple[CodeType, int]]) -> str:
    return " < ".join(
        f"{code.co_filename.rsplit('/', 1)[-1]}:{line} {code.co_name}" for code, line in where
    )


class RefCounted:
    """An object whose life is a count of references; the creator holds the first one.

    ``get`` returns the object so that a reference is taken where it is stored. ``put`` calls
    ``release`` at zero; dropping below zero raises.
    """

    __slots__ = ("__weakref__", "count", "ledger")

    def __init__(self, ledger: Ledger) -> None:
        self.count = 1
        self.ledger = ledger
        ledger.born(self)
        if ledger.tracing:
            ledger.took(self)

    def get(self) -> Self:
        """Take a reference. It must be given back by ``put``."""
        self.count += 1
        if self.ledger.tracing:
            self.ledger.took(self)
        return self

    def put(self) -> None:
        """Give a reference back; the last one releases the object."""
        count = self.count - 1
        if count < 0:
            raise InvariantViolation(f"{self!r}: reference count below zero")
        self.count = count
        if self.ledger.tracing:
            self.ledger.gave(self)
        if not count:
            self.release()

    def release(self) -> None:
        """The last reference is gone: give up what is held. Subclasses extend it."""
        self.ledger.died(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.put()
