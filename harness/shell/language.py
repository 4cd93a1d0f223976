"""The shell's language: a text becomes a `Script`, which is data; `session` runs it.

It is the part of POSIX's shell that is typed by hand: words with its quoting, `$NAME`, `${NAME}`
and `$?`, pipelines, `&&`, `||`, `;`, `!`, the redirections `<`, `>`, `>>`, `2>`, `2>>`, `2>&1` and
here-documents, and `NAME=value` before a command. There are no functions, loops, substitutions,
jobs. What it has means what sh(1) means by it; what it has not is an error that names it.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ASSIGNMENT: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=")
_OPERATORS: Final = (
    "2>&1", "2>>", "<<-", "2>", "&&", "||", ">>", "<<", ";;", ">&", "<&", "<>", ">|",
    ";", "|", "&", "<", ">", "(", ")", "\n",
)  # fmt: skip
_REDIRECTIONS: Final = frozenset({"<", ">", ">>", "2>", "2>>", "2>&1", "<<", "<<-"})
_NOT_HERE: Final = {
    "&": "there are no jobs: leave the & out",
    "(": "there are no subshells and no functions",
    ")": "there are no subshells and no functions",
    ";;": "there is no case",
    "<>": "open one way, with < or >",
    ">&": "only 2>&1 is known",
    "<&": "only 2>&1 is known",
    ">|": "> overwrites anyway",
}
_PARAMETERS: Final = frozenset("0123456789@*#$!-")
_ESCAPED_IN_QUOTES: Final = '"\\$`'


class SyntaxProblem(Exception):
    """A text that is no script; its message is one line."""


class Incomplete(SyntaxProblem):
    """A text that could become a script by further lines."""


class Part(NamedTuple):
    """A piece of a word: a literal text, or the name of a variable. What is not `quoted` is split
    at white space if it is a variable's, and its `*`, `?` and `[` match names.
    """

    text: str
    quoted: bool
    variable: bool = False


class Word(NamedTuple):
    """Parts that stand together. `""` is one word with a quoted empty part."""

    parts: tuple[Part, ...]

    def literal(self) -> str | None:
        """The text, if nothing in it is to be expanded."""
        if any(part.variable for part in self.parts):
            return None
        return "".join(part.text for part in self.parts)


_NOT: Final = Word((Part("!", False),))


class Redirection(NamedTuple):
    """`operator` as written. `target` is the file; the content of a here-document, which is a word
    whose parts are all quoted; None for `2>&1`.
    """

    operator: str
    target: Word | None


class Command(NamedTuple):
    """A simple command. Without `words` the `assignments` are for the shell itself."""

    assignments: tuple[tuple[str, Word], ...]
    words: tuple[Word, ...]
    redirections: tuple[Redirection, ...]


class Pipeline(NamedTuple):
    """Commands, each reading what the one before it writes; `negated` by `!`."""

    commands: tuple[Command, ...]
    negated: bool


class AndOr(NamedTuple):
    """Pipelines, and before each but the first the `&&` or `||` that decides about it."""

    first: Pipeline
    rest: tuple[tuple[str, Pipeline], ...]


Script = tuple[AndOr, ...]


class Token(NamedTuple):
    """An operator, or a word whose `operator` is ""; it is [start, end) of the text."""

    operator: str
    word: Word | None
    start: int
    end: int


def parse(text: str) -> Script:
    """Return the script that `text` is.

    Raises:
        Incomplete: a quote, a here-document or an operator at the end waits for more.
        SyntaxProblem: it is none.
    """
    return _Parser(_Lexer(text).tokens()).script()


def scan(text: str) -> tuple[list[Token], SyntaxProblem | None]:
    """The tokens of a text that is still being written, and what ends them before its end."""
    lexer = _Lexer(text)
    try:
        return lexer.tokens(), None
    except SyntaxProblem as problem:
        return lexer.found, problem


def names_command(tokens: list[Token], place: int) -> bool:
    """Whether the word at `place`, which may be behind the last, would be a command's name."""
    if place < len(tokens) and _is_before_name(tokens[place].word):
        return False
    while place > 0:
        before = tokens[place - 1]
        if before.operator == "2>&1" or _is_before_name(before.word):
            place -= 1
        elif before.word is None:
            return before.operator not in _REDIRECTIONS
        elif place > 1 and tokens[place - 2].operator in _REDIRECTIONS - {"2>&1"}:
            place -= 2
        else:
            return False
    return True


def _is_before_name(word: Word | None) -> bool:
    return word is not None and (word == _NOT or _assignment(word) is not None)


