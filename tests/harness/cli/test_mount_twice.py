"""`dentry mount` where a mount of ours is."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.fuse


def test_a_second_mount_on_the_same_place_is_an_error_of_use(tmp_path: Path) -> None:
    place = tmp_path / "a place"
    place.mkdir()
    command = [sys.executable, "-m", "harness.cli", "mount", str(place)]
    with subprocess.Popen(command) as daemon:
        try:
            while not place.is_mount():
                assert daemon.poll() is None
                time.sleep(0.01)
            second = subprocess.run(command, capture_output=True, text=True, timeout=60)
            assert second.returncode == 2
            assert "unmount it first" in second.stderr
            assert second.stderr.count("\n") == 1
        finally:
            daemon.terminate()
        assert daemon.wait(60) == 0
    assert not place.is_mount()
