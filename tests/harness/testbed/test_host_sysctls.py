"""fs.protected_* and fs.mount-max belong to all test beds of a host, which take turns."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from harness.testbed.host_sysctls import HostSysctls, host_sysctls
from harness.testbed.target import TargetUnavailable

NAME = "protected_fifos"
FILE = Path("/proc/sys/fs", NAME)
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="changes sysctls, which needs root")


@needs_root
def test_nobody_changes_what_somebody_else_relies_on() -> None:
    changed = threading.Event()

    def change() -> None:
        with host_sysctls() as others:
            others.set(NAME, 2 - value)
            changed.set()

    with host_sysctls() as sysctls:
        value = sysctls.get(NAME)
        # 1 is the same from both sides.
        value = value if value != 1 else 0
        sysctls.set(NAME, value)
        thread = threading.Thread(target=change)
        thread.start()
        assert not changed.wait(0.05)
        assert int(FILE.read_text()) == value
    thread.join(60)
    assert changed.is_set()


@needs_root
def test_what_was_changed_is_put_back_by_the_last_user() -> None:
    with host_sysctls() as before:
        value = before.get(NAME)
        sysctls = HostSysctls()
    sysctls.acquire()
    sysctls.acquire()
    sysctls.set(NAME, 2 - value)
    sysctls.set("protected_regular", 1)
    sysctls.set(NAME, 1)
    sysctls.release()
    assert (sysctls.get(NAME), int(FILE.read_text())) == (1, 1)
    sysctls.release()
    with host_sysctls() as after:
        assert after.get(NAME) == value


@needs_root
def test_what_many_read_they_read_together() -> None:
    with host_sysctls() as one, host_sysctls() as other:
        assert one.get(NAME) == other.get(NAME)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may change them")
def test_a_user_cannot_have_them_changed() -> None:
    with host_sysctls() as sysctls:
        value = sysctls.get(NAME)
        with pytest.raises(TargetUnavailable, match="protected_fifos"):
            sysctls.set(NAME, 1 if value != 1 else 0)
        assert sysctls.get(NAME) == value
