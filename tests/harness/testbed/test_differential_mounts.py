"""Random mounts by several tasks in several namespaces are the same on the VFS and on the kernel.

``DENTRY_FUZZ_EXAMPLES=2000`` runs longer, on other sequences each time; `dentry test fuzz mounts`
runs much longer. A difference is reported with the script that reproduces it.

Hypothesis generates and does not shrink here. What a choice means depends on all choices before it,
so that leaving one out changes everything after it: with a difference that takes 2 steps hypothesis
was down to 32 after 5 minutes, where leaving out steps finds the 2 in some 30 runs.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from harness.cli.main import main
from harness.testbed import campaign as campaign_module
from harness.testbed.campaign import Campaign, Found, Outcome, Runner, check_available
from harness.testbed.choices import RandomChoices
from harness.testbed.fuzz import Report, fuzz
from harness.testbed.generate_mounts import begin, extend, mount_sequence
from harness.testbed.linux_target import Agent
from harness.testbed.mount_sequence import MountSequence
from harness.testbed.runner import target_makers
from harness.testbed.simplify import simplify
from harness.testbed.step import Step, format_script, parse_script
from harness.testbed.strategies import DrawnChoices
from harness.testbed.target import Target, TargetUnavailable
from harness.testbed.vfs_target import VfsTarget
from vfs import abi

EXAMPLES = int(os.environ.get("DENTRY_FUZZ_EXAMPLES", "0"))


@pytest.fixture(scope="module")
def agent(linux_agent: Agent) -> Agent:
    """An agent whose targets can do what mounts take."""
    try:
        check_available(Campaign("mounts", 1, 0))
    except TargetUnavailable as error:
        pytest.skip(str(error))
    return linux_agent


def outcomes(runner: Runner) -> Counter[tuple[str, str]]:
    """Run the whole campaign and fail at the first difference. Returns what was answered."""
    answers: Counter[tuple[str, str]] = Counter()
    for number in range(runner.campaign.sequences):
        outcome = runner.run(number)
        if outcome.found is not None:
            pytest.fail(outcome.found.script(runner.campaign), pytrace=False)
        answers += outcome.answers
    return answers


def test_random_mounts_are_as_on_the_kernel(agent: Agent) -> None:
    answers = outcomes(Runner(Campaign("mounts", 150, seed=1, steps=30), agent))
    assert sum(1 for _, error in answers if error) >= 60
    assert answers["mount", ""] > 100


def test_the_kernel_does_not_differ_from_itself(agent: Agent) -> None:
    outcomes(Runner(Campaign("mounts", 60, seed=2, target="linux"), agent))


class MountMachine(RuleBasedStateMachine):
    """One mount call after another, and in the end all of them on both targets."""

    runner: Runner

    @initialize(data=st.data())
    def start(self, data: st.DataObject) -> None:
        self.choices = DrawnChoices(data.draw)
        self.sequence = MountSequence(self.choices)
        begin(self.sequence)

    @rule(data=st.data())
    def call(self, data: st.DataObject) -> None:
        self.choices.draw = data.draw
        extend(self.sequence)

    def teardown(self) -> None:
        outcome = self.runner.run_steps(self.sequence.steps)
        if outcome.found is not None:
            pytest.fail(outcome.found.script(self.runner.campaign), pytrace=False)


@pytest.mark.slow
@pytest.mark.timeout(0 if EXAMPLES else 300)
def test_a_machine_that_makes_mounts_finds_no_difference(agent: Agent) -> None:
    class Machine(MountMachine):
        runner = Runner(Campaign("mounts", 1, 0), agent)

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=EXAMPLES or 60,
            stateful_step_count=30,
            derandomize=not EXAMPLES,
            phases=[Phase.generate],
            database=None,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_what_does_not_matter_for_a_difference_is_made_plain() -> None:
    steps = parse_script("""
        root: mkdir("c/.", 0o777)
        root: clone("kid", CLONE_FS, 1000, 1000, (1000,))
        kid: mount("none", "/c/", "tmpfs", MS_RDONLY|MS_NOEXEC, "mode=755")
        kid: umount2("../c", MNT_DETACH)
    """)
    plain = simplify(steps, lambda some: bool(some[2].args[3] & abi.MS_NOEXEC))
    assert format_script(plain).splitlines() == [
        'root: mkdir("/a", 0o755)',
        'root: clone("kid", 0, 0, 0, ())',
        'root: mount("none", "/a", "tmpfs", MS_NOEXEC, None)',
        'root: umount2("../a", MNT_DETACH)',
    ]


def test_a_sequence_follows_from_its_seed_and_number() -> None:
    one = mount_sequence(RandomChoices(7, 3), 40)
    assert one == mount_sequence(RandomChoices(7, 3), 40)
    assert one != mount_sequence(RandomChoices(7, 4), 40)
    assert len(one) <= 40


def test_every_mount_sequence_reads_back_as_it_was() -> None:
    for number in range(100):
        steps = mount_sequence(RandomChoices(5, number), 40)
        assert parse_script(format_script(steps)) == steps


def test_sequences_reach_every_kind_of_call_and_state() -> None:
    calls: Counter[str] = Counter()
    for number in range(300):
        steps = mount_sequence(RandomChoices(11, number), 40)
        calls.update(step.call for step in steps)
    expected = {
        "mount", "umount2", "pivot_root", "chroot", "unshare", "clone", "setns", "nsfd", "exit",
        "open_tree", "open_tree_attr", "move_mount", "mount_setattr", "fsopen", "fsconfig",
        "fsmount", "fspick", "statmount_at", "listmount_at", "getcwd", "renameat2", "rmdir",
    }  # fmt: skip
    assert expected <= calls.keys()


class _Lying(VfsTarget):
    """Says of every lazy unmount that it was refused."""

    name = "lying"

    def perform(self, step: Step) -> Any:
        if step.call == "umount2" and step.args[1] == abi.MNT_DETACH:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return super().perform(step)


class _Crashing(VfsTarget):
    """Takes its process down with the first remount."""

    name = "crashing"

    def perform(self, step: Step) -> Any:
        if step.call == "mount" and step.args[3] & abi.MS_REMOUNT:
            os._exit(9)
        return super().perform(step)


class _Hanging(VfsTarget):
    """Never comes back from a bind."""

    name = "hanging"

    def perform(self, step: Step) -> Any:
        while step.call == "mount" and step.args[3] & abi.MS_BIND:
            pass
        return super().perform(step)


class _Confined(VfsTarget):
    """Has no user namespaces, as where user.max_user_namespaces is 0."""

    name = "confined"

    def perform(self, step: Step) -> Any:
        if step.call == "clone" and step.args[1] & abi.CLONE_NEWUSER:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().perform(step)


def makers(agent: Agent) -> Mapping[str, Callable[[], Target]]:
    return {
        **target_makers(agent),
        "lying": _Lying,
        "crashing": _Crashing,
        "confined": _Confined,
        "hanging": _Hanging,
    }


def planted(target: str, sequences: int, save: Path, **options: Any) -> Report:
    campaign = Campaign("mounts", sequences, 3, 0, 20, target, "vfs", makers)
    return fuzz(campaign, save, **options)


def test_a_planted_difference_is_cut_down_and_saved_as_a_script_that_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = planted("lying", 30, tmp_path / "found", jobs=2)
    assert report.done == 30
    assert report.differences
    for distinct in report.differences.values():
        script = distinct.path.read_text()
        steps = parse_script(script)
        assert len(steps) <= 4
        assert steps[-1].call == "umount2"
        assert "EIO" in script
        assert f"--seed 3 --first {distinct.numbers[0]} --sequences 1" in script
        assert main(["test", "run", "--target", "vfs", str(distinct.path)]) == 0
        assert "MNT_DETACH) = " in capsys.readouterr().out


def test_the_same_sequences_are_found_to_differ_again(tmp_path: Path) -> None:
    all_of_them = planted("lying", 12, tmp_path / "all", jobs=2)
    numbers = sorted(n for distinct in all_of_them.differences.values() for n in distinct.numbers)
    again = Campaign("mounts", 1, 3, numbers[-1], 20, "lying", "vfs", makers)
    report = fuzz(again, tmp_path / "again")
    assert [distinct.numbers for distinct in report.differences.values()] == [[numbers[-1]]]


def test_a_target_that_takes_its_process_down_differs(tmp_path: Path) -> None:
    report = planted("crashing", 10, tmp_path, max_differences=1)
    (distinct,) = report.differences.values()
    assert "status 9" in distinct.path.read_text()
    assert any(
        step.call == "mount" and step.args[3] & abi.MS_REMOUNT for step in distinct.found.steps
    )


def test_a_target_that_does_not_come_back_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(campaign_module, "STUCK_SECONDS", 0.3)
    agent = Agent()
    try:
        runner = Runner(Campaign("mounts", 1, 0, 0, 5, "hanging", "vfs", makers), agent)
        steps = parse_script(
            'root: mkdir("/a", 0o755)\nroot: mount("/", "/a", None, MS_BIND, None)'
        )
        found = runner.run_steps(steps).found
    finally:
        agent.close()
    assert found is not None
    assert found.steps == steps
    assert "no end after" in found.text


def test_a_target_without_user_namespaces_is_not_available_for_mounts() -> None:
    campaign = Campaign("mounts", 1, 0, target="confined", against="vfs", makers=makers)
    with pytest.raises(
        TargetUnavailable, match=r"target confined: it lacks user namespaces.*No space"
    ):
        check_available(campaign)
    check_available(campaign._replace(domain="files"))


def test_differences_that_come_down_to_one_script_are_saved_once(tmp_path: Path) -> None:
    report = Report(Campaign("mounts", 2, 0), tmp_path)
    found = Found(1, parse_script('root: umount2("/", MNT_DETACH)'), "Answers differ")
    first = report.add(Outcome(1, Counter(), "", found))
    assert first is not None
    assert report.add(Outcome(2, Counter(), "", found._replace(number=2))) is None
    assert first.numbers == [1, 2]
    assert len(list(tmp_path.iterdir())) == 1
