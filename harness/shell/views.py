"""How data that was looked up is shown: as lines of styled pieces, which are coloured by rich on a
terminal and plain text elsewhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from harness.shell.command import Invocation

_GROUPS: Final = ("green", "cyan", "magenta", "yellow", "blue", "red")
"""Colours of peer groups, by their numbers."""

Row = dict[str, Any]


class Piece(NamedTuple):
    """A text and its style in rich's words."""

    text: str
    style: str = ""


Line = list[Piece]


def show(invocation: Invocation, lines: Iterable[Line]) -> None:
    """Write lines to the standard output."""
    if not invocation.stdout.is_terminal:
        for line in lines:
            invocation.print("".join(piece.text for piece in line))
        return
    from rich.console import Console

    console = Console(force_terminal=True, width=terminal_width(), soft_wrap=True)
    with console.capture() as capture:
        print_lines(console, lines)
    invocation.print(capture.get(), end="")


def print_lines(console: Any, lines: Iterable[Line]) -> None:
    """Write lines to a rich console."""
    from rich.text import Text

    for line in lines:
        text = Text()
        for piece in line:
            text.append(*piece)
        console.print(text, highlight=False)


def terminal_width() -> int:
    """Columns of the terminal that is the standard output."""
    return shutil.get_terminal_size().columns


def show_json(invocation: Invocation, wanted: bool, data: Any) -> bool:
    """Write the data itself if that is `wanted`, which is returned."""
    if wanted:
        invocation.print(json.dumps(data, indent=2))
    return wanted


def shown(name: str) -> str:
    """A name as one line: what would break it, or is no text, as escapes."""
    return "".join(
        char if char.isprintable() else char.encode("utf-8", "surrogateescape").decode(
            "ascii", "backslashreplace"
        ) if ord(char) >= 0x80 else repr(char)[1:-1]
        for char in name
    )  # fmt: skip


