"""`dentry do`: what a command finds, and what becomes of its status."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from container_support import USER, output_of, run_do, share

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which needs root"),
]
both = pytest.mark.parametrize("who", ["root", "user"])
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin"
PYTHON = shutil.which("python3", path="/usr/bin:/bin") or "python3"


@pytest.fixture
def place() -> Iterator[Path]:
    """A directory of `USER`'s, below directories that everybody may pass; not below /tmp, where a
    container has its own.
    """
    with tempfile.TemporaryDirectory(prefix="dentry-do-", dir="/srv") as base:
        os.chmod(base, 0o755)
        directory = Path(base, "place")
        directory.mkdir()
        os.chown(directory, USER, USER)
        yield directory


def give(directory: Path) -> None:
    """Have `directory` and all in it belong to `USER`."""
    for parent, directories, files in os.walk(directory):
        for path in [parent, *(os.path.join(parent, name) for name in directories + files)]:
            os.chown(path, USER, USER, follow_symlinks=False)


# The status


@both
@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["true"], 0, ""),
        (["sh", "-c", "exit 7"], 7, ""),
        (["sh", "-c", "exit 255"], 255, ""),
        (["sh", "-c", "kill -TERM $$"], 143, ""),
        (["sh", "-c", "kill -KILL $$"], 137, ""),
        (["no-such-command"], 127, "dentry: no-such-command: not found\n"),
        (["/no/such/command"], 127, "dentry: /no/such/command: not found\n"),
        (["/etc/passwd"], 126, "dentry: /etc/passwd: Permission denied\n"),
        (["/etc"], 126, "dentry: /etc: Permission denied\n"),
    ],
)
def test_the_exit_status_is_the_commands(
    who: str, words: list[str], status: int, said: str
) -> None:
    result = run_do("--", *words, who=who)
    assert (result.returncode, result.stderr) == (status, said)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--mount", "type=none,dst=/x", "true"], "no type 'none'"),
        (["--mount", "type=tmpfs", "true"], "no dst"),
        (["--mount", "type=tmpfs,dst=/nonexistent", "true"], "its filesystem is read-only"),
        (["--root", "/nonexistent", "true"], "--root /nonexistent"),
        (["--chdir", "/nonexistent", "true"], "--chdir /nonexistent"),
        (["--uid", "-1", "true"], "--uid -1"),
        (["--uid", "x", "true"], "--uid"),
        (["--gid", str(1 << 32), "true"], f"--gid {1 << 32}"),
        (["--unknown", "true"], "--unknown"),
        (["--hostname", "x" * 65, "true"], "1 to 64 bytes"),
        (["--env", "=x", "true"], "--env =x"),
        (["--device", "/etc/passwd", "true"], "--device /etc/passwd"),
        (["--device", "/dev/nonexistent", "true"], "--device /dev/nonexistent"),
    ],
)
def test_an_error_of_ours_is_one_line_and_status_125(words: list[str], named: str) -> None:
    result = run_do(*words)
    assert (result.returncode, result.stdout) == (125, "")
    assert named in result.stderr
    assert result.stderr.count("\n") == 1


def test_where_no_user_namespace_can_be_made_one_line_says_so() -> None:
    limit = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    words = ["unshare", "-Ur", "sh", "-c", limit, "sh", shutil.which("true") or "true"]
    if subprocess.run(words, capture_output=True).returncode:
        pytest.skip("can't limit user namespaces here")
    words[-1:] = [sys.executable, "-m", "harness.cli", "do", "true"]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 125
    assert result.stderr.startswith("dentry: can't make a user namespace: No space left")
    assert result.stderr.count("\n") == 1


def test_words_after_the_command_are_its_own() -> None:
    assert output_of("echo", "--", "--uid", "3", "-x") == "-- --uid 3 -x\n"
    assert output_of("--", "echo", "--rw") == "--rw\n"


def test_a_script_without_a_first_line_is_for_the_shell(place: Path) -> None:
    script = place / "script"
    script.write_text("echo script $1\n")
    script.chmod(0o755)
    assert output_of(script, "argument") == "script argument\n"


# The same work as on the host


@both
def test_python_answers_as_on_the_host(who: str) -> None:
    program = (
        "import json, hashlib, os, ssl, sys, sysconfig\n"
        "print(sys.version, sysconfig.get_paths(), sorted(os.listdir('/usr')))\n"
        "print(hashlib.sha256(open('/proc/self/exe', 'rb').read()).hexdigest())\n"
    )
    host = subprocess.run([PYTHON, "-c", program], capture_output=True, text=True, check=True)
    assert output_of("--", PYTHON, "-c", program, who=who) == host.stdout


MAKEFILE = """\
program: main.o part.o
\t$(CC) -o $@ $^
%.o: %.c part.h
\t$(CC) -c -o $@ $<
check: program
\t./program
"""


@both
def test_make_builds_what_it_builds_on_the_host(place: Path, who: str) -> None:
    """In a tree of two passthroughs and a tmpfs, where the compiler has its temporary files."""
    if not (shutil.which("make") and shutil.which("cc")):
        pytest.skip("no compiler")
    (place / "Makefile").write_text(MAKEFILE)
    (place / "part.h").write_text("int part(void);\n")
    (place / "part.c").write_text('#include "part.h"\nint part(void) { return 42; }\n')
    (place / "main.c").write_text(
        '#include <stdio.h>\n#include "part.h"\nint main(void) { printf("%d\\n", part()); }\n'
    )
    other = place.with_name("host")
    shutil.copytree(place, other)
    give(place)
    environment = {"PATH": SYSTEM_PATH}
    made = output_of(*share(place), "--chdir", place, "make", "check", who=who, env=environment)
    host = subprocess.run(
        ["make", "check"], cwd=other, env=environment, capture_output=True, text=True, check=True
    )
    assert made == host.stdout
    assert made.endswith("42\n")
    for name in ("program", "part.o", "main.o"):
        assert (place / name).read_bytes() == (other / name).read_bytes()
        assert (place / name).stat().st_uid == (USER if who == "user" else 0)
    again = output_of(*share(place), "--chdir", place, "make", who=who, env=environment)
    assert "up to date" in again


@both
def test_tar_reads_and_writes_what_it_does_on_the_host(place: Path, who: str) -> None:
    source = place / "source"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/file").write_bytes(os.urandom(300_000))
    (source / "empty").touch(mode=0o640)
    (source / "link").symlink_to("deep/er")
    os.link(source / "empty", source / "hard")
    os.utime(source / "empty", (1, 2))
    give(place)
    command = ["tar", "--sort=name", "-c", "-C", str(source), "."]
    host = subprocess.run(command, capture_output=True, check=True).stdout
    inside = run_do(*share(source, read_only=True), *command, who=who, text=False)
    assert inside.stderr == b""
    if who == "root":
        assert inside.stdout == host
    script = (
        f"mkdir /tmp/x && cd /tmp/x && {' '.join(command)} | tar x && cp -a /tmp/x {place}/copy"
    )
    output_of(*share(place), "sh", "-c", script, who=who)
    subprocess.run(["diff", "-r", "--no-dereference", source, place / "copy"], check=True)
    assert (place / "copy/empty").stat().st_mtime == 2
    assert (place / "copy/empty").stat().st_mode & 0o7777 == 0o640
    assert (place / "copy/hard").stat().st_nlink == 2


@both
def test_git_sees_and_makes_what_it_does_on_the_host(place: Path, who: str) -> None:
    if not shutil.which("git", path=SYSTEM_PATH):
        pytest.skip("no git")
    environment = {
        "PATH": SYSTEM_PATH,
        "HOME": "/nonexistent",
        "GIT_CONFIG_NOSYSTEM": "1",
        **{
            f"GIT_{who}_{what}": "x"
            for who in ("AUTHOR", "COMMITTER")
            for what in ("NAME", "EMAIL")
        },
        "GIT_AUTHOR_DATE": "@1000000000 +0000",
        "GIT_COMMITTER_DATE": "@1000000000 +0000",
    }
    other = place.with_name("host")
    script = """
        set -e
        git init -q -b main .
        for n in 1 2 3; do echo $n >file$n; done
        git add . && git commit -qm first && git gc -q
        echo changed >>file1; rm file2; git mv file3 moved; echo new >untracked
        git status --porcelain; git log --format=%H; git diff; git fsck
    """
    if who == "root":
        os.chown(place, 0, 0)
    made = run_do(*share(place), "--chdir", place, "sh", "-c", script, who=who, env=environment)
    assert made.returncode == 0, made.stderr
    other.mkdir()
    host = subprocess.run(
        ["sh", "-c", script], cwd=other, env=environment, capture_output=True, text=True
    )
    assert made.stdout == host.stdout
    assert " M file1" in made.stdout


# What is there


@both
def test_the_root_is_the_hosts_and_read_only(place: Path, who: str) -> None:
    (place / "file").write_text("from the host")
    give(place)
    program = f"""
