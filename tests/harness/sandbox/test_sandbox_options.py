"""Modes, ids, capabilities and limits: what was asked for is what the daemon gets."""

from __future__ import annotations

import os
import resource
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sandbox_support import USER, Process, attempt, confined

from fsimpl.passthrough.oslib import capget, capset
from harness import linux
from harness.sandbox import Sandboxed, SandboxError, SandboxOptions, limits
from harness.sandbox.capabilities import KEPT, NAMES, parse_modcaps
from vfs import abi


def capability_sets(_: Sandboxed) -> Any:
    """Names of those in the effective, permitted, inheritable, bounding and ambient set."""
    bounding = sum(linux.prctl(linux.PR_CAPBSET_READ, cap) << cap for cap in range(len(NAMES)))
    ambient = sum(linux.prctl(linux.PR_CAP_AMBIENT, 1, cap) << cap for cap in range(len(NAMES)))
    masks = (*capget(), bounding, ambient)
    return [[name for bit, name in enumerate(NAMES) if mask >> bit & 1] for mask in masks]


# Capabilities


def test_all_five_capability_sets_are_reduced(shared: Path, uid: int) -> None:
    kept = [NAMES[cap] for cap in sorted(KEPT)]
    assert confined(capability_sets, shared, uid=uid) == [kept, kept, [], kept, []]


@pytest.mark.parametrize("mode", ["chroot", "none"])
def test_root_loses_capabilities_in_every_mode(shared: Path, mode: str) -> None:
    kept = [NAMES[cap] for cap in sorted(KEPT)]
    assert confined(capability_sets, shared, mode=mode) == [kept, kept, [], kept, []]


def test_modcaps_adds_and_removes(shared: Path, uid: int) -> None:
    sets = confined(capability_sets, shared, uid=uid, modcaps="+sys_admin:-chown:-CAP_MKNOD")
    wanted = {NAMES[cap] for cap in KEPT} | {"sys_admin"}
    wanted -= {"chown", "mknod"}
    assert [set(names) for names in sets] == [wanted, wanted, set(), wanted, set()]


def test_a_removed_capability_is_missed(shared: Path) -> None:
    def probe(_: Sandboxed) -> str:
        return attempt(os.chown, "/file", 5, 5)

    assert confined(probe, shared, modcaps="-chown") == "EPERM"
    assert confined(probe, shared) == "done"


def test_file_handles_keep_dac_read_search(shared: Path) -> None:
    sets = confined(capability_sets, shared, keep_dac_read_search=True)
    assert all("dac_read_search" in sets[index] for index in (0, 1, 3))


def test_the_last_word_on_a_capability_counts() -> None:
    chown, kill = NAMES.index("chown"), NAMES.index("kill")
    assert parse_modcaps("+chown:-chown:+kill") == ({kill}, {chown})
    assert parse_modcaps("") == (set(), set())


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("chown", "'chown': write \\+ or -"),
        ("+", "'\\+': write \\+ or -"),
        ("+chown:", "'': write \\+ or -"),
        ("+chown,-kill", "no capability 'chown,-kill'"),
        ("-sys_nothing", "no capability 'sys_nothing'"),
    ],
)
def test_malformed_modcaps_are_explained_in_a_line(text: str, complaint: str) -> None:
    with pytest.raises(SandboxError, match=complaint) as caught:
        SandboxOptions(shared_dir="/", modcaps=text)
    assert "\n" not in str(caught.value)


def test_a_capability_that_root_itself_lacks_cannot_be_added(shared: Path) -> None:
    def lack() -> None:
        linux.prctl(linux.PR_CAPBSET_DROP, NAMES.index("sys_time"))
        effective, permitted, _ = capget()
        bit = ~(1 << NAMES.index("sys_time"))
        capset(effective & bit, permitted & bit, 0)

    with pytest.raises(SandboxError, match="does not have sys_time itself"):
        confined(capability_sets, shared, setup=lack, modcaps="+sys_time")
    outcome = Process(capability_sets, shared, setup=lack).finish()
    assert outcome.code == 0


def test_supplementary_groups_are_dropped(shared: Path) -> None:
    for mode in ("namespace", "chroot"):
        groups = confined(
            lambda _: os.getgroups(), shared, mode=mode, setup=lambda: os.setgroups([4, 5])
        )
        assert groups == []


# Modes


