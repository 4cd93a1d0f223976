"""FUSE requests chosen by libFuzzer, which looks for new code to reach.

Not a test of the suite: atheris is optional (``pip install atheris`` where there is a wheel).
``python tests/harness/fuzz/atheris_fuse.py -runs=100000 [corpus directory]``
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

import atheris  # type: ignore[import-not-found,unused-ignore]

with atheris.instrument_imports(include=["harness.fuse", "vfs", "fsimpl.tmpfs"]):
    from harness.fuzz.fuse import FuseFuzzer
from harness.testbed.choices import Choices

_FUZZER = FuseFuzzer()
_INPUTS = 60


class LibFuzzerChoices(Choices):
    """Decisions that libFuzzer makes; all simple once its bytes are used up."""

    def __init__(self, data: bytes) -> None:
        self._provider = atheris.FuzzedDataProvider(data)

    def integer(self, low: int, high: int) -> int:
        chosen: int = self._provider.ConsumeIntInRange(low, high)
        return chosen


def one_case(data: bytes) -> None:
    """What libFuzzer calls."""
    outcome = _FUZZER.run(LibFuzzerChoices(data), _INPUTS)
    if outcome.failure:
        raise AssertionError(outcome.failure)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_case)
    atheris.Fuzz()
