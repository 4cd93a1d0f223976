"""The initramfs, unpacked again."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.guest.agent import APPLETS, INIT, launcher
from harness.guest.errors import GuestUnavailable
from harness.guest.initramfs import build_initramfs
from harness.guest.kernel import Kernel

BUSYBOX = shutil.which("busybox")
needs_busybox = pytest.mark.skipif(BUSYBOX is None, reason="no busybox here")


def unpack(archive: bytes, directory: Path) -> Path:
    subprocess.run(
        ["busybox", "cpio", "-idm"], input=archive, cwd=directory, check=True, capture_output=True
    )
    return directory


def kernel_with_modules(root: Path) -> Kernel:
    (root / "fuse.ko").write_bytes(b"fuse")
    (root / "virtiofs.ko").write_bytes(b"virtiofs")
    (root / "modules.dep").write_text("fuse.ko:\nvirtiofs.ko: fuse.ko\n")
    return Kernel(root / "vmlinuz", "6.1.0", root)


@needs_busybox
def test_it_holds_init_busybox_and_the_modules_in_order(tmp_path: Path) -> None:
    modules, tree = tmp_path / "modules", tmp_path / "tree"
    modules.mkdir()
    tree.mkdir()
    kernel = kernel_with_modules(modules)
    archive = build_initramfs(kernel, "a tag", options=("ro", "noatime"), modules=("virtiofs",))
    unpack(archive, tree)
    assert (tree / "etc/modules").read_text() == "fuse.ko\nvirtiofs.ko\n"
    assert (tree / "lib/fuse.ko").read_bytes() == b"fuse"
    assert (tree / "etc/tag").read_text() == "a tag"
    assert (tree / "etc/options").read_text() == "ro,noatime"
    assert (tree / "bin/sh").resolve() == tree / "bin/busybox"
    assert (tree / "init").stat().st_mode & 0o111
    if os.geteuid() == 0:  # nobody else can unpack a device node
        assert (tree / "dev/console").is_char_device()


@needs_busybox
def test_it_holds_the_files_it_is_given_with_their_modes(tmp_path: Path) -> None:
    tree, script = tmp_path / "tree", tmp_path / "script"
    tree.mkdir()
    script.write_text("text")
    script.chmod(0o751)
    files = {"usr/local/bin/script": script, "lib/other": script}
    unpack(build_initramfs(Kernel(tmp_path, "6.1.0", None), "tag", files=files), tree)
    for name in files:
        assert (tree / name).read_text() == "text"
        assert (tree / name).stat().st_mode & 0o777 == 0o751
    with pytest.raises(GuestUnavailable, match="missing"):
        build_initramfs(Kernel(tmp_path, "6.1.0", None), "tag", files={"a": tmp_path / "missing"})


@needs_busybox
def test_busybox_has_every_applet_that_init_uses() -> None:
    listed = subprocess.run(["busybox", "--list"], capture_output=True, check=True, text=True)
    assert set(APPLETS) <= set(listed.stdout.split())


@needs_busybox
def test_init_is_a_script_that_busybox_can_parse() -> None:
    subprocess.run(["busybox", "sh", "-n", "-c", INIT], check=True)


def test_a_missing_busybox_names_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name, path=None: real(name, path=str(tmp_path)))
    with pytest.raises(GuestUnavailable, match="busybox-static"):
        build_initramfs(Kernel(tmp_path, "6.1.0", None), "tag")


def test_a_dynamic_busybox_is_refused(tmp_path: Path) -> None:
    true = shutil.which("true")
    assert true is not None
    with pytest.raises(GuestUnavailable, match="busybox-static"):
        build_initramfs(Kernel(tmp_path, "6.1.0", None), "tag", busybox=Path(true))


EVERY_BYTE = bytes(range(1, 256))


@needs_busybox
def test_a_launcher_passes_every_byte_of_arguments_and_environment() -> None:
    script = launcher(
        [b"/bin/sh", b"-c", b'printf %s "$1$VALUE"', b"sh", EVERY_BYTE],
        {b"VALUE": EVERY_BYTE},
        b"/",
    )
    result = subprocess.run(["busybox", "sh", "-c", script], capture_output=True, check=True)
    assert result.stdout == EVERY_BYTE * 2


@needs_busybox
def test_a_launcher_starts_in_a_directory_of_any_name(tmp_path: Path) -> None:
    directory = bytes(tmp_path) + b"/" + EVERY_BYTE.replace(b"/", b"")
    Path(directory.decode("utf-8", "surrogateescape")).mkdir()
    script = launcher([b"/bin/pwd"], {}, directory)
    result = subprocess.run(["busybox", "sh", "-c", script], capture_output=True, check=True)
    assert result.stdout == directory + b"\n"


@needs_busybox
def test_a_launcher_takes_a_bare_name_from_path_and_not_from_busybox(tmp_path: Path) -> None:
    (tmp_path / "ls").write_text('#!/bin/sh\necho "not the applet, but $0"\n')
    (tmp_path / "ls").chmod(0o755)
    script = launcher([b"ls"], {b"PATH": b"/nowhere:" + bytes(tmp_path)}, b"/")
    result = subprocess.run(["busybox", "sh", "-c", script], capture_output=True, check=True)
    assert result.stdout.startswith(b"not the applet, but ")


@needs_busybox
@pytest.mark.parametrize("name", [b"no-such-program", b"/no/such/program"])
def test_a_launcher_answers_127_for_a_program_that_is_missing(name: bytes) -> None:
    script = launcher([name], {b"PATH": b"/usr/bin"}, b"/")
    result = subprocess.run(["busybox", "sh", "-c", script], capture_output=True, check=False)
    assert result.returncode == 127
    assert re.search(name + b".*not found", result.stderr)


@pytest.mark.parametrize(
    ("command", "environment"),
    [([], {}), ([b""], {}), ([b"a\0b"], {}), ([b"a"], {b"1X": b""}), ([b"a"], {b"X;Y": b""})],
)
def test_a_launcher_refuses_what_no_process_can_be_given(
    command: list[bytes], environment: dict[bytes, bytes]
) -> None:
    with pytest.raises(GuestUnavailable):
        launcher(command, environment, b"/")
