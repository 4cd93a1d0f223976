"""Builds the tree that a daemon serves, from the words of `--mount`."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Sequence
from errno import EACCES, EINVAL, EPERM, EROFS
from typing import Final, Self

from devtmpfs import install
from fsimpl.ext2 import Ext2Type
from fsimpl.passthrough import PassthroughType
from fsimpl.proc import ProcType
from fsimpl.tmpfs import TmpfsType
from harness.errors import UsageError
from harness.mountspec import MountSpec
from vfs import abi
from vfs.credentials import Credentials
from vfs.fs_context import LOG_LENGTH, FilesystemContext
from vfs.mount import VirtualDentry
from vfs.virtual_filesystem import VirtualFilesystem

DEFAULT_ROOT: Final = MountSpec(
    "type=tmpfs,dst=/,mode=755", "tmpfs", "/", options=(("mode", "755"),)
)

_BIND: Final = "bind"
_NEEDS_SOURCE: Final = {
    _BIND: "an absolute path in the tree",
    "passthrough": "a host directory",
    "ext2": "an image on the host",
}


class Tree:
    """A mount namespace in a VirtualFilesystem of its own, as init would have set it up.

    `task` stands at its root and runs with all capabilities; `root` is that place, held;
    `devices` are the standard ones, of which kmsg can take our log. To be closed, by `with` or
    `close`, after everything that was taken from it.
    """

    def __init__(
        self, specs: Iterable[MountSpec], *, tracing: bool = False, links: int | None = None
    ) -> None:
        """Make the mounts of `specs` in their order; without one at `/`, a tmpfs is the root.

        Missing mount points are made, as directories of mode 755, except on the host behind a
        read-only passthrough. With `tracing` a leaked reference can be traced to its taker. `links`
        is a descriptor of /proc/self/fd, borrowed, for a process that can't reach it by name.

        Raises:
            UsageError: a spec that can't be mounted, and why.
        """
        ordered = _root_first(specs)
        self.vfs = VirtualFilesystem(tracing=tracing)
        self.vfs.register(TmpfsType())
        self.vfs.register(PassthroughType(links))
        self.vfs.register(ProcType())
        self.vfs.register(Ext2Type())
        self.devices = install(self.vfs)
        root = ordered[0]
        self._check(root)
        try:
            namespace = self.vfs.create_namespace(
                root.type, _source(root), _first_flags(root), _data(root)
            )
        except OSError as error:
            raise self._explained(root, error) from error
        with namespace:
            self.task = self.vfs.create_task(namespace)
        try:
            self._assemble(ordered)
        except BaseException:
            self.vfs.shutdown()
            raise
        with self.vfs.lock:
            top = self.task.fs.root
            self.root = VirtualDentry(top.mount, top.dentry).get()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Take it apart.

        Raises:
            InvariantViolation: somebody still holds a reference.
        """
        with self.vfs.lock:
            self.root.put()
        self.vfs.shutdown()

    def _assemble(self, specs: Sequence[MountSpec]) -> None:
        for spec in specs[1:]:
            self._check(spec)
            self._make_mountpoint(spec)
            try:
                if spec.type == _BIND:
                    flags = abi.MS_BIND | abi.MS_REC
                    self.task.mount(spec.source or "", spec.destination, None, flags)
                else:
                    source, flags = _source(spec), _first_flags(spec)
                    self.task.mount(source, spec.destination, spec.type, flags, _data(spec))
            except OSError as error:
                raise self._explained(spec, error) from error
        # Last, because a mount point below may have had to be made in it.
        for spec in specs:
            if spec.flags and (spec.flags != _first_flags(spec) or spec is specs[0]):
                flags = abi.MS_REMOUNT | abi.MS_BIND | spec.flags
                self.task.mount(None, spec.destination, None, flags)

    def _make_mountpoint(self, spec: MountSpec) -> None:
        path = ""
        for name in spec.destination.split("/")[1:]:
            path += "/" + name
            try:
                self.task.stat(path)
            except FileNotFoundError:
                try:
                    self.task.mkdir(path, 0o755)
                    self.task.chmod(path, 0o755)
                except OSError as error:
                    reason = (
                        "its filesystem is read-only" if error.errno == EROFS else error.strerror
                    )
                    raise spec.error(
                        f"there is no directory {path} and it can't be made: {reason}"
                    ) from error
            except OSError as error:
                raise spec.error(f"{path}: {error.strerror}") from error

    def _check(self, spec: MountSpec) -> None:
        names = sorted([_BIND, *self.vfs.filesystem_types])
        if spec.type not in names:
            raise spec.error(f"no type '{spec.type}': there are {', '.join(names)}")
        if spec.type in _NEEDS_SOURCE:
            if spec.source is None:
                raise spec.error(f"type={spec.type} needs src=, {_NEEDS_SOURCE[spec.type]}")
        elif spec.source is not None:
            raise spec.error(f"type={spec.type} has no src; a host directory is type=passthrough")
        if spec.type == _BIND:
            if spec.options:
                raise spec.error(f"type=bind has no option '{spec.options[0][0]}'")
            if not (spec.source or "").startswith("/"):
                raise spec.error(f"src={spec.source} is not absolute: it is a path in the tree")
        for key, value in spec.options:
            if "," in key or ("," in (value or "") and spec.type != "passthrough"):
                raise spec.error(f"'{key}': no option of {spec.type} has a comma")

    def _explained(self, spec: MountSpec, error: OSError) -> UsageError:
        if error.errno == EINVAL and spec.type != _BIND:
            kind = self.vfs.filesystem_type(spec.type)
            for key, value in spec.options:
                word = key if value is None else f"{key}={value}"
                with self.vfs.lock, FilesystemContext(self.vfs, kind, Credentials.root()) as alone:
                    try:
                        alone.parse_string(key, value)
                    except OSError:
                        return spec.error(f"'{key}': {spec.type} takes no {word} (see --help)")
        if spec.type == "ext2":
            return spec.error(f"{spec.source}: {self._why(spec) or error.strerror}")
        if spec.source is not None:
            hint = ": run as root" if error.errno in (EACCES, EPERM) else ""
            return spec.error(f"{spec.source}: {error.strerror}{hint}")
        return spec.error(error.strerror or str(error))

    def _why(self, spec: MountSpec) -> str:
        """What the filesystem says when it is mounted once more, "" if that is nothing."""
        kind = self.vfs.filesystem_type(spec.type)
        lock = self.vfs.lock if spec.destination == "/" else self.task.lock
        with lock, FilesystemContext(self.vfs, kind, Credentials.root()) as context:
            context.log = deque(maxlen=LOG_LENGTH)
            try:
                context.parse_string("source", _source(spec))
                context.parse_monolithic(_data(spec))
                context.get_tree().put()
            except OSError:
                pass
            words = [os.fsdecode(line).split(None, 1)[1].strip() for line in context.log]
        return "; ".join(word.removeprefix(f"{spec.type}: ") for word in words)


