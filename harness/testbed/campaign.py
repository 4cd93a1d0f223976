"""Random sequences on two targets, and what is made of a difference: the fuzzer in one process.

Sequence ``i`` of a seed is the same wherever and whenever it is made. A target that crashes or does
not come back differs from one that answers.
"""

from __future__ import annotations

import errno
import signal
import time
import traceback
from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final, NamedTuple, NoReturn

from harness.testbed.choices import Choices, RandomChoices
from harness.testbed.compare import (
    AFTER_EACH_STEP,
    AT_END,
    EVERYTHING_AFTER_EACH_STEP,
    MOUNTS_AFTER_EACH_STEP,
    Difference,
    minimize,
    run,
)
from harness.testbed.generate import file_sequence
from harness.testbed.generate_mounts import mount_sequence
from harness.testbed.linux_target import Agent
from harness.testbed.mount_table import MountTables
from harness.testbed.runner import target_makers
from harness.testbed.simplify import simplify
from harness.testbed.state import State
from harness.testbed.step import Step, format_script, make_step
from harness.testbed.target import SYSCTLS, NoSuchTask, Target, TargetUnavailable
from vfs import abi

STUCK_SECONDS: Final = 30
"""A sequence takes some 0.05 s; one that takes longer than this hangs."""
_MINIMIZE_SECONDS: Final = 60
_MOST_ROWS: Final = 300
"""Recursive binds below shared mounts double the tables each time: where a sequence is given up."""

Makers = Callable[[Agent], Mapping[str, Callable[[], Target]]]


class Domain(NamedTuple):
    """What is fuzzed: its generator, when states are compared (and when a difference is looked
    into), which steps a target must be able to make and what they stand for.
    """

    generate: Callable[[Choices, int], list[Step]]
    observe: str
    observe_found: str
    needs: tuple[tuple[Step, str], ...]


_OTHER_IDS: Final = (
    make_step("root", "clone", "alice", 0, 1000, 1000, (1000,)),
    "tasks with other ids, which take root",
)
_USER_NAMESPACE: Final = (
    make_step("alice", "clone", "kid", abi.CLONE_NEWUSER | abi.CLONE_NEWNS, 1000, 1000, (1000,)),
    "user namespaces, which user.max_user_namespaces or a sandbox may forbid",
)
DOMAINS: Final = {
    "mounts": Domain(
        mount_sequence,
        MOUNTS_AFTER_EACH_STEP,
        EVERYTHING_AFTER_EACH_STEP,
        (_OTHER_IDS, _USER_NAMESPACE),
    ),
    "files": Domain(file_sequence, AT_END, AFTER_EACH_STEP, (_OTHER_IDS,)),
}


class Campaign(NamedTuple):
    """What to run: ``sequences`` of ``seed`` from number ``first`` on, of up to ``steps`` steps.

    ``makers`` says how targets are made by their names; it must be picklable.
    """

    domain: str
    sequences: int
    seed: int
    first: int = 0
    steps: int = 40
    target: str = "vfs"
    against: str = "linux"
    makers: Makers = target_makers

    def sequence(self, number: int) -> list[Step]:
        return DOMAINS[self.domain].generate(RandomChoices(self.seed, number), self.steps)

    def command(self, number: int) -> str:
        """The command that runs sequence ``number`` again."""
        return (
            f"dentry test fuzz {self.domain} --seed {self.seed} --first {number} --sequences 1"
            f" --steps {self.steps} --target {self.target} --against {self.against}"
        )


class Found(NamedTuple):
    """A difference: the sequence that had it, the steps that it takes, and how it looks."""

    number: int
    steps: list[Step]
    text: str

    def script(self, campaign: Campaign) -> str:
        """A script that runs again, with what happened in comments above it."""
        targets = f"--target {campaign.target} --target {campaign.against}"
        comment = f"{campaign.command(self.number)}\ndentry test run {targets} FILE\n\n{self.text}"
        return format_script(self.steps, comment)


class Outcome(NamedTuple):
    """What one sequence came to. ``answers`` counts (call, errno's name or "")."""

    number: int
    answers: Counter[tuple[str, str]]
    abandoned: str = ""
    found: Found | None = None


class _Abandoned(Exception):
    """The sequence leads nowhere that is worth its time."""


class _Stuck(Exception):
    """The time is over."""


class _Recorder(Target):
    """A target whose answers are counted, and which gives up before its mounts fill the memory."""

    def __init__(self, target: Target, answers: Counter[tuple[str, str]]) -> None:
        self.name = target.name
        self._target = target
        self._answers = answers

    def perform(self, step: Step) -> Any:
        try:
            value = self._target.perform(step)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, str(error.errno))
            self._answers[step.call, name] += 1
            raise
        self._answers[step.call, ""] += 1
        return value

    def observe_mounts(self) -> MountTables:
        tables = self._target.observe_mounts()
        if sum(map(len, tables.values())) > _MOST_ROWS:
            raise _Abandoned(f"more than {_MOST_ROWS} mounts")
        if any(row.fstype == b"rootfs" for rows in tables.values() for row in rows):
            # Below the root mount of every namespace. It is one for the whole host, and the next
            # step might write to it.
            raise _Abandoned("a task came to the host's rootfs")
        return tables

    def _read_mountinfo(self) -> dict[str, bytes]:
        return self._target._read_mountinfo()

    def observe(self) -> State:
        return self._target.observe()

    def check(self) -> None:
        self._target.check()

    def set_sysctl(self, name: str, value: int) -> None:
        self._target.set_sysctl(name, value)

    def sysctl(self, name: str) -> int:
        return self._target.sysctl(name)

    def close(self) -> None:
        self._target.close()


