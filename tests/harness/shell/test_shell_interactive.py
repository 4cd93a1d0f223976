"""The shell as a person has it: on a terminal, through the real entry point."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from terminal import Terminal

from harness.cli.shell import EXIT_DISCONNECTED
from harness.control.kernel import LocalKernel
from harness.control.server import ControlServer
from harness.shell.commands import all_commands
from harness.shell.interactive import ShellCompleter, ShellLexer
from harness.shell.session import Session
from harness.shell.streams import BufferedWriter, Bytes
from harness.virtiofs import listen
from vfs import VirtualFilesystem, abi
from vfs.task import Task


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    with Terminal(tmp_path / "state") as terminal:
        terminal.prompt()
        yield terminal


def test_a_prompt_shows_who_and_where_and_what_failed(terminal: Terminal) -> None:
    terminal.type("mkdir /d; cd /d; task new other\r")
    terminal.prompt(r"other uid 0 ns \d+ /d #")
    terminal.type("as 1000\r")
    terminal.prompt(r"other uid 1000 ns \d+ /d \$")
    terminal.type("cat nothing\r")
    terminal.expect("cat: nothing: No such file")
    terminal.prompt(r"\[1\] other uid 1000")


def test_ctrl_d_ends_with_the_last_status(terminal: Terminal) -> None:
    terminal.type("false\r")
    terminal.prompt(r"\[1\] init")
    terminal.type("\x04")
    assert terminal.end() == 1


def test_exit_ends_with_its_status(terminal: Terminal) -> None:
    terminal.type("exit 3\r")
    assert terminal.end() == 3


def test_ctrl_c_drops_the_line(terminal: Terminal) -> None:
    terminal.type("echo never-run")
    terminal.expect("never-run")
    terminal.type("\x03")
    terminal.prompt(r"\[130\] init")
    terminal.type("echo a\\ b\r")
    terminal.expect("\na b\r\n")


@pytest.mark.parametrize(
    "command", ["tail -f /f", "tail -f /f | cat", "cat | wc", "sleep 999 | cat"]
)
def test_ctrl_c_ends_a_command(terminal: Terminal, command: str) -> None:
    terminal.type(f"echo there > /f; echo begin; {command}\r")
    terminal.expect("\nbegin\r\n")
    terminal.type("\x03")
    terminal.prompt(r"\[130\] init")
    terminal.type("echo still\r")
    terminal.expect("\nstill\r\n")


def test_tail_follows_what_is_written_meanwhile(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("first\n")
    with Terminal(tmp_path, "--mount", f"type=passthrough,src={tmp_path},dst=/host") as terminal:
        terminal.prompt()
        terminal.type("tail -f /host/log\r")
        terminal.expect("\nfirst\r\n")
        with (tmp_path / "log").open("a") as file:
            file.write("second\n")
        terminal.expect("second\r\n")
        terminal.type("\x03")
        terminal.prompt(r"\[130\] init")


def test_a_line_that_is_no_script_yet_goes_on(terminal: Terminal) -> None:
    for lines, output in (
        ("echo 'a\rb'\r", "\na\r\nb\r\n"),
        ("cat << END\rtext\rEND\r", "\ntext\r\n"),
        ("echo one &&\recho two\r", "\none\r\ntwo\r\n"),
    ):
        terminal.type(lines)
        terminal.expect(output)
        terminal.prompt()


def test_names_are_completed(terminal: Terminal) -> None:
    terminal.type("mkdir /directory; echo text > '/directory/a file'; echo made\r")
    terminal.expect("\nmade\r\n")
    for typed, completed in (("hexd", "hexdump"), ("/dir", "ectory/"), ("a", " file")):
        terminal.type(typed + "\t")
        terminal.expect(completed[len(typed) if completed.startswith(typed) else 0 :])
    terminal.type("\r")
    terminal.expect(r"\|text\.\|")
    terminal.type("ls --ze\t")
    terminal.expect("ro")
    terminal.type("/directory | hexdump\r")
    terminal.expect(r"\|a file\.\|")
    terminal.type("cat < '/directory/a \t")
    terminal.expect("file")
    terminal.type("\r")
    terminal.expect("\ntext\r\n")


def test_history_is_kept_for_the_next_shell_and_for_nobody_else(tmp_path: Path) -> None:
    for number in range(2):
        with Terminal(tmp_path) as terminal:
            terminal.prompt()
            terminal.type("\x1b[A\r" if number else "echo once more\r")
            terminal.expect("\nonce more\r\n")
            terminal.prompt()
            terminal.type("\x04")
            assert terminal.end() == 0
    assert (tmp_path / "dentry" / "history").stat().st_mode & 0o777 == 0o600


def test_a_home_that_cant_be_written_costs_the_history_only() -> None:
    with Terminal(Path("/dev/null")) as terminal:
        terminal.expect("no history: /dev/null/dentry/history: Not a directory")
        terminal.prompt()


def test_an_editor_changes_a_file(tmp_path: Path) -> None:
    editor = tmp_path / "editor"
    editor.write_text('#!/bin/sh\ntest -t 0 && echo changed >> "$1"\n')
    editor.chmod(0o755)
    with Terminal(tmp_path, EDITOR=str(editor), VISUAL="") as terminal:
        terminal.prompt()
        terminal.type("echo first > /f; edit /f; cat /f\r")
        terminal.expect("\nfirst\r\nchanged\r\n")


def test_a_script_needs_no_terminal_library() -> None:
    program = (
        "import sys; from harness.cli.main import main\n"
        "try: main(['shell', '-c', 'mkdir /a; mounts > /x; true'])\n"
        "finally: print(*sorted({'prompt_toolkit', 'rich'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("\n", "", 0)


def test_names_stand_in_columns_and_colours(terminal: Terminal) -> None:
    terminal.type("mkdir /d; echo > /a; echo > /b; mkfifo /c; ls\r")
    terminal.expect("\na  b  c  d\r\n")
    assert "\x1b[1;34md" in terminal.raw
    terminal.type("ls -1 | cat; echo end\r")
    terminal.expect("\na\r\nb\r\nc\r\nd\r\nend\r\n")


def test_views_have_the_same_text_on_a_terminal_as_elsewhere(terminal: Terminal) -> None:
    terminal.type("mkdir /m; mount -t tmpfs none /m; mount --make-shared /m; echo ready\r")
    terminal.expect("\nready\r\n")
    for command in ("mounts", "dentries /m", "devices", "explain open /m/x", "df -i", "findmnt"):
        terminal.type(f"{command} > /plain\r")
        terminal.type(f"echo begin; {command}; echo between; cat /plain; echo end\r")
        drawn = terminal.expect("(?s)\nbegin\r\n(.*)\nbetween\r\n(.*)\nend\r\n")
        assert drawn.group(1).strip() == drawn.group(2).strip()
    assert "\x1b[" in terminal.raw


def test_a_connected_shell_sees_what_others_write_and_survives_ctrl_c(
    tmp_path: Path, vfs: VirtualFilesystem, task: Task
) -> None:
    path = str(tmp_path / "control")
    with (
        ControlServer(listen(path), lambda: LocalKernel(vfs, task)),
        Terminal(tmp_path, "--connect", path) as terminal,
    ):
        terminal.prompt()
        terminal.type("echo first > /f; tail -f /f\r")
        terminal.expect("\nfirst\r\n")
        fd = task.open("/f", abi.O_WRONLY | abi.O_APPEND)
        task.write(fd, b"second\n")
        task.close(fd)
        terminal.expect("second\r\n")
        terminal.type("\x03")
        terminal.prompt(r"\[130\] init")
        terminal.type("cat /f | wc -l\r")
        terminal.expect("\n2\r\n")
        terminal.prompt()
        terminal.type("\x04")
        assert terminal.end() == 0


@pytest.mark.parametrize("typed", ["echo x", "ls /", "ls /\t", "cat /f | wc"])
def test_a_connected_shell_ends_when_its_daemon_has(
    tmp_path: Path, vfs: VirtualFilesystem, task: Task, typed: str
) -> None:
    path = str(tmp_path / "control")
    server = ControlServer(listen(path), lambda: LocalKernel(vfs, task))
    try:
        with Terminal(tmp_path, "--connect", path) as terminal:
            terminal.prompt()
            server.close()
            terminal.type(typed + "\r")
            terminal.expect("dentry shell: the daemon has ended")
            assert terminal.end() == EXIT_DISCONNECTED
            assert "Traceback" not in terminal.raw and "Unhandled" not in terminal.raw
    finally:
        server.close()


@pytest.fixture
def session(vfs: VirtualFilesystem, task: Task) -> Iterator[Session]:
    output = BufferedWriter(len)
    with (
        LocalKernel(vfs, task) as kernel,
        Session(kernel, all_commands(), Bytes(), output, output) as session,
    ):
        yield session


def test_what_is_typed_is_coloured_by_what_it_is(session: Session) -> None:
    text = "ls -l 'a b' | nothing # why\ncat << E"
    lines = ShellLexer(session).lex_document(Document(text))
    styles = {piece.strip(): style for n in (0, 1) for style, piece, *_ in lines(n)}
    assert styles["ls"] == styles["cat"] == "class:command"
    assert styles["nothing"] == "class:unknown" and styles["-l"] == "class:option"
    assert styles["'a b'"] == "class:quoted" and styles["|"] == "class:operator"
    assert styles["# why"] == "class:comment"


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("mkd", ["mkdir "]),
        ("ls /d/", ["ls /d/\\$x ", "ls /d/a\\ b ", "ls '/d/c\nd' ", "ls /d/sub/"]),
        ("ls '/d/a", ["ls /d/a\\ b "]),
        ("ls > /d/s", ["ls > /d/sub/"]),
        ("ls $P/s", ["ls /d/sub/"]),
        ("task sw", ["task switch "]),
        ("ls --ze", ["ls --zero "]),
        ("nothing-known /d/su", ["nothing-known /d/sub/"]),
        ("ls $(", []),
    ],
)
def test_completions_are_quoted_as_they_must_be(
    session: Session, typed: str, completed: list[str]
) -> None:
    session.run("mkdir -p /d/sub; echo > '/d/a b'; echo > '/d/c\nd'; echo > '/d/$x'; P=/d")
    found = ShellCompleter(session).get_completions(Document(typed), CompleteEvent())
    assert [typed[: len(typed) + one.start_position] + one.text for one in found] == completed
