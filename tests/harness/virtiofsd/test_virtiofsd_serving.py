"""`dentry virtiofsd` as its users run it: what it serves, how it starts, and how it ends."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
from errno import ENOENT, ENOSYS, EROFS
from pathlib import Path

import pytest
from virtiofsd_support import (
    COMMAND,
    OPEN,
    as_service,
    client_of,
    content,
    granted,
    refusal,
    running,
    timeouts,
    virtiofsd,
)

from harness.cli.main import main
from harness.fuse import abi
from harness.vhost_user.frontend import Frontend
from harness.vhost_user.fuse_client import ENTRY_SIZE, LOOKUP, ROOT
from harness.virtiofs import listen

# A daemon, or several, for each test.
pytestmark = pytest.mark.slow

GETXATTR = 22
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A directory with a directory to share in it, and room for a socket."""
    share = tmp_path / "share"
    share.mkdir()
    (share / "greeting").write_bytes(b"hello")
    return tmp_path


def test_one_frontend_is_served_and_then_nothing_is_left(place: Path) -> None:
    with virtiofsd(place) as daemon:
        with client_of(daemon.socket_path) as client:
            assert content(client, b"greeting") == b"hello"
            created, handle = client.create(ROOT, b"new")
            assert client.write(created.nodeid, handle, 0, b"data") == 4
            assert (place / "share" / "new").read_bytes() == b"data"
            with socket.socket(socket.AF_UNIX) as second, pytest.raises(ConnectionRefusedError):
                second.connect(str(daemon.socket_path))
        assert daemon.end() == 0
    assert sorted(path.name for path in place.iterdir()) == ["share"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
@pytest.mark.parametrize("connected", [False, True])
def test_a_signal_ends_it_well_and_nothing_is_left(
    place: Path, number: signal.Signals, connected: bool
) -> None:
    with virtiofsd(place) as daemon:
        with Frontend.connect(daemon.socket_path) as frontend:
            if connected:
                frontend.negotiate()
                daemon.process.send_signal(number)
                assert daemon.end() == 0
        if not connected:
            assert daemon.end() == 0
    with virtiofsd(place, "--log-level=info") as daemon:
        assert daemon.process.stderr is not None
        while "waiting" not in daemon.process.stderr.readline():
            pass
        daemon.process.send_signal(number)
        assert daemon.end() == 0
    assert sorted(path.name for path in place.iterdir()) == ["share"]


def test_an_ignored_hangup_stays_ignored(place: Path) -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with virtiofsd(place) as daemon, client_of(daemon.socket_path) as client:
            daemon.process.send_signal(signal.SIGHUP)
            assert content(client, b"greeting") == b"hello"
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_the_pid_file_names_the_daemon_and_keeps_a_second_one_away(place: Path) -> None:
    with virtiofsd(place) as daemon, client_of(daemon.socket_path) as client:
        pid_file = place / "sock.pid"
        assert int(pid_file.read_text()) == daemon.process.pid
        assert stat.S_IMODE(pid_file.stat().st_mode) == 0o600
        words = ("--socket-path", place / "sock", "--shared-dir", place / "share", *OPEN)
        assert f"the daemon {daemon.process.pid} has it" in refusal("virtiofsd", *words)
        assert content(client, b"greeting") == b"hello"


def test_what_a_killed_daemon_left_is_taken_over(place: Path) -> None:
    with virtiofsd(place) as daemon, client_of(daemon.socket_path):
        daemon.process.kill()
        assert daemon.end() == -signal.SIGKILL
    assert (place / "sock.pid").exists()
    with virtiofsd(place) as daemon, client_of(daemon.socket_path) as client:
        assert content(client, b"greeting") == b"hello"


def test_an_inherited_listening_socket_is_served_and_its_file_left(place: Path) -> None:
    with listen(place / "mine") as listener:
        words = ("--fd", str(listener.fileno()), "--shared-dir", place / "share", *OPEN)
        with running("virtiofsd", *words, pass_fds=(listener.fileno(),)) as daemon:
            with client_of(place / "mine") as client:
                assert content(client, b"greeting") == b"hello"
            assert daemon.end() == 0
    assert sorted(path.name for path in place.iterdir()) == ["mine", "share"]


def test_an_inherited_connected_socket_is_served(place: Path) -> None:
    ours, theirs = socket.socketpair()
    words = ("--fd", str(theirs.fileno()), "--shared-dir", place / "share", *OPEN)
    with running("virtiofsd", *words, pass_fds=(theirs.fileno(),)) as daemon:
        theirs.close()
        with client_of(ours) as client:
            assert content(client, b"greeting") == b"hello"
        assert daemon.end() == 0


def test_systemd_opens_the_socket_and_hears_of_the_beginning_and_the_end(place: Path) -> None:
    with (
        listen(place / "mine") as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
    ):
        manager.bind(str(place / "notify"))
        manager.settimeout(60)
        line = as_service(listener, "virtiofsd", "--shared-dir", place / "share", *OPEN)
        environment = {**os.environ, "NOTIFY_SOCKET": str(place / "notify")}
        with subprocess.Popen(line, pass_fds=(listener.fileno(),), env=environment) as daemon:
            try:
                assert manager.recv(100) == b"READY=1"
                with client_of(place / "mine") as client:
                    assert content(client, b"greeting") == b"hello"
                assert manager.recv(100) == b"STOPPING=1"
                assert daemon.wait(60) == 0
            finally:
                daemon.kill()


def test_a_socket_of_systemds_for_another_process_is_not_taken(place: Path) -> None:
    environment = {**os.environ, "LISTEN_PID": "1", "LISTEN_FDS": "1"}
    said = refusal("virtiofsd", "--shared-dir", place / "share", env=environment)
    assert "no socket" in said


def test_in_the_background_it_lives_on_when_its_command_has_ended(place: Path) -> None:
    words = ("--socket-path", place / "sock", "--shared-dir", place / "share", "--daemonize")
    subprocess.run([*COMMAND, "virtiofsd", *words, *OPEN], check=True, timeout=60)
    pid = int((place / "sock.pid").read_text())
    watch = os.pidfd_open(pid)
    try:
        assert os.readlink(f"/proc/{pid}/fd/2") == os.devnull
        assert os.getsid(pid) != os.getsid(0)
        with client_of(place / "sock") as client:
            assert content(client, b"greeting") == b"hello"
        assert select.select([watch], [], [], 60)[0]
        assert sorted(path.name for path in place.iterdir()) == ["share"]
    finally:
        os.close(watch)


def test_in_the_background_an_error_is_still_the_commands(place: Path) -> None:
    words = ("--socket-path", "/nonexistent/sock", "--shared-dir", place / "share")
    assert "/nonexistent/sock" in refusal("virtiofsd", *words, "--daemonize", *OPEN)


@ROOT_ONLY
@pytest.mark.parametrize("group", [None, "daemon"])
def test_the_socket_is_for_its_owner_or_for_a_group_too(place: Path, group: str | None) -> None:
    words = () if group is None else ("--socket-group", group)
    with virtiofsd(place, *words) as daemon, client_of(daemon.socket_path):
        found = daemon.socket_path.stat()
        assert stat.S_IMODE(found.st_mode) == (0o700 if group is None else 0o770)
        assert found.st_gid == (os.getegid() if group is None else 1)


def test_a_group_that_does_not_exist_is_refused_and_leaves_nothing(place: Path) -> None:
    words = ("--socket-path", place / "sock", "--shared-dir", place / "share", *OPEN)
    assert "--socket-group nosuch" in refusal("virtiofsd", *words, "--socket-group", "nosuch")
    assert sorted(path.name for path in place.iterdir()) == ["share"]


def test_the_tag_is_offered_if_one_is_given(place: Path) -> None:
    with virtiofsd(place, "--tag=data") as daemon, client_of(daemon.socket_path) as client:
        assert client.frontend.config().rstrip(b"\0\1") == b"data"


def test_readonly_lets_the_guest_change_nothing(place: Path) -> None:
    with virtiofsd(place, "--readonly") as daemon, client_of(daemon.socket_path) as client:
        assert content(client, b"greeting") == b"hello"
        with pytest.raises(OSError) as caught:
            client.create(ROOT, b"new")
        assert caught.value.errno == EROFS


@pytest.mark.parametrize(
    ("policy", "seconds"), [("auto", 1), ("never", 0), ("always", 86400), ("metadata", 86400)]
)
def test_the_cache_policy_says_how_long_names_are_kept(
    place: Path, policy: str, seconds: int
) -> None:
    with virtiofsd(place, "--cache", policy) as daemon, client_of(daemon.socket_path) as client:
        assert timeouts(client, b"greeting") == (seconds, seconds)


@pytest.mark.parametrize(
    ("words", "announced"), [((), True), (("--no-announce-submounts",), False)]
)
def test_submounts_are_announced_unless_told_otherwise(
    place: Path, words: tuple[str, ...], announced: bool
) -> None:
    with virtiofsd(place, *words) as daemon, client_of(daemon.socket_path) as client:
        assert bool(granted(client) & abi.SUBMOUNTS) == announced


FLAGS = {
    "--posix-acl": abi.POSIX_ACL | abi.DONT_MASK,
    "--security-label": abi.SECURITY_CTX,
    "--writeback": abi.WRITEBACK_CACHE,
    "--killpriv-v2": abi.HANDLE_KILLPRIV_V2,
    "--allow-mmap": abi.DIRECT_IO_ALLOW_MMAP,
}


@pytest.mark.parametrize("option", [*FLAGS, None])
def test_the_guest_is_asked_for_what_the_options_say_and_never_for_locks(
    place: Path, option: str | None
) -> None:
    words = () if option is None else (option,)
    with virtiofsd(place, *words) as daemon, client_of(daemon.socket_path) as client:
        flags = granted(client)
    assert flags & abi.DO_READDIRPLUS
    assert not flags & (abi.POSIX_LOCKS | abi.FLOCK_LOCKS)
    for name, bits in FLAGS.items():
        assert flags & bits == (bits if name == option else 0), name


@pytest.mark.parametrize("word", ["--no-readdirplus", "--cache=never"])
def test_listings_have_no_attributes_where_none_are_kept_or_wanted(place: Path, word: str) -> None:
    with virtiofsd(place, word) as daemon, client_of(daemon.socket_path) as client:
        assert not granted(client) & (abi.DO_READDIRPLUS | abi.READDIRPLUS_AUTO)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((), (ENOSYS, b"")),
        (("--xattr",), (0, b"value")),
        (("-o", "xattr"), (0, b"value")),
        (("--xattrmap=:prefix:all:user.:user.host,::ok:all:::",), (0, b"mapped")),
    ],
)
def test_extended_attributes_are_the_guests_when_it_is_told(
    place: Path, words: tuple[str, ...], expected: tuple[int, bytes]
) -> None:
    try:
        os.setxattr(place / "share" / "greeting", "user.name", b"value")
        os.setxattr(place / "share" / "greeting", "user.host,user.name", b"mapped")
    except OSError:
        pytest.skip("no extended attributes here")
    with virtiofsd(place, *words) as daemon, client_of(daemon.socket_path) as client:
        node = client.lookup(ROOT, b"greeting").nodeid
        arguments = b"\x40\0\0\0\0\0\0\0user.name\0"
        assert client.request(GETXATTR, node, arguments, 64) == expected


