"""The state of a device as a hostile source of a migration sends it: a server's real one, with
numbers, sections and lengths changed, under the right checksum.
"""

from __future__ import annotations

import errno
import os
import struct
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

from harness.compose import Tree
from harness.fuse.server import FuseServer
from harness.fuzz.case import Case, Deed, Outcome, Request, Scribble, Step
from harness.fuzz.fuse import Broken, Client, FuseFuzzer, deed, descriptors, make_server
from harness.fuzz.requests import OP, RequestMaker
from harness.fuzz.words import ODD_32, ODD_64
from harness.migration import MigrationOptions, ServerState
from harness.migration.options import ABORT, FILE_HANDLES, FIND_PATHS, GUEST_ERROR
from harness.testbed.choices import Choices

_HEADER: Final = 12
_SECTION: Final = struct.Struct("<4sI")
_BUILDING: Final = 60
"""Requests that make a session, before its state is saved."""
_LOADS: Final = 20
"""Of one saved state."""
_ASKED: Final = 12
"""Nodes and handles of a state that was taken that are used."""
_SECTIONS: Final = ("drop", "double", "swap", "rename", "cut")
_TAGS: Final = (b"sess", b"mnts", b"tmpf", b"inod", b"name", b"dent", b"node", b"file", b"lock",
                b"data", b"xatt", b"prom", b"end ", b"none")  # fmt: skip

Section = tuple[bytes, bytes]


class StateMaker:
    """The source: a client's requests, and then what becomes of the state."""

    def __init__(self, choices: Choices) -> None:
        self._choices = choices
        self.requests = RequestMaker(choices)
        self.number = 0

    def building(self) -> Step:
        """The next request to the source."""
        step = self.requests.next()
        while not isinstance(step, Request):
            step = self.requests.next()
        self.number = step.number
        return step

    def changes(self, sections: Sequence[Section]) -> list[Step]:
        """What is done to a state of these ``sections`` before it is loaded once."""
        choices = self._choices
        steps: list[Step] = []
        for _ in range(choices.one_of((0, 1, 1, 1, 1, 2, 3, 8))):
            self.number += 1
            if choices.chance(12):
                picked = (choices.integer(0, len(sections)), choices.integer(0, 1 << 16))
                steps.append(Deed(self.number, choices.one_of(_SECTIONS), picked))
            else:
                steps.append(self._number(sections))
        self.number += 1
        steps.append(Deed(self.number, "load"))
        return steps

    def _number(self, sections: Sequence[Section]) -> Scribble:
        choices = self._choices
        place = _HEADER
        # Each section is as likely, however long it is; of data the beginning matters.
        picked = choices.integer(0, len(sections) - 1)
        for _, content in sections[:picked]:
            place += _SECTION.size + len(content)
        size = min(len(sections[picked][1]), 4096)
        kind = choices.integer(0, 9)
        if kind == 0:
            return Scribble(self.number, place + 4, struct.pack("<I", choices.one_of(ODD_32)))
        place += _SECTION.size + choices.integer(0, max(size - 1, 0))
        if kind < 4:
            data = struct.pack("<I", choices.one_of(ODD_32))
        elif kind < 6:
            data = struct.pack("<Q", choices.one_of(ODD_64))
        elif kind < 8:
            data = bytes((choices.integer(0, 255),))
        else:
            data = choices.one_of((b"..", b"/", b"\0", b"../secret", b"/etc/passwd"))
        return Scribble(self.number, place, data)


class StateFuzzer:
    """Cases of states that one server, which was at the same directory of the host, has saved, and
    another is to load.
    """

    target: Final = "state"

    def __init__(self, scratch: Path | None = None) -> None:
        """As ``FuseFuzzer``."""
        self._fuse = FuseFuzzer(scratch)

    def close(self) -> None:
        self._fuse.close()

    def run(self, choices: Choices, inputs: int) -> Outcome:
        """See ``Fuzzer``."""
        settings = self._fuse.settings(choices) | {
            # Both servers are in this process, and would share the few.
            "descriptors": 0,
            "mode": choices.one_of((FIND_PATHS, FILE_HANDLES)),
            "on_error": choices.one_of((ABORT, GUEST_ERROR)),
        }
        return _Run(self._fuse, settings).random(StateMaker(choices), inputs)

    def replay(self, case: Case) -> Outcome:
        """See ``Fuzzer``."""
        return _Run(self._fuse, case.settings).again(case.steps)