def test_chroot_has_the_shared_directory_as_root(shared: Path) -> None:
    def probe(sandboxed: Sandboxed) -> Any:
        file = os.open("/file", os.O_PATH)
        again = os.open(str(file), os.O_RDONLY, dir_fd=sandboxed.proc_self_fd)
        os.mkdir("/jail")
        return (
            sandboxed.root, sorted(os.listdir("/")), os.read(again, 9).decode(), os.getcwd(),
            attempt(os.chroot, "/jail"), attempt(linux.unshare, abi.CLONE_NEWUSER),
            attempt(os.stat, "/../outside"),
        )  # fmt: skip

    assert confined(probe, shared, mode="chroot") == [
        "/", ["file", "jail"], "inside", "/", "EPERM", "EPERM", "ENOENT",
    ]  # fmt: skip


def test_chroot_is_for_root(shared: Path) -> None:
    with pytest.raises(SandboxError, match="chroot is for root"):
        confined(lambda _: None, shared, uid=USER, mode="chroot")


def test_none_changes_no_root_and_forks_nothing(shared: Path, uid: int) -> None:
    def probe(sandboxed: Sandboxed) -> Any:
        inside = os.stat("file", dir_fd=sandboxed.root_fd).st_ino
        return sandboxed.root, os.path.exists("/etc/passwd"), inside, os.getpid()

    process = Process(probe, shared, uid=uid, mode="none")
    outcome = process.finish()
    inside = os.stat(shared / "file").st_ino
    assert outcome.result == [str(shared), True, inside, process.pid]


def test_skip_pivot_root_keeps_the_hosts_tree(shared: Path, uid: int) -> None:
    def probe(sandboxed: Sandboxed) -> Any:
        text = Path(sandboxed.root, "file").read_text()
        return sandboxed.root, text, os.path.exists("/etc/passwd"), os.getpid()

    found = confined(probe, shared, uid=uid, skip_pivot_root=True)
    assert found == [str(shared), "inside", True, 2]


def test_a_file_can_be_shared_and_nothing_beside_it(shared: Path, uid: int) -> None:
    def probe(sandboxed: Sandboxed) -> Any:
        with open(sandboxed.root, "a") as file:
            file.write(" and changed")
        return sandboxed.root, os.listdir("/"), attempt(os.mkdir, "/new")

    assert confined(probe, shared / "file", uid=uid) == ["/file", ["file"], "EROFS"]
    assert (shared / "file").read_text() == "inside and changed"


def test_submounts_come_along_without_devices(shared: Path) -> None:
    (shared / "sub").mkdir()

    def mounts() -> None:
        linux.unshare(abi.CLONE_NEWNS)
        linux.mount(None, "/", None, abi.MS_REC | abi.MS_SLAVE)
        linux.mount("tmpfs", str(shared / "sub"), "tmpfs", 0)
        os.mknod(shared / "sub" / "null", stat.S_IFCHR | 0o600, os.makedev(1, 3))

    def probe(sandboxed: Sandboxed) -> Any:
        points = os.pread(sandboxed.mountinfo_fd, 65536, 0).decode().splitlines()
        return [line.split()[4] for line in points], attempt(os.open, "/sub/null", os.O_RDONLY)

    assert confined(probe, shared, setup=mounts) == [["/", "/sub"], "EACCES"]


def test_a_relative_shared_directory_is_meant_from_where_we_are(shared: Path) -> None:
    names = confined(lambda _: os.listdir("/"), "shared", setup=lambda: os.chdir(shared.parent))
    assert names == ["file"]


def test_the_whole_tree_can_be_shared(uid: int) -> None:
    def probe(sandboxed: Sandboxed) -> Any:
        return sandboxed.root, os.path.exists("/etc/passwd"), os.getpid()

    assert confined(probe, "/", uid=uid) == ["/", True, 2]


def test_a_missing_shared_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(SandboxError, match="nowhere: No such file or directory"):
        confined(lambda _: None, tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"mode": "jail"}, "--sandbox jail: choose one of"),
        ({"seccomp": "maybe"}, "--seccomp maybe: choose one of"),
        ({"shared_dir": ""}, "name a directory"),
        ({"mode": "chroot", "uid_map": ((0, 0, 1),)}, "no id maps"),
        ({"mode": "none", "skip_pivot_root": True}, "no pivot_root to skip"),
        ({"uid_map": ((0, 0, 0),)}, "--uid-map: 0:0:0 is no range"),
        ({"gid_map": ((0, 0, 5), (4, 10, 1))}, "--gid-map: 4:10:1 meets another"),
        ({"uid_map": ((0, 0, 5),), "uid": 5}, "--uid 5: the user namespace has no such id"),
        ({"mode": "chroot", "gid": 1}, "--gid 1: the user namespace has no such id"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SandboxError, match=complaint):
        SandboxOptions(**{"shared_dir": "/", **options})