@ROOT_ONLY
def test_ids_are_translated(place: Path) -> None:
    os.chown(place / "share" / "greeting", 1000, 2000)
    words = ("--translate-uid=host:1000:5:1", "--translate-gid", "map:7:2000:1")
    with virtiofsd(place, *words) as daemon, client_of(daemon.socket_path) as client:
        attributes = client.lookup(ROOT, b"greeting").attr
        assert (attributes.uid, attributes.gid) == (5, 7)


def test_the_umask_of_who_starts_it_takes_nothing(place: Path) -> None:
    path = place / "sock"
    words = ("virtiofsd", "--socket-path", path, "--shared-dir", place / "share", *OPEN)
    with running(*words, umask=0o077) as daemon, client_of(path) as client:
        client.create(ROOT, b"new", mode=0o666)
        assert (place / "share" / "new").stat().st_mode & 0o777 == 0o666
        # Nor is it given back afterwards, which costs four calls of the host.
        assert "\nUmask:\t0000\n" in Path(f"/proc/{daemon.process.pid}/status").read_text()


def test_threads_serve_what_the_one_thread_serves(place: Path) -> None:
    with virtiofsd(place, "--thread-pool-size=3") as daemon:
        with client_of(daemon.socket_path) as client:
            assert content(client, b"greeting") == b"hello"
            tasks = os.listdir(f"/proc/{daemon.process.pid}/task")
            assert len(tasks) == 4
        assert daemon.end() == 0


