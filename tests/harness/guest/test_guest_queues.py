"""A guest that sends requests on several queues, which Linux does since 6.11."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from guest_on_dentry_support import check, serving

from harness.guest import Guest, GuestConfig, GuestUnavailable
from harness.guest.initramfs import find_busybox
from harness.guest.kernel import find_kernel
from harness.guest.newer import Newer
from harness.guest.qemu import find_qemu

pytestmark = pytest.mark.guest

CPUS = 3
BUSYBOX = "/proc/1/root/bin/busybox"
BOOT_TIMEOUT = 240.0

# Each writer on a CPU of its own, and so on a queue of its own if it has one.
WRITERS = """
for cpu in 0 1 2; do
    $b taskset $((1 << cpu)) $b sh -e -c '
        for n in $($1 seq 40); do
            echo $0 $n >/$0.$n
            $1 mv /$0.$n /$0.done
            $1 cat /$0.done >>/$0
        done' $cpu $b &
    pids="$pids $!"
done
for pid in $pids; do wait $pid || exit 1; done
$b cat /0 /1 /2
"""


def run(guest: Guest, script: str) -> str:
    """The output of a script of the initramfs' busybox, which is $b, on a root that has nothing."""
    return check(guest, (BUSYBOX, "sh", "-c", f"b={BUSYBOX}\n{script}"), timeout=240)


def interrupts(guest: Guest) -> list[int]:
    """How often each request queue has brought replies."""
    lines = run(guest, "$b grep -e -requests /proc/interrupts").splitlines()
    return [sum(map(int, line.split()[1 : 1 + CPUS])) for line in lines]


@pytest.fixture(scope="module")
def guest(newer: Newer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    """A newer guest, with a queue for each CPU."""
    path = tmp_path_factory.mktemp("queues") / "sock"
    with (
        serving(path, "type=tmpfs,dst=/", queues=CPUS),
        Guest(
            GuestConfig(
                path,
                qemu=newer.qemu,
                kernel=newer.kernel,
                cpus=CPUS,
                queues=CPUS,
                boot_timeout=BOOT_TIMEOUT,
            )
        ) as guest,
    ):
        yield guest


def test_every_cpu_sends_on_a_queue_of_its_own(guest: Guest) -> None:
    assert len(interrupts(guest)) == CPUS
    for cpu in range(CPUS):
        before = interrupts(guest)
        run(guest, f"$b taskset {1 << cpu} $b sh -c 'for n in $($0 seq 50); do >/x$n; done' $b")
        grown = [new - old for new, old in zip(interrupts(guest), before, strict=True)]
        assert grown[cpu] > sum(grown) - grown[cpu], grown


def test_what_is_written_on_all_queues_at_once_is_all_there(guest: Guest) -> None:
    lines = run(guest, WRITERS).splitlines()
    assert lines == [f"{cpu} {n}" for cpu in range(3) for n in range(1, 41)]


def test_an_older_guest_uses_one_of_several_queues(tmp_path: Path) -> None:
    try:
        kernel = find_kernel()
        find_qemu(), find_busybox()
    except GuestUnavailable as error:
        pytest.skip(str(error))
    config = GuestConfig(tmp_path / "sock", queues=2, cpus=CPUS, boot_timeout=BOOT_TIMEOUT)
    with serving(tmp_path / "sock", "type=tmpfs,dst=/", queues=CPUS), Guest(config) as guest:
        assert len(run(guest, WRITERS).splitlines()) == 120
        # A queue that is merely set up may have had one.
        used = [count for count in interrupts(guest) if count > 10]
    assert len(used) == (1 if release(kernel.release) < (6, 11) else 2)


def release(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("-")[0].split(".")[:2]))
