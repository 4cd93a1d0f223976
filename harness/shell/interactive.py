"""A shell for a person: prompt, line editing, history, completion, colour.

The only module that needs prompt_toolkit, and imported only for a terminal.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import CompleteEvent, Completer, Completion
from prompt_toolkit.document import Document
from prompt_toolkit.formatted_text import StyleAndTextTuples
from prompt_toolkit.formatted_text.utils import split_lines
from prompt_toolkit.history import FileHistory, History, InMemoryHistory
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.lexers import Lexer
from prompt_toolkit.styles import Style

from harness.control.client import Disconnected
from harness.shell.commands.listing import join
from harness.shell.expansion import expand_text
from harness.shell.language import Incomplete, SyntaxProblem, Token, names_command, parse, scan
from harness.shell.session import EXIT_INTERRUPTED, Exit, Session, list_directory
from harness.shell.views import shown
from vfs import abi

_PLAIN: Final = frozenset(
    "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789%+,-./:=@_^"
)
_DIRECTORY: Final = abi.O_PATH | abi.O_DIRECTORY | abi.O_CLOEXEC
_STYLE: Final = Style.from_dict(
    {
        "task": "bold",
        "who": "ansigreen",
        "who.root": "ansired",
        "namespace": "ansimagenta",
        "cwd": "ansiblue bold",
        "status": "ansired bold",
        "command": "ansigreen bold",
        "unknown": "ansired",
        "operator": "ansiyellow",
        "option": "ansicyan",
        "quoted": "ansimagenta",
        "comment": "ansibrightblack",
    }
)


def interact(session: Session) -> int:
    """Read and run commands until Ctrl-D or `exit`; return the shell's status.

    Raises: Disconnected.
    """
    prompt: PromptSession[str] = PromptSession(
        history=_history(),
        completer=ShellCompleter(session),
        complete_while_typing=False,
        lexer=ShellLexer(session),
        style=_STYLE,
        key_bindings=_bindings(),
        multiline=True,
        prompt_continuation="> ",
    )
    while True:
        try:
            text = prompt.prompt(_prompt(session))
        except KeyboardInterrupt:
            session.variables["?"] = str(EXIT_INTERRUPTED)
            continue
        except EOFError:
            return session.status
        try:
            session.run(text)
        except Exit as end:
            return end.status
        except KeyboardInterrupt:
            session.variables["?"] = str(EXIT_INTERRUPTED)
            session.stdout.write(b"\n")
        finally:
            session.stdout.flush()
            session.stderr.flush()


def _prompt(session: Session) -> StyleAndTextTuples:
    """`[status] task uid N ns N cwd #`."""
    tasks = session.kernel.inspect(session.task, "tasks")
    own = next(row for row in tasks if row["own"])
    name = next((name for name, pid in session.tasks.items() if pid == session.task), "?")
    root = own["uid"] == 0
    found: StyleAndTextTuples = [("class:status", f"[{session.status}] ")] if session.status else []
    return [
        *found,
        ("class:task", name),
        ("", " "),
        ("class:who.root" if root else "class:who", f"uid {own['uid']}"),
        ("", " "),
        ("class:namespace", f"ns {own['namespace']}"),
        ("", " "),
        ("class:cwd", shown(own["cwd"])),
        ("", " # " if root else " $ "),
    ]


def _history() -> History:
    """The user's, in a file that nobody else reads. XDG Base Directory Specification."""
    state = os.environ.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path.home() / ".local/state"
    path = base / "dentry" / "history"
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(fd, 0o600)
        finally:
            os.close(fd)
    except OSError as error:
        print(f"dentry shell: no history: {path}: {error.strerror}", file=sys.stderr)
        return InMemoryHistory()
    return _FileHistory(str(path))


class _FileHistory(FileHistory):
    def store_string(self, string: str) -> None:
        # What is typed need not be UTF-8, which the file is.
        super().store_string(string.encode(errors="replace").decode())


def _bindings() -> KeyBindings:
    bindings = KeyBindings()

    @bindings.add("enter")
    def enter(event: KeyPressEvent) -> None:
        """Run it, or, if it is no whole script yet, go on in the next line."""
        buffer = event.current_buffer
        if _is_incomplete(buffer.text):
            buffer.newline(copy_margin=False)
        else:
            buffer.validate_and_handle()

    return bindings


