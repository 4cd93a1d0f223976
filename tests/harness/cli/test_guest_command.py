"""`dentry guest` and `dentry demo`, with a guest and without."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.cli.daemon import ForkedDaemon
from harness.cli.main import main
from harness.compose import Tree
from harness.errors import UsageError
from harness.guest.errors import GuestUnavailable
from harness.mountspec import parse_mount_spec


def dentry(*words: str | Path, stdin: bytes = b"", cwd: Path | None = None) -> tuple[int, str, str]:
    result = subprocess.run(
        [sys.executable, "-m", "harness.cli", *words],
        input=stdin,
        capture_output=True,
        cwd=cwd,
        timeout=120,
    )
    return result.returncode, result.stdout.decode(), result.stderr.decode()


@pytest.mark.guest
def test_the_commands_status_and_output_are_ours(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("on the host")
    script = (
        "cat /host/file; cat; echo to stderr >&2; touch /host/new 2>&1 | grep -o Read-only; exit 7"
    )
    status, stdout, stderr = dentry(
        *("guest", "--", "sh", "-c", script), stdin=b" and from stdin\n", cwd=tmp_path
    )
    assert (status, stderr) == (7, "to stderr\n")
    assert stdout == "on the host and from stdin\nRead-only\n"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.guest
def test_mounts_that_are_asked_for_come_on_top_of_the_default_tree(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("shared")
    specs = (
        *("--mount", f"type=passthrough,src={tmp_path},dst=/srv"),
        *("--mount", "type=tmpfs,dst=/small,size=1m"),
    )
    script = "cat /srv/file; echo new > /srv/new; stat -f -c %b*%s /small; ls /dev/null"
    status, stdout, stderr = dentry("guest", *specs, "--", "sh", "-c", script)
    assert (status, stderr) == (0, "")
    assert stdout == "shared256*4096\n/dev/null\n"
    assert (tmp_path / "new").read_text() == "new\n"


@pytest.mark.guest
def test_the_hosts_own_userland_runs_read_only_with_scratch_space() -> None:
    script = (
        "touch /etc/new 2>&1 | grep -o Read-only; "
        "for d in /tmp /run /var/tmp; do echo x > $d/dentry-test && cat $d/dentry-test; done; "
        "md5sum < /bin/ls"
    )
    status, stdout, stderr = dentry("guest", "--root", "/", "--", "/bin/sh", "-c", script)
    digest = hashlib.md5(Path("/bin/ls").read_bytes()).hexdigest()
    assert (status, stderr) == (0, "")
    assert stdout == f"Read-only\nx\nx\nx\n{digest}  -\n"
    assert not os.path.exists("/tmp/dentry-test")


@pytest.mark.guest
def test_a_root_without_a_place_for_proc_is_an_error_of_use(tmp_path: Path) -> None:
    status, stdout, stderr = dentry("guest", "--root", tmp_path, "--", "true")
    assert (status, stdout) == (2, "")
    assert "directory 'proc'" in stderr
    assert stderr.count("\n") == 1


@pytest.mark.guest
def test_the_demo_shows_a_guest_that_sees_what_the_host_has() -> None:
    status, stdout, stderr = dentry("demo")
    assert (status, stderr) == (0, "")
    for expected in (
        "guest# uname",
        "dentry on / type virtiofs",
        "1,   3 ",
        "kept in a Python process",
        "the checksums are equal",
        "LOOKUP",
    ):
        assert expected in stdout


def test_without_qemu_the_demo_takes_the_driver_in_python(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "busybox").symlink_to("/bin/busybox")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["demo"]) == 0
    output = capsys.readouterr().out
    assert "No guest here" in output
    assert "qemu-system-x86" in output
    assert "the checksums are equal" in output
    assert "READDIRPLUS" in output


def test_without_busybox_the_demo_takes_the_driver_in_python(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find_none() -> Path:
        raise GuestUnavailable("no busybox")

    monkeypatch.setattr("harness.cli.guest_tree.find_busybox", find_none)
    assert main(["demo"]) == 0
    output = capsys.readouterr().out
    assert "No guest here: no busybox" in output
    assert "the checksums are equal" in output


@pytest.mark.guest
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("whole_group", [False, True])
def test_a_signal_ends_the_guest_and_leaves_nothing(
    tmp_path: Path, number: int, whole_group: bool
) -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "harness.cli", "guest", "--", "sh", "-c", "echo up; sleep 600"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "TMPDIR": str(tmp_path)},
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        assert processes_of_session(process.pid) > 1
        (os.killpg if whole_group else os.kill)(process.pid, number)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (128 + number, b"")
    assert processes_of_session(process.pid) == 0
    assert list(tmp_path.iterdir()) == []


def processes_of_session(session: int) -> int:
    count = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            # proc(5): the name in parentheses may have any character; state, ppid, pgrp, session.
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        count += int(fields[3]) == session
    return count


def test_a_tree_that_can_not_be_built_in_the_daemon_is_told_by_the_parent() -> None:
    spec = parse_mount_spec("type=passthrough,src=/nonexistent,dst=/")
    with pytest.raises(UsageError, match="/nonexistent: No such file"):
        ForkedDaemon(lambda: Tree([spec]))
