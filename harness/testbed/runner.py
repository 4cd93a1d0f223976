"""Run a script from a file on targets and tell where they differ."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from harness.testbed.compare import AFTER_EACH_STEP, Difference, run
from harness.testbed.linux_target import Agent, LinuxTarget
from harness.testbed.step import parse_script
from harness.testbed.target import SYSCTLS, Target
from harness.testbed.vfs_target import VfsTarget


def target_makers(agent: Agent) -> dict[str, Callable[[], Target]]:
    """How each target is made, by the name it is asked for."""
    return {"vfs": VfsTarget, "linux": lambda: LinuxTarget(agent)}


def run_file(
    path: str | Path,
    targets: tuple[str, str] = ("vfs", "linux"),
    observe: str = AFTER_EACH_STEP,
) -> Difference | None:
    """Run the script at ``path`` on fresh targets of these names, comparing as ``compare.run`` does
    with ``observe``.

    Raises: OSError (the file), ValueError (the script; an unknown target), TargetUnavailable.
    """
    steps = parse_script(Path(path).read_text())
    agent = Agent()
    try:
        makers = target_makers(agent)
        unknown = [name for name in targets if name not in makers]
        if unknown:
            raise ValueError(f"no target {unknown[0]!r}; there are: {', '.join(makers)}")
        with makers[targets[0]]() as one, makers[targets[1]]() as other:
            # The host's stay as they are.
            ours, theirs = (other, one) if targets[1] == "vfs" else (one, other)
            for name in SYSCTLS:
                ours.set_sysctl(name, theirs.sysctl(name))
            return run(steps, one, other, observe)
    finally:
        agent.close()
