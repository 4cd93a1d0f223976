"""Mount options. Linux: ``ext4_param_specs``, of which ext2's are what an ext2 mount takes."""

from __future__ import annotations

from typing import Final

from vfs.fs_context import FilesystemContext, Parameter
from vfs.fs_parser import parse_enum, parse_flag, parse_id, parse_u32

ERRORS: Final = ("continue", "remount-ro", "panic")
"""By ``s_errors``, from 1."""

_SHOWN_FLAGS: Final = {
    "minixdf": ("minixdf", True),
    "bsddf": ("minixdf", False),
    "grpid": ("grpid", True),
    "bsdgroups": ("grpid", True),
    "nogrpid": ("grpid", False),
    "sysvgroups": ("grpid", False),
    "nouid32": ("nouid32", True),
    "debug": ("debug", True),
    "noload": ("noload", True),
    "norecovery": ("noload", True),
    "loop": ("loop", True),
}
_WITHOUT_EFFECT: Final = ("user_xattr", "acl", "nocheck", "oldalloc", "orlov", "nobh")


class Ext2Options:
    """A context's ``fs_private``. ``sb`` is where the superblock is, in KiB; None: at 1. What is
    None was not given, and is as the superblock says.
    """

    __slots__ = (
        "debug", "errors", "grpid", "loop", "minixdf", "noload", "nouid32", "resgid", "resuid", "sb"
    )  # fmt: skip

    def __init__(self) -> None:
        self.debug = False
        self.errors: str | None = None
        self.grpid = False
        self.loop = False
        self.minixdf = False
        self.noload = False
        self.nouid32 = False
        self.resgid: int | None = None
        self.resuid: int | None = None
        self.sb: int | None = None

    @staticmethod
    def of(context: FilesystemContext) -> Ext2Options:
        """The options in ``context``."""
        assert isinstance(context.fs_private, Ext2Options)
        return context.fs_private

    def parse(self, context: FilesystemContext, parameter: Parameter) -> bool:
        """Linux: ``ext4_parse_param``. Raises: EINVAL for a bad value."""
        key = parameter.key
        if key in _SHOWN_FLAGS:
            parse_flag(context, parameter)
            field, value = _SHOWN_FLAGS[key]
            setattr(self, field, value)
        elif key in _WITHOUT_EFFECT:
            parse_flag(context, parameter)
        elif key == "check":
            parse_enum(context, parameter, ("none",))
        elif key == "sb":
            self.sb = parse_u32(context, parameter)
        elif key == "errors":
            self.errors = parse_enum(context, parameter, ERRORS)
        elif key == "resuid":
            self.resuid = parse_id(context, parameter)
        elif key == "resgid":
            self.resgid = parse_id(context, parameter)
        else:
            return False
        return True

    def show(self, default_errors: str) -> str:
        """Linux: ``_ext4_show_options``, in its order; ``loop`` last."""
        shown = [] if self.sb in (None, 1) else [f"sb={self.sb}"]
        shown += [
            word for word in ("minixdf", "grpid", "nouid32", "debug", "noload")
            if getattr(self, word)
        ]  # fmt: skip
        if self.resuid:
            shown.append(f"resuid={self.resuid}")
        if self.resgid:
            shown.append(f"resgid={self.resgid}")
        if self.errors not in (None, default_errors):
            shown.append(f"errors={self.errors}")
        if self.loop:
            shown.append("loop")
        return "".join("," + word for word in shown)
