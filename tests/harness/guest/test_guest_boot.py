"""Guests that really boot, on a directory served by Debian's C virtiofsd."""

import os
import pty
import select
import shutil
import signal
import socket
import subprocess
import termios
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.guest import (
    ENVIRONMENT,
    Guest,
    GuestConfig,
    GuestFailed,
    GuestPanicked,
    GuestQuit,
    GuestStopped,
    GuestTimeout,
    GuestUnavailable,
    QemuDied,
    run_guest,
)
from harness.guest.initramfs import find_busybox
from harness.guest.kernel import find_kernel
from harness.guest.qemu import find_qemu

VIRTIOFSD = Path("/usr/lib/qemu/virtiofsd")
EVERY_BYTE = bytes(range(1, 256))

pytestmark = pytest.mark.guest


@pytest.fixture(scope="module", autouse=True)
def _guests_can_run() -> None:
    if os.geteuid() != 0 or not VIRTIOFSD.exists():
        pytest.skip("needs root and Debian's C virtiofsd")
    try:
        find_qemu(), find_kernel(), find_busybox()
    except GuestUnavailable as error:
        pytest.skip(str(error))


def listens(path: Path) -> bool:
    """Tell if the socket at `path` takes connections: it exists before it does. See proc(5)."""
    sockets = [line.split() for line in Path("/proc/net/unix").read_text().splitlines()]
    return any(fields[7:] == [str(path)] and fields[3] == "00010000" for fields in sockets)


@contextmanager
def served(directory: Path, sockets: Path) -> Iterator[Path]:
    """Serve `directory` for one guest, and give the socket's path."""
    path = sockets / "vhost.sock"
    path.unlink(missing_ok=True)
    options = f"source={directory},sandbox=chroot,xattr,log_level=err"
    daemon = subprocess.Popen(
        [VIRTIOFSD, f"--socket-path={path}", "-o", options],
        stderr=subprocess.DEVNULL,
        # It forks for its sandbox, and the child has to go too.
        process_group=0,
    )
    try:
        deadline = time.monotonic() + 60
        while not listens(path) and daemon.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        yield path
    finally:
        os.killpg(daemon.pid, signal.SIGKILL)
        daemon.wait()


def make_root(directory: Path) -> Path:
    (directory / "bin").mkdir(parents=True)
    (directory / "tmp").mkdir()
    shutil.copy(find_busybox(), directory / "bin/busybox")
    for applet in ("cat", "dd", "env", "ls", "md5sum", "mount", "ps", "sh", "sleep", "stty", "tty"):
        (directory / "bin" / applet).symlink_to("busybox")
    return directory


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_root(tmp_path_factory.mktemp("guest") / "root")


