"""Values of mount options, read as the kernel reads them, with its messages. Linux: fs/fs_parser.c.

Each function takes the context that the parameter is for, whose log a refusal is written to, and
raises EINVAL.
"""

from __future__ import annotations

import re
from typing import Final

from vfs.fs_context import VALUE_FLAG, VALUE_STRING, FilesystemContext, Parameter

_NUMBER = re.compile(r"0[xX](?P<hex>[0-9a-fA-F]+)|(?P<octal>0[0-7]*)|(?P<decimal>[1-9][0-9]*)|")
_U32_LIMIT: Final = 1 << 32
_NO_ID: Final = _U32_LIMIT - 1


def leading_number(text: str) -> tuple[int, str]:
    """A number in C's notation (0 if there is none), and what follows it."""
    match = _NUMBER.match(text)
    assert match is not None
    digits, base = match["hex"], 16
    if match["octal"] is not None:
        digits, base = match["octal"], 8
    elif match["decimal"] is not None:
        digits, base = match["decimal"], 10
    return (int(digits, base) if digits else 0), text[match.end() :]


def _kstrtouint(text: str, octal: bool) -> int | None:
    """Linux: ``kstrtouint``, which forgives a plus sign and a final newline; None if it fails."""
    digits = text.removeprefix("+").removesuffix("\n")
    if octal:
        value, rest = (int(digits, 8), "") if re.fullmatch("[0-7]+", digits) else (0, "?")
    else:
        value, rest = leading_number(digits)
        rest = rest if digits else "?"
    return None if rest or value >= _U32_LIMIT else value


def bad_value(context: FilesystemContext, parameter: Parameter) -> OSError:
    """Linux: ``fs_param_bad_value``: what to raise."""
    return context.invalfc(f"Bad value for '{parameter.key}'")


def parse_flag(context: FilesystemContext, parameter: Parameter) -> None:
    """A parameter that has no value. Linux: ``fsparam_flag``."""
    if parameter.kind != VALUE_FLAG:
        raise context.invalfc(f"Unexpected value for '{parameter.key}'")


def parse_string(context: FilesystemContext, parameter: Parameter) -> str:
    """A string that is not empty. Linux: ``fs_param_is_string``."""
    if parameter.kind != VALUE_STRING or not parameter.value:
        raise bad_value(context, parameter)
    assert isinstance(parameter.value, str)
    return parameter.value


def parse_u32(context: FilesystemContext, parameter: Parameter, *, octal: bool = False) -> int:
    """A number below 2^32, in C's notation or always octal. Linux: ``fs_param_is_u32``."""
    number = _kstrtouint(parse_string(context, parameter), octal)
    if number is None:
        raise bad_value(context, parameter)
    return number


def parse_id(context: FilesystemContext, parameter: Parameter) -> int:
    """A uid or gid. Linux: ``fs_param_is_uid``, which complains twice of what is no number."""
    try:
        number = parse_u32(context, parameter)
    except OSError:
        raise bad_value(context, parameter) from None
    if number == _NO_ID:
        raise context.invalfc(f"Invalid {parameter.key} '{parameter.value!s}'")
    return number


def parse_enum(context: FilesystemContext, parameter: Parameter, choices: tuple[str, ...]) -> str:
    """One of ``choices``. Linux: ``fs_param_is_enum``."""
    word = parse_string(context, parameter)
    if word not in choices:
        raise bad_value(context, parameter)
    return word