def _is_incomplete(text: str) -> bool:
    try:
        parse(text)
    except Incomplete:
        return True
    except SyntaxProblem:
        # The session tells about it.
        pass
    return False


class ShellLexer(Lexer):
    """Colours: what is a command, what is none, operators, options, quotes, comments."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def lex_document(self, document: Document) -> Callable[[int], StyleAndTextTuples]:
        lines = list(split_lines(list(self._fragments(document.text))))
        return lambda number: list(lines[number]) if number < len(lines) else []

    def _fragments(self, text: str) -> Iterator[tuple[str, str]]:
        tokens, _ = scan(text)
        at = 0
        for place, token in enumerate(tokens):
            yield _between(text[at : token.start])
            yield self._style(tokens, place), text[token.start : token.end]
            at = token.end
        yield _between(text[at:])

    def _style(self, tokens: list[Token], place: int) -> str:
        word = tokens[place].word
        if word is None:
            return "class:operator"
        literal = word.literal()
        if names_command(tokens, place):
            return "class:command" if literal in self._session.commands else "class:unknown"
        if literal is not None and literal.startswith("-") and not word.parts[0].quoted:
            return "class:option"
        return "class:quoted" if any(part.quoted for part in word.parts) else ""


def _between(text: str) -> tuple[str, str]:
    """What no token is made of: white space, a comment, a quote that is still open."""
    begin = text.lstrip()[:1]
    return {"#": "class:comment", "'": "class:quoted", '"': "class:quoted"}.get(begin, ""), text


class ShellCompleter(Completer):
    """Commands, their options and choices, and paths of the VFS as the current task sees them."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def get_completions(
        self, document: Document, complete_event: CompleteEvent
    ) -> Iterable[Completion]:
        text = document.text_before_cursor
        tokens = _closed(text)
        if tokens is None:
            return
        last = tokens[-1] if tokens else None
        typed, start = "", len(text)
        if last is not None and last.word is not None and last.end >= len(text):
            typed, start = expand_text(last.word, self._session.variables), last.start
            tokens = tokens[:-1]
        try:
            for choice, label in self._choices(tokens, typed):
                yield Completion(choice, start - len(text), display=label)
        except Disconnected:
            # The command will tell.
            return

    def _choices(self, tokens: list[Token], typed: str) -> Iterator[tuple[str, str]]:
        """Pairs of what is put in, and what is shown."""
        place = len(tokens)
        commands = self._session.commands
        if names_command(tokens, place):
            names = sorted(name for name in commands if name.startswith(typed))
            yield from ((name + " ", name) for name in names)
            return
        first = place
        while first and not names_command(tokens, first):
            first -= 1
        word = tokens[first].word
        literal = None if word is None else word.literal()
        command = None if literal is None else commands.get(literal)
        redirected = tokens[-1].word is None
        if command is not None and not redirected:
            words: list[str] = []
            if typed.startswith("-"):
                words = command.options()
            elif place == first + 1:
                words = command.choices()
                words += sorted(commands) if command.name == "help" else []
            matching = [choice for choice in words if choice.startswith(typed)]
            yield from ((choice + " ", choice) for choice in matching)
            if typed.startswith("-") and matching:
                return
        yield from self._paths(typed)

    def _paths(self, typed: str) -> Iterator[tuple[str, str]]:
        directory, slash, begin = typed.rpartition("/")
        sys = self._session.syscalls()
        try:
            names = sorted(list_directory(sys, directory + slash or "."))
        except OSError:
            return
        for name in names:
            if not name.startswith(begin) or (name.startswith(".") and not begin):
                continue
            path = directory + slash + name
            try:
                path.encode()
                # Through links, as cd(1) would go.
                sys.close(sys.open(join(path, "."), _DIRECTORY, 0))
                end = "/"
            except UnicodeEncodeError:
                # There is no way to type it.
                continue
            except OSError:
                end = " "
            yield quote(path) + end, shown(name) + end.strip()


def _closed(text: str) -> list[Token] | None:
    """The tokens of a text whose last quote may be open; None if it is wrong in another way."""
    for closing in ("", "'", '"'):
        tokens, problem = scan(text + closing)
        if problem is None:
            return tokens
    return None


def quote(text: str) -> str:
    """A word that stands for `text`, so that more can be typed behind it."""
    if "\n" in text:
        return "'" + text.replace("'", "'\\''") + "'"
    return "".join(char if char in _PLAIN or ord(char) >= 0x80 else "\\" + char for char in text)