def table_lines(
    rows: list[tuple[str, ...]], left: tuple[int, ...], gap: str = "  ", heading: bool = False
) -> Iterator[Line]:
    """Columns as wide as they must be, those in `left` at the left side; no blanks at ends. With
    `heading` the first row is one.
    """
    if not rows:
        return
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        cells = [
            text.ljust(width) if column in left else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield [Piece(gap.join(cells).rstrip(), "bold" if heading and not number else "")]


def columns(cells: list[Line], width: int) -> Iterator[Line]:
    """Cells in as few lines of `width` as they fit in, downwards as ls(1) has them."""
    from rich.cells import cell_len

    sizes = [sum(cell_len(piece.text) for piece in cell) + 2 for cell in cells]
    for height in range(1, len(cells) + 1):
        starts = range(0, len(cells), height)
        widths = [max(sizes[start : start + height]) for start in starts]
        if sum(widths) <= width + 2 or height == len(cells):
            break
    else:
        return
    for number in range(height):
        line: Line = []
        for start, wide in zip(starts, widths, strict=True):
            if start + number < len(cells):
                line += cells[start + number]
                line.append(Piece(" " * (wide - sizes[start + number] + 2)))
        yield line[:-1]


def records_lines(rows: list[Row], columns: tuple[str, ...]) -> Iterator[Line]:
    """Some fields of rows as a table; what is only numbers is at the right side."""
    if not rows:
        return
    cells = [tuple("-" if row[c] is None else shown(str(row[c])) for c in columns) for row in rows]
    left = tuple(
        column
        for column in range(len(columns))
        if not all(cell[column].isdecimal() or cell[column] == "-" for cell in cells)
    )
    heading = tuple(column.upper() for column in columns)
    yield from table_lines([heading, *cells], left, heading=True)


def pairs_lines(data: Row) -> Iterator[Line]:
    """A field a line."""
    width = max(map(len, data))
    for name, value in data.items():
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        yield [Piece(f"{name:{width}}", "bold"), Piece(f"  {shown(text)}")]


def tree_of(rows: list[Row]) -> Iterator[tuple[str, Row]]:
    """Rows with the lines of a tree before them."""
    ids = {row["id"] for row in rows}
    below: dict[int | None, list[Row]] = {}
    for row in rows:
        above = row["parent"] if row["parent"] in ids else None
        below.setdefault(above, []).append(row)
    pending = [("", "", row) for row in reversed(below.get(None, []))]
    while pending:
        prefix, further, row = pending.pop()
        yield prefix, row
        children = below.get(row["id"], [])
        for number, child in reversed(list(enumerate(children, 1))):
            last = number == len(children)
            lines = further + ("└─" if last else "├─")
            pending.append((lines, further + ("  " if last else "│ "), child))


# Mounts


def place_of(row: Row) -> str:
    """Where a mount is, as the task would call it."""
    return "(out of reach)" if row["mountpoint"] is None else shown(row["mountpoint"])


def group_style(group: int) -> str:
    """The colour of a peer group."""
    return _GROUPS[group % len(_GROUPS)]


def mounts_lines(rows: list[Row]) -> Iterator[Line]:
    """The tree of mounts: each peer group in its colour, an arrow from the master, hidden ones
    dim.
    """
    for prefix, row in tree_of(rows):
        line = [Piece(prefix, "dim"), Piece(place_of(row), "bold")]
        line.append(Piece(f"  {row['type']} #{row['id']}"))
        if row["shows"] != "/":
            line.append(Piece(f"  shows {shown(row['shows'])}"))
        if row["flags"]:
            line.append(Piece("  " + ",".join(row["flags"]), "dim"))
        if row["group"]:
            peers = f" with {' '.join(f'#{p}' for p in row['peers'])}" if row["peers"] else ""
            line.append(Piece(f"  shared:{row['group']}{peers}", group_style(row["group"])))
        if row["master"]:
            line.append(Piece(f"  <- master:{row['master']}", group_style(row["master"])))
        line += [Piece(f"  {word}", "red") for word in ("unbindable", "locked") if row[word]]
        if row["hidden"]:
            line = [Piece(piece.text, "dim") for piece in [*line, Piece("  hidden")]]
        yield line


def propagate_lines(rows: list[Row]) -> Iterator[Line]:
    """Where a mount would appear, and why."""
    for row in rows:
        where = "" if row["own"] else f" in namespace {row['namespace']}"
        place = "(out of reach)" if row["path"] is None else shown(row["path"])
        yield [
            Piece(place, "bold"),
            Piece(f"{where}: {row['relation']}, mount {row['mount']}; "),
            Piece(row["copy"], "" if row["copy"] == "private" else "green"),
        ]


# Dentries


def dentries_lines(found: Row) -> Iterator[Line]:
    """The cache of names as a tree."""
    yield [Piece(shown(found["path"]), "bold"), *_dentry(found), Piece(f"  ({found['cache']})")]
    yield from _below(found, "")


def _below(row: Row, indent: str) -> Iterator[Line]:
    for number, child in enumerate(row["children"], 1):
        last = number == len(row["children"])
        name = Piece(shown(child["name"]), _name_style(child))
        yield [Piece(indent + ("└─" if last else "├─"), "dim"), name, *_dentry(child)]
        yield from _below(child, indent + ("  " if last else "│ "))


def _name_style(row: Row) -> str:
    if row["inode"] is None:
        return "red"
    return "bold blue" if row["type"] == "directory" else ""


def _dentry(row: Row) -> Line:
    negative = row["inode"] is None
    line = [Piece("  negative", "red") if negative else Piece(f"  {row['type']} {row['inode']}")]
    line.append(
        Piece("  unused", "dim") if row["unused"] else Piece(f"  refs {row['references']}", "cyan")
    )
    line += [Piece("  pinned", "dim")] if row["pinned"] else []
    line += [Piece(f"  mounted {row['mounted']}", "magenta")] if row["mounted"] else []
    line += [] if row["hashed"] else [Piece("  unhashed", "yellow")]
    line += [Piece(f"  {row['left_out']} not shown", "dim")] if row["left_out"] else []
    return line


# What holds, what decides, what is data


def refs_lines(rows: list[Row]) -> Iterator[Line]:
    """Who holds what."""
    for row in rows:
        yield [Piece(row["object"], "bold"), Piece(f": {row['references']}", "cyan")]
        for kind, entries in (("held by", row["holders"]), ("taken at", row["lines"])):
            for entry in entries:
                yield [Piece(f"    {kind} ", "dim"), Piece(entry)]


def extents_lines(rows: list[Row]) -> Iterator[Line]:
    """A picture of data and holes."""
    size = rows[-1]["end"] if rows else 0
    yield [Piece(f"{size} bytes")]
    for row in rows:
        data = row["kind"] == "data"
        width = max(1, round(40 * (row["end"] - row["start"]) / size))
        yield [
            Piece(f"{row['start']:>12} {row['end']:>12}  {row['kind']:4}  "),
            Piece(("█" if data else "·") * width, "green" if data else "dim"),
        ]


def explain_lines(found: Row) -> Iterator[Line]:
    """A walk step by step, and how it ends."""
    for step in found["steps"]:
        target = f" -> {shown(step['target'])}" if "target" in step else ""
        granted = step.get("granted")
        style = "dim" if granted is None else "green" if granted else "red"
        yield [
            Piece(f"{step['kind']:10} ", "cyan"),
            Piece(f"{shown(step['name'])}{target}", "bold"),
            Piece(f"  [{step['text']}]", style),
        ]
    if found["errno"] is None:
        yield [Piece("it succeeds", "green")]
        return
    yield [Piece(f"it fails with {found['name']}: {found['message']}", "red")]
    if found["advice"]:
        yield [Piece(f"to change that: {found['advice']}")]