@pytest.mark.parametrize("word", ["never", "prefer", "mandatory"])
def test_file_handles_are_used_as_told(place: Path, word: str) -> None:
    words = (f"--inode-file-handles={word}",)
    with virtiofsd(place, *words) as daemon, client_of(daemon.socket_path) as client:
        assert content(client, b"greeting") == b"hello"


def test_the_limit_of_descriptors_is_what_was_asked_for(place: Path) -> None:
    words = ("--rlimit-nofile=1024",)
    with virtiofsd(place, *words) as daemon, client_of(daemon.socket_path) as client:
        assert content(client, b"greeting") == b"hello"
        limits = Path(f"/proc/{daemon.process.pid}/limits").read_text()
        (line,) = [line for line in limits.splitlines() if line.startswith("Max open files")]
        assert line.split()[3:5] == ["1024", "1024"]


def test_a_limit_that_leaves_the_guest_nothing_is_refused(place: Path) -> None:
    words = ("--socket-path", place / "sock", "--shared-dir", place / "share", *OPEN)
    assert "needs 610" in refusal("virtiofsd", *words, "--rlimit-nofile=600")
    assert sorted(path.name for path in place.iterdir()) == ["share"]


@pytest.mark.parametrize(
    ("words", "said", "unsaid"),
    [
        (("--log-level=off",), "", "virtiofsd"),
        (("--log-level=error", "-f"), "", "deprecated"),
        (("-f",), "-f is deprecated", "LOOKUP"),
        (("--log-level=trace",), "LOOKUP", "deprecated"),
        (("-d",), "-d is deprecated", "LOOKUP"),
    ],
)
def test_the_log_has_what_its_level_says(
    place: Path, words: tuple[str, ...], said: str, unsaid: str
) -> None:
    with virtiofsd(place, *words) as daemon:
        with client_of(daemon.socket_path) as client:
            assert content(client, b"greeting") == b"hello"
        assert daemon.end() == 0
        assert said in daemon.stderr
        assert unsaid not in daemon.stderr


