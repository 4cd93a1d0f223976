"""Commands that tell what happens in the VFS, while it happens."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from harness.control.trace import TOPICS, Event, Listening, events_of
from harness.shell.command import Commands, Invocation, Usage, argument
from harness.shell.session import Session
from harness.testbed.step import SIGNATURES, Step, format_script, format_step, make_step

_ROOT: Final = "root"
_NAME: Final = re.compile(r"[A-Za-z0-9_*?\[][A-Za-z0-9_*?\[\]-]*")


def register(commands: Commands) -> None:
    """Put the family into the table."""

    @commands.add(
        "trace",
        # argparse would take the -- for its own.
        argument("words", nargs=argparse.REMAINDER,
                 metavar="on|off|save FILE [-n N] [-t SECONDS] [FILTER ...] [-- COMMAND]",
                 help="-n: so many events and no more; -t: so long and no longer"),
    )  # fmt: skip
    def trace(invocation: Invocation, given: argparse.Namespace) -> int | None:
        """tell of system calls, requests of the client and VFS events, until Ctrl-C

        Without a filter all is told. Filters are topics (syscalls, fuse, vfs), names as patterns
        (open*, LOOKUP, mount), pid=N, and failed. Behind -- stands a command: what happens while
        it runs is told when it is done. `trace save FILE` without -n, -t or a command goes on until
        `trace off`; `dentry test run FILE`, on the host, replays what it kept.
        """
        wanted = _Wanted(given.words)
        if wanted.action == "on":
            return _show(invocation, wanted)
        if wanted.action == "save":
            return _save(invocation, wanted)
        _end(invocation)
        return None


class _Wanted:
    """The words of `trace`. Raises: Usage."""

    def __init__(self, words: list[str]) -> None:
        self.count: int | None = None
        self.seconds: float | None = None
        self.path = ""
        self.command: list[str] = []
        if "--" in words:
            at = words.index("--")
            words, self.command = words[:at], words[at + 1 :]
            if not self.command:
                raise Usage("behind -- stands a command")
        self.action, *rest = words or [""]
        if self.action not in ("on", "off", "save"):
            raise Usage("say which: on, save FILE or off")
        filters = []
        while rest:
            word = rest.pop(0)
            if word in ("-n", "-t"):
                self._limit(word, rest.pop(0) if rest else "")
            elif self.action == "save" and not self.path:
                self.path = word
            else:
                filters.append(word)
        self.filters = _filters(filters)
        if self.action == "off" and len(words) > 1:
            raise Usage("off takes no words")
        if self.action == "save" and not self.path:
            raise Usage("save needs the name of a file")
        if self.seconds is not None and self.command:
            raise Usage("-t goes without a command")

    def _limit(self, option: str, text: str) -> None:
        try:
            if option == "-n":
                self.count = int(text)
            else:
                self.seconds = float(text)
        except ValueError:
            raise Usage(f"{option} {text}: a number is needed") from None
        if (self.count or 1) < 0 or self.count == 0 or not (self.seconds or 0) >= 0:
            raise Usage(f"{option} {text}: a positive number is needed")


def _filters(words: list[str]) -> dict[str, Any]:
    """What words select, as `Kernel.subscribe` has it. Raises: Usage."""
    topics, names, pid, failed = [], [], None, False
    for word in words:
        key, equals, value = word.partition("=")
        if word in TOPICS:
            topics.append(word)
        elif word == "failed":
            failed = True
        elif equals and key == "pid" and value.isdecimal():
            pid = int(value)
        elif not equals and _NAME.fullmatch(word):
            names.append(word)
        else:
            raise Usage(f"{word}: no topic, no name, nor pid=NUMBER or failed")
    return {"topics": topics, "names": names, "pid": pid, "failed": failed}


def _show(invocation: Invocation, wanted: _Wanted) -> int:
    with invocation.session.kernel.subscribe(**wanted.filters) as listening:
        if wanted.command:
            status = _run(invocation, wanted.command)
            listening.close()
            for event in _waiting(listening, wanted.count):
                invocation.print(describe(event))
            return status
        with suppress(KeyboardInterrupt):
            for event in events_of(listening, wanted.seconds, wanted.count):
                invocation.print(describe(event))
                invocation.stdout.flush()
    return 0


def _waiting(listening: Listening, count: int | None) -> list[Event]:
    """What has come."""
    found: list[Event] = []
    while (count is None or len(found) < count) and (event := listening.get(0)) is not None:
        found.append(event)
    return found


def _run(invocation: Invocation, command: list[str]) -> int:
    streams = invocation.stdin, invocation.stdout, invocation.stderr
    return invocation.session.invoke(command, *streams)


def describe(event: Event) -> str:
    """An event as a line in strace(1)'s look."""
    if event["topic"] == "lost":
        return f"({event['lost']} events lost)"
    took = f" <{event['seconds']:.6f}>" if "seconds" in event else ""
    if event["topic"] == "fuse":
        return f"[client {event['pid']}] {event['text']} = {event['result']}{took}"
    who = "[vfs]" if event["pid"] is None else f"[{event['pid']}]"
    if event["topic"] == "vfs":
        shown = [event["name"]]
        shown += [str(event[key]) for key in ("type", "path") if key in event]
        return f"{who} {' '.join(shown)}"
    if event["name"] == "clone":
        return f"{who} is cloned from {event['like'] or 'init'}"
    return f"{who} {_call(event)} = {event['result']}{took}"


def _call(event: Event) -> str:
    step = _step("x", event)
    if step is None:
        return f"{event['name']}({', '.join(map(repr, event['arguments']))})"
    text = format_step(step).removeprefix("x: ")
    return text if len(text) <= 200 else text[:190] + "...)"


