"""Long runs of random sequences by several processes: what ``dentry test fuzz`` does.

Each process takes every n-th sequence. One that dies or is stuck where nothing reaches it is a
difference too, and another takes its place.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, NamedTuple

from harness.testbed.campaign import STUCK_SECONDS, Campaign, Found, Outcome, Runner
from harness.testbed.linux_target import Agent
from harness.testbed.step import format_script
from harness.workers import Crew

# Longer than a sequence with its observations may take, so that the process itself notices first.
_SILENT_SECONDS: Final = 3 * STUCK_SECONDS


class Distinct(NamedTuple):
    """Differences that came down to the same script: where it lies, how many, the first one."""

    path: Path
    numbers: list[int]
    found: Found


class Report:
    """What a run has come to so far."""

    def __init__(self, campaign: Campaign, save: Path) -> None:
        self.campaign = campaign
        self.done = 0
        self.steps = 0
        self.answers: Counter[tuple[str, str]] = Counter()
        self.abandoned: Counter[str] = Counter()
        self.differences: dict[str, Distinct] = {}
        self.interrupted = False
        self._save = save

    @property
    def differing(self) -> int:
        """How many sequences had a difference."""
        return sum(len(distinct.numbers) for distinct in self.differences.values())

    def add(self, outcome: Outcome) -> Distinct | None:
        """Count ``outcome``. Returns its difference if that is a new one, whose script is saved."""
        self.done += 1
        self.answers += outcome.answers
        self.steps += outcome.answers.total()
        if outcome.abandoned:
            self.abandoned[outcome.abandoned] += 1
        found = outcome.found
        if found is None:
            return None
        script = format_script(found.steps)
        if script in self.differences:
            self.differences[script].numbers.append(found.number)
            return None
        path = self._save / f"{self.campaign.domain}-{self.campaign.seed}-{found.number}.script"
        self._save.mkdir(parents=True, exist_ok=True)
        path.write_text(found.script(self.campaign))
        self.differences[script] = Distinct(path, [found.number], found)
        return self.differences[script]

    @property
    def errors_reached(self) -> int:
        """How many distinct pairs of a call and an errno were answered."""
        return sum(1 for _, error in self.answers if error)

    def table(self) -> str:
        """Each call with how often it was made and what it answered, most frequent first."""
        calls: dict[str, Counter[str]] = {}
        for (call, error), number in self.answers.items():
            calls.setdefault(call, Counter())[error] += number
        lines = []
        for call, answers in sorted(calls.items(), key=lambda item: (-item[1].total(), item[0])):
            errors = ", ".join(f"{error} {n}" for error, n in answers.most_common() if error)
            lines.append(f"{call:16} {answers.total():9} {answers['']:9}  {errors}".rstrip())
        return "\n".join([f"{'call':16} {'made':>9} {'ok':>9}  errors", *lines])

    def statistics(self) -> dict[str, Any]:
        """Everything counted, for JSON."""
        calls: dict[str, dict[str, int]] = {}
        for (call, error), number in sorted(self.answers.items()):
            calls.setdefault(call, {})[error or "ok"] = number
        campaign = self.campaign
        return {
            "domain": campaign.domain,
            "target": campaign.target,
            "against": campaign.against,
            "seed": campaign.seed,
            "first": campaign.first,
            "steps_at_most": campaign.steps,
            "sequences": self.done,
            "steps": self.steps,
            "errors_reached": self.errors_reached,
            "calls": calls,
            "abandoned": dict(self.abandoned),
            "differences": [
                {"script": str(distinct.path), "sequences": distinct.numbers}
                for distinct in self.differences.values()
            ],
        }


def _work(campaign: Campaign, connection: Connection, numbers: range, scratch: str) -> None:
    """The process: tells which sequence it starts, that it is alive, and each outcome."""
    # The agent's directory goes with the whole run, however this process ends.
    tempfile.tempdir = scratch
    # An agent keeps to one CPU of those that it finds allowed.
    cpus = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cpus[numbers.start % len(cpus)]})
    agent = Agent()
    try:
        runner = Runner(campaign, agent)
        for number in numbers:
            connection.send(number)
            connection.send(runner.run(number, lambda: connection.send(None)))
    except (BrokenPipeError, ConnectionResetError):
        # Nobody wants the rest.
        pass
    finally:
        agent.close()


def fuzz(
    campaign: Campaign,
    save: Path,
    jobs: int = 1,
    max_differences: int = 0,
    tell: Callable[[Report, Distinct | None], None] = lambda report, new: None,
) -> Report:
    """Run the campaign until it is done, ``max_differences`` distinct ones are found (0: never
    stop for that) or SIGINT comes. ``tell`` is called after each sequence and about each second.
    """
    report = Report(campaign, save)

    def hear(outcome: Outcome) -> None:
        tell(report, report.add(outcome))

    def lost(number: int, why: str) -> None:
        """The whole sequence is the difference: where it broke off cannot be asked any more."""
        found = Found(number, campaign.sequence(number), f"Crash: {why}")
        hear(Outcome(number, Counter(), "", found))

    def go_on() -> bool:
        tell(report, None)
        return not 0 < max_differences <= len(report.differences)

    numbers = range(campaign.first, campaign.first + campaign.sequences)
    crew = Crew(partial(_work, campaign), numbers, jobs, _SILENT_SECONDS, hear, lost)
    report.interrupted = crew.run(1, go_on)
    return report
