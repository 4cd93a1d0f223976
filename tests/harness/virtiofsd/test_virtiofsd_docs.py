"""The tables of options in docs/ have every option, and name tests that exist."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.virtiofsd import arguments, crosvm

TOP = Path(__file__).parents[3]


def options(add: Callable[[argparse.ArgumentParser], None]) -> set[str]:
    parser = argparse.ArgumentParser(add_help=False)
    add(parser)
    return {
        word
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for word in action.option_strings
    }


@pytest.mark.parametrize(
    ("name", "add"),
    [("virtiofsd.md", arguments.add_arguments), ("crosvm-device.md", crosvm.add_arguments)],
)
def test_every_option_has_a_row_of_its_own(
    name: str, add: Callable[[argparse.ArgumentParser], None]
) -> None:
    text = (TOP / "docs" / name).read_text()
    rows = re.findall(r"^\| `(-[-\w]+)", text, re.MULTILINE)
    assert sorted(rows) == sorted(options(add))


@pytest.mark.parametrize("name", ["virtiofsd.md", "crosvm-device.md"])
def test_every_test_that_is_named_exists(name: str) -> None:
    named = set(re.findall(r"`(test_\w+)`", (TOP / "docs" / name).read_text()))
    there = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    assert named
    assert not {test for test in named if f"def {test}(" not in there}
