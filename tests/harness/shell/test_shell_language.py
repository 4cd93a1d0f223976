"""The language of the shell: what sh(1) makes of a text is what we make of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.shell.expansion import expand_text, expand_words
from harness.shell.language import Incomplete, SyntaxProblem, names_command, parse, scan

NAMES = (
    "a",
    "b",
    "ab",
    "a b",
    "a*",
    "[x]",
    ".hidden",
    "dir/one",
    "dir/two",
    "dir/.three",
    "-n",
    "é",
)
VARIABLES = {"WORD": "word", "TWO": "one  two", "STAR": "*", "EMPTY": "", "BLANKS": "  ", "?": "0"}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("names")
    for name in NAMES:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("")
    return place


def list_below(directory: Path, path: str) -> list[str] | None:
    try:
        return os.listdir(directory / path)
    except OSError:
        return None


def ours(directory: Path, text: str) -> list[str]:
    ((only, rest),) = parse(text)
    assert not rest
    (command,) = only.commands
    return expand_words(command.words, VARIABLES, lambda path: list_below(directory, path))


def of_sh(directory: Path, text: str) -> list[str]:
    """What the host's shell makes of it: the arguments, each ended by a NUL."""
    script = "true\nprintf '%s\\0' " + text
    found = subprocess.run(
        ["bash", "--posix", "-c", script],
        cwd=directory,
        env={**{k: v for k, v in VARIABLES.items() if k != "?"}, "LC_ALL": "C.UTF-8"},
        capture_output=True,
        check=True,
    )
    return os.fsdecode(found.stdout).split("\0")[:-1]


@pytest.mark.parametrize(
    "text",
    [
        "x y  z",
        "'a  b' \"c  d\" e\\ f",
        "'it'\\''s'",
        '"a\\"b\\\\c\\$d\\e"',
        "a'b'\"c\"d",
        "x # a comment",
        "x#y '#' \\#",
        "one\\\ntwo three",
        '"one\\\ntwo"',
        "$WORD ${WORD}s \"$WORD\" '$WORD' \\$WORD",
        "$TWO \"$TWO\" x${TWO}y",
        "$EMPTY \"$EMPTY\" ''",
        "x$BLANKS x${BLANKS}y",
        "$BLANKS$WORD$BLANKS",
        "$? \"$?\" ${?}",
        "$NOTSET x${NOTSET}y \"$NOTSET\"",
        "a$ $ \"$\" $=",
        "*",
        "* .*",
        "a*",
        "a'*'",
        "'a'*",
        "a\\*",
        "?",
        "[ab]",
        "[!ab]",
        "[a-b]*",
        "[]x]",
        "[x",
        "[[]x]",
        "dir/*",
        "dir//*",
        "*/one",
        "*/nothing",
        "./a*",
        "*/",
        "dir/*/",
        "dir/.*e",
        "$STAR",
        '"$STAR"',
        "nothing*",
        "d*/t*",
        "é*",
        "??",
        "~x",
        "a=b",
    ],
)  # fmt: skip
def test_words_are_what_sh_makes_of_them(directory: Path, text: str) -> None:
    expected = [word for word in of_sh(directory, text) if word not in (".", "..")]
    assert ours(directory, "c " + text)[1:] == sorted_like(expected, text)


def sorted_like(expected: list[str], text: str) -> list[str]:
    """bash sorts by the locale, we by code points: only one pattern's matches are compared."""
    return sorted(expected) if text in ("*", "a*", "dir/*", "$STAR") else expected


def test_a_script_is_lists_of_pipelines() -> None:
    script = parse("a | b && ! c || d; e\n\nf &&\n g |\n h")
    assert [len(item.rest) for item in script] == [2, 0, 1]
    first, rest = script[0]
    assert [len(first.commands), first.negated] == [2, False]
    assert [(operator, pipeline.negated) for operator, pipeline in rest] == [
        ("&&", True),
        ("||", False),
    ]
    assert len(script[2].rest[0][1].commands) == 2