# Ids


def test_a_user_is_root_inside_and_himself_outside(shared: Path) -> None:
    os.chown(shared, USER, USER)

    def probe(_: Sandboxed) -> Any:
        os.close(os.open("/made", os.O_CREAT | os.O_WRONLY))
        return os.getresuid(), os.getresgid(), os.stat("/made").st_uid

    found = confined(probe, shared, uid=USER)
    assert found == [[0, 0, 0], [0, 0, 0], 0]
    assert os.stat(shared / "made").st_uid == USER


def test_one_can_stay_oneself_with_capabilities_reduced(shared: Path) -> None:
    """crosvm's default map."""
    own = ((USER, USER, 1),)
    os.chown(shared, USER, USER)

    def probe(sandboxed: Sandboxed) -> Any:
        return os.getresuid(), capability_sets(sandboxed)[1]

    ids, permitted = confined(probe, shared, uid=USER, uid_map=own, gid_map=own)
    assert ids == [USER] * 3
    assert permitted == [NAMES[cap] for cap in sorted(KEPT)]


def test_one_can_be_another_inside_with_capabilities_reduced(shared: Path) -> None:
    """crosvm's --uid and --gid."""
    own = ((5000, USER, 1),)
    os.chown(shared, USER, USER)

    def probe(sandboxed: Sandboxed) -> Any:
        os.close(os.open("/made", os.O_CREAT | os.O_WRONLY))
        found = os.stat("/made")
        os.open(str(sandboxed.root_fd), os.O_RDONLY, dir_fd=sandboxed.proc_self_fd)
        return os.getresuid(), os.getresgid(), found.st_uid, capability_sets(sandboxed)

    ids, gids, owner, sets = confined(
        probe, shared, uid=USER, uid_map=own, gid_map=own, inside=(5000, 5000)
    )
    kept = [NAMES[cap] for cap in sorted(KEPT)]
    assert (ids, gids, owner) == ([5000] * 3, [5000] * 3, 5000)
    assert sets[0] == sets[1] == kept
    assert os.stat(shared / "made").st_uid == USER


def test_roots_daemon_can_be_one_of_many_ids(shared: Path) -> None:
    extents = ((0, 100000, 10),)
    os.chown(shared, 100005, 100006)

    def probe(sandboxed: Sandboxed) -> Any:
        os.close(os.open("/made", os.O_CREAT | os.O_WRONLY))
        os.chown("/made", 7, 8)
        os.open(str(sandboxed.root_fd), os.O_RDONLY, dir_fd=sandboxed.proc_self_fd)
        return os.getresuid(), os.getresgid(), os.getgroups()

    found = confined(
        probe, shared, uid_map=extents, gid_map=extents, inside=(5, 6),
        setup=lambda: os.setgroups([4]),
    )  # fmt: skip
    assert found == [[5] * 3, [6] * 3, []]
    made = os.stat(shared / "made")
    assert (made.st_uid, made.st_gid) == (100007, 100008)


def test_root_maps_any_ids_itself(shared: Path) -> None:
    extents = ((0, 100000, 10), (10, 200000, 1))
    os.chown(shared, 100000, 100000)

    def probe(_: Sandboxed) -> Any:
        os.close(os.open("/made", os.O_CREAT | os.O_WRONLY))
        os.chown("/made", 10, 3)
        return os.getresuid(), os.getgroups(), attempt(os.chown, "/made", 11, 0)

    found = confined(
        probe, shared, uid_map=extents, gid_map=extents, setup=lambda: os.setgroups([4])
    )
    assert found == [[0, 0, 0], [], "EINVAL"]
    made = os.stat(shared / "made")
    assert (made.st_uid, made.st_gid) == (200000, 100003)


