from __future__ import annotations

from pathlib import Path

from harness.fuse import abi, session
from harness.fuse.opcodes import OPCODES
from harness.fuse.support import support_table

DOCUMENT = Path(__file__).parents[3] / "docs" / "fuse-support.md"


def test_the_support_table_in_the_docs_is_the_opcode_table() -> None:
    assert DOCUMENT.read_text() == support_table()


def test_every_opcode_up_to_the_newest_has_one_row() -> None:
    numbers = [row.number for row in OPCODES]
    assert numbers == sorted(set(numbers))
    assert set(range(1, 54)) - set(numbers) == {7, 19}


def test_every_flag_asked_for_has_a_name() -> None:
    known = 0
    for bit in abi.INIT_FLAGS.values():
        known |= bit
    assert not session.ALWAYS_WANTED & ~known
