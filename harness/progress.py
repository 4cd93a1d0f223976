"""How far a long run has come: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_PLAIN_SECONDS: Final = 10

Show = Callable[[int, str, str], None]
"""Takes how much is done, what that came to in a few words, and a line of news or ''."""


@contextmanager
def progress(total: int) -> Generator[Show]:
    """What to call whenever something was done, of ``total`` in all."""
    console = Console()
    if not console.is_terminal:
        yield _plain(total)
        return
    columns = (
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"), TimeRemainingColumn()
    )  # fmt: skip
    with Progress(*columns, console=console) as bars:
        bar = bars.add_task("", total=total)

        def show(done: int, state: str, news: str) -> None:
            if news:
                bars.console.print(news, markup=False, highlight=False)
            bars.update(bar, completed=done, description=state)

        yield show


def _plain(total: int) -> Show:
    told = time.monotonic()

    def show(done: int, state: str, news: str) -> None:
        nonlocal told
        if news:
            print(news, flush=True)
        if time.monotonic() - told > _PLAIN_SECONDS:
            told = time.monotonic()
            print(f"{done} of {total}, {state}", flush=True)

    return show