@pytest.fixture(scope="module")
def guest(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with (
        served(root, tmp_path_factory.mktemp("socket")) as socket_path,
        Guest(GuestConfig(socket_path, tag="the root")) as guest,
    ):
        yield guest


@pytest.fixture
def config(root: Path, tmp_path: Path) -> Iterator[GuestConfig]:
    with served(root, tmp_path) as socket_path:
        yield GuestConfig(socket_path)


def test_status_and_output_come_back_apart(guest: Guest) -> None:
    assert guest.run("echo out; echo err >&2; exit 7") == (7, b"out\n", b"err\n")


def test_output_reopened_through_dev_stderr_arrives(guest: Guest) -> None:
    assert guest.run("echo out >/dev/stdout; echo err >/dev/stderr") == (0, b"out\n", b"err\n")


@pytest.mark.parametrize(
    ("command", "status"),
    [
        (["/bin/busybox", "true"], 0),
        (["/bin/busybox", "false"], 1),
        ("kill -SEGV $$", 128 + signal.SIGSEGV),
        ("kill -KILL $$", 128 + signal.SIGKILL),
        (["no-such-program"], 127),
        (["/tmp"], 126),
    ],
)
def test_statuses_are_those_of_a_shell(guest: Guest, command: str | list[str], status: int) -> None:
    assert guest.run(command).status == status


def test_a_command_is_not_deaf_to_interrupts(guest: Guest) -> None:
    assert guest.run("kill -INT $$").status == 128 + signal.SIGINT
    status = guest.run(["cat", "/proc/self/status"]).stdout.splitlines()
    (ignored,) = [line.split()[1] for line in status if line.startswith(b"SigIgn:")]
    assert int(ignored, 16) == 0


def test_every_byte_passes_in_arguments_input_and_output(guest: Guest) -> None:
    command = [b"sh", b"-c", b'printf %s "$1"; cat', b"sh", EVERY_BYTE]
    assert guest.run(command, stdin=b"\0" + EVERY_BYTE).stdout == EVERY_BYTE + b"\0" + EVERY_BYTE


def test_the_environment_holds_what_was_asked_and_no_more(guest: Guest) -> None:
    result = guest.run(["env", "-0"], environment={"PATH": "/bin", "A": "x y\n'z'"}, cwd="/tmp")
    assert set(result.stdout.split(b"\0")) == {b"PATH=/bin", b"A=x y\n'z'", b"PWD=/tmp", b""}


def test_a_command_starts_in_its_working_directory(guest: Guest) -> None:
    assert guest.run("pwd", cwd="/tmp").stdout == b"/tmp\n"
    assert guest.run("pwd", cwd="/nowhere").status == 126


def test_the_tag_is_the_root_and_the_initramfs_is_out_of_sight(guest: Guest, root: Path) -> None:
    mounts = guest.run(["cat", "/proc/self/mounts"]).stdout.splitlines()
    assert mounts[0].startswith(b"the\\040root / virtiofs rw")
    assert not [line for line in mounts if b"rootfs" in line or b"newroot" in line]
    assert guest.run("ls -d /init /newroot").status != 0
    guest.run("echo written in the guest >/tmp/note")
    assert (root / "tmp/note").read_text() == "written in the guest\n"


def test_the_root_is_not_a_chroot_so_user_namespaces_work(guest: Guest) -> None:
    # create_user_ns() gives EPERM to a process whose root is not its namespace's.
    assert guest.run(["/bin/busybox", "unshare", "-U", "/bin/busybox", "true"]).status == 0


def test_megabytes_pass_both_ways(guest: Guest) -> None:
    data = os.urandom(3 << 20)
    assert guest.run(["cat"], stdin=data).stdout == data


def test_a_command_that_takes_too_long_is_killed_and_the_guest_lives_on(guest: Guest) -> None:
    with pytest.raises(GuestTimeout, match=r"0\.5 s"):
        guest.run("echo before; sleep 1000 & sleep 1000", timeout=0.5)
    result = guest.run("ps")
    assert result.status == 0
    assert b"before" not in result.stdout
    assert b"sleep 1000" not in result.stdout


def test_background_output_does_not_disturb_the_next_commands_end(guest: Guest) -> None:
    background = "until [ -e /tmp/go ]; do sleep 0.1; done; echo late; mv /tmp/go /tmp/gone"
    assert guest.run(f"({background}) & echo early").stdout == b"early\n"
    script = "touch /tmp/go; until [ -e /tmp/gone ]; do sleep 0.1; done; echo next; rm /tmp/gone"
    assert guest.run(script).stdout == b"late\nnext\n"


def test_output_streams_while_the_command_runs(guest: Guest) -> None:
    reader, writer = os.pipe()
    with open(reader, "rb", buffering=0) as source, open(writer, "wb", buffering=0) as sink:
        heard: list[bytes] = []

        def answer(data: bytes) -> None:
            # The command waits for this before it goes on: output came while it ran.
            heard.append(data)
            if data.endswith(b"? "):
                sink.write(b"yes\n")
            if b"done" in data:
                sink.close()

        status = guest.stream(
            "printf 'sure? '; read answer; echo $answer; echo done; cat; exit 5",
            stdin=source.fileno(),
            stdout=answer,
            stderr=heard.append,
            timeout=60,
        )
    assert (status, b"".join(heard)) == (5, b"sure? yes\ndone\n")


def test_run_guest_gives_the_commands_status_and_its_writes_reach_the_host(
    config: GuestConfig, root: Path
) -> None:
    out: list[bytes] = []
    status = run_guest(
        config,
        "cat; echo kept >/tmp/kept; exit 9",
        stdin=None,
        stdout=out.append,
        stderr=out.append,
    )
    assert (status, out) == (9, [])
    assert (root / "tmp/kept").read_text() == "kept\n"


def test_the_hosts_own_userland_boots_read_only(tmp_path: Path) -> None:
    with (
        served(Path("/"), tmp_path) as socket_path,
        Guest(GuestConfig(socket_path, options=("ro",))) as guest,
    ):
        assert guest.run(["cat", "/etc/os-release"]).stdout == Path("/etc/os-release").read_bytes()
        assert b"coreutils" in guest.run(["ls", "--version"]).stdout
        assert guest.run("echo x >/etc/x").status != 0


def test_a_connected_socket_serves_as_well_as_a_path(config: GuestConfig) -> None:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(config.filesystem))
        with Guest(GuestConfig(connection)) as guest:
            assert guest.run("echo here").stdout == b"here\n"
        assert connection.fileno() == -1