def test_assignments_come_before_a_command_only() -> None:
    ((only, _),) = parse("A=1 B='x y'$WORD c D=2 A=")
    (command,) = only.commands
    assert [(name, expand_text(word, VARIABLES)) for name, word in command.assignments] == [
        ("A", "1"),
        ("B", "x yword"),
    ]
    assert [word.literal() for word in command.words] == ["c", "D=2", "A="]


def test_redirections_stand_anywhere() -> None:
    ((only, _),) = parse("< in c > out x 2>>log 2>&1")
    (command,) = only.commands
    assert [word.literal() for word in command.words] == ["c", "x"]
    assert [(r.operator, r.target and r.target.literal()) for r in command.redirections] == [
        ("<", "in"),
        (">", "out"),
        ("2>>", "log"),
        ("2>&1", None),
    ]


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ('cat <<END\nx $WORD \\$WORD "y"\nEND\n', 'x word $WORD "y"\n'),
        ("cat <<'END'\nx $WORD \\\nEND\n", "x $WORD \\\n"),
        ("cat <<-END\n\t\tx\n\tEND\n", "x\n"),
        ("cat <<END\nEND", ""),
        ("cat <<END | wc\nx\nEND\n", "x\n"),
    ],
)
def test_here_documents(text: str, content: str) -> None:
    script = parse(text)
    target = script[0].first.commands[0].redirections[0].target
    assert target is not None
    assert expand_text(target, VARIABLES) == content


def test_two_here_documents_of_a_line_follow_in_its_order() -> None:
    first, second = parse("a <<X; b <<Y\n1\nX\n2\nY\n")
    for item, content in ((first, "1\n"), (second, "2\n")):
        target = item.first.commands[0].redirections[0].target
        assert target is not None and target.literal() == content


@pytest.mark.parametrize(
    "text", ["'a", '"a', "a \\", "a |", "a &&", "a ||\n", "cat <<END\nx\n", "cat <<END", "echo ${A"]
)
def test_what_a_further_line_can_complete_is_incomplete(text: str) -> None:
    with pytest.raises(Incomplete):
        parse(text)


@pytest.mark.parametrize(
    "text",
    ["a &", "a; ; b", "| a", "a ;; b", "(a)", "a > ; b", "a >", "$(a)", "`a`", "${a:-b}", "a 3>x",
     "f() { :; }", "&& a", "a | | b", "!", "a <> b", "echo $1"],
)  # fmt: skip
def test_what_is_no_script_is_said_in_one_line(text: str) -> None:
    with pytest.raises(SyntaxProblem) as caught:
        parse(text)
    assert not isinstance(caught.value, Incomplete)
    assert str(caught.value) and "\n" not in str(caught.value)


@given(st.text(alphabet="ab $'\"\\|&;<>2\n#{}?*[]=!(`-"))
def test_any_text_is_a_script_or_a_problem(text: str) -> None:
    try:
        script = parse(text)
    except SyntaxProblem:
        return
    for item in script:
        for pipeline in (item.first, *(pipeline for _, pipeline in item.rest)):
            for command in pipeline.commands:
                expand_words(command.words, VARIABLES, lambda path: NAMES)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ls -l | wc; echo x", ["ls", "wc", "echo"]),
        ("A=1 B=2 ls > f x", ["ls"]),
        ("> out ls 2>&1 -l && ! cat", ["ls", "cat"]),
        ("cat << E\ntext\nE\nls", ["cat", "ls"]),
    ],
)
def test_the_names_of_commands_are_known_while_they_are_typed(text: str, names: list[str]) -> None:
    tokens, problem = scan(text)
    assert problem is None
    found = [
        text[token.start : token.end]
        for place, token in enumerate(tokens)
        if token.word is not None and names_command(tokens, place)
    ]
    assert found == names


def test_what_is_typed_so_far_is_scanned_up_to_an_open_quote() -> None:
    tokens, problem = scan("echo a 'b c")
    assert [token.start for token in tokens] == [0, 5]
    assert isinstance(problem, Incomplete)
