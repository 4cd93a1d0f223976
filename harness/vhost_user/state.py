"""The transfer of the device's state to another daemon, or from one."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

LOG = logging.getLogger(__name__)


class DeviceState:
    """struct vhost_dev's internal state, for whoever can put it into bytes.

    `save` and `load` run in a thread of their own, with every ring stopped; they raise whatever
    keeps them from their work, which fails the migration. The frontend may go away meanwhile and
    the session be reset: they must stand that. A class that has nothing to prepare leaves
    `prepare` and `cancel` as they are.

    `held` are requests that were taken from a ring and have no answer, by the ring's index: heads
    of chains in guest memory. It is set before `save`, which has them saved; `load` sets it.
    """

    held: dict[int, list[int]]

    def __init__(self) -> None:
        self.held = {}

    def prepare(self) -> None:
        """A migration begins (VHOST_F_LOG_ALL): `save` will come, but the guest still runs.

        Called on the serving thread, so it starts what takes long and returns.
        """

    def cancel(self) -> None:
        """The migration has been given up, or is over. Called on the serving thread."""

    def save(self, fd: int) -> None:
        """Write the state to `fd`, which is borrowed and closed afterwards; the reader sees its end
        then."""
        raise NotImplementedError

    def load(self, fd: int) -> None:
        """Read a state from `fd`, which is borrowed, to its end, and take it up."""
        raise NotImplementedError


class StateTransfer:
    """One `save` or `load`, in a thread."""

    def __init__(self, work: Callable[[int], None], fd: int, on_done: Callable[[], None]) -> None:
        """Start `work` on `fd` (taken over). `on_done` is called at the end, by the thread.

        Raises:
            RuntimeError: no more threads can be had. `fd` is closed.
        """
        self.failed = False
        self.done = False
        self._work = work
        self._fd = fd
        self._on_done = on_done
        try:
            os.set_blocking(fd, True)
            threading.Thread(target=self._run, name="state-transfer", daemon=True).start()
        except BaseException:
            os.close(fd)
            raise

    def _run(self) -> None:
        try:
            self._work(self._fd)
        except Exception as error:
            self.failed = True
            if isinstance(error, OSError):
                LOG.error("the state could not be transferred: %s", error.strerror or error)
            else:
                LOG.exception("the state could not be transferred")
        finally:
            os.close(self._fd)
            self.done = True
            self._on_done()
