"""The newer Debian beside the host's."""

import subprocess
from pathlib import Path

import pytest

from harness.guest.errors import GuestUnavailable
from harness.guest.kernel import find_kernel
from harness.guest.newer import VARIABLE, Newer, find_newer


def test_where_there_is_none_the_message_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    with pytest.raises(GuestUnavailable, match="run make newer"):
        find_newer()


def test_its_programs_run_and_its_kernel_has_modules(newer: Newer) -> None:
    for program in newer.virtiofsd, newer.qemu:
        subprocess.run([program, "--version"], check=True, capture_output=True)
    assert find_kernel(newer.kernel).modules is not None
