"""Cutting and copying scattered buffers. Linux: ``iov_iter``."""

from __future__ import annotations

from collections.abc import Sequence

Segments = Sequence[memoryview]


def length_of(segments: Segments) -> int:
    """The bytes in ``segments``."""
    return sum(map(len, segments))


def gather(segments: Segments, size: int) -> bytes:
    """The first ``size`` bytes, or all if there are fewer."""
    head = segments[0] if segments else b""
    if len(head) >= size:
        return bytes(head[:size])
    return b"".join(clip(segments, size))


def skip(segments: Segments, count: int) -> list[memoryview]:
    """What is left after the first ``count`` bytes."""
    rest = []
    for segment in segments:
        size = len(segment)
        if count >= size:
            count -= size
        elif count:
            rest.append(segment[count:])
            count = 0
        else:
            rest.append(segment)
    return rest


def clip(segments: Segments, size: int) -> list[memoryview]:
    """The first ``size`` bytes. Linux: ``iov_iter_truncate``."""
    kept = []
    for segment in segments:
        if size <= 0:
            break
        kept.append(segment[:size] if len(segment) > size else segment)
        size -= len(segment)
    return kept


def scatter(data: bytes | bytearray | memoryview, segments: Segments) -> int:
    """Copy ``data`` into ``segments``, as far as they reach; returns the bytes copied."""
    source = memoryview(data)
    at = 0
    for segment in segments:
        piece = source[at : at + len(segment)]
        segment[: len(piece)] = piece
        at += len(piece)
        if at == len(source):
            break
    return at
