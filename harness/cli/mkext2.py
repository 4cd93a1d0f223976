"""`dentry mkext2`: an ext2 image of a directory or of a tar archive."""

from __future__ import annotations

import argparse
import os
import sys
import uuid
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Final

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

from fsimpl.ext2.builder import (
    BuildOptions,
    HostSource,
    ImageError,
    TarSource,
    build,
    write_image,
)
from fsimpl.passthrough.idmap import IdTable, parse_extents
from harness.cli.options import add_logging, configure_logging, one_line, parse_size, terminable
from harness.errors import UsageError

EXIT_CHANGED: Final = 1
_ID_MAX: Final = (1 << 32) - 2
_SHOWN: Final = 10
_EPILOG: Final = """\
Sizes take k, m, g or t. MAP is a list of 'INSIDE OUTSIDE COUNT', separated by commas: ids of the
source from OUTSIDE on are those from INSIDE on in the image; the rest are --uid or --gid, which
alone own everything (with a map and without them: 65534).
Exit status: 0 an image; 1 an image that has zeros for files that changed meanwhile; 2 none.
"""

Report = Callable[[str, int, int], None]


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "mkext2",
        help="make an ext2 image of a directory",
        description="Make an ext2 image of the directory SOURCE, or with --tar of a tar archive. "
        "IMAGE appears, or is replaced, when it is complete. By default it is as small as its "
        "content allows.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("image", metavar="IMAGE")
    parser.add_argument("--tar", action="store_true", help="SOURCE is a tar archive")
    parser.add_argument("--size", metavar="SIZE", help="of the image, with room to write in")
    parser.add_argument("--label", default="", help="at most 16 bytes")
    parser.add_argument(
        "--uuid", help="given, the same tree has the same bytes (default: a random one)"
    )
    parser.add_argument("--blocks-per-group", type=int, metavar="N", help="256 to 32768, by 8")
    parser.add_argument("--inodes-per-group", type=int, metavar="N", help="1 to 32768")
    parser.add_argument("--uidmap", metavar="MAP", help="which user is which; see below")
    parser.add_argument("--gidmap", metavar="MAP", help="which group is which")
    parser.add_argument("--uid", type=int, metavar="N", help="who owns what the map does not name")
    parser.add_argument("--gid", type=int, metavar="N", help="and its group")
    parser.add_argument("--htree", action="store_true", help="index directories (for ext4 readers)")
    parser.add_argument(
        "--one-file-system", action="store_true", help="leave what is mounted in SOURCE empty"
    )
    add_logging(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make the image."""
    configure_logging(arguments.log_level)
    options = _options(arguments)
    try:
        with terminable(), _reports() as report:
            if arguments.tar:
                source: HostSource | TarSource = TarSource(arguments.source)
            else:
                source = HostSource(
                    arguments.source, one_file_system=arguments.one_file_system, appended=True
                )
            with build(source, options, report) as plan:
                write_image(plan, arguments.image, report)
                changed = [file.name for file in plan.changed]
    except ImageError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        name = arguments.image if error.filename is None else os.fsdecode(error.filename)
        raise UsageError(f"{name}: {error.strerror}") from None
    except KeyboardInterrupt:
        raise UsageError("interrupted: there is no image") from None
    for name in changed[:_SHOWN]:
        text = one_line(os.fsdecode(name))
        print(f"dentry: {text}: it changed meanwhile: zeros instead", file=sys.stderr)
    if len(changed) > _SHOWN:
        print(f"dentry: and {len(changed) - _SHOWN} files more", file=sys.stderr)
    return EXIT_CHANGED if changed else 0


def _options(arguments: argparse.Namespace) -> BuildOptions:
    size = None if arguments.size is None else parse_size(arguments.size)
    for name in ("uid", "gid"):
        number = getattr(arguments, name)
        if number is not None and not 0 <= number <= _ID_MAX:
            raise UsageError(f"--{name} {number}: an id is 0 to {_ID_MAX}")
    try:
        identity = uuid.uuid4() if arguments.uuid is None else uuid.UUID(arguments.uuid)
    except ValueError:
        raise UsageError(f"--uuid '{arguments.uuid}': no UUID") from None
    return BuildOptions(
        size=size,
        blocks_per_group=arguments.blocks_per_group,
        inodes_per_group=arguments.inodes_per_group,
        label=os.fsencode(arguments.label),
        uuid=identity,
        uids=_table("--uidmap", arguments.uidmap),
        gids=_table("--gidmap", arguments.gidmap),
        uid=arguments.uid,
        gid=arguments.gid,
        htree=arguments.htree,
    )


def _table(option: str, text: str | None) -> IdTable | None:
    if text is None:
        return None
    table = IdTable(total=True)
    try:
        parse_extents(text, table)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None
    return table


@contextmanager
def _reports() -> Generator[Report]:
    """Where progress goes: to a bar on a terminal, nowhere otherwise."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda what, done, total: None
        return
    with Progress(
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True),
        TimeRemainingColumn(), console=console, transient=True,
    ) as progress:  # fmt: skip
        writing = progress.add_task("0 files", total=None)

        def report(what: str, done: int, total: int) -> None:
            if what == "scan":
                progress.update(writing, description=f"{done} files")
            else:
                progress.update(writing, completed=done, total=total)

        yield report
