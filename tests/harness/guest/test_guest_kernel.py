"""Finding kernels and resolving their modules, in trees made for it."""

import gzip
import lzma
import shutil
import struct
import subprocess
from pathlib import Path

import pytest

from harness.guest.errors import GuestUnavailable
from harness.guest.kernel import (
    Kernel,
    find_kernel,
    image_release,
    module_files,
    module_name,
    read_module,
)


def bzimage(release: str) -> bytes:
    image = bytearray(4096)
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x20E, 0x400)
    version = f"{release} (someone@somewhere) #1 SMP".encode() + b"\0"
    image[0x600 : 0x600 + len(version)] = version
    return bytes(image)


def install(
    root: Path,
    release: str,
    *,
    suffix: str = "",
    builtin: tuple[str, ...] = (),
    virtiofs: bool = True,
) -> Path:
    """Lay a kernel out as its package does, and return its image."""
    image = root / "boot" / f"vmlinuz-{release}"
    image.parent.mkdir(parents=True, exist_ok=True)
    image.write_bytes(bzimage(release))
    modules = root / "lib" / "modules" / release
    depends: dict[str, list[str]] = {
        "v/virtio_ring.ko": [],
        "v/virtio.ko": ["v/virtio_ring.ko"],
        "v/virtio_pci.ko": ["v/virtio.ko", "v/virtio_ring.ko"],
        "c/virtio-console.ko": ["v/virtio.ko", "v/virtio_ring.ko"],
        "f/fuse.ko": [],
    }
    if virtiofs:
        depends["f/virtiofs.ko"] = ["v/virtio.ko", "v/virtio_ring.ko", "f/fuse.ko"]
    lines = []
    for path, needs in depends.items():
        if module_name(path) in builtin:
            continue
        file = modules / f"{path}{suffix}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(b"")
        loaded = [f"{need}{suffix}" for need in needs if module_name(need) not in builtin]
        lines.append(f"{path}{suffix}: {' '.join(loaded)}".rstrip())
    (modules / "modules.dep").write_text("\n".join(lines) + "\n")
    (modules / "modules.builtin").write_text("".join(f"kernel/{name}.ko\n" for name in builtin))
    return image


def find(root: Path, image: Path | None = None) -> Kernel:
    return find_kernel(image, boot=root / "boot", modules=root / "lib" / "modules")


def test_the_newest_kernel_is_found_by_number_not_by_spelling(tmp_path: Path) -> None:
    for release in ("6.1.0-9-amd64", "6.10.3-amd64", "6.9.12-amd64"):
        install(tmp_path, release)
    assert find(tmp_path).release == "6.10.3-amd64"


def test_a_newer_kernel_without_virtiofs_is_passed_over(tmp_path: Path) -> None:
    install(tmp_path, "6.1.0-9-amd64")
    install(tmp_path, "6.12.0-amd64", virtiofs=False)
    assert find(tmp_path).release == "6.1.0-9-amd64"


def test_no_kernel_names_the_debian_package_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(GuestUnavailable, match="linux-image-cloud-amd64") as caught:
        find(tmp_path)
    assert "\n" not in str(caught.value)


def test_an_explicit_kernel_is_known_by_its_header_whatever_its_name(tmp_path: Path) -> None:
    image = install(tmp_path, "6.1.0-9-amd64").rename(tmp_path / "bzImage")
    kernel = find(tmp_path, image)
    assert (kernel.release, kernel.modules) == (
        "6.1.0-9-amd64",
        tmp_path / "lib/modules/6.1.0-9-amd64",
    )


def test_an_unpacked_package_has_its_modules_beside_it(tmp_path: Path) -> None:
    image = install(tmp_path / "unpacked", "6.5.0")
    kernel = find_kernel(image, modules=tmp_path / "nothing")
    assert kernel.modules == tmp_path / "unpacked/lib/modules/6.5.0"


def test_an_explicit_kernel_without_modules_is_taken_to_have_all_built_in(tmp_path: Path) -> None:
    image = tmp_path / "bzImage"
    image.write_bytes(bzimage("6.99.0"))
    kernel = find(tmp_path, image)
    assert kernel.modules is None
    assert module_files(kernel) == []


@pytest.mark.parametrize("content", [None, b"#!/bin/sh\n"])
def test_what_is_no_kernel_is_refused_by_name(tmp_path: Path, content: bytes | None) -> None:
    image = tmp_path / "image"
    if content is not None:
        image.write_bytes(content)
    with pytest.raises(GuestUnavailable, match=str(image)):
        find(tmp_path, image)


def test_modules_come_after_all_they_depend_on_and_once(tmp_path: Path) -> None:
    image = install(tmp_path, "6.1.0")
    names = [module_name(str(path)) for path in module_files(find(tmp_path, image))]
    assert names == ["fuse", "virtio_ring", "virtio", "virtiofs", "virtio_pci", "virtio_console"]


def test_built_in_modules_need_no_file(tmp_path: Path) -> None:
    image = install(tmp_path, "6.1.0", builtin=("virtio", "virtio_ring", "virtio_pci"))
    names = [module_name(str(path)) for path in module_files(find(tmp_path, image))]
    assert names == ["fuse", "virtiofs", "virtio_console"]


def test_compressed_modules_are_found(tmp_path: Path) -> None:
    image = install(tmp_path, "6.1.0", suffix=".xz")
    assert {path.suffix for path in module_files(find(tmp_path, image))} == {".xz"}


def test_a_missing_module_is_named(tmp_path: Path) -> None:
    image = install(tmp_path, "6.1.0", virtiofs=False)
    with pytest.raises(GuestUnavailable, match="no module virtiofs"):
        module_files(find(tmp_path, image))


@pytest.mark.parametrize(
    ("suffix", "compress"), [("", bytes), (".gz", gzip.compress), (".xz", lzma.compress)]
)
def test_modules_are_unpacked(tmp_path: Path, suffix: str, compress: type[bytes]) -> None:
    path = tmp_path / f"fuse.ko{suffix}"
    path.write_bytes(compress(b"\x7fELF module"))
    assert read_module(path) == b"\x7fELF module"


@pytest.mark.skipif(not shutil.which("zstd"), reason="no zstd here")
def test_zstd_modules_are_unpacked_by_zstd(tmp_path: Path) -> None:
    path = tmp_path / "fuse.ko.zst"
    packed = subprocess.run(["zstd", "-qc"], input=b"module", capture_output=True, check=True)
    path.write_bytes(packed.stdout)
    assert read_module(path) == b"module"


def test_zstd_modules_without_zstd_name_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(GuestUnavailable, match="Debian package zstd"):
        read_module(tmp_path / "fuse.ko.zst")


@pytest.mark.parametrize("suffix", [".gz", ".xz"])
def test_a_corrupt_module_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"fuse.ko{suffix}"
    path.write_bytes(b"not compressed at all")
    with pytest.raises(GuestUnavailable, match=path.name):
        read_module(path)


def test_a_header_without_a_version_string_has_no_release(tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytearray(0x202) + b"HdrS" + bytes(100))
    assert image_release(image) is None
