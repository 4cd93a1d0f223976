"""Inflight memory: what is found in it, wherever the writer stopped."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.virtio import inflight
from harness.virtio.inflight import BadInflight, InflightQueue, InflightRegion

SIZE = 8


def fresh() -> memoryview:
    fd, size = inflight.create(1, SIZE, 0)
    try:
        return memoryview(bytearray(os.pread(fd, size, 0)))
    finally:
        os.close(fd)


def test_new_region_has_the_layout_of_the_specification() -> None:
    fd, size = inflight.create(3, SIZE, 1 << 32)
    try:
        assert size == 3 * 192
        for number in range(3):
            header = os.pread(fd, 16, 192 * number)
            assert header == (1 << 32).to_bytes(8, "little") + b"\1\0\x08\0\0\0\0\0"
        region = InflightRegion(fd, size, 0, 3, SIZE)
        second = region.queue(1)
        assert second is not None and region.queue(3) is None
        second.take(5)
        entry = os.pread(fd, 16, 192 + 16 + 16 * 5)
        assert entry == b"\1" + bytes(15)
        second.take(2)
        assert os.pread(fd, 16, 192 + 16 + 16 * 2) == b"\1" + bytes(7) + b"\1" + bytes(7)
        second.give(5)
        second.given(5, 7)
        assert os.pread(fd, 16, 192) == (1 << 32).to_bytes(8, "little") + b"\1\0\x08\0\5\0\7\0"
        assert os.pread(fd, 1, 192 + 16 + 16 * 5) == b"\0"
        region.close()
    finally:
        os.close(fd)


OPERATIONS = st.lists(st.tuples(st.booleans(), st.integers(0, SIZE - 1)), max_size=40)


@settings(max_examples=300, deadline=None)
@given(operations=OPERATIONS, start=st.integers(0, 0xFFFF), cut=st.integers(0, 3))
def test_what_is_recovered_is_what_was_taken_and_not_used(
    operations: list[tuple[bool, int]], start: int, cut: int
) -> None:
    """The writer is stopped before, between or after the three steps of giving back."""
    view = fresh()
    queue = InflightQueue(view, SIZE)
    assert queue.recover(SIZE, start) == []
    used_idx, taken = start, []
    for number, (take, head) in enumerate(operations):
        last = number == len(operations) - 1
        if take and head not in taken:
            queue.take(head)
            taken.append(head)
        elif not take and taken:
            head = taken[head % len(taken)]
            steps: list[Callable[[], None]] = [lambda head=head: queue.give(head)]
            if last and cut < 3:
                for step in steps[:cut]:
                    step()
                if cut == 2:
                    used_idx = (used_idx + 1) & 0xFFFF
                    taken.remove(head)
                break
            queue.give(head)
            used_idx = (used_idx + 1) & 0xFFFF
            queue.given(head, used_idx)
            taken.remove(head)
    heir = InflightQueue(view, SIZE)
    assert heir.recover(SIZE, used_idx) == taken
    # And by the next one in turn, with what this one took last in the end.
    for head in range(SIZE):
        if head not in taken:
            heir.take(head)
            taken.append(head)
    assert InflightQueue(view, SIZE).recover(SIZE, used_idx) == taken


def test_region_that_somebody_else_zeroed_is_taken_into_use() -> None:
    view = memoryview(bytearray(InflightQueue.region_size(SIZE)))
    assert InflightQueue(view, SIZE).recover(SIZE, 77) == []
    queue = InflightQueue(view, SIZE)
    queue.take(3)
    assert InflightQueue(view, SIZE).recover(SIZE, 77) == [3]


def test_region_for_a_smaller_ring_is_refused() -> None:
    with pytest.raises(BadInflight):
        InflightQueue(fresh(), SIZE).recover(16, 0)


@settings(max_examples=200, deadline=None)
@given(content=st.binary(max_size=InflightQueue.region_size(SIZE)), used_idx=st.integers(0, 0xFFFF))
def test_random_region_yields_heads_of_the_ring_or_is_refused(
    content: bytes, used_idx: int
) -> None:
    room = bytearray(InflightQueue.region_size(SIZE))
    room[: len(content)] = content
    try:
        heads = InflightQueue(memoryview(room), SIZE).recover(SIZE, used_idx)
    except BadInflight:
        return
    assert sorted(heads) == sorted(set(heads))
    assert all(0 <= head < SIZE for head in heads)


@pytest.mark.parametrize(
    ("size", "offset", "queues", "queue_size"),
    [
        (191, 0, 1, SIZE),
        (192, 0, 2, SIZE),
        (192, 1, 1, SIZE),
        (192, 4096, 1, SIZE),
        (8192, 0, 1, SIZE),
        (192, 0, 0, SIZE),
    ],
)
def test_region_that_its_file_or_its_queues_do_not_fit_is_refused(
    size: int, offset: int, queues: int, queue_size: int
) -> None:
    fd = os.memfd_create("inflight")
    os.ftruncate(fd, 4096)
    try:
        with pytest.raises(BadInflight):
            InflightRegion(fd, size, offset, queues, queue_size)
    finally:
        os.close(fd)