import errno, os
assert open('{place}/file').read() == 'from the host'
for act in (lambda: open('{place}/file', 'a'), lambda: os.mkdir('{place}/new'),
            lambda: os.unlink('{place}/file')):
    try:
        act()
    except OSError as error:
        print(errno.errorcode[error.errno])
"""
    assert output_of("--", PYTHON, "-c", program, who=who) == "EROFS\n" * 3
    assert [path.name for path in place.iterdir()] == ["file"]


@both
def test_with_rw_the_root_is_writable(place: Path, who: str) -> None:
    output_of("--rw", "sh", "-c", f"umask 027; echo written >{place}/file", who=who)
    assert (place / "file").read_text() == "written\n"
    status = (place / "file").stat()
    assert status.st_uid == (USER if who == "user" else 0)
    assert status.st_mode & 0o777 == 0o640


@both
def test_scratch_places_are_fresh_and_gone_afterwards(who: str) -> None:
    name = f"dentry-do-{os.getpid()}"
    places = ["/tmp", "/var/tmp", "/dev/shm", *(["/run"] if who == "root" else [])]
    script = "for d; do ls -A $d; echo $d >$d/$0 && cat $d/$0; done"
    made = output_of("sh", "-c", script, name, *places, who=who)
    assert made == "".join(f"{place}\n" for place in places)
    assert not any(Path(place, name).exists() for place in places)


@both
def test_proc_is_that_of_the_new_pid_namespace(who: str) -> None:
    script = "echo $$; cd /proc && echo [0-9]*; readlink self/root; cat sys/kernel/ostype"
    pid, pids, root, kernel = output_of("sh", "-c", script, who=who).splitlines()
    assert (pid, pids, root, kernel) == ("2", "1 2", "/", "Linux")


@both
def test_devices_are_those_of_the_host_and_terminals_are_its_own(who: str) -> None:
    program = """