def check_available(campaign: Campaign) -> None:
    """Raises: TargetUnavailable if a target can't be had or can't do what the domain takes;
    ValueError for an unknown target.
    """
    agent = Agent()
    try:
        makers = campaign.makers(agent)
        for name in dict.fromkeys((campaign.target, campaign.against)):
            if name not in makers:
                raise ValueError(f"no target {name!r}; there are: {', '.join(makers)}")
            try:
                with makers[name]() as target:
                    for step, meaning in DOMAINS[campaign.domain].needs:
                        _need(target, step, meaning)
            except TargetUnavailable as error:
                raise TargetUnavailable(f"target {name}: {error}") from None
    finally:
        agent.close()


def _need(target: Target, step: Step, meaning: str) -> None:
    try:
        target.perform(step)
    except (OSError, TargetUnavailable) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise TargetUnavailable(f"it lacks {meaning}: {step}: {why}") from None


class Runner:
    """Runs a campaign's sequences in this process, one after another."""

    def __init__(self, campaign: Campaign, agent: Agent) -> None:
        self.campaign = campaign
        self._domain = DOMAINS[campaign.domain]
        makers = campaign.makers(agent)
        self._make = makers[campaign.target], makers[campaign.against]

    def run(self, number: int, alive: Callable[[], None] = lambda: None) -> Outcome:
        """Sequence ``number``; ``alive`` is called on and on while a difference is cut down."""
        return self.run_steps(self.campaign.sequence(number), number, alive)

    def run_steps(
        self, steps: list[Step], number: int = 0, alive: Callable[[], None] = lambda: None
    ) -> Outcome:
        """``steps``, which need not be the sequence of that ``number``."""
        answers: Counter[tuple[str, str]] = Counter()
        try:
            first = self._attempt(steps, self._domain.observe, answers)
        except (_Abandoned, NoSuchTask, TargetUnavailable) as error:
            return Outcome(number, answers, str(error))
        if first is None:
            return Outcome(number, answers)
        alive()
        return Outcome(number, answers, "", self._minimized(number, steps, first, alive))

    def _minimized(
        self, number: int, steps: list[Step], first: Difference | str, alive: Callable[[], None]
    ) -> Found:
        observe = self._domain.observe_found
        again = self._quiet_attempt(steps, observe)
        if again is None:
            text = f"{_text_of(first)}\n(Only {self._domain.observe}, and not {observe}.)"
            return Found(number, steps, text)
        kind = _kind_of(again)
        deadline = time.monotonic() + _MINIMIZE_SECONDS

        def still_differs(some: Sequence[Step]) -> bool:
            if time.monotonic() > deadline:
                return False
            alive()
            other = self._quiet_attempt(some, observe)
            return other is not None and _kind_of(other) == kind

        if isinstance(again, Difference):
            steps = steps[: again.at + 1]
        needed = minimize(steps, still_differs)
        needed = minimize(simplify(needed, still_differs), still_differs)
        return Found(number, list(needed), _text_of(self._quiet_attempt(needed, observe) or again))

    def _quiet_attempt(self, steps: Sequence[Step], observe: str) -> Difference | str | None:
        try:
            return self._attempt(steps, observe, Counter())
        except (_Abandoned, NoSuchTask, TargetUnavailable):
            return None

    def _attempt(
        self, steps: Sequence[Step], observe: str, answers: Counter[tuple[str, str]]
    ) -> Difference | str | None:
        """The difference, or the traceback of what is not even one.

        Raises: _Abandoned, NoSuchTask, TargetUnavailable.
        """
        try:
            with _limited(STUCK_SECONDS), self._make[0]() as one, self._make[1]() as other:
                # The host's stay as they are.
                ours, theirs = (other, one) if other.name == "vfs" else (one, other)
                for name in SYSCTLS:
                    ours.set_sysctl(name, theirs.sysctl(name))
                return run(steps, one, _Recorder(other, answers), observe)
        except (_Abandoned, NoSuchTask, TargetUnavailable):
            raise
        except Exception:
            return traceback.format_exc()


def _kind_of(found: Difference | str) -> tuple[object, ...]:
    """What stays the same while steps are left out."""
    if isinstance(found, str):
        return (found.splitlines()[-1].partition(":")[0],)
    errors = tuple(answer.error for answer in found.answers)
    return found.reason.partition(":")[0], found.steps[found.at].call, errors


def _text_of(found: Difference | str) -> str:
    return str(found).partition("\n\nScript:\n")[0]


@contextmanager
def _limited(seconds: float) -> Generator[None]:
    """Raise _Stuck inside of the ``with`` when the time is over. For main threads."""

    def stuck(*_: object) -> NoReturn:
        raise _Stuck(f"no end after {seconds} s")

    start = time.monotonic()
    before = signal.signal(signal.SIGALRM, stuck)
    others, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if others:
            # Somebody else's, as a test's time limit.
            rest = max(others - (time.monotonic() - start), 0.001)
            signal.setitimer(signal.ITIMER_REAL, rest, interval)
