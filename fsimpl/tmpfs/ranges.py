"""A set of page numbers kept as ranges, for pages that are allocated but hold no bytes."""

from __future__ import annotations

from collections.abc import Iterator

from sortedcontainers import SortedDict


class PageRanges:
    """Disjoint, non-adjacent half-open ranges of page numbers. Linux has one xarray for all pages.

    Adding, removing and finding cost the logarithm of the number of ranges, whatever their length.
    """

    __slots__ = ("_ends",)

    def __init__(self) -> None:
        # First page -> page after the last. Made with the first range: few files ever have one.
        self._ends: SortedDict | None = None

    def __bool__(self) -> bool:
        return bool(self._ends)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self._ends.items() if self._ends else ())

    def next_run(self, page: int) -> tuple[int, int] | None:
        """The part at or after ``page`` of the first range that has one."""
        ends = self._ends
        if not ends:
            return None
        at = ends.bisect_right(page) - 1
        if at >= 0:
            first, end = ends.peekitem(at)
            if end > page:
                return page, end
        if at + 1 < len(ends):
            first, end = ends.peekitem(at + 1)
            return first, end
        return None

    def count(self, first: int, end: int) -> int:
        """How many pages of ``[first, end)`` are in the set."""
        total = 0
        run = self.next_run(first)
        while run is not None and run[0] < end:
            total += min(run[1], end) - run[0]
            run = self.next_run(run[1])
        return total

    def add(self, first: int, end: int) -> None:
        """Put ``[first, end)`` in, joining what it touches."""
        ends = self._ends
        if ends is None:
            ends = self._ends = SortedDict()
        at = ends.bisect_left(first)
        if at and ends.peekitem(at - 1)[1] >= first:
            at -= 1
        while at < len(ends):
            old_first, old_end = ends.peekitem(at)
            if old_first > end:
                break
            first, end = min(first, old_first), max(end, old_end)
            del ends[old_first]
        ends[first] = end

    def remove(self, first: int, end: int) -> int:
        """Take ``[first, end)`` out; returns how many of its pages were in the set."""
        ends = self._ends
        if not ends:
            return 0
        removed = 0
        run = self.next_run(first)
        while run is not None and run[0] < end:
            cut_first, old_end = run
            cut_end = min(old_end, end)
            if cut_first in ends:
                del ends[cut_first]
            else:
                ends[ends.keys()[ends.bisect_right(cut_first) - 1]] = cut_first
            if old_end > cut_end:
                ends[cut_end] = old_end
            removed += cut_end - cut_first
            run = self.next_run(cut_end)
        return removed
