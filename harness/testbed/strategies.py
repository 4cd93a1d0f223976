"""The generators as hypothesis strategies, for tests: the package does not depend on hypothesis."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from hypothesis import strategies as st

from harness.testbed.choices import Choices
from harness.testbed.generate import file_sequence
from harness.testbed.step import Step

Draw = Callable[[st.SearchStrategy[Any]], Any]
_T = TypeVar("_T")


class DrawnChoices(Choices):
    """Decisions that hypothesis makes. A state machine sets ``draw`` anew for each rule."""

    def __init__(self, draw: Draw) -> None:
        self.draw = draw

    def integer(self, low: int, high: int) -> int:
        return int(self.draw(st.integers(low, high)))

    def one_of(self, options: Sequence[_T]) -> _T:
        chosen: _T = self.draw(st.sampled_from(options))
        return chosen


@st.composite
def file_sequences(draw: Draw, max_steps: int = 40, mounts: bool = False) -> list[Step]:
    """``file_sequence()`` of hypothesis' choices."""
    return file_sequence(DrawnChoices(draw), max_steps, mounts)