def _step(task: str, event: Event) -> Step | None:
    """The call as a script's step; None for what scripts do not have."""
    if event["name"] not in SIGNATURES:
        return None
    kinds = SIGNATURES[event["name"]]
    arguments = [
        # What scripts have as data may have been passed as text.
        os.fsencode(value) if kind == "data" and isinstance(value, str) else value
        for kind, value in zip(kinds, event["arguments"], strict=False)
    ]
    return make_step(task, event["name"], *arguments)


# trace save


class Recording:
    """System calls that are kept, to become a script."""

    def __init__(self, session: Session, path: str, filters: dict[str, Any]) -> None:
        """Start to listen. Raises: as open(2)."""
        self.path = path
        self._session = session
        try:
            self._file = open(path, "w", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise OSError(error.errno, error.strerror, path) from None
        try:
            # Tasks that have been there before.
            self._before = {
                row["pid"]: row for row in session.kernel.inspect(session.task, "tasks")
            }
            self.listening = session.kernel.subscribe(**filters)
        except BaseException:
            self._file.close()
            raise

    def end(self, events: Sequence[Event] = ()) -> tuple[int, int]:
        """Listen no more, and write `events`, or what has come, as a script; return how many calls
        it has, and how many were lost.
        """
        self.listening.close()
        script = _Script(self._before)
        for event in events or _waiting(self.listening, None):
            script.add(event)
        with self._file:
            self._file.write(format_script([], script.comment()))
            for line in script.lines:
                self._file.write(line + "\n")
        return script.calls, script.lost


class _Script:
    """A script in the making: what tasks are called in it, and what it can't say."""

    def __init__(self, before: dict[int, dict[str, Any]]) -> None:
        self.lines: list[str] = []
        self.calls = 0
        self.lost = 0
        self._before = before
        self._names: dict[int, str] = {}

    def comment(self) -> str:
        text = "Kept by `trace save`; `dentry test run` replays it on an empty tmpfs."
        return text + (f"\n{self.lost} calls were lost." if self.lost else "")

    def add(self, event: Event) -> None:
        if event["topic"] == "lost":
            self.lost += event["lost"]
            self.lines.append(f"# {event['lost']} calls were lost here")
        elif event["topic"] == "vfs":
            if event["name"] == "exit" and event["pid"] in self._names:
                self._step(self._names.pop(event["pid"]), "exit")
        elif event["name"] == "clone":
            self._clone(event["pid"], event["like"], event["who"])
        else:
            name = self._name(event["pid"])
            step = _step(name, event)
            if step is None:
                self.lines.append(f"# {name}: {event['name']}: scripts do not have it")
            else:
                self.calls += 1
                self.lines.append(format_step(step))

    def _step(self, task: str, call: str, *arguments: Any) -> None:
        self.lines.append(format_step(make_step(task, call, *arguments)))

    def _name(self, pid: int) -> str:
        """The task's name; one that was there before starts here, where it stood then."""
        if pid not in self._names:
            row = self._before.get(pid, {})
            who = {"uid": row.get("uid", 0), "gid": row.get("gid", 0)}
            self._clone(pid, None, {**who, "groups": row.get("groups", [])})
            name = self._names[pid]
            if row.get("cwd", "/") != "/":
                self._step(name, "chdir", row["cwd"])
            if row.get("umask") not in (None, "0022"):
                self._step(name, "umask", int(row["umask"], 8))
            if row.get("fds"):
                self.lines.append(f"# {name} had {row['fds']} descriptors open")
        return self._names[pid]

    def _clone(self, pid: int, like: int | None, who: dict[str, Any]) -> None:
        parent = _ROOT if like is None else self._name(like)
        name = f"task{pid}"
        self._names[pid] = name
        row = self._before.get(like or 0, {})
        uid = int(who.get("uid", row.get("uid", 0)))
        gid = int(who.get("gid", row.get("gid", 0)))
        groups = tuple(who.get("groups", row.get("groups", ())))
        self._before.setdefault(pid, {"uid": uid, "gid": gid, "groups": groups})
        if who.get("capabilities") is not None:
            self.lines.append(f"# {name} has capabilities {who['capabilities']:#x}")
        flags = int(who.get("flags", 0))
        self._step(parent, "clone", name, flags, uid, gid, groups)


def _save(invocation: Invocation, wanted: _Wanted) -> int | None:
    filters = wanted.filters
    if filters["topics"] not in ([], ["syscalls"]):
        raise Usage("only system calls can be saved, and replayed")
    # And the beginnings and ends of tasks.
    filters["topics"] = ["syscalls", "vfs"]
    filters["names"] = filters["names"] and [*filters["names"], "clone", "exit"]
    session = invocation.session
    if session.recording is not None:
        raise Usage(f"{session.recording.path} is being written: `trace off` ends that")
    recording = Recording(session, wanted.path, filters)
    if not wanted.command and wanted.count is None and wanted.seconds is None:
        session.recording = recording
        return None
    status = 0
    events: list[Event] = []
    if wanted.command:
        status = _run(invocation, wanted.command)
    else:
        with suppress(KeyboardInterrupt):
            events += events_of(recording.listening, wanted.seconds, wanted.count)
    _told(invocation, recording, events)
    return status


def _told(invocation: Invocation, recording: Recording, events: Sequence[Event] = ()) -> None:
    calls, lost = recording.end(events)
    if lost:
        invocation.complain(f"{recording.path}: {lost} calls were lost")
    invocation.print(f"{calls} calls in {recording.path}")


def _end(invocation: Invocation) -> None:
    session = invocation.session
    recording, session.recording = session.recording, None
    if recording is None:
        raise Usage("nothing is being saved")
    _told(invocation, recording)
