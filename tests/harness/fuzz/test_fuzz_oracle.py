"""The fuzzer notices what it is there to notice, cuts it down, and saves it."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fsimpl.tmpfs.inode import TmpfsInode
from harness.fuse import abi
from harness.fuse.opcodes import OPCODES
from harness.fuse.server import FuseServer
from harness.fuzz.campaign import Campaign, Report, run_case
from harness.fuzz.case import Case, Deed, Message, Outcome, Ref, Request, Scribble, Step, dump, load
from harness.fuzz.fuse import FuseFuzzer
from harness.fuzz.state import StateFuzzer
from harness.fuzz.vhost_user import ConversationMaker, VhostUserFuzzer
from harness.fuzz.virtio import VirtioFuzzer
from harness.migration import ServerState
from harness.testbed.choices import Choices, RandomChoices
from harness.testbed.strategies import DrawnChoices
from harness.virtio.packed import PackedQueue
from harness.virtio.queue import SplitQueue

OP = {row.name: row.number for row in OPCODES}
Handle = Callable[..., int]
INIT = Request(
    1, OP["INIT"], 0, (abi.INIT_EXT_IN.pack(7, 45, 1 << 17, 0xFFFFFFFF, 0),), 2, (16, 64)
)  # fmt: skip
MKDIR = Request(2, OP["MKDIR"], 1, (abi.MKDIR_IN.pack(0o755, 0) + b"a\0",), 4, (16, 128))
STATFS = Request(3, OP["STATFS"], 1, (), 6, (16, 80), cuts=())
SETTINGS = {
    "host": False, "default_permissions": True, "cache": "auto", "announce_submounts": True,
    "unique_inodes": None, "devices": "node", "local_locks": False, "notify": False,
    "passthrough": "", "descriptors": 0,
}  # fmt: skip


@pytest.fixture
def fuzzer() -> Iterator[FuseFuzzer]:
    fuzzer = FuseFuzzer()
    yield fuzzer
    fuzzer.close()


class Simplest(Choices):
    """The first option, always."""

    def integer(self, low: int, high: int) -> int:
        return low


def replay(fuzzer: FuseFuzzer, *steps: Step) -> Outcome:
    return fuzzer.replay(Case("fuse", SETTINGS, (INIT, *steps)))


def with_handle(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Handle, FuseServer, Sequence[Any]], int]
) -> None:
    """Have ``change(real handle, server, arguments)`` serve STATFS."""
    real = FuseServer.handle

    def handle(self: FuseServer, *arguments: Any) -> int:
        if bytes(arguments[0][0][4:8]) == OP["STATFS"].to_bytes(4, "little"):
            return change(real, self, arguments)
        return real(self, *arguments)

    monkeypatch.setattr(FuseServer, "handle", handle)


def test_a_good_server_passes(fuzzer: FuseFuzzer) -> None:
    outcome = replay(fuzzer, MKDIR, STATFS)
    assert outcome.failure == ""
    assert outcome.inputs == 3
    assert outcome.answers["MKDIR", ""] == 1


def wrong_unique(real: Handle, server: FuseServer, arguments: Sequence[Any]) -> int:
    length = real(server, *arguments)
    arguments[1][0][8:16] = (99).to_bytes(8, "little")
    return length


def wrong_length(real: Handle, server: FuseServer, arguments: Sequence[Any]) -> int:
    return real(server, *arguments) - 1


def wrong_size(real: Handle, server: FuseServer, arguments: Sequence[Any]) -> int:
    real(server, *arguments)
    arguments[1][0][:4] = (24).to_bytes(4, "little")
    return 24


def unknown_errno(real: Handle, server: FuseServer, arguments: Sequence[Any]) -> int:
    abi.OUT_HEADER.pack_into(arguments[1][0], 0, 16, -511, 6)
    return 16


def raises(real: Handle, server: FuseServer, arguments: Sequence[Any]) -> int:
    raise ZeroDivisionError


def silence(real: Handle, server: FuseServer, arguments: Sequence[Any]) -> int:
    return 0


def twice(real: Handle, server: FuseServer, arguments: Sequence[Any]) -> int:
    length = real(server, *arguments)
    arguments[2](length)
    return length


def never(real: Handle, server: FuseServer, arguments: Sequence[Any]) -> int:
    return -1


def descriptor_leak(real: Handle, server: FuseServer, arguments: Sequence[Any]) -> int:
    LEAKED.append(os.open("/dev/null", os.O_RDONLY))
    return real(server, *arguments)


def reference_leak(real: Handle, server: FuseServer, arguments: Sequence[Any]) -> int:
    assert server.nodes.root is not None
    server.nodes.root.dentry.get()
    return real(server, *arguments)


LEAKED: list[int] = []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (wrong_unique, "answers 99"),
        (wrong_length, "says that it has"),
        (wrong_size, "8 bytes instead of 80"),
        (unknown_errno, "error -511"),
        (raises, "handle raised"),
        (silence, "was not answered"),
        (twice, "answered twice"),
        (never, "STATFS waits"),
        (descriptor_leak, "open descriptors"),
        (reference_leak, "still alive at shutdown"),
    ],
)
def test_a_server_that_does_wrong_is_found_out(
    fuzzer: FuseFuzzer,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Handle, FuseServer, Sequence[Any]], int],
    words: str,
) -> None:
    with_handle(monkeypatch, change)
    assert words in replay(fuzzer, MKDIR, STATFS).failure
    while LEAKED:
        os.close(LEAKED.pop())


def test_a_reply_that_is_written_after_it_was_given_is_found_out(
    fuzzer: FuseFuzzer, monkeypatch: pytest.MonkeyPatch
) -> None:
    replies: list[memoryview] = []

    def late(real: Handle, server: FuseServer, arguments: Sequence[Any]) -> int:
        replies.append(arguments[1][0])
        length = real(server, *arguments)
        replies[0][0] = 1 if len(replies) > 1 else replies[0][0]
        return length

    with_handle(monkeypatch, late)
    steps = [STATFS._replace(number=n, unique=2 * n) for n in range(3, 12)]
    assert "has changed" in replay(fuzzer, *steps).failure


def test_a_bug_in_a_filesystem_is_found_cut_down_saved_and_found_again(
    fuzzer: FuseFuzzer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(self: TmpfsInode) -> list[bytes]:
        raise ZeroDivisionError("as the test asked")

    monkeypatch.setattr(TmpfsInode, "listxattr", broken)
    campaign = Campaign("fuse", 1, 400, 1)
    result = run_case(fuzzer, campaign, 0)
    report = Report(campaign, tmp_path)
    found = report.add(result)
    assert found is not None and found.case is not None
    assert "ZeroDivisionError: as the test asked" in found.text
    assert len(found.case.steps) <= 6
    again = run_case(fuzzer, campaign, 0)
    assert report.add(again) is None, "the same failure twice"
    ((path, numbers, _),) = report.failures.values()
    assert numbers == [0, 0]
    case = load(path.read_text())
    assert case == found.case
    assert "ZeroDivisionError" in fuzzer.replay(case).failure
    monkeypatch.undo()
    assert fuzzer.replay(case).failure == ""


def test_a_case_is_the_same_after_it_was_saved() -> None:
    steps: tuple[Step, ...] = (
        INIT,
        Request(2, 4, Ref("node", 1), (b"\0\xff", Ref("handle", 1, 2)), 4, (), (), (1, 2, 3, 4), -1,
                ((0, 4, b"x"),)),
        Deed(3, "task_rename", ("a", "b")),
        Deed(4, "kick", (1,)),
        Message(5, b"\1\2", ("memory",)),
        Scribble(6, 4096, b"\3"),
    )  # fmt: skip
    case = Case("fuse", SETTINGS, steps)
    assert load(dump(case, "a comment")) == case
    for text in ("", "{}", "[]", '{"target": "fuse", "settings": {}, "steps": [["Nothing"]]}'):
        with pytest.raises(ValueError):
            load(text)


each_ring = pytest.mark.parametrize(
    ("kind", "method", "seed"),
    [(SplitQueue, "serve", 4), (PackedQueue, "pop", 1)],
)


@each_ring
def test_a_device_that_writes_where_it_was_not_told_to_is_found_out(
    monkeypatch: pytest.MonkeyPatch, kind: type, method: str, seed: int
) -> None:
    real = getattr(kind, method)

    def take(self: object, *arguments: object) -> Any:
        fuzzer.view[0x5000] ^= 1
        return real(self, *arguments)

    fuzzer = VirtioFuzzer()
    monkeypatch.setattr(kind, method, take)
    outcome = fuzzer.run(RandomChoices(seed), 20)
    assert outcome.case.settings["packed"] == (kind is PackedQueue)
    assert "the device wrote to 0x5000" in outcome.failure
    monkeypatch.undo()
    assert fuzzer.replay(outcome.case).failure == ""
    fuzzer.close()


@each_ring
def test_a_device_that_chokes_on_a_chain_is_found_out(
    monkeypatch: pytest.MonkeyPatch, kind: type, method: str, seed: int
) -> None:
    def take(self: object, *arguments: object) -> Any:
        raise IndexError

    monkeypatch.setattr(kind, method, take)
    fuzzer = VirtioFuzzer()
    assert "IndexError" in fuzzer.run(RandomChoices(seed), 20).failure
    fuzzer.close()


@each_ring
def test_most_of_what_guests_ask_through_a_ring_is_answered(
    kind: type, method: str, seed: int
) -> None:
    fuzzer = VirtioFuzzer()
    outcome = fuzzer.run(RandomChoices(seed), 400)
    fuzzer.close()
    assert outcome.case.settings["packed"] == (kind is PackedQueue)
    assert outcome.failure == ""
    answered = sum(number for (_, error), number in outcome.answers.items() if not error)
    assert answered > 300


def test_a_device_killed_by_memory_that_was_truncated_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Which is what sealing the memory prevents."""
    fuzzer = VhostUserFuzzer()
    maker = ConversationMaker(Simplest(), 2, fuzzer.offered)
    steps: list[Step] = []
    for number, (request, payload, fds) in enumerate(maker.good_script()[1:-1]):
        data = request.to_bytes(4, "little") + (1).to_bytes(4, "little")
        steps.append(Message(number, data + len(payload).to_bytes(4, "little") + payload, fds))
    steps += [
        Deed(99, "ask"),
        Deed(100, "truncate", (0,)),
        Deed(101, "kick", (0,)),
        # The first answer may come before the kick is looked at.
        *(Deed(number, "ask") for number in range(102, 106)),
    ]
    case = Case("vhost-user", {}, tuple(steps))
    try:
        assert fuzzer.replay(case).failure == ""
    finally:
        fuzzer.close()
    monkeypatch.setattr("harness.virtio.sealing.forbid_shrinking", lambda fd: False)
    fuzzer = VhostUserFuzzer()
    try:
        assert "The device ended with -7" in fuzzer.replay(case).failure
    finally:
        fuzzer.close()


def test_a_loader_that_chokes_on_a_state_or_leaves_half_of_it_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def chokes(self: ServerState, fd: int) -> None:
        raise KeyError(fd)

    def forgets_the_error(self: ServerState, fd: int) -> None:
        real(self, fd)
        raise OSError(errno.EINVAL, "refused, and taken up all the same")

    real = ServerState.load
    fuzzer = StateFuzzer()
    for broken, words in ((chokes, "KeyError"), (forgets_the_error, "has left a session")):
        monkeypatch.setattr(ServerState, "load", broken)
        assert words in fuzzer.run(RandomChoices(1), 20).failure
    monkeypatch.undo()
    assert fuzzer.run(RandomChoices(1), 20).failure == ""
    fuzzer.close()


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_requests_that_hypothesis_chooses_break_nothing(data: st.DataObject) -> None:
    fuzzer = FuseFuzzer()
    try:
        assert fuzzer.run(DrawnChoices(data.draw), 30).failure == ""
    finally:
        fuzzer.close()