def test_a_panic_is_reported_with_the_consoles_end(config: GuestConfig) -> None:
    with (
        pytest.raises(GuestPanicked, match="sysrq triggered crash") as caught,
        Guest(config) as guest,
    ):
        guest.run("echo c >/proc/sysrq-trigger")
    assert "Call Trace" in caught.value.console


def test_a_killed_qemu_is_reported_and_the_guest_stays_closed(config: GuestConfig) -> None:
    guest = Guest(config)
    killer = threading.Timer(0.5, os.kill, (guest.qemu_pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(QemuDied, match="SIGKILL"):
        guest.run("sleep 1000")
    killer.join()
    with pytest.raises(GuestStopped):
        guest.run("true")
    guest.close()


def test_a_guest_that_powers_itself_off_is_reported(config: GuestConfig) -> None:
    with pytest.raises(GuestStopped), Guest(config) as guest:
        guest.run(["/bin/busybox", "poweroff", "-f"])


def test_a_file_system_that_cannot_be_mounted_is_reported(config: GuestConfig) -> None:
    with pytest.raises(GuestFailed, match="can't mount virtio-fs tag 'dentry'"):
        Guest(GuestConfig(config.filesystem, options=("no_such_option",)))


def test_a_boot_that_takes_too_long_is_reported_and_leaves_no_qemu(config: GuestConfig) -> None:
    with pytest.raises(GuestTimeout, match="did not boot within"):
        Guest(GuestConfig(config.filesystem, boot_timeout=0.3))


def test_qemus_own_complaint_is_passed_on(config: GuestConfig) -> None:
    with pytest.raises(QemuDied, match="no-such-device"):
        Guest(GuestConfig(config.filesystem, qemu_arguments=("-device", "no-such-device")))


class Typist:
    """A person at the other end of a pseudo-terminal."""

    def __init__(self, master: int) -> None:
        self._master = master
        self._unread = b""
        self.seen = b""

    def wait_for(self, text: bytes) -> None:
        """Read on until `text` has come, behind what was waited for before."""
        while text not in self._unread:
            assert select.select([self._master], [], [], 60)[0], f"no {text!r} in {self.seen!r}"
            data = os.read(self._master, 4096)
            self._unread += data
            self.seen += data
        self._unread = self._unread.partition(text)[2]

    def type(self, text: bytes) -> None:
        os.write(self._master, text)


def interact(guest: Guest, script: Callable[[Typist, int], None]) -> tuple[int, bytes]:
    """Run the guest's shell on a terminal, at which `script` types."""
    master, slave = pty.openpty()
    typist = Typist(master)
    try:
        termios.tcsetwinsize(slave, (31, 97))
        before = termios.tcgetattr(slave)
        environment = {**ENVIRONMENT, "PS1": "ready> "}
        with ThreadPoolExecutor() as pool:
            person = pool.submit(script, typist, slave)
            # A person who gives up must not leave us waiting for the shell's end.
            person.add_done_callback(lambda done: done.exception() and typist.type(b"\x01x"))
            try:
                status = guest.interact(stdin=slave, stdout=slave, environment=environment)
            finally:
                person.result()
                assert termios.tcgetattr(slave) == before
    finally:
        os.close(master)
        os.close(slave)
    return status, typist.seen


def test_a_terminal_has_a_size_job_control_and_a_way_out(config: GuestConfig) -> None:
    def first(person: Typist, slave: int) -> None:
        person.wait_for(b"ready> ")
        person.type(b"stty size\r")
        person.wait_for(b"31 97\r\n")
        person.type(b"sleep 1000; echo status=$?\r")
        person.wait_for(b"status=$?\r\n")
        time.sleep(0.5)
        person.type(b"\x03")
        person.wait_for(b"ready> ")
        termios.tcsetwinsize(slave, (20, 60))
        os.kill(os.getpid(), signal.SIGWINCH)
        person.type(b"until stty size | grep '^20 60$'; do sleep 0.1; done\r")
        person.wait_for(b"20 60\r\n")
        person.type(b"exit 3\r")

    def second(person: Typist, slave: int) -> None:
        person.wait_for(b"ready> ")
        person.type(b"\x01x")

    with pytest.raises(GuestQuit), Guest(GuestConfig(config.filesystem, terminal=True)) as guest:
        status, seen = interact(guest, first)
        assert status == 3
        assert b"dentry-" not in seen
        assert guest.run("echo ports still work").stdout == b"ports still work\n"
        interact(guest, second)