class _Lexer:
    """Cuts a text into operators and words, and puts here-documents where they are asked for."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self.found: list[Token] = []
        self._here: list[int] = []
        """Places in `found` of the delimiters whose documents begin after this line."""

    def tokens(self) -> list[Token]:
        text = self._text
        while self._at < len(text):
            char = text[self._at]
            if char in " \t\r":
                self._at += 1
            elif text.startswith("\\\n", self._at):
                self._at += 2
            elif char == "#":
                end = text.find("\n", self._at)
                self._at = len(text) if end < 0 else end
            elif operator := self._operator():
                start = self._at
                self._at += len(operator)
                self.found.append(Token(operator, None, start, self._at))
                if operator == "\n":
                    self._read_here_documents()
            else:
                self._word()
        if self._here:
            raise Incomplete("a here-document has no end")
        return self.found

    def _operator(self) -> str:
        for operator in _OPERATORS:
            if self._text.startswith(operator, self._at):
                return operator
        return ""

    def _word(self) -> None:
        start = self._at
        parts: list[Part] = []
        plain: list[str] = []

        def flush() -> None:
            if plain:
                parts.append(Part("".join(plain), False))
                plain.clear()

        text = self._text
        while self._at < len(text):
            char = text[self._at]
            if char in " \t\r\n;|&<>()":
                break
            if char == "\\":
                flush()
                self._backslash(parts)
            elif char == "'":
                flush()
                end = text.find("'", self._at + 1)
                if end < 0:
                    raise Incomplete("a ' is not closed")
                parts.append(Part(text[self._at + 1 : end], True))
                self._at = end + 1
            elif char == '"':
                flush()
                self._double_quoted(parts)
            elif char == "$" and (variable := self._variable(False)):
                flush()
                parts.append(variable)
            elif char == "`":
                raise SyntaxProblem("` : there is no command substitution")
            else:
                plain.append(char)
                self._at += 1
        flush()
        if text[self._at : self._at + 1] in ("<", ">") and text[start : self._at].isdecimal():
            raise SyntaxProblem(f"{text[start : self._at]}{text[self._at]} : only 2 has a number")
        previous = self.found[-1] if self.found else None
        if previous is not None and previous.operator in ("<<", "<<-"):
            self._here.append(len(self.found))
        self.found.append(Token("", Word(tuple(parts)), start, self._at))

    def _backslash(self, parts: list[Part]) -> None:
        following = self._text[self._at + 1 : self._at + 2]
        if not following:
            raise Incomplete("a \\ at the end waits for the next line")
        if following != "\n":
            parts.append(Part(following, True))
        self._at += 2

    def _double_quoted(self, parts: list[Part]) -> None:
        """From the opening quote to behind the closing one."""
        end = self._inside_quotes(parts, self._at + 1, len(self._text), '"')
        if end < 0:
            raise Incomplete('a " is not closed')
        self._at = end + 1

    def _inside_quotes(self, parts: list[Part], start: int, stop: int, quote: str) -> int:
        """Collect quoted parts of [start, stop) up to `quote`; return where that is, or -1."""
        text = self._text
        literal: list[str] = []
        self._at = start
        while self._at < stop:
            char = text[self._at]
            if char == quote:
                parts.append(Part("".join(literal), True))
                return self._at
            if char == "\\" and self._at + 1 < stop:
                following = text[self._at + 1]
                if following != "\n":
                    escaped = following == quote or following in _ESCAPED_IN_QUOTES[1:]
                    literal.append(following if escaped else char + following)
                self._at += 2
            elif char == "$" and (variable := self._variable(True)):
                parts.append(Part("".join(literal), True))
                literal.clear()
                parts.append(variable)
            elif char == "`":
                raise SyntaxProblem("` : there is no command substitution")
            else:
                literal.append(char)
                self._at += 1
        parts.append(Part("".join(literal), True))
        return -1

    def _variable(self, quoted: bool) -> Part | None:
        """The variable at a `$`, which is passed; None if the `$` is only itself."""
        text, start = self._text, self._at + 1
        if text.startswith("?", start):
            self._at = start + 1
            return Part("?", quoted, True)
        if text.startswith("(", start):
            raise SyntaxProblem("$( : there is no command substitution and no arithmetic")
        braces = text.startswith("{", start)
        match = _NAME.match(text, start + braces)
        if match is None:
            if text[start : start + 1] in _PARAMETERS:
                raise SyntaxProblem(f"${text[start]} : only names are known, and $?")
            if braces:
                if text.startswith("${?}", self._at):
                    self._at += 4
                    return Part("?", quoted, True)
                raise SyntaxProblem("${ : a variable's name and } must follow")
            return None
        if braces and not text.startswith("}", match.end()):
            if match.end() == len(text):
                raise Incomplete("a ${ is not closed")
            raise SyntaxProblem("${ : only ${NAME} is known")
        self._at = match.end() + braces
        return Part(match.group(), quoted, True)

    def _read_here_documents(self) -> None:
        """Replace the delimiters of the line before by the documents that begin here."""
        for place in self._here:
            word = self.found[place].word
            assert word is not None
            delimiter = "".join(
                f"${part.text}" if part.variable else part.text for part in word.parts
            )
            strip = self.found[place - 1].operator == "<<-"
            lines, end = self._document(delimiter, strip)
            content = "".join(lines)
            if any(part.quoted for part in word.parts):
                parts = [Part(content, True)]
            else:
                parts = _expandable(content)
            self.found[place] = self.found[place]._replace(word=Word(tuple(parts)))
            self._at = end
        self._here.clear()

    def _document(self, delimiter: str, strip: bool) -> tuple[list[str], int]:
        lines: list[str] = []
        at = self._at
        while at < len(self._text):
            end = self._text.find("\n", at)
            following = len(self._text) if end < 0 else end + 1
            line = self._text[at:following]
            if strip:
                line = line.lstrip("\t")
            if line.rstrip("\n") == delimiter:
                return lines, following
            lines.append(line)
            at = following
        raise Incomplete(f"a here-document waits for its end {delimiter}")


def _expandable(text: str) -> list[Part]:
    """The parts of a here-document: as between double quotes, where `"` is only itself."""
    parts: list[Part] = []
    lexer = _Lexer(text)
    lexer._inside_quotes(parts, 0, len(text), "")
    return parts


class _Parser:
    """Takes tokens from the front; recursive descent over POSIX's grammar, as far as it is here."""

    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0

    def script(self) -> Script:
        lists: list[AndOr] = []
        self._skip("\n")
        while self._at < len(self._tokens):
            lists.append(self._and_or())
            operator = self._operator()
            if operator not in ("", ";", "\n"):
                raise _unexpected(operator)
            self._at += bool(operator)
            self._skip("\n")
        return tuple(lists)

    def _and_or(self) -> AndOr:
        first = self._pipeline()
        rest: list[tuple[str, Pipeline]] = []
        while (operator := self._operator()) in ("&&", "||"):
            self._continue(operator)
            rest.append((operator, self._pipeline()))
        return AndOr(first, tuple(rest))

    def _pipeline(self) -> Pipeline:
        negated = False
        while (token := self._peek()) and token.word == _NOT:
            negated = not negated
            self._at += 1
        commands = [self._command()]
        while self._operator() == "|":
            self._continue("|")
            commands.append(self._command())
        return Pipeline(tuple(commands), negated)

    def _command(self) -> Command:
        assignments: list[tuple[str, Word]] = []
        words: list[Word] = []
        redirections: list[Redirection] = []
        while (token := self._peek()) is not None:
            if token.word is not None:
                self._at += 1
                if not words and (assignment := _assignment(token.word)):
                    assignments.append(assignment)
                else:
                    words.append(token.word)
            elif token.operator in _REDIRECTIONS:
                self._at += 1
                redirections.append(self._redirection(token.operator))
            else:
                break
        if not (assignments or words or redirections):
            operator = self._operator()
            raise _unexpected(operator) if operator else SyntaxProblem("a command is missing")
        return Command(tuple(assignments), tuple(words), tuple(redirections))

    def _redirection(self, operator: str) -> Redirection:
        if operator == "2>&1":
            return Redirection(operator, None)
        token = self._peek()
        if token is None or token.word is None:
            raise SyntaxProblem(f"{operator} : the name of a file is missing")
        self._at += 1
        return Redirection(operator, token.word)

    def _continue(self, operator: str) -> None:
        """Pass an operator that needs a command behind it, on this line or the next."""
        self._at += 1
        self._skip("\n")
        if self._peek() is None:
            raise Incomplete(f"{operator} waits for a command")

    def _skip(self, operator: str) -> None:
        while self._operator() == operator:
            self._at += 1

    def _peek(self) -> Token | None:
        return self._tokens[self._at] if self._at < len(self._tokens) else None

    def _operator(self) -> str:
        token = self._peek()
        return token.operator if token is not None else ""


def _unexpected(operator: str) -> SyntaxProblem:
    shown = "the end of a line" if operator == "\n" else operator
    return SyntaxProblem(f"{shown} : {_NOT_HERE.get(operator, 'a command is missing before it')}")


def _assignment(word: Word) -> tuple[str, Word] | None:
    first = word.parts[0] if word.parts else None
    if first is None or first.quoted or first.variable:
        return None
    match = _ASSIGNMENT.match(first.text)
    if match is None:
        return None
    parts = (Part(first.text[match.end() :], False), *word.parts[1:])
    return match.group(1), Word(parts)
