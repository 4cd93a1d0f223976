"""Whether KVM works, and how the answer is remembered."""

import json
import shutil
from pathlib import Path

import pytest

from harness.guest import kvm

QEMU = shutil.which("qemu-system-x86_64")
needs_qemu = pytest.mark.skipif(QEMU is None, reason="no QEMU here")


def fake_qemu(directory: Path, status: int) -> Path:
    """A program that ends like QEMU under the probe, and counts its runs."""
    program = directory / "qemu"
    program.write_text(f"#!/bin/sh\necho >>{directory}/runs\nexit {status}\n")
    program.chmod(0o755)
    return program


def runs(directory: Path) -> int:
    path = directory / "runs"
    return path.read_text().count("\n") if path.exists() else 0


@needs_qemu
@pytest.mark.guest
def test_the_boot_sector_reports_back_where_guests_run() -> None:
    assert QEMU is not None
    assert kvm.boots_sector(Path(QEMU), kvm.TCG, timeout=60)


@pytest.mark.parametrize(("status", "works"), [(99, True), (0, False), (1, False), (134, False)])
def test_only_the_sectors_own_status_counts(tmp_path: Path, status: int, works: bool) -> None:
    qemu = fake_qemu(tmp_path, status)
    device = tmp_path / "kvm"
    device.touch()
    assert kvm.kvm_works(qemu, device=device, cache_dir=tmp_path / "cache") is works


def test_the_answer_is_remembered_until_qemu_changes(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path, 99)
    device, cache = tmp_path / "kvm", tmp_path / "cache"
    device.touch()
    for _ in range(3):
        assert kvm.kvm_works(qemu, device=device, cache_dir=cache)
    assert runs(tmp_path) == 1
    qemu.write_text(qemu.read_text().replace("exit 99", "exit 134"))
    assert not kvm.kvm_works(qemu, device=device, cache_dir=cache)
    assert runs(tmp_path) == 2


def test_a_damaged_memory_is_probed_again(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path, 99)
    device, cache = tmp_path / "kvm", tmp_path / "cache"
    device.touch()
    kvm.kvm_works(qemu, device=device, cache_dir=cache)
    (file,) = cache.iterdir()
    for damaged in (b"", b"[]", b'{"works": 3}', b"\xff"):
        file.write_bytes(damaged)
        assert kvm.kvm_works(qemu, device=device, cache_dir=cache)
        assert json.loads(file.read_text()) == {"works": True}


def test_without_the_device_nothing_is_run(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path, 99)
    assert not kvm.kvm_works(qemu, device=tmp_path / "none", cache_dir=tmp_path / "cache")
    assert runs(tmp_path) == 0


def test_a_cache_that_cannot_be_written_costs_no_more_than_a_probe(tmp_path: Path) -> None:
    qemu = fake_qemu(tmp_path, 99)
    device = tmp_path / "kvm"
    device.touch()
    assert kvm.kvm_works(qemu, device=device, cache_dir=device / "cache")


def test_a_guest_that_spins_means_no(tmp_path: Path) -> None:
    qemu = tmp_path / "qemu"
    qemu.write_text("#!/bin/sh\nexec sleep 100\n")
    qemu.chmod(0o755)
    assert not kvm.boots_sector(qemu, kvm.KVM, timeout=0.2)


def test_the_cache_follows_the_xdg_base_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache/me")
    assert kvm.default_cache_dir() == Path("/var/cache/me/dentry")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative is to be ignored")
    monkeypatch.setenv("HOME", "/home/me")
    assert kvm.default_cache_dir() == Path("/home/me/.cache/dentry")
