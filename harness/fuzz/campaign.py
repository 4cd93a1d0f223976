"""Long runs of random cases by several processes, and what is made of a failure.

Case ``i`` of a seed is the same wherever it is made, as far as the target answers the same. Each
process takes every n-th. One that dies or is stuck is a failure too, and another takes its place.
"""

from __future__ import annotations

import re
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final, NamedTuple

from harness.fuzz.case import Case, Fuzzer, Outcome, Step, dump
from harness.fuzz.isolation import isolate, limited
from harness.testbed.choices import RandomChoices
from harness.testbed.compare import minimize
from harness.workers import Crew

CASE_SECONDS: Final = 90
"""A case takes less than a second; one that takes longer than this hangs, on a busy machine too."""
_MINIMIZE_SECONDS: Final = 60
_SILENT_SECONDS: Final = 3 * CASE_SECONDS
_TELL_SECONDS: Final = 0.5

Factory = Callable[[Path | None], Fuzzer]


def make_fuzzer(target: str, scratch: Path | None) -> Fuzzer:
    """The fuzzer of that name. Raises: KeyError."""
    # Here, because each imports what only it needs.
    from harness.fuzz.ext2 import Ext2Fuzzer
    from harness.fuzz.fuse import FuseFuzzer
    from harness.fuzz.state import StateFuzzer
    from harness.fuzz.threads import ThreadsFuzzer
    from harness.fuzz.vhost_user import VhostUserFuzzer
    from harness.fuzz.virtio import VirtioFuzzer

    factories: dict[str, Factory] = {
        "fuse": FuseFuzzer,
        "threads": ThreadsFuzzer,
        "virtio": VirtioFuzzer,
        "vhost-user": VhostUserFuzzer,
        "ext2": Ext2Fuzzer,
        "state": StateFuzzer,
    }
    return factories[target](scratch)


class Campaign(NamedTuple):
    """What to run: ``cases`` of ``seed`` from number ``first`` on, of ``size`` inputs each."""

    target: str
    cases: int
    size: int
    seed: int
    first: int = 0

    def command(self, number: int) -> str:
        """The command that runs case ``number`` again."""
        return (
            f"python -m harness.fuzz {self.target} --seed {self.seed} --first {number}"
            f" --inputs {self.size} --size {self.size}"
        )


class Found(NamedTuple):
    """A failure: the case that had it, cut down, and how it looks."""

    number: int
    case: Case | None
    text: str

    @property
    def kind(self) -> str:
        """What stays the same while steps are left out: first and last line, but for numbers."""
        lines = self.text.strip().splitlines() or [""]
        ends = lines[0] if len(lines) == 1 else f"{lines[0]} / {lines[-1]}"
        return re.sub(r"0x[0-9a-f]+|\d+", "N", ends)[:300]


class Result(NamedTuple):
    """What one case came to."""

    number: int
    inputs: int
    answers: Counter[tuple[str, str]]
    found: Found | None


class Report:
    """What a run has come to so far."""

    def __init__(self, campaign: Campaign, save: Path) -> None:
        self.campaign = campaign
        self.cases = 0
        self.inputs = 0
        self.answers: Counter[tuple[str, str]] = Counter()
        self.failures: dict[str, tuple[Path, list[int], Found]] = {}
        self.interrupted = False
        self._save = save

    def add(self, result: Result) -> Found | None:
        """Count ``result``. Returns its failure if that is of a new kind, which is saved."""
        self.cases += 1
        self.inputs += result.inputs
        self.answers += result.answers
        found = result.found
        if found is None:
            return None
        if found.kind in self.failures:
            self.failures[found.kind][1].append(found.number)
            return None
        campaign = self.campaign
        path = self._save / f"{campaign.target}-{campaign.seed}-{found.number}.json"
        self._save.mkdir(parents=True, exist_ok=True)
        comment = f"{campaign.command(found.number)}\n{found.text}"
        path.write_text(dump(found.case or Case(campaign.target, {}, ()), comment))
        self.failures[found.kind] = path, [found.number], found
        return found

    def table(self) -> str:
        """Each kind of input with how often it was sent and what it came to."""
        kinds: dict[str, Counter[str]] = {}
        for (kind, error), number in self.answers.items():
            kinds.setdefault(kind, Counter())[error] += number
        lines = [f"{'input':28} {'sent':>9} {'ok':>9}  else"]
        for kind, answers in sorted(kinds.items(), key=lambda item: (-item[1].total(), item[0])):
            errors = ", ".join(f"{error} {n}" for error, n in answers.most_common() if error)
            lines.append(f"{kind:28} {answers.total():9} {answers['']:9}  {errors}".rstrip())
        return "\n".join(lines)


Tell = Callable[[Report, Found | None], None]


def run_case(fuzzer: Fuzzer, campaign: Campaign, number: int) -> Result:
    """Case ``number``; a failure is cut down."""
    with limited(CASE_SECONDS):
        outcome = fuzzer.run(RandomChoices(campaign.seed, number), campaign.size)
    found = None
    if outcome.failure:
        found = _minimized(fuzzer, number, outcome)
    return Result(number, outcome.inputs, outcome.answers, found)


def _minimized(fuzzer: Fuzzer, number: int, outcome: Outcome) -> Found:
    first = Found(number, outcome.case, outcome.failure)
    deadline = time.monotonic() + _MINIMIZE_SECONDS

    def replay(steps: Sequence[Step]) -> str:
        with limited(CASE_SECONDS):
            return fuzzer.replay(outcome.case._replace(steps=tuple(steps))).failure

    def still_fails(steps: Sequence[Step]) -> bool:
        if time.monotonic() > deadline:
            return False
        text = replay(steps)
        return bool(text) and Found(number, None, text).kind == first.kind

    if not still_fails(outcome.case.steps):
        text = f"{first.text}\n(It did not happen again.)"
        return first._replace(text=text)
    steps = tuple(minimize(outcome.case.steps, still_fails))
    return Found(number, outcome.case._replace(steps=steps), replay(steps) or first.text)


def _work(campaign: Campaign, connection: Connection, numbers: range, scratch: str) -> None:
    """The process: tells which case it starts, and what it came to."""
    directory = Path(tempfile.mkdtemp(dir=scratch))
    fuzzer = make_fuzzer(campaign.target, directory if isolate(directory) else None)
    try:
        for number in numbers:
            connection.send(number)
            connection.send(run_case(fuzzer, campaign, number))
    except (BrokenPipeError, ConnectionResetError):
        # Nobody wants the rest.
        pass
    finally:
        fuzzer.close()


def fuzz(
    campaign: Campaign,
    save: Path,
    jobs: int = 1,
    most: int = 0,
    tell: Tell = lambda report, new: None,
) -> Report:
    """Run the campaign until it is done, ``most`` kinds of failure are found (0: never stop for
    that) or SIGINT comes. ``tell`` is called after each case and about twice a second.
    """
    report = Report(campaign, save)

    def hear(result: Result) -> None:
        tell(report, report.add(result))

    def lost(number: int, why: str) -> None:
        """What the process had sent is lost with it; its number makes the case again."""
        hear(Result(number, 0, Counter(), Found(number, None, f"Crash: {why}")))

    def go_on() -> bool:
        tell(report, None)
        return not 0 < most <= len(report.failures)

    numbers = range(campaign.first, campaign.first + campaign.cases)
    crew = Crew(partial(_work, campaign), numbers, jobs, _SILENT_SECONDS, hear, lost)
    report.interrupted = crew.run(_TELL_SECONDS, go_on)
    return report