@pytest.mark.parametrize(
    ("directory", "named"),
    [("/nonexistent", "No such file"), ("/dev/null", "neither a directory nor a regular file")],
)
def test_what_cannot_be_shared_is_refused(place: Path, directory: str, named: str) -> None:
    words = ("--socket-path", place / "sock", "--shared-dir", directory, *OPEN)
    assert named in refusal("virtiofsd", *words)


@pytest.mark.parametrize("sandbox", ["none", pytest.param("namespace", marks=ROOT_ONLY)])
def test_a_single_file_is_alone_in_its_root(place: Path, sandbox: str) -> None:
    share = place / "share"
    (share / "beside").write_bytes(b"secret")
    words = ("--socket-path", place / "sock", "--shared-dir", share / "greeting", "--xattr")
    with running("virtiofsd", *words, "--sandbox", sandbox) as daemon:
        with client_of(place / "sock") as client:
            handle = client.opendir(ROOT)
            listed = {entry.name for entry in client.readdirplus(ROOT, handle, 0, 4096)}
            client.releasedir(ROOT, handle)
            assert listed == {b".", b"..", b"greeting"}
            assert content(client, b"greeting") == b"hello"
            entry = client.lookup(ROOT, b"greeting")
            handle = client.open(entry.nodeid, os.O_RDWR)
            assert client.write(entry.nodeid, handle, 5, b" you") == 4
            client.release(entry.nodeid, handle)
            assert client.request(LOOKUP, ROOT, b"beside\0", ENTRY_SIZE)[0] == ENOENT
            for opcode, body in (
                (9, struct.pack("<II", 0o777, 0) + b"directory\0"),
                (10, b"greeting\0"),
                (12, struct.pack("<Q", ROOT) + b"greeting\0other\0"),
            ):
                assert client.request(opcode, ROOT, body, ENTRY_SIZE)[0] == EROFS
        assert daemon.end() == 0, daemon.stderr
    assert (share / "greeting").read_bytes() == b"hello you"
    assert sorted(os.listdir(share)) == ["beside", "greeting"]


def test_a_single_file_is_no_root_to_change_to(place: Path) -> None:
    words = ("--socket-path", place / "sock", "--shared-dir", place / "share" / "greeting")
    assert "a file is no root" in refusal("virtiofsd", *words, "--sandbox=chroot")


