"""Where a generator's decisions come from: a seed for long runs, hypothesis in the tests."""

from __future__ import annotations

import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


class Choices(ABC):
    """A source of decisions. Low numbers and first options are the simple ones."""

    @abstractmethod
    def integer(self, low: int, high: int) -> int:
        """A number from ``low`` to ``high``, both included."""

    def one_of(self, options: Sequence[_T]) -> _T:
        return options[self.integer(0, len(options) - 1)]

    def chance(self, percent: int) -> bool:
        """True in ``percent`` of 100; False is the simple answer."""
        return self.integer(0, 99) >= 100 - percent

    def weighted(self, options: Sequence[tuple[int, _T]]) -> _T:
        """One of the options, each a weight and what it stands for."""
        point = self.integer(0, sum(weight for weight, _ in options) - 1)
        for weight, option in options:
            point -= weight
            if point < 0:
                return option
        raise AssertionError("a weight is negative")


class RandomChoices(Choices):
    """Decisions that follow from ``seed`` and ``index`` alone, on every machine."""

    def __init__(self, seed: int, index: int = 0) -> None:
        # Seeding with text is specified (its SHA-512); with a tuple it would be its hash().
        self._random = random.Random(f"{seed}/{index}")

    def integer(self, low: int, high: int) -> int:
        # Several times faster than randint(), and a sequence takes hundreds.
        return low + int(self._random.random() * (high - low + 1))