import os, pty, stat, tty
os.write(os.open('/dev/null', os.O_WRONLY), b'x')
print(os.read(os.open('/dev/zero', os.O_RDONLY), 3), len(os.urandom(3)))
print(len(os.read(os.open('/dev/urandom', os.O_RDONLY), 5)))
try:
    os.write(os.open('/dev/full', os.O_WRONLY), b'x')
except OSError as error:
    print(error.strerror)
ours, theirs = pty.openpty()
tty.setraw(theirs)
os.write(ours, b'typed')
print(os.ttyname(theirs), os.read(theirs, 9))
print(sorted(os.listdir('/dev')))
"""
    assert output_of("--", PYTHON, "-c", program, who=who).splitlines() == [
        "b'\\x00\\x00\\x00' 3",
        "5",
        "No space left on device",
        "/dev/pts/0 b'typed'",
        "['fd', 'full', 'null', 'ptmx', 'pts', 'random', 'shm', 'stderr', 'stdin', 'stdout', "
        "'tty', 'urandom', 'zero']",
    ]


def test_a_device_that_is_asked_for_is_there() -> None:
    assert run_do("test", "-e", "/dev/fuse").returncode == 1
    assert output_of("--device", "/dev/fuse", "stat", "-c", "%t:%T", "/dev/fuse") == "a:e5\n"


def test_a_container_works_in_a_container() -> None:
    inner = ["do", "--", "sh", "-c", "echo $$ && echo x >/tmp/x && cat /tmp/x"]
    program = sys.executable
    repository = Path(__file__).parents[3]
    words = ["--device", "/dev/fuse", "--chdir", repository, program, "-m", "harness.cli", *inner]
    if str(repository).startswith("/tmp/"):
        words = [*share(repository, read_only=True), *words]
    assert output_of(*words) == "2\nx\n"


def test_nothing_of_the_hosts_lies_below_proc_and_dev() -> None:
    program = """
