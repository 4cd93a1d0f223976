"""Commands about mounts and tasks, and those that look inside."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness.control.client import RemoteKernel
from harness.control.kernel import Kernel
from vfs import VirtualFilesystem, abi
from vfs.task import Task

Run = Callable[..., tuple[int, str, str]]


def data_of(sh: Run, command: str) -> Any:
    return json.loads(sh(f"{command} --json")[1])


def test_mounts_are_made_and_taken_off(sh: Run, task: Task) -> None:
    assert sh("mkdir /a /b /c; mount -t tmpfs -o size=1m,ro,mode=711 none /a") == (0, "", "")
    assert task.stat("/a").st_mode & 0o777 == 0o711
    assert sh("echo x > /a/f") == (1, "", "dentry: /a/f: Read-only file system\n")
    assert sh("mount -o remount,rw /a; echo x > /a/f; cat /a/f") == (0, "x\n", "")
    assert sh("mount --bind -o ro /a /b; cat /b/f; echo y > /b/f") == (
        1, "x\n", "dentry: /b/f: Read-only file system\n",
    )  # fmt: skip
    assert sh("echo y > /a/f; cat /b/f; mount --move /b /c; cat /c/f; ls /b") == (0, "y\ny\n", "")
    assert sh("umount /c /a; ls /a /c")[0] == 0
    assert sh("umount /a") == (1, "", "umount: /a: Invalid argument\n")
    assert "tmpfs / tmpfs" in sh("mount")[1].replace("none", "tmpfs")


def test_a_remount_keeps_what_is_not_named(sh: Run) -> None:
    sh("mkdir /a; mount -t tmpfs -o nosuid,nodev none /a; mount -o remount,bind,ro /a")
    (row,) = data_of(sh, "mounts /a")
    assert set(row["flags"]) >= {"nosuid", "nodev", "ro"}
    sh("mount -o remount,bind,rw,dev /a")
    (row,) = data_of(sh, "mounts /a")
    assert not set(row["flags"]) & {"nodev", "ro"} and "nosuid" in row["flags"]


def test_the_tree_of_mounts_shows_groups_and_masters(sh: Run) -> None:
    sh("mkdir /a /b /c; mount -t tmpfs none /a; mount --make-shared /a; mkdir /a/x")
    sh("mount --bind /a /b; mount --bind /a /c; mount --make-slave /c; mount -t tmpfs t /a/x")
    rows = {row["mountpoint"]: row for row in data_of(sh, "mounts") if row["mountpoint"]}
    assert set(rows) == {"/", "/a", "/b", "/c", "/a/x", "/b/x", "/c/x"}
    assert rows["/a"]["group"] == rows["/b"]["group"] and rows["/c"]["group"] is None
    assert rows["/a"]["peers"] == [rows["/b"]["id"]]
    assert rows["/c"]["master"] == rows["/a"]["group"]
    assert rows["/c/x"]["parent"] == rows["/c"]["id"]
    assert not any(row["hidden"] for row in rows.values())
    sh("mount -t tmpfs above /a")
    hidden = [row["mountpoint"] for row in data_of(sh, "mounts") if row["hidden"]]
    # Below everything lies rootfs. What covers /a came to its peer and slave, too.
    assert hidden[0] is None
    assert sorted(hidden[1:]) == ["/a", "/a/x", "/b", "/b/x", "/c", "/c/x"]
    lines = sh("mounts")[1].splitlines()
    group = rows["/a"]["group"]
    assert any("/c  " in line and f"<- master:{group}" in line for line in lines)
    assert "TARGET" in sh("findmnt")[1]


def test_what_propagate_says_is_what_a_mount_then_does(sh: Run) -> None:
    sh("mkdir /a /b /c /d; mount -t tmpfs none /a; mount --make-shared /a; mkdir -p /a/x/y")
    sh("mount --bind /a /b; mount --bind /a /c; mount --make-slave /c; mount --bind /a/x /d")
    rows = data_of(sh, "propagate /a/x/y")
    assert rows[0]["path"] == "/a/x/y"
    assert {row["path"]: row["copy"] for row in rows} == {
        "/a/x/y": "shared", "/b/x/y": "shared", "/d/y": "shared", "/c/x/y": "slave",
    }  # fmt: skip
    before = {row["mountpoint"] for row in data_of(sh, "mounts")}
    sh("mount -t tmpfs none /a/x/y")
    after = {row["mountpoint"] for row in data_of(sh, "mounts")}
    assert after - before == {row["path"] for row in rows}
    assert [row["path"] for row in data_of(sh, "propagate /c/x")] == ["/c/x"]


def test_what_keeps_a_mount_busy_is_told(sh: Run, task: Task) -> None:
    sh("mkdir /a; mount -t tmpfs none /a; mkdir /a/b")
    assert sh("why-busy /a") == (0, "nothing keeps it busy\n", "")
    task.open("/a/f", abi.O_CREAT | abi.O_RDWR, 0o600)
    task.mount("none", "/a/b", "tmpfs")
    status, output, _ = sh("cd /a; why-busy /a")
    assert status == 1
    assert f"fd 0 of task {task.pid}" in output and "is mounted in it" in output
    assert "cwd of task" in output
    assert sh("cd /; umount /a")[2].startswith("umount: /a: Device or resource busy\n")
    task.close(0)
    assert sh("umount /a/b; why-busy /a && umount /a; ls /a") == (0, "nothing keeps it busy\n", "")


def test_the_cache_of_names_is_drawn(sh: Run) -> None:
    sh("mkdir -p /d/e; echo > /d/f; mount -t tmpfs none /d/e")
    found = data_of(sh, "dentries /d")
    assert [child["name"] for child in found["children"]] == ["e", "f"]
    assert [child["mounted"] for child in found["children"]] == [1, 0]
    assert all(child["pinned"] for child in found["children"])
    assert data_of(sh, "dentries / --depth 0")["left_out"] >= 1
    assert "├─e  directory" in sh("dentries /d")[1]


def test_an_inode_is_known_by_all_its_names(sh: Run) -> None:
    sh("mkdir /d; echo hello > /d/f; ln /d/f /d/g; chmod 640 /d/f")
    found = data_of(sh, "inode /d/g")
    assert found["names"] == ["/d/f", "/d/g"] or found["names"] == ["/d/g", "/d/f"]
    assert (found["links"], found["size"], found["mode"]) == (2, 6, "0640")


def test_holders_are_named_with_the_line_that_took_the_reference(sh: Run, task: Task) -> None:
    task.open("/f", abi.O_CREAT | abi.O_RDWR, 0o600)
    rows = data_of(sh, "refs /f")
    dentry = next(row for row in rows if row["object"].startswith("Dentry"))
    assert f"fd 0 of task {task.pid}" in dentry["holders"]
    assert any("open" in line for line in dentry["lines"])
    assert any(row["object"] == "Mount" for row in data_of(sh, "refs"))


def test_descriptors_locks_devices_and_tasks_are_listed(sh: Run, task: Task) -> None:
    task.open("/f", abi.O_CREAT | abi.O_RDWR, 0o600)
    rows = data_of(sh, "ps")
    assert {row["pid"] for row in rows} >= {task.pid}
    assert sum(row["own"] for row in rows) == 1
    assert any(row["name"] == "null" for row in data_of(sh, "devices"))
    assert data_of(sh, "locks") == [] and data_of(sh, "fds") == []


def test_statistics_and_invariants(sh: Run, vfs: VirtualFilesystem) -> None:
    found = data_of(sh, "statistics")
    assert found["live"]["Mount"] == vfs.ledger.live["Mount"]
    assert sh("check") == (0, "all invariants hold\n", "")


def test_extents_show_data_and_holes(sh: Run) -> None:
    sh("truncate -s 1M /f; echo x | dd of=/f bs=1 seek=65536 conv=notrunc 2> /e")
    rows = data_of(sh, "extents /f")
    assert [row["kind"] for row in rows] == ["hole", "data", "hole"]
    assert rows[0]["end"] == 65536 and rows[-1]["end"] == 1 << 20
    assert sh("truncate -s 0 /f; extents /f")[1] == "0 bytes\n"


@pytest.mark.parametrize(
    ("who", "command", "number", "text"),
    [
        ("0", "open /d/secret/f", None, "owner"),
        ("1000", "open /d/secret/f", "EACCES", "search refused by others"),
        ("1000", "open /d/own -w", None, "owner"),
        ("1000", "open /d/group -w", "EACCES", "write refused by others"),
        ("5:100", "open /d/group -r", None, "read granted by group"),
        ("0", "open /d/none", "ENOENT", "no such name"),
        ("0", "open /d/own/x", "ENOTDIR", ""),
        ("0", "open /d/loop", "ELOOP", "a symbolic link"),
        ("0", "open /d/link", None, "a symbolic link"),
        ("0", "open /ro/f -w", "EROFS", "the mount is read-only"),
        ("0", "open /d -w", "EISDIR", ""),
        ("0", "open /d/closed", None, "CAP_DAC_OVERRIDE"),
    ],
)
def test_a_walk_is_explained_and_ends_as_the_call_does(
    sh: Run, task: Task, who: str, command: str, number: str | None, text: str
) -> None:
    sh("mkdir -p /d/secret /ro; chmod 700 /d/secret; echo > /d/secret/f; echo > /d/own")
    sh("chown 1000 /d/own; echo > /d/group; chmod 640 /d/group; chown :100 /d/group")
    sh("ln -s loop /d/loop; ln -s secret/f /d/link; echo > /d/closed; chmod 000 /d/closed")
    sh("chown 7 /d/closed; mount --bind -o ro /d /ro; echo > /d/f")
    found = json.loads(sh(f"as {who} explain {command} --json")[1])
    assert found["name"] == number
    assert text in "\n".join(step["text"] for step in found["steps"])
    assert bool(found["advice"]) == (number is not None)
    # The same by the call itself.
    path = command.split()[1]
    uid, _, gid = who.partition(":")
    flags = abi.O_WRONLY if "-w" in command else abi.O_RDONLY
    ids = {"uid": int(uid), "gid": int(gid or uid)}
    child = task.clone(cred=type(task.cred)(**ids))
    try:
        child.close(child.open(path, flags))
        raised = None
    except OSError as error:
        raised = errno.errorcode[error.errno or 0]
    assert raised == number


def test_the_words_of_an_error_are_told(sh: Run) -> None:
    assert sh("errno 13")[1] == sh("errno eacces")[1] == "EACCES 13: Permission denied\n"
    assert sh("errno 4711")[0] == 2


def test_tasks_and_users_of_the_shell(sh: Run) -> None:
    sh("mkdir /d; chmod 700 /d; task new other; cd /d; umask 077")
    assert sh("pwd; umask; task switch init; pwd; umask") == (0, "/d\n0077\n/\n0022\n", "")
    assert sh("as 1000 ls /d") == (1, "", "ls: /d: Permission denied\n")
    assert sh("as 1000:1000; ls /d; task exit other; task")[1].startswith("* init")
    assert sh("task exit init")[0] == 2


def test_namespaces_and_roots(sh: Run, task: Task) -> None:
    sh("mkdir -p /new/old /other; task new apart; unshare -m; mount -t tmpfs none /other")
    assert data_of(sh, "mounts /other")[0]["mountpoint"] == "/other"
    sh("mount -t tmpfs none /new; mkdir /new/old; pivot_root /new /new/old")
    assert sh("ls /; ls /old")[1] == "old\nnew\nother\n"
    assert sh("task switch init; chroot /new; pwd; ls /")[1] == "/\nold\n"
    assert task.listdir("/other") == []


def test_a_namespace_of_another_task_is_entered(sh: Run) -> None:
    sh("mkdir /a; task new apart; unshare -m; mount -t tmpfs none /a; echo x > /a/f")
    assert sh("task switch init; ls /a; nsenter apart ls /a; ls /a") == (0, "f\n", "")
    assert sh("nsenter apart; ls /a") == (0, "f\n", "")
    assert sh("nsenter nobody")[0] == 2
    assert sh("nsenter 999999") == (1, "", "nsenter: No such process\n")
    assert sh("as 1000 nsenter init ls /") == (1, "", "nsenter: Operation not permitted\n")


def test_a_limit_of_descriptors(sh: Run) -> None:
    assert sh("ulimit -n; ulimit -n 0; ulimit -n") == (0, "1024\n0\n", "")
    assert sh("cat /f") == (1, "", "cat: /f: Too many open files\n")
    assert sh("ulimit -n x")[0] == 2


def test_a_lock_is_held_while_a_command_runs(sh: Run) -> None:
    (row,) = json.loads(sh("flock /f locks --json")[1])
    assert (row["kind"], row["access"]) == ("FLOCK", "write")
    assert data_of(sh, "locks") == []
    assert sh("flock /f flock -n /f echo no") == (
        1, "", "flock: Resource temporarily unavailable\n",
    )  # fmt: skip
    assert sh("flock -s /f flock -s -n /f echo both") == (0, "both\n", "")


def test_a_propagation_is_asked_for_in_the_words_of_mount(sh: Run) -> None:
    sh("mkdir /a /b; mount -t tmpfs none /a; mount --make-shared /a; mkdir /a/x")
    sh("mount --bind /a /b")
    rows = data_of(sh, "propagate --dry-run mount --bind /b /a/x")
    assert [row["path"] for row in rows] == ["/a/x", "/b/x"]
    assert rows == data_of(sh, "propagate --bind /b /a/x")


def test_a_device_of_a_python_file(sh: Run, kernel: Kernel, tmp_path: Path) -> None:
    source = tmp_path / "hello.py"
    source.write_text(
        "from vfs.device import CharDevice\n"
        "class Hello(CharDevice):\n"
        "    name, mode = 'hello', 0o666\n"
        "    def read(self, size, offset): return b'hello\\n'[offset:offset + size]\n"
    )
    status, output, errors = sh(f"device add {source}")
    if isinstance(kernel, RemoteKernel):
        assert status == 2 and "a daemon takes no code" in errors
        return
    assert (status, errors) == (0, "") and output.startswith("hello 10:")
    script = "mkdir /dev; mount -t devtmpfs none /dev; cat /dev/hello; device remove hello; ls /dev"
    status, output, _ = sh(script)
    assert output.splitlines()[0] == "hello" and "hello" not in output.splitlines()[1:]
    source.write_text("1 / 0")
    assert sh(f"device add {source}") == (
        2, "", f"device: host: {source}: ZeroDivisionError: division by zero\n",
    )  # fmt: skip
    assert sh("device add /nothing")[2] == "device: host: /nothing: No such file or directory\n"