class _Run:
    """One case."""

    def __init__(self, fuse: FuseFuzzer, settings: Mapping[str, Any]) -> None:
        self._fuse = fuse
        self._settings = settings
        self._steps: list[Step] = []
        self._answers: Counter[tuple[str, str]] = Counter()
        self._loads = 0
        self._state = b""
        self._changed = bytearray()
        options = dict(settings)
        self._options = MigrationOptions(options.pop("mode"), options.pop("on_error"))
        self._server_options = options

    def random(self, maker: StateMaker, inputs: int) -> Outcome:
        def work(source: Client, target: Client, trees: tuple[Tree, Tree]) -> None:
            while self._loads < inputs:
                for _ in range(_BUILDING):
                    step = maker.building()
                    self._do(step, source, target, trees)
                    if isinstance(step, Request) and self._payload:
                        maker.requests.learn(step, self._payload)
                maker.number += 1
                self._do(Deed(maker.number, "save"), source, target, trees)
                sections = _apart(self._state) if self._state else []
                for _ in range(min(_LOADS, inputs - self._loads) if sections else 0):
                    for step in maker.changes(sections):
                        self._do(step, source, target, trees)
                if not sections:
                    self._loads += 1

        return self._run(work)

    def again(self, steps: Sequence[Step]) -> Outcome:
        def work(source: Client, target: Client, trees: tuple[Tree, Tree]) -> None:
            for step in steps:
                self._do(step, source, target, trees)

        return self._run(work)

    def _run(self, work: Callable[[Client, Client, tuple[Tree, Tree]], None]) -> Outcome:
        fuse = self._fuse
        fuse.playground.renew()
        fuse.log.take()
        before = descriptors()
        failure = ""
        mounts = fuse.mounts(self._server_options)
        try:
            with Tree(mounts) as one, Tree(mounts) as other:
                servers = [make_server(tree, self._server_options) for tree in (one, other)]
                source, target = (Client(server, fuse.log) for server in servers)
                try:
                    work(source, target, (one, other))
                finally:
                    for server in servers:
                        server.reset()
                for client in (source, target):
                    client.finish()
            fuse.playground.check()
            if len(descriptors()) != len(before):
                raise Broken(f"open descriptors: {before} became {descriptors()}")
        except Broken as error:
            failure = f"Broken: {error}"
        except Exception:
            failure = traceback.format_exc()
        case = Case(StateFuzzer.target, self._settings, tuple(self._steps))
        return Outcome(case, self._loads, self._answers, failure)

    def _do(self, step: Step, source: Client, target: Client, trees: tuple[Tree, Tree]) -> None:
        self._steps.append(step)
        self._payload = b""
        if isinstance(step, Request):
            _, self._payload = source.send(step)
        elif isinstance(step, Scribble):
            end = min(step.place + len(step.data), len(self._changed))
            if step.place < end:
                self._changed[step.place : end] = step.data[: end - step.place]
        elif isinstance(step, Deed) and step.name == "save":
            self._save(source.server)
        elif isinstance(step, Deed) and step.name == "load":
            self._load(target)
        elif isinstance(step, Deed) and step.name in _SECTIONS:
            if self._state:
                self._changed = bytearray(_rearranged(bytes(self._changed), step))
        elif isinstance(step, Deed):
            deed(step, trees[0], self._fuse.playground)

    def _save(self, server: FuseServer) -> None:
        """A session that waits, or that has what cannot be carried over, may be refused."""
        reading, writing = os.pipe()
        pieces: list[bytes] = []

        def collect() -> None:
            with os.fdopen(reading, "rb") as file:
                pieces.append(file.read())

        thread = threading.Thread(target=collect)
        thread.start()
        try:
            ServerState(server, self._options).save(writing)
        except OSError as error:
            self._count("save", error)
        else:
            self._count("save", None)
        finally:
            os.close(writing)
            thread.join()
        state = pieces[0]
        self._state = state if state[-40:-36] == b"end " else b""
        self._changed = bytearray(self._state)

    def _load(self, target: Client) -> None:
        if not self._state:
            return
        self._loads += 1
        body = bytes(self._changed[:-40]) + b"end " + struct.pack("<I", 32)
        state = body + sha256(body[:-8]).digest()
        self._changed = bytearray(self._state)
        server = target.server
        fd = os.memfd_create("state", os.MFD_CLOEXEC)
        try:
            os.write(fd, state)
            os.lseek(fd, 0, os.SEEK_SET)
            ServerState(server, self._options).load(fd)
        except OSError as error:
            self._count("load", error)
            if server.nodes.root is not None or server.nodes.by_id:
                raise Broken("a state that was refused has left a session") from error
        else:
            self._count("load", None)
            self._use(target)
        finally:
            os.close(fd)
        if target.log.texts:
            raise Broken(f"logged:\n{target.log.take()}")
        target.check()
        server.reset()
        target.check()

    def _use(self, target: Client) -> None:
        """A session was taken up: what a client of it asks must be answered as ever."""
        target.check()
        server = target.server
        number = 1 << 20
        nodes = list(server.nodes.by_id)[:_ASKED]
        asked = [(OP["GETATTR"], node, bytes(16), 104) for node in nodes]
        for handle in list(server.handles.files)[:_ASKED]:
            tail = struct.pack("<QQIIQII", handle, 0, 4096, 0, 0, 0, 0)
            asked += [(OP["READ"], 1, tail, 4096), (OP["READDIRPLUS"], 1, tail, 4096)]
        for opcode, node, body, room in asked:
            number += 1
            target.send(Request(number, opcode, node, (body,), 2 * number, (16, room)))

    def _count(self, what: str, error: OSError | None) -> None:
        name = "" if error is None else errno.errorcode.get(error.errno or 0, str(error))
        self._answers[what, name] += 1


def _apart(state: bytes) -> list[Section]:
    """The sections of a state, but for its end; of one that is damaged, as far as they go."""
    sections = []
    at = _HEADER
    while at + _SECTION.size <= len(state) - 40:
        tag, size = _SECTION.unpack_from(state, at)
        at += _SECTION.size
        sections.append((tag, state[at : min(at + size, len(state) - 40)]))
        at += size
    return sections


def _rearranged(state: bytes, step: Deed) -> bytes:
    """The state with one of its sections elsewhere, twice, cut, or not at all."""
    sections = _apart(state)
    if not sections:
        return state
    index, other = (int(number) for number in step.args)
    index %= len(sections)
    tag, content = sections[index]
    match step.name:
        case "drop":
            del sections[index]
        case "double":
            sections.insert(other % (len(sections) + 1), (tag, content))
        case "swap":
            other %= len(sections)
            sections[index], sections[other] = sections[other], sections[index]
        case "rename":
            sections[index] = (_TAGS[other % len(_TAGS)], content)
        case "cut":
            sections[index] = (tag, content[: other % (len(content) + 1)])
    body = b"".join(_SECTION.pack(name, len(data)) + data for name, data in sections)
    return state[:_HEADER] + body + state[-40:]