import ctypes, os
umount2 = ctypes.CDLL(None).umount2
for place in ('/proc', '/dev/pts', '/dev/null', '/dev/zero'):
    assert umount2(place.encode(), 2) == 0
print(os.listdir('/proc'), os.listdir('/dev/pts'), open('/dev/null').read())
print([umount2(place, 2) for place in (b'/dev', b'/tmp', b'/run')])
"""
    assert output_of("--", PYTHON, "-c", program) == "[] [] \n[-1, -1, -1]\n"


def test_a_mount_takes_the_place_of_a_default_one(place: Path) -> None:
    (place / "file").touch()
    spec = f"type=passthrough,src={place},dst=/tmp"
    assert output_of("--mount", spec, "ls", "/tmp") == "file\n"
    assert (
        output_of("--mount", f"type=passthrough,src={place},dst=/proc", "ls", "/proc") == "file\n"
    )
    own_root = ["--mount", "type=tmpfs,dst=/", *share(Path("/usr"), read_only=True)]
    links = [name for name in ("lib", "lib64", "bin") if Path("/", name).is_symlink()]
    if "bin" not in links:
        pytest.skip("this host's /bin is not in /usr")
    for name in links:
        own_root += ["--mount", f"type=passthrough,src=/usr/{name},dst=/{name},ro"]
    assert set(output_of(*own_root, "/bin/ls", "/").split()) == {*links, "dev", "proc", "usr"}


def test_name_service_works_where_resolv_conf_leads_below_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from harness.container import tree as tree_module
    from harness.container.tree import TreeOptions, build_tree
    from harness.container.user_namespace import choose_identity

    with tempfile.TemporaryDirectory(dir="/run") as directory:
        Path(directory, "stub.conf").write_text("nameserver 127.0.0.53\n")
        link = tmp_path / "resolv.conf"
        link.symlink_to(f"{directory}/stub.conf")
        monkeypatch.setattr(tree_module, "_RESOLV_CONF", str(link))
        with build_tree(TreeOptions("/", False, (), ()), choose_identity(None, None)) as tree:
            fd = tree.task.open(f"{directory}/stub.conf", os.O_RDONLY)
            assert tree.task.read(fd, 99) == b"nameserver 127.0.0.53\n"
            tree.task.close(fd)


# Who, and with what


@pytest.mark.parametrize(
    ("who", "options", "ids"),
    [
        ("root", [], "0 0 0"),
        ("root", ["--uid", "4321"], "4321 4321 4321"),
        ("root", ["--uid", "7", "--gid", "8"], "7 8 8"),
        ("user", [], f"{USER} {USER} {USER}"),
        ("user", ["--uid", "0"], "0 0 0"),
        ("user", ["--uid", "7", "--gid", "8"], "7 8 8"),
    ],
)
def test_the_command_is_who_it_is_to_be(who: str, options: list[str], ids: str) -> None:
    script = "echo $(id -u) $(id -g) $(id -G); echo >/tmp/mine; stat -c '%u %g' /tmp/mine"
    made = output_of(*options, "sh", "-c", script, who=who).splitlines()
    assert made == [ids, ids.rpartition(" ")[0]]


def test_a_user_comes_with_the_primary_group_of_the_host() -> None:
    user = next(user for user in pwd.getpwall() if user.pw_uid and user.pw_gid != user.pw_uid)
    assert output_of("--uid", str(user.pw_uid), "id", "-g") == f"{user.pw_gid}\n"


@both
def test_only_root_inside_has_capabilities(who: str) -> None:
    script = "grep -E 'CapEff|NoNewPrivs' /proc/self/status"
    every = (2 << int(Path("/proc/sys/kernel/cap_last_cap").read_text())) - 1
    root = output_of("--uid", "0", "sh", "-c", script, who=who)
    other = output_of("--uid", "9", "sh", "-c", script, who=who)
    assert root.split() == ["CapEff:", f"{every:016x}", "NoNewPrivs:", "1"]
    assert other.split() == ["CapEff:", f"{0:016x}", "NoNewPrivs:", "1"]


def test_root_inside_acts_for_every_user_on_the_host(place: Path) -> None:
    script = f"cd {place} && echo x >file && chown 77:78 file && chmod 600 file && cat file"
    assert output_of(*share(place), "sh", "-c", script) == "x\n"
    status = (place / "file").stat()
    assert (status.st_uid, status.st_gid) == (77, 78)
    denied = run_do(*share(place), "--uid", "79", "cat", place / "file")
    assert denied.returncode == 1
    assert "Permission denied" in denied.stderr


def test_a_user_gets_no_further_than_on_the_host(place: Path) -> None:
    secret = place / "secret"
    secret.write_text("x")
    secret.chmod(0o600)
    for uid in ("0", str(USER)):
        denied = run_do("--rw", "--uid", uid, "cat", secret, who="user")
        assert denied.returncode == 1
        assert "Permission denied" in denied.stderr


@both
def test_the_environment_is_ours_as_changed(who: str) -> None:
    environment = {"PATH": SYSTEM_PATH, "KEPT": "kept", "DROPPED": "dropped"}
    words = ["--env", "SET=a=b", "--env", "KEPT", "--env", "UNKNOWN"]
    made = output_of(*words, "--chdir", "/usr", "env", who=who, env=environment)
    assert set(made.splitlines()) == {
        *(f"PATH={SYSTEM_PATH}", "KEPT=kept", "DROPPED=dropped", "SET=a=b", "PWD=/usr"),
    }
    made = output_of("--clearenv", *words, "/usr/bin/env", who=who, env=environment, cwd="/usr")
    assert set(made.splitlines()) == {"KEPT=kept", "SET=a=b", "PWD=/usr"}


def test_the_working_directory_is_kept_where_the_tree_has_it(place: Path) -> None:
    assert output_of("pwd", cwd=place) == f"{place}\n"
    with tempfile.TemporaryDirectory() as elsewhere:
        assert output_of("pwd", cwd=elsewhere) == "/\n"
        assert output_of(*share(Path(elsewhere)), "pwd", cwd=elsewhere) == f"{elsewhere}\n"
    link = place / "link"
    link.symlink_to("/usr")
    logical = {**os.environ, "PWD": str(link)}
    assert output_of("sh", "-c", "pwd", cwd=link, env=logical) == f"{link}\n"


@both
def test_no_net_leaves_a_working_loopback_only(who: str) -> None:
    program = """
