"""A few thousand inputs of hostile clients; ``make fuzz`` is the same with more than a million."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from harness.fuse.opcodes import OPCODES
from harness.fuzz.__main__ import SHARES, campaigns, main
from harness.fuzz.campaign import Campaign, fuzz


@pytest.mark.parametrize(
    ("target", "cases", "size"),
    [
        ("fuse", 12, 300),
        ("threads", 8, 300),
        ("virtio", 10, 200),
        ("vhost-user", 15, 60),
        ("state", 4, 60),
    ],
)
def test_hostile_clients_break_nothing(target: str, cases: int, size: int, tmp_path: Path) -> None:
    report = fuzz(Campaign(target, cases, size, 1), tmp_path, jobs=2)
    assert not report.failures, [found.text for _, _, found in report.failures.values()]
    assert report.cases == cases
    assert report.inputs >= cases * size // 2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_requests_of_every_kind_change_while_they_are_read(tmp_path: Path) -> None:
    report = fuzz(Campaign("virtio", 60, 400, 1), tmp_path, jobs=2)
    assert not report.failures, [found.text for _, _, found in report.failures.values()]
    kinds = {kind.removesuffix(" scribbled") for kind, _ in report.answers if " " in kind}
    assert {row.name for row in OPCODES} <= kinds


def test_the_same_seed_sends_the_same_requests(tmp_path: Path) -> None:
    reports = [fuzz(Campaign("fuse", 3, 200, seed), tmp_path, 1) for seed in (7, 7, 8)]
    answers = [report.answers for report in reports]
    assert answers[0] == answers[1] != answers[2]


def test_a_process_that_dies_is_a_failure_and_the_others_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    killed: list[int] = []

    def tell(report: object, new: object) -> None:
        pids = [int(pid) for pid in os.listdir("/proc") if pid.isdigit()]
        for pid in pids:
            try:
                words = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
                spawned = b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(words[1]) == os.getpid() and spawned and not killed:
                killed.append(pid)
                os.kill(pid, signal.SIGKILL)

    report = fuzz(Campaign("fuse", 6, 100, 1), tmp_path, 1, tell=tell)
    assert killed
    ((path, numbers, found),) = report.failures.values()
    assert found.kind.startswith("Crash: the process ended with status -N")
    assert report.cases == 6
    assert f"--first {numbers[0]}" in path.read_text()


def test_all_is_at_least_as_much_as_was_asked_for() -> None:
    found = campaigns("all", 1_000_000, 1, 0, None)
    assert [campaign.target for campaign in found] == list(SHARES)
    assert sum(campaign.cases * campaign.size for campaign in found) > 1_030_000


def test_the_command_line_runs_a_target_and_tells_what_it_came_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save = tmp_path / "save"
    arguments = ["fuse", "--inputs", "400", "--seed", "3", "--jobs", "1", "--save", str(save)]
    assert main([*arguments, "--size", "200"]) == 0
    shown = capsys.readouterr().out
    assert "2 cases" in shown and "0 kinds of failure" in shown and "LOOKUP" in shown
    assert not save.exists()


@pytest.mark.parametrize(
    "arguments", [["nothing-there"], ["--inputs", "0"], ["fuse", "--jobs", "-1"]]
)
def test_what_makes_no_sense_is_an_error_of_use(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