@pytest.fixture
def tools(shared: Path) -> Iterator[Callable[[], None]]:
    """newuidmap and newgidmap that have us write the map, as the real ones are set-uid root."""
    place = shared.parent
    ask, answer = place / "ask", place / "answer"
    for fifo in (ask, answer):
        os.mkfifo(fifo)
        os.chmod(fifo, 0o666)
    for kind in ("uid", "gid"):
        tool = place / f"new{kind}map"
        tool.write_text(f'#!/bin/sh\necho {kind} "$@" >{ask}\nread reply <{answer}\n')
        tool.chmod(0o755)

    def serve() -> None:
        for _ in range(2):
            kind, pid, *words = ask.read_text().split()
            lines = [" ".join(words[at : at + 3]) for at in range(0, len(words), 3)]
            fd = os.open(f"/proc/{pid}/{kind}_map", os.O_WRONLY)
            os.write(fd, ("\n".join(lines) + "\n").encode())
            os.close(fd)
            answer.write_text("done\n")

    thread = threading.Thread(target=serve)

    def setup() -> None:
        os.environ["PATH"] = f"{place}:{os.environ['PATH']}"

    setup.start = thread.start  # type: ignore[attr-defined]
    yield setup
    thread.join(60)
    assert not thread.is_alive()


def test_newuidmap_gives_a_user_more_ids(shared: Path, tools: Any) -> None:
    extents = ((0, USER, 1), (1, 100000, 100))
    os.chown(shared, USER, USER)

    def probe(_: Sandboxed) -> Any:
        os.close(os.open("/made", os.O_CREAT | os.O_WRONLY))
        os.chown("/made", 7, 8)
        return os.getresuid(), os.getgroups()

    process = Process(
        probe, shared, uid=USER, uid_map=extents, gid_map=extents, setup=tools, seccomp="none"
    )
    tools.start()
    assert process.finish().result == [[0, 0, 0], []]
    made = os.stat(shared / "made")
    assert (made.st_uid, made.st_gid) == (100006, 100007)


def test_without_newuidmap_more_ids_are_refused_by_name(shared: Path) -> None:
    def setup() -> None:
        os.environ["PATH"] = "/nonexistent"

    with pytest.raises(SandboxError, match="--uid-map needs newuidmap, of the package uidmap"):
        confined(lambda _: None, shared, uid=USER, uid_map=((0, 100000, 10),), setup=setup)


def test_what_newuidmap_complains_of_is_passed_on(shared: Path) -> None:
    tool = shared.parent / "newuidmap"
    tool.write_text("#!/bin/sh\necho uid range not allowed >&2\nexit 1\n")
    tool.chmod(0o755)

    def setup() -> None:
        os.environ["PATH"] = f"{shared.parent}:{os.environ['PATH']}"

    with pytest.raises(SandboxError, match=r"^--uid-map: uid range not allowed$"):
        confined(lambda _: None, shared, uid=USER, uid_map=((0, 100000, 10),), setup=setup)


# Limits


def limits_after(wanted: int | None, before: tuple[int, int]) -> Any:
    """What a child has after asking for ``wanted``."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, before)
            # Not even root may raise it then.
            effective, permitted, _ = capget()
            bit = ~(1 << NAMES.index("sys_resource"))
            capset(effective & bit, permitted & bit, 0)
            try:
                soft = limits.set_nofile(wanted)
                found = (soft, *resource.getrlimit(resource.RLIMIT_NOFILE))
            except SandboxError as error:
                found = (str(error),)  # type: ignore[assignment]
            os.write(writing, repr(found).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return eval(text)


def test_by_default_descriptors_go_to_the_hard_limit_where_a_million_is_refused() -> None:
    assert limits_after(None, (256, 4096)) == (4096, 4096, 4096)


def test_a_number_of_descriptors_becomes_both_limits() -> None:
    assert limits_after(1000, (256, 4096)) == (1000, 1000, 1000)


def test_zero_keeps_the_limits() -> None:
    assert limits_after(0, (256, 4096)) == (256, 256, 4096)


def test_more_descriptors_than_may_be_had_are_refused() -> None:
    (message,) = limits_after(5000, (256, 4096))
    assert message == "--rlimit-nofile 5000: this process may have 4096 at most"
    most = int(Path("/proc/sys/fs/nr_open").read_text())
    (message,) = limits_after(most + 1, (256, 4096))
    assert f"1 to {most}" in message


def test_the_sandbox_says_how_many_descriptors_there_are(shared: Path, uid: int) -> None:
    def probe(sandboxed: Sandboxed) -> Any:
        return sandboxed.nofile, resource.getrlimit(resource.RLIMIT_NOFILE)

    assert confined(probe, shared, uid=uid, rlimit_nofile=512) == [512, [512, 512]]
