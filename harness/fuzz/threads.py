"""Requests to one FuseServer by several threads at once, as several queues bring them, while the
host swaps directories for symlinks under them.
"""

from __future__ import annotations

import os
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from fsimpl.passthrough.oslib import renameat2
from harness.compose import Tree
from harness.fuse.server import FuseServer
from harness.fuzz.case import Case, Deed, Message, Outcome, Request
from harness.fuzz.fuse import (
    Broken,
    Client,
    FuseFuzzer,
    Playground,
    deed,
    descriptors,
    make_server,
)
from harness.fuzz.requests import DEEDS, RequestMaker
from harness.fuzz.words import NAMES
from harness.testbed.choices import Choices, RandomChoices
from harness.wire import PENDING
from vfs.abi import AT_FDCWD, RENAME_EXCHANGE
from vfs.errors import InvariantViolation

_APART: Final = 1 << 20
"""Between the numbers of one thread's requests and those of the next."""
_SWITCH_SECONDS: Final = 1e-5


class ThreadsFuzzer:
    """Cases of several clients' requests at once. What each sends follows from the seed, how they
    meet does not: a case that is run again need not fail again.
    """

    target: Final = "threads"

    def __init__(self, scratch: Path | None = None) -> None:
        """As ``FuseFuzzer``."""
        self._fuse = FuseFuzzer(scratch)

    def close(self) -> None:
        self._fuse.close()

    def run(self, choices: Choices, inputs: int) -> Outcome:
        """See ``Fuzzer``."""
        settings = self._fuse.settings(choices)
        settings |= {
            "seed": choices.integer(0, 1 << 30),
            "threads": choices.integer(2, 4),
            "inputs": inputs,
        }
        return self._run(settings)

    def replay(self, case: Case) -> Outcome:
        """See ``Fuzzer``."""
        return self._run(case.settings)

    def _run(self, settings: Mapping[str, Any]) -> Outcome:
        fuse = self._fuse
        options = dict(settings)
        seed, count, inputs = (options.pop(name) for name in ("seed", "threads", "inputs"))
        answers: Counter[tuple[str, str]] = Counter()
        failure = ""
        sent = 0
        fuse.playground.renew()
        fuse.log.take()
        before = descriptors()
        interval = sys.getswitchinterval()
        sys.setswitchinterval(_SWITCH_SECONDS)
        try:
            with Tree(fuse.mounts(settings)) as tree:
                server = make_server(tree, options)
                clients = [
                    _Thread(server, fuse, RandomChoices(seed, index), index, inputs // count)
                    for index in range(count)
                ]
                others = _Others(tree, fuse.playground, RandomChoices(seed, count))
                others.start()
                try:
                    for client in clients:
                        client.start()
                    for client in clients:
                        client.join()
                finally:
                    others.stop()
                    server.reset()
                failure = others.failure
                for client in clients:
                    answers += client.client.answers
                    sent += client.sent
                    failure = failure or client.failure
                    if not failure:
                        client.client.finish()
            fuse.playground.check()
            if len(descriptors()) != len(before):
                raise Broken(f"open descriptors: {before} became {descriptors()}")
        except (Broken, InvariantViolation) as error:
            failure = failure or f"{type(error).__name__}: {error}"
        except Exception:
            failure = failure or traceback.format_exc()
        finally:
            sys.setswitchinterval(interval)
        return Outcome(Case(self.target, settings, ()), sent, answers, failure)


class _Others(threading.Thread):
    """The host in the shared directory, and a task in the tree, as fast as they can."""

    def __init__(self, tree: Tree, playground: Playground, choices: Choices) -> None:
        super().__init__(daemon=True)
        self.failure = ""
        self._tree = tree
        self._playground = playground
        self._choices = choices
        self._stopped = threading.Event()
        # What names are exchanged with, at once and for good: the way out.
        self._trap = playground.limbo / "trap"
        self._trap.symlink_to(playground.outside)

    def run(self) -> None:
        """See ``threading.Thread``."""
        choices = self._choices
        number = 0
        try:
            while not self._stopped.is_set():
                number += 1
                name, count = choices.one_of(DEEDS)
                if number % 8:
                    self._exchange(choices.one_of(NAMES))
                else:
                    names = tuple(choices.one_of(NAMES).decode() for _ in range(count))
                    deed(Deed(number, name, names), self._tree, self._playground)
        except Exception:
            self.failure = traceback.format_exc()

    def _exchange(self, name: bytes) -> None:
        path = os.fsencode(self._playground.shared / os.fsdecode(name))
        try:
            renameat2(AT_FDCWD, path, AT_FDCWD, os.fsencode(self._trap), RENAME_EXCHANGE)
        except OSError:
            pass

    def stop(self) -> None:
        """End it, and wait for that."""
        self._stopped.set()
        self.join()


class _Thread(threading.Thread):
    """One client: its requests have numbers of their own, but nodes and handles are everybody's."""

    def __init__(
        self, server: FuseServer, fuse: FuseFuzzer, choices: Choices, index: int, count: int
    ) -> None:
        super().__init__(daemon=True)
        self.client = Client(server, fuse.log, alone=False)
        self.sent = 0
        self.failure = ""
        self._maker = RequestMaker(choices, births=1)
        self._maker.number = index * _APART
        self._count = count

    def run(self) -> None:
        """See ``threading.Thread``."""
        try:
            for _ in range(self._count):
                step = self._maker.next()
                if isinstance(step, Request):
                    length, payload = self.client.send(step)
                    if length == PENDING:
                        self._maker.waits(step)
                    elif payload:
                        self._maker.learn(step, payload)
                elif isinstance(step, Message):
                    self.client.noise(step)
                self.sent += 1
        except Broken as error:
            self.failure = f"Broken: {error}"
        except Exception:
            self.failure = traceback.format_exc()
