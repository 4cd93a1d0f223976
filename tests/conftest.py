"""Fixtures for all tests. ``vfs`` fails a test that leaks references, and names who holds them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import devtmpfs
from fsimpl.ext2 import Ext2Type
from fsimpl.passthrough import PassthroughType
from fsimpl.tmpfs import TmpfsType
from harness.guest.errors import GuestUnavailable
from harness.guest.newer import Newer, find_newer
from vfs import Credentials, VirtualFilesystem
from vfs.task import Task

MakeTask = Callable[..., Task]

# On a busy machine data are made slowly, too.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")

if sys.dont_write_bytecode:
    # Where Python may leave nothing in the sources it would compile them in every process that a
    # test starts, which is most of what that takes.
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix


def pytest_configure(config: pytest.Config) -> None:
    """In CI a guest or FUSE test that is skipped is a failure: there is nothing to excuse it, but
    that what it takes ``newer`` for is absent.

    Whoever started us in the background had SIGINT ignored, or SIGHUP; daemons that tests interrupt
    would inherit that.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    if os.environ.get("CI"):
        config.pluginmanager.register(_NoSkips())


class _NoSkips:
    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        real = any(item.get_closest_marker(mark) for mark in ("guest", "fuse"))
        real = real and "newer" not in getattr(item, "fixturenames", ())
        if report.skipped and real and not hasattr(report, "wasxfail"):
            report.outcome = "failed"
            report.longrepr = f"skipped in CI: {report.longrepr}"
        return report


@pytest.fixture(scope="session")
def newer() -> Newer:
    """The Rust virtiofsd, QEMU and kernel of a newer Debian, which ``make newer`` fetches."""
    try:
        return find_newer()
    except GuestUnavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def vfs() -> Iterator[VirtualFilesystem]:
    """A VirtualFilesystem with every filesystem type, tracing its references.

    At the end of the test all invariants are checked and every reference must have come back.
    """
    filesystem = VirtualFilesystem(tracing=True)
    for fstype in (TmpfsType(), PassthroughType(), Ext2Type()):
        filesystem.register(fstype)
    devtmpfs.install(filesystem)
    yield filesystem
    filesystem.check()
    filesystem.shutdown()


@pytest.fixture
def task(vfs: VirtualFilesystem) -> Task:
    """A task of root's on an empty tmpfs."""
    namespace = vfs.create_namespace("tmpfs", options="mode=755")
    with namespace:
        return vfs.create_task(namespace)


@pytest.fixture
def user(task: Task) -> Task:
    """A task of uid and gid 1000 beside ``task``, in the same namespace."""
    return task.clone(cred=Credentials(1000, 1000))
