"""`--pmem-ext2` of `dentry guest`: directories as images in the guest's persistent memory."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final, NamedTuple, Self

from fsimpl.ext2.builder import BLOCK_SIZE, BuildOptions, ImageError
from harness.cli.options import parse_size
from harness.errors import UsageError
from harness.guest.qemu import Pmem
from harness.mountspec import split_fields
from harness.pmem import BuilderDied, PmemImage, launch
from harness.sandbox import SandboxError

HELP: Final = (
    "DIR as an ext2 image in the guest's persistent memory, read-only, at PATH (default: "
    "/mnt/pmemN); with size, an upper limit, the guest boots while the image is built; dax: "
    "without the guest's page cache. May be given several times"
)


class PmemSpec(NamedTuple):
    """One `--pmem-ext2`, with `text` as the user wrote it. `size` in bytes, None: as needed."""

    text: str
    directory: str
    destination: str
    size: int | None
    label: bytes
    dax: bool

    def error(self, reason: str) -> UsageError:
        return _error(self.text, reason)


def parse_pmem_specs(texts: Sequence[str]) -> list[PmemSpec]:
    """Parse the words of all `--pmem-ext2`. Raises: UsageError, for the first malformed one."""
    specs: list[PmemSpec] = []
    for number, text in enumerate(texts):
        spec = _parse(text, f"/mnt/pmem{number}")
        if any(spec.destination == other.destination for other in specs):
            raise spec.error(f"dst={spec.destination} is taken by another one")
        specs.append(spec)
    return specs


def _parse(text: str, destination: str) -> PmemSpec:
    try:
        directory, *fields = split_fields(text) or [""]
    except ValueError as error:
        raise _error(text, str(error)) from None
    if not directory:
        raise _error(text, "begin with a directory")
    given: dict[str, str] = {}
    for field in fields:
        key, equals, value = field.partition("=")
        if key not in ("dst", "size", "label", "dax") or bool(equals) == (key == "dax"):
            raise _error(text, f"'{field}': write dst=PATH, size=SIZE, label=NAME or dax")
        if key in given:
            raise _error(text, f"'{key}' is given twice")
        given[key] = value
    place = given.get("dst", destination)
    if not place.startswith("/") or ".." in place.split("/") or "\n" in place:
        raise _error(text, f"dst={place}: an absolute path in the guest, without '..'")
    place = posixpath.normpath("/" + place.lstrip("/"))
    if place == "/":
        raise _error(text, "dst=/ is the guest's root already")
    size = parse_size(given["size"]) if "size" in given else None
    if size is not None and size < BLOCK_SIZE:
        raise _error(text, f"size={given['size']} is less than a block of {BLOCK_SIZE} bytes")
    return PmemSpec(
        text, directory, place, size, os.fsencode(given.get("label", "")), "dax" in given
    )


def _error(text: str, reason: str) -> UsageError:
    return UsageError(f"--pmem-ext2 {text or repr(text)}: {reason}")


class PmemImages:
    """The images of `specs`, which begin to be built at once; to be used in a `with`.

    To be made while this process has one thread.
    """

    def __init__(self, specs: Sequence[PmemSpec]) -> None:
        """Raises: UsageError, HostMountError."""
        self._resources = ExitStack()
        self._images: list[tuple[PmemSpec, PmemImage]] = []
        try:
            for spec in specs:
                options = BuildOptions(size=spec.size, label=spec.label)
                try:
                    image = launch(spec.directory, options, as_file=True)
                except OSError as error:
                    raise spec.error(f"{spec.directory}: {error.strerror}") from None
                self._images.append((spec, self._resources.enter_context(image)))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the builders. What maps their images must have ended before."""
        self._resources.close()

    def devices(self) -> list[Pmem]:
        """What the guest is to have; waits for images whose size is not known.

        The descriptors are ours. Raises: UsageError.
        """
        found = []
        for spec, image in self._images:
            try:
                fd, size = image.open(at_once=True)
            except (ImageError, OSError, SandboxError, BuilderDied) as error:
                raise _explained(spec, error) from None
            self._resources.callback(os.close, fd)
            found.append(Pmem(fd, size, spec.destination, ("dax",) if spec.dax else ()))
        return found

    def check(self) -> None:
        """Raises: UsageError, if one of them failed meanwhile."""
        for spec, image in self._images:
            try:
                image.poll()
            except (ImageError, OSError, SandboxError, BuilderDied) as error:
                raise _explained(spec, error) from None


def _explained(spec: PmemSpec, error: Exception) -> UsageError:
    if isinstance(error, OSError):
        name = "" if error.filename is None else f"{os.fsdecode(error.filename)}: "
        return spec.error(f"{name}{error.strerror}")
    return spec.error(str(error))