import os, socket
print([name for _, name in socket.if_nameindex() if name == 'lo' or 'eth' in name or 'en' in name])
server = socket.create_server(('127.0.0.1', 0))
client = socket.create_connection(server.getsockname())
server.accept()[0].send(b'reached')
print(client.recv(9), os.readlink('/proc/self/ns/net') != os.environ['HOST_NET'])
"""
    environment = {**os.environ, "HOST_NET": os.readlink("/proc/self/ns/net")}
    inside = output_of("--no-net", "--", PYTHON, "-c", program, who=who, env=environment)
    assert inside == "['lo']\nb'reached' True\n"
    assert output_of("readlink", "/proc/self/ns/net", who=who).strip() == environment["HOST_NET"]


def test_the_hostname_is_the_containers() -> None:
    assert output_of("--hostname", "inside", "uname", "-n") == "inside\n"
    assert output_of("uname", "-n") == f"{os.uname().nodename}\n"


def test_descriptors_but_ours_are_passed_on(place: Path) -> None:
    file = place / "file"
    file.write_text("through a descriptor")
    with open(file) as opened:
        script = f"cat /proc/self/fd/{opened.fileno()}; ls /proc/self/fd | wc -l"
        made = output_of("sh", "-c", script, pass_fds=[opened.fileno()])
    # The three, ours, and ls's own.
    assert made == "through a descriptor5\n"
