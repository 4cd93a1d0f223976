"""`dentry test`: scripts of system calls on targets, and random ones until two targets differ."""

from __future__ import annotations

import argparse
import errno
import json
import os
import random
import signal
import sys
from pathlib import Path
from typing import Final

from harness.cli.options import one_line, terminable
from harness.errors import UsageError
from harness.progress import progress
from harness.testbed.campaign import DOMAINS, Campaign, check_available
from harness.testbed.compare import EVERYTHING_AFTER_EACH_STEP, Answer, perform
from harness.testbed.fuzz import Distinct, Report, fuzz
from harness.testbed.linux_target import Agent
from harness.testbed.runner import run_file, target_makers
from harness.testbed.step import parse_script
from harness.testbed.target import TargetUnavailable

EXIT_DIFFERENT: Final = 1
EXIT_UNAVAILABLE: Final = 3
_EXIT_STATUSES: Final = """\
Exit status: 0 no difference, 1 differences, 2 an error of use, 3 a target cannot be had here.
"""


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "test",
        help="run system calls here and on Linux, and compare",
        description="The differential test bed: one sequence of system calls on several targets.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_run(commands)
    _add_fuzz(commands)


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "run",
        help="run a script",
        description="Run a script. On one target each call is shown with its answer; on two, both "
        "are compared after each step, and their first difference is shown.",
        epilog=_EXIT_STATUSES,
    )
    parser.add_argument("script", metavar="FILE", help="a script, or - for standard input")
    parser.add_argument(
        "--target",
        action="append",
        default=[],
        metavar="NAME",
        dest="targets",
        help="vfs or linux; given once or twice (default: vfs and linux)",
    )
    parser.set_defaults(run=_run)


def _add_fuzz(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "fuzz",
        help="run random sequences until two targets differ",
        description="Run random sequences of system calls on two targets. Each difference is cut "
        "down to the steps that it takes and saved as a script for `dentry test run`.",
        epilog=_EXIT_STATUSES,
    )
    parser.add_argument("domain", metavar="DOMAIN", choices=tuple(DOMAINS), help="mounts or files")
    add = parser.add_argument
    add("--sequences", type=int, default=1000, metavar="N", help="how many (default: 1000)")
    add("--steps", type=int, default=40, metavar="N", help="of a sequence, at most (default: 40)")
    add("--seed", type=int, metavar="S", help="repeats a run (default: a new one each time)")
    add("--first", type=int, default=0, metavar="I", help="start at sequence I of the seed")
    add("--target", default="vfs", metavar="NAME", help="what is tested (default: vfs)")
    add("--against", default="linux", metavar="NAME", help="what is right (default: linux)")
    add("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes at a time")
    add(
        "--save",
        default="dentry-differences",
        metavar="DIR",
        help="where scripts of differences go (default: ./dentry-differences)",
    )
    add(
        "--max-differences",
        type=int,
        default=10,
        metavar="N",
        help="stop after so many distinct ones (default: 10)",
    )
    add("--keep-going", action="store_true", help="never stop before the last sequence")
    add("--stats", metavar="FILE", help="write what was counted as JSON")
    parser.set_defaults(run=_fuzz)


def _run(arguments: argparse.Namespace) -> int:
    targets = arguments.targets or ["vfs", "linux"]
    if len(targets) > 2:
        raise UsageError(f"--target {targets[2]}: two targets can be compared, not more")
    path = "/dev/stdin" if arguments.script == "-" else arguments.script
    try:
        if len(targets) == 1:
            return _trace(path, targets[0])
        difference = run_file(path, (targets[0], targets[1]), EVERYTHING_AFTER_EACH_STEP)
    except TargetUnavailable as error:
        return _unavailable(error)
    except OSError as error:
        raise UsageError(f"{arguments.script}: {error.strerror or error}") from None
    except ValueError as error:
        raise UsageError(f"{arguments.script}: {error}") from None
    if difference is None:
        print(f"{targets[0]} and {targets[1]} answer the same")
        return 0
    print(difference)
    return EXIT_DIFFERENT


def _trace(path: str, name: str) -> int:
    """Show each call of the script with its answer."""
    steps = parse_script(Path(path).read_text())
    agent = Agent()
    try:
        makers = target_makers(agent)
        if name not in makers:
            raise ValueError(f"no target {name!r}; there are: {', '.join(makers)}")
        with makers[name]() as target:
            for step in steps:
                print(f"{step} = {_shown(perform(target, step))}", flush=True)
    finally:
        agent.close()
    return 0


def _shown(answer: Answer) -> str:
    """The answer as strace(1) shows it."""
    if answer.error:
        name = errno.errorcode.get(answer.error, str(answer.error))
        return f"-1 {name} ({os.strerror(answer.error)})"
    return "0" if answer == Answer() else str(answer)


def _unavailable(error: TargetUnavailable) -> int:
    print(f"dentry: {one_line(str(error))}", file=sys.stderr)
    return EXIT_UNAVAILABLE


def _fuzz(arguments: argparse.Namespace) -> int:
    for name, least in (("sequences", 1), ("steps", 1), ("first", 0), ("jobs", 1)):
        if getattr(arguments, name) < least:
            raise UsageError(f"--{name} {getattr(arguments, name)}: {least} at least")
    if arguments.max_differences < 1:
        raise UsageError(f"--max-differences {arguments.max_differences}: 1 at least")
    seed = random.SystemRandom().randrange(1 << 32) if arguments.seed is None else arguments.seed
    campaign = Campaign(
        arguments.domain, arguments.sequences, seed, arguments.first, arguments.steps,
        arguments.target, arguments.against,
    )  # fmt: skip
    try:
        check_available(campaign)
    except TargetUnavailable as error:
        return _unavailable(error)
    except ValueError as error:
        raise UsageError(str(error)) from None
    print(
        f"{campaign.target} against {campaign.against}: {campaign.sequences} sequences of"
        f" {campaign.domain}, seed {seed}",
        flush=True,
    )
    most = 0 if arguments.keep_going else arguments.max_differences
    try:
        with terminable(), progress(campaign.sequences) as show:

            def tell(report: Report, new: Distinct | None) -> None:
                news = _headline(new) if new is not None else ""
                show(report.done, f"{report.differing} differ", news)

            report = fuzz(campaign, Path(arguments.save), arguments.jobs, most, tell)
        if arguments.stats:
            Path(arguments.stats).write_text(json.dumps(report.statistics(), indent=2) + "\n")
    except OSError as error:
        raise UsageError(f"{error.filename}: {error.strerror}") from None
    _summarize(report)
    if report.differences:
        return EXIT_DIFFERENT
    return 128 + signal.SIGINT if report.interrupted else 0


def _headline(new: Distinct) -> str:
    first = next(line for line in new.found.text.splitlines() if line.strip())
    return f"{new.path}: {first} after {len(new.found.steps)} steps"


def _summarize(report: Report) -> None:
    print(f"\n{report.table()}\n")
    for reason, number in report.abandoned.most_common():
        print(f"given up: {number} ({reason})")
    for distinct in sorted(report.differences.values(), key=lambda item: -len(item.numbers)):
        print(f"{len(distinct.numbers):5} x {_headline(distinct)}")
    ended = "interrupted after " if report.interrupted else ""
    print(
        f"{ended}{report.done} sequences, {report.steps} calls, {len(report.differences)} distinct"
        f" differences in {report.differing}; {report.errors_reached} pairs of a call and an errno"
    )