def _root_first(specs: Iterable[MountSpec]) -> list[MountSpec]:
    roots: list[MountSpec] = []
    others: list[MountSpec] = []
    seen: set[str] = set()
    for spec in specs:
        if spec.destination in seen:
            raise spec.error(f"dst={spec.destination} is taken by another --mount")
        seen.add(spec.destination)
        (roots if spec.destination == "/" else others).append(spec)
    if roots and roots[0].type == _BIND:
        raise roots[0].error("the root can't be a bind: there is no tree yet to take it from")
    return [*(roots or [DEFAULT_ROOT]), *others]


def _first_flags(spec: MountSpec) -> int:
    """Return the flags to mount with: all, but a filesystem of ours starts out writable."""
    if spec.type == _BIND:
        return 0
    return spec.flags if spec.type == "passthrough" else spec.flags & ~abi.MS_RDONLY


def _source(spec: MountSpec) -> bytes:
    if spec.type not in _NEEDS_SOURCE:
        return spec.type.encode()
    return os.fsencode(os.path.abspath(spec.source or ""))


def _data(spec: MountSpec) -> str:
    words = [key if value is None else f"{key}={value}" for key, value in spec.options]
    # The one type whose values may have commas.
    return ",".join(word.replace(",", "\\,") for word in words)
