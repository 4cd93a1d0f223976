"""A tmpfs of ours and one of the kernel's."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from tmpfs_kernel import KernelTmpfs
from tmpfs_ours import RAM_PAGES, Ours


@pytest.fixture
def make_ours() -> Iterator[Callable[..., Ours]]:
    with contextlib.ExitStack() as stack:

        def make(options: str = "", ram_pages: int = RAM_PAGES) -> Ours:
            ours = Ours(options, ram_pages)
            stack.callback(ours.close)
            return ours

        yield make


@pytest.fixture
def ours(make_ours: Callable[..., Ours]) -> Ours:
    return make_ours()


@pytest.fixture
def make_kernel() -> Iterator[Callable[..., KernelTmpfs]]:
    with contextlib.ExitStack() as stack:

        def make(**options: str) -> KernelTmpfs:
            try:
                kernel = KernelTmpfs(**options)
            except PermissionError:
                pytest.skip("making a tmpfs of the kernel's needs root")
            stack.callback(kernel.close)
            return kernel

        yield make
