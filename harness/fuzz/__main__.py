"""``python -m harness.fuzz``: hostile clients by the million."""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from harness.fuzz.campaign import Campaign, Found, Report, fuzz, make_fuzzer
from harness.fuzz.case import Case, load
from harness.fuzz.isolation import isolate
from harness.progress import progress

SHARES: Final = {
    "fuse": (75, 500),
    "threads": (10, 500),
    "virtio": (10, 400),
    "vhost-user": (5, 60),
    "ext2": (3, 50),
    "state": (1, 100),
}
"""Of ``all``: percent of the inputs; and inputs in a case, by target."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status: 0 nothing found, 1 failures, 2 an error of use."""
    parser = argparse.ArgumentParser(
        prog="python -m harness.fuzz",
        description="Send random requests, rings and messages, damage images, and check all that"
        " must hold.",
        epilog="Each failure is cut down to the steps that it takes, and saved. Give its file "
        "instead of a target to run it again. Exit status: 0 nothing found, 1 failures, 2 an "
        "error of use.",
    )
    add = parser.add_argument
    add("target", nargs="?", default="all", help=f"{', '.join(SHARES)}, all, or a saved failure")
    add("--inputs", type=int, default=1_000_000, metavar="N", help="about how many (1000000)")
    add("--seed", type=int, metavar="S", help="repeats a run (default: a new one each time)")
    add("--first", type=int, default=0, metavar="I", help="start at case I of the seed")
    add("--size", type=int, metavar="N", help="inputs in a case")
    add("--jobs", type=int, default=os.cpu_count() or 1, metavar="N", help="processes at a time")
    add("--most", type=int, default=10, metavar="N", help="stop after so many kinds of failure")
    add("--save", default="dentry-fuzz", metavar="DIR", help="where failures go (./dentry-fuzz)")
    options = parser.parse_args(arguments)
    for name in ("inputs", "jobs", "most"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)}: 1 at least")
    if options.target not in (*SHARES, "all"):
        try:
            return replay(load(Path(options.target).read_text()))
        except (OSError, ValueError) as error:
            parser.error(f"{options.target}: {error}")
    seed = random.SystemRandom().randrange(1 << 32) if options.seed is None else options.seed
    status = 0
    for campaign in campaigns(options.target, options.inputs, seed, options.first, options.size):
        print(f"{campaign.target}: {campaign.cases} cases of {campaign.size}, seed {seed}")
        begun = time.monotonic()
        with progress(campaign.cases * campaign.size) as show:

            def tell(report: Report, new: Found | None) -> None:
                news = _headline(new) if new is not None else ""
                show(report.inputs, f"{len(report.failures)} kinds of failure", news)

            report = fuzz(campaign, Path(options.save), options.jobs, options.most, tell)
        summarize(report, time.monotonic() - begun)
        if report.failures:
            status = 1
        elif report.interrupted:
            return 128 + signal.SIGINT
    return status


def campaigns(target: str, inputs: int, seed: int, first: int, size: int | None) -> list[Campaign]:
    """What to run for ``inputs`` inputs in all."""
    found = []
    for name, (share, usual) in SHARES.items():
        if target in (name, "all"):
            wanted = inputs if target == name else inputs * share // 100
            each = size or usual
            found.append(Campaign(name, max(-(-wanted // each), 1), each, seed, first))
    return found


def replay(case: Case) -> int:
    """Run a saved case. Returns the exit status. Raises: ValueError."""
    with tempfile.TemporaryDirectory(prefix="dentry-fuzz-") as scratch:
        # In a process of its own, whose mounts end with it.
        child = os.fork()
        if child:
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            if code < 0:
                print(f"Crash: killed by signal {-code}")
            return 1 if code else 0
        failed = True
        try:
            path = Path(scratch)
            fuzzer = make_fuzzer(case.target, path if isolate(path) else None)
            outcome = fuzzer.replay(case)
            print(outcome.failure or "nothing fails")
            failed = bool(outcome.failure)
            fuzzer.close()
        finally:
            sys.stdout.flush()
            os._exit(failed)


def _headline(found: Found) -> str:
    steps = len(found.case.steps) if found.case is not None else "?"
    return f"case {found.number}, {steps} steps: {found.kind}"


def summarize(report: Report, seconds: float) -> None:
    """Print what a run came to."""
    print(f"\n{report.table()}\n")
    for path, numbers, found in report.failures.values():
        print(f"{len(numbers):5} x {path}: {_headline(found)}")
    ended = "interrupted after " if report.interrupted else ""
    print(
        f"{ended}{report.inputs} inputs in {report.cases} cases and {seconds:.0f} s,"
        f" {len(report.failures)} kinds of failure",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
