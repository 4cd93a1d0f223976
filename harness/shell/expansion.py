"""What becomes of words before a command gets them: variables, fields, names that match.

In the order of POSIX's shell, chapter 2.6, and with its results.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple

from harness.shell.language import Word

ListDirectory = Callable[[str], Collection[str] | None]
"""The names in a directory, without `.` and `..`; None if there is none, or it can't be read."""

_WHITE: Final = re.compile(r"[ \t\n]+")
_MAGIC: Final = frozenset("*?[")


class _Char(NamedTuple):
    char: str
    quoted: bool


_Field = list[_Char]


def expand_words(
    words: Iterable[Word], variables: Mapping[str, str], list_directory: ListDirectory
) -> list[str]:
    """The arguments that `words` stand for. A variable that is not set is empty."""
    return [
        found
        for word in words
        for field in _fields(word, variables)
        for found in _pathnames(field, list_directory)
    ]


def expand_text(word: Word, variables: Mapping[str, str]) -> str:
    """The one text that `word` stands for where no fields are made: in an assignment, and in a
    here-document.
    """
    return "".join(
        variables.get(part.text, "") if part.variable else part.text for part in word.parts
    )


def _fields(word: Word, variables: Mapping[str, str]) -> list[_Field]:
    fields: list[_Field] = []
    # None between fields; a quoted empty part begins one, an unquoted empty value does not.
    field: _Field | None = None
    for part in word.parts:
        text = variables.get(part.text, "") if part.variable else part.text
        if not part.variable or part.quoted:
            field = [] if field is None else field
            field += [_Char(char, part.quoted) for char in text]
            continue
        pieces = _WHITE.split(text)
        for number, piece in enumerate(pieces):
            if number and field is not None:
                fields.append(field)
                field = None
            if piece:
                field = [] if field is None else field
                field += [_Char(char, False) for char in piece]
    if field is not None:
        fields.append(field)
    return fields


def _pathnames(field: _Field, list_directory: ListDirectory) -> list[str]:
    """The names that match, sorted; the text itself if it has no pattern, or none matches."""
    text = "".join(char for char, _ in field)
    if not any(not quoted and char in _MAGIC for char, quoted in field):
        return [text]
    return sorted(_match_path(field, list_directory)) or [text]


def _match_path(field: _Field, list_directory: ListDirectory) -> list[str]:
    """Extend prefixes component by component; slashes stay as they were typed."""
    found = [""]
    for slashes, component in _components(field):
        literal = "".join(char for char, _ in component)
        found = [prefix + slashes for prefix in found]
        pattern = _pattern(component)
        if pattern is None:
            # Whether it exists is asked by whoever lists it, and at the end.
            found = [prefix + literal for prefix in found]
            continue
        hidden = literal.startswith(".")
        found = [
            prefix + name
            for prefix in found
            for name in list_directory(prefix or ".") or ()
            if (hidden or not name.startswith(".")) and pattern.fullmatch(name)
        ]
    return [path for path in found if _exists(path, list_directory)]


def _components(field: _Field) -> Iterable[tuple[str, _Field]]:
    """Pairs of the slashes before a component, and the component; a last one may be empty."""
    slashes = ""
    component: _Field = []
    for char in field:
        if char.char != "/":
            component.append(char)
            continue
        if component:
            yield slashes, component
            slashes, component = "", []
        slashes += "/"
    if slashes or component:
        yield slashes, component


def _exists(path: str, list_directory: ListDirectory) -> bool:
    if path.endswith("/"):
        return list_directory(path) is not None
    directory, slash, name = path.rpartition("/")
    return name in (".", "..") or name in (list_directory(directory + slash or ".") or ())


def _pattern(component: _Field) -> re.Pattern[str] | None:
    """POSIX's pattern as a regular expression; None if nothing in it is special."""
    found: list[str] = []
    special = False
    at = 0
    while at < len(component):
        char, quoted = component[at]
        at += 1
        if quoted or char not in _MAGIC:
            found.append(re.escape(char))
        elif char == "*":
            special = True
            found.append(".*")
        elif char == "?":
            special = True
            found.append(".")
        else:
            bracket, following = _bracket(component, at)
            special = special or following != at
            found.append(bracket)
            at = following
    return re.compile("".join(found), re.DOTALL) if special else None


def _bracket(component: _Field, start: int) -> tuple[str, int]:
    """The expression for a `[` before `start`, and where it ends; a `[` without end is itself."""
    at = start
    negated = at < len(component) and component[at] in (_Char("!", False), _Char("^", False))
    at += negated
    members: list[str] = []
    first = at
    while at < len(component) and (component[at] != _Char("]", False) or at == first):
        char, _ = component[at]
        if at + 2 < len(component) and component[at + 1] == _Char("-", False):
            last = component[at + 2]
            if last != _Char("]", False):
                if char <= last.char:
                    members.append(f"{re.escape(char)}-{re.escape(last.char)}")
                at += 3
                continue
        members.append(re.escape(char))
        at += 1
    if at >= len(component):
        return re.escape("["), start
    if not members:
        # An empty range, as [z-a]: nothing is in it.
        return "." if negated else "(?!)", at + 1
    return f"[{'^' if negated else ''}{''.join(members)}]", at + 1