@ROOT_ONLY
@pytest.mark.parametrize("seccomp", ["none", "kill"])
@pytest.mark.parametrize("sandbox", ["namespace", "chroot"])
def test_in_a_sandbox_the_same_is_served_and_nothing_is_left(
    place: Path, sandbox: str, seccomp: str
) -> None:
    with virtiofsd(place, sandbox=("--sandbox", sandbox, "--seccomp", seccomp)) as daemon:
        with client_of(daemon.socket_path) as client:
            assert content(client, b"greeting") == b"hello"
            created, handle = client.create(ROOT, b"new")
            assert client.write(created.nodeid, handle, 0, b"data") == 4
            client.unlink(ROOT, b"new")
            assert int((place / "sock.pid").read_text()) == daemon.process.pid
        assert daemon.end() == 0
    # Who has changed its root does not see the files any more.
    if sandbox == "namespace":
        assert sorted(path.name for path in place.iterdir()) == ["share"]


@ROOT_ONLY
def test_with_the_default_sandbox_a_signal_ends_it_well(place: Path) -> None:
    words = ("--thread-pool-size=2", "--syslog", "--log-level=trace")
    with virtiofsd(place, *words, sandbox=()) as daemon, client_of(daemon.socket_path) as client:
        assert content(client, b"greeting") == b"hello"
        daemon.process.terminate()
        assert daemon.end() == 0
    assert sorted(path.name for path in place.iterdir()) == ["share"]


def test_a_service_in_a_sandbox_is_ready_in_the_words_of_its_own_process(place: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(place / "notify"))
        manager.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        manager.settimeout(60)
        environment = {**os.environ, "NOTIFY_SOCKET": str(place / "notify")}
        words = ("--socket-path", place / "sock", "--shared-dir", place / "share")
        with running("virtiofsd", *words, "--seccomp=none", env=environment) as daemon:
            data, ancillary, _, _ = manager.recvmsg(100, 1000)
            assert data == b"READY=1"
            assert int.from_bytes(ancillary[0][2][:4], sys.byteorder) == daemon.process.pid


def test_capabilities_are_what_libvirt_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["virtiofsd", "--print-capabilities"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"type": "fs", "features": ["migrate-precopy", "separate-options"]}


def test_a_link_named_virtiofsd_needs_no_subcommand_and_is_what_libvirt_is_told(
    place: Path,
) -> None:
    dentry = place / "dentry"
    top = Path(__file__).parents[3]
    dentry.write_text(
        f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(top)!r})\n"
        "from harness.cli.main import main\nsys.exit(main())\n"
    )
    dentry.chmod(0o755)
    (place / "virtiofsd").symlink_to("dentry")
    said = subprocess.run(
        [place / "virtiofsd", "--write-libvirt-json", place], capture_output=True, check=True
    ).stdout
    path = place / "50-dentry.json"
    assert said.decode() == f"{path}\n"
    description = json.loads(path.read_text())
    assert description["type"] == "fs"
    assert description["binary"] == str(place / "virtiofsd")
    printed = subprocess.run(
        [description["binary"], "--print-capabilities"], capture_output=True, check=True
    ).stdout
    assert json.loads(printed)["features"] == description["features"]


def test_a_description_of_a_program_that_libvirt_cannot_run_is_not_written(place: Path) -> None:
    assert "symbolic link" in refusal("virtiofsd", "--write-libvirt-json", place)
    assert not (place / "50-dentry.json").exists()


def test_crosvms_device_is_served_with_its_timeouts_and_tag(place: Path) -> None:
    words = ("--socket-path", place / "sock", "--tag", "data", "--shared-dir", place / "share")
    free = ("--disable-sandbox", "--skip-pivot-root=true")
    with running("device", "fs", *words, *free) as daemon:
        with client_of(place / "sock") as client:
            assert content(client, b"greeting") == b"hello"
            assert timeouts(client, b"greeting") == (5, 5)
            assert client.frontend.config().rstrip(b"\0\1") == b"data"
            assert not (place / "sock.pid").exists()
        assert daemon.end() == 0
    assert sorted(path.name for path in place.iterdir()) == ["share"]


def test_crosvms_words_of_cfg_have_their_effect(place: Path) -> None:
    ours, theirs = socket.socketpair()
    words = ("--fd", str(theirs.fileno()), "--shared-dir", f"{place}/share:data:timeout=7")
    free = ("--disable-sandbox", "--skip-pivot-root=true", "--cfg", "ascii_casefold")
    with running("device", "fs", *words, *free, pass_fds=(theirs.fileno(),)) as daemon:
        theirs.close()
        with client_of(ours) as client:
            assert content(client, b"GREEting") == b"hello"
            assert timeouts(client, b"greeting") == (7, 7)
        assert daemon.end() == 0
