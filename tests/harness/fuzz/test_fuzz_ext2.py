"""Damaged images: some thousands here, more with ``python -m harness.fuzz ext2``."""

from __future__ import annotations

from pathlib import Path

import pytest

from fsimpl.ext2 import Ext2Superblock, directory
from harness.fuzz.campaign import Campaign, fuzz
from harness.fuzz.case import Case, Scribble
from harness.fuzz.ext2 import Ext2Fuzzer
from harness.testbed.choices import RandomChoices


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_damaged_images_give_an_error_for_what_is_hit_and_do_no_harm(tmp_path: Path) -> None:
    report = fuzz(Campaign("ext2", 40, 50, 1), tmp_path, jobs=2)
    assert not report.failures, [found.text for _, _, found in report.failures.values()]
    assert report.inputs == 2000
    refused = {call for (call, error) in report.answers if error == "EUCLEAN"}
    assert refused >= {"mount", "lstat", "getdents64", "getxattr", "pread64", "lseek"}
    assert report.answers["mount", ""] > 1000


def test_the_same_damage_is_found_again(tmp_path: Path) -> None:
    fuzzer = Ext2Fuzzer(tmp_path)
    first = fuzzer.run(RandomChoices(5), 20)
    again = fuzzer.replay(first.case)
    fuzzer.close()
    assert first.answers == again.answers
    assert sum(count for (_, error), count in first.answers.items() if error == "EUCLEAN")


def test_an_attribute_whose_name_is_a_prefix_alone_is_not_listed(tmp_path: Path) -> None:
    """Seed 77 found it: getxattr(2) knows no such name."""
    fuzzer = Ext2Fuzzer(tmp_path)
    damage = Scribble(26, 45148, bytes.fromhex("00040000"))
    outcome = fuzzer.replay(Case("ext2", {"image": "old"}, (damage,)))
    fuzzer.close()
    assert not outcome.failure


def test_an_error_that_the_log_does_not_explain_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Ext2Superblock, "complain", lambda *arguments: None)
    fuzzer = Ext2Fuzzer(tmp_path)
    failures = [fuzzer.run(RandomChoices(1, number), 50).failure for number in range(4)]
    fuzzer.close()
    assert any("nothing in the log" in failure for failure in failures)


@pytest.mark.slow
def test_another_exception_is_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "BadIndex", ZeroDivisionError)
    fuzzer = Ext2Fuzzer(tmp_path)
    failures = [fuzzer.run(RandomChoices(1, number), 50).failure for number in range(8)]
    fuzzer.close()
    assert any("BadIndex" in failure for failure in failures)
