"""`dentry test`: scripts and random sequences on targets, from the command line."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli import test as command
from harness.cli.main import main
from harness.testbed.linux_target import Agent, LinuxTarget
from harness.testbed.target import TargetUnavailable

SCRIPT = """\
# Two calls that succeed and one that does not.
root: mkdir("/d", 0o755)
root: openat(AT_FDCWD, "/d", O_DIRECTORY, 0)
root: umount2("/d", 0)
root: getcwd()
"""
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "some.script"
    path.write_text(SCRIPT)
    return str(path)


@pytest.fixture
def linux() -> None:
    """A kernel that can be asked."""
    agent = Agent()
    try:
        LinuxTarget(agent).close()
    except TargetUnavailable as error:
        pytest.skip(str(error))
    finally:
        agent.close()


def test_run_on_one_target_shows_each_call_with_its_answer(script: str, capsys: Capture) -> None:
    assert main(["test", "run", script, "--target", "vfs"]) == 0
    assert capsys.readouterr().out == (
        'root: mkdir("/d", 0o755) = 0\n'
        'root: openat(AT_FDCWD, "/d", O_DIRECTORY, 0o0) = 0\n'
        'root: umount2("/d", 0) = -1 EINVAL (Invalid argument)\n'
        'root: getcwd() = b"/"\n'
    )


def test_run_compares_the_vfs_with_linux(script: str, linux: None, capsys: Capture) -> None:
    assert main(["test", "run", script]) == 0
    assert capsys.readouterr().out == "vfs and linux answer the same\n"


def test_run_shows_the_first_difference(
    script: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from harness.testbed import runner
    from harness.testbed.vfs_target import VfsTarget

    monkeypatch.setattr(
        runner,
        "target_makers",
        lambda agent: {"vfs": VfsTarget, "odd": lambda: VfsTarget("mode=700,size=64m")},
    )
    assert main(["test", "run", script, "--target", "vfs", "--target", "odd"]) == 1
    shown = capsys.readouterr().out
    assert "Mount tables differ (step 1 of 4)" in shown
    assert "mode=700" in shown


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["run", "/nonexistent"], "/nonexistent: No such file or directory"),
        (["run", "SCRIPT", "--target", "hurd"], "no target 'hurd'; there are: vfs, linux"),
        (["run", "SCRIPT", *["--target", "vfs"] * 3], "two targets"),
        (["run", "BAD"], "line 1: no such call: reboot"),
        (["fuzz", "mounts", "--sequences", "0"], "--sequences 0: 1 at least"),
        (["fuzz", "mounts", "--against", "hurd"], "no target 'hurd'"),
        (["fuzz", "mounts", "--max-differences", "0"], "--max-differences 0"),
    ],
)
def test_an_error_of_use_is_one_line(
    words: list[str], named: str, script: str, tmp_path: Path, capsys: Capture
) -> None:
    (tmp_path / "bad.script").write_text("root: reboot()\n")
    given = {"SCRIPT": script, "BAD": str(tmp_path / "bad.script")}
    assert main(["test", *(given.get(word, word) for word in words)]) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def test_an_unknown_domain_is_refused_with_those_that_there_are(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as info:
        main(["test", "fuzz", "sockets"])
    assert info.value.code == 2
    assert "mounts" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["run", "SCRIPT"], ["fuzz", "mounts"]])
def test_a_target_that_cannot_be_had_is_named_with_what_is_missing(
    words: list[str], script: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unavailable(*_: object, **__: object) -> None:
        raise TargetUnavailable("target linux: no user namespaces here")

    monkeypatch.setattr(command, "check_available", unavailable)
    monkeypatch.setattr(command, "run_file", unavailable)
    assert main(["test", *(script if word == "SCRIPT" else word for word in words)]) == 3
    assert capsys.readouterr().err == "dentry: target linux: no user namespaces here\n"


@pytest.mark.parametrize("domain", ["mounts", "files"])
def test_fuzz_without_a_difference_counts_calls_and_errors(
    domain: str, tmp_path: Path, capsys: Capture
) -> None:
    stats, save = tmp_path / "stats.json", tmp_path / "found"
    words = ["--sequences", "6", "--seed", "5", "--jobs", "2", "--against", "vfs"]
    saved = ["--stats", str(stats), "--save", str(save)]
    assert main(["test", "fuzz", domain, *words, *saved]) == 0
    shown = capsys.readouterr().out
    assert "6 sequences" in shown
    assert "0 distinct differences" in shown
    counted = json.loads(stats.read_text())
    assert (counted["sequences"], counted["seed"], counted["differences"]) == (6, 5, [])
    assert sum(sum(call.values()) for call in counted["calls"].values()) == counted["steps"]
    assert counted["calls"]["clone" if domain == "files" else "mount"]["ok"] > 0
    assert not save.exists()


def test_fuzz_says_the_same_counts_for_the_same_seed(tmp_path: Path) -> None:
    counted = []
    for jobs in ("1", "3"):
        stats = tmp_path / jobs
        words = ["--sequences", "7", "--seed", "9", "--jobs", jobs, "--against", "vfs"]
        assert main(["test", "fuzz", "mounts", *words, "--stats", str(stats)]) == 0
        counted.append(json.loads(stats.read_text()))
    assert counted[0] == counted[1]


def test_fuzz_that_is_interrupted_tells_what_it_has_done(tmp_path: Path) -> None:
    words = ("fuzz", "mounts", "--sequences", "1000000", "--against", "vfs", "--jobs", "2")
    saved = ("--save", str(tmp_path))
    primary, secondary = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "test", *words, *saved],
        stdin=subprocess.DEVNULL,
        stdout=secondary,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    ) as process:
        os.close(secondary)
        shown = b""
        # The bar has begun to count.
        while b"/1000000" not in shown or b" 0/1000000" in shown.rpartition(b"\r")[2]:
            shown += os.read(primary, 65536)
        # As a terminal does it: to all of them.
        os.killpg(process.pid, signal.SIGINT)
        try:
            while more := os.read(primary, 65536):
                shown += more
        except OSError:
            # EIO: the last process has closed it.
            pass
    os.close(primary)
    assert process.returncode == 128 + signal.SIGINT
    assert b"interrupted after" in shown
    assert b"Traceback" not in shown
