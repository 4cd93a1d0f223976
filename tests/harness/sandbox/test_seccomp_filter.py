"""The filter as a program: what it answers, for every call of both architectures."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest
from bpf_machine import run
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import UsageError
from harness.sandbox import bpf, seccomp
from harness.sandbox.allowed import CHECKS, POLICY, REFUSED
from harness.sandbox.errors import SandboxError
from harness.sandbox.seccomp import Check, Policy, compile_filter
from harness.syscall_numbers import AUDIT_ARCH, names, number, numbers

KILL = seccomp.RET_KILL_PROCESS
machines = pytest.mark.parametrize("machine", sorted(AUDIT_ARCH))

# What would let a compromised daemon reach further than its files.
DANGEROUS = (
    "acct", "add_key", "bind", "bpf", "capable", "chroot", "clone3", "connect", "delete_module",
    "execve", "execveat", "fanotify_init", "finit_module", "fork", "fsmount", "fsopen",
    "init_module", "io_uring_enter", "io_uring_setup", "ioperm", "iopl", "kexec_file_load",
    "kexec_load", "keyctl", "kill", "landlock_create_ruleset", "listen", "memfd_secret",
    "migrate_pages", "mount", "mount_setattr", "move_mount", "move_pages", "open_tree",
    "perf_event_open", "personality", "pidfd_getfd", "pidfd_open", "pidfd_send_signal",
    "pivot_root", "pkey_mprotect", "process_madvise", "process_vm_readv", "process_vm_writev",
    "ptrace", "quotactl", "reboot", "request_key", "rt_sigqueueinfo", "rt_tgsigqueueinfo",
    "seccomp", "setdomainname", "sethostname", "setns", "setpriority", "setregid", "setresgid",
    "setresuid", "setreuid", "setgid", "setuid", "shmat", "shmget", "socket", "socketpair",
    "swapoff", "swapon", "sysfs", "syslog", "tgkill", "tkill", "umount2", "unshare", "uselib",
    "userfaultfd", "vfork", "vhangup",
)  # fmt: skip


@machines
def test_every_call_gets_the_verdict_of_the_list(machine: str) -> None:
    program = compile_filter(POLICY, machine, KILL)
    arch = AUDIT_ARCH[machine]
    table = names(machine)
    for index in range(600):
        name = table.get(index, "")
        verdict = run(program, index, arch)
        if name in REFUSED:
            assert verdict == seccomp.RET_ERRNO | REFUSED[name], name
        elif name not in CHECKS:
            expected = seccomp.RET_ALLOW if name in POLICY.allowed else KILL
            assert verdict == expected, name


@machines
def test_nothing_dangerous_is_allowed(machine: str) -> None:
    program = compile_filter(POLICY, machine, KILL)
    table = numbers(machine)
    for name in DANGEROUS:
        if name in table:
            verdict = run(program, table[name], AUDIT_ARCH[machine])
            assert verdict != seccomp.RET_ALLOW, name


@machines
def test_calls_by_another_architectures_numbers_kill(machine: str) -> None:
    program = compile_filter(POLICY, machine, seccomp.RET_TRAP)
    table = numbers(machine)
    for arch in (0x40000003, 0xC000003E, 0xC00000B7, 0x40000028):
        verdict = run(program, table["read"], arch)
        assert (verdict == seccomp.RET_ALLOW) == (arch == AUDIT_ARCH[machine])
        if arch != AUDIT_ARCH[machine]:
            assert verdict == KILL


def test_x32_calls_kill() -> None:
    program = compile_filter(POLICY, "x86_64", seccomp.RET_TRAP)
    for index in range(600):
        assert run(program, 0x40000000 | index, AUDIT_ARCH["x86_64"]) == KILL
    assert run(program, -1, AUDIT_ARCH["x86_64"]) == KILL


@machines
@given(value=st.integers(0, (1 << 64) - 1), name=st.sampled_from(sorted(CHECKS)))
def test_arguments_decide_by_their_low_half(machine: str, value: int, name: str) -> None:
    program = compile_filter(POLICY, machine, KILL)
    (check,) = CHECKS[name]
    arguments = [0] * 6
    arguments[check.argument] = value
    allowed = value & 0xFFFFFFFF & check.mask in check.values
    verdict = run(program, numbers(machine)[name], AUDIT_ARCH[machine], tuple(arguments))
    assert verdict == (seccomp.RET_ALLOW if allowed else KILL)


@machines
@pytest.mark.parametrize("name", sorted(CHECKS))
def test_each_allowed_argument_is_allowed(machine: str, name: str) -> None:
    program = compile_filter(POLICY, machine, KILL)
    (check,) = CHECKS[name]
    for value in check.values:
        arguments = [0] * 6
        arguments[check.argument] = value
        verdict = run(program, numbers(machine)[name], AUDIT_ARCH[machine], tuple(arguments))
        assert verdict == seccomp.RET_ALLOW, hex(value)


def test_all_checks_of_a_call_must_hold() -> None:
    policy = Policy(frozenset(), {"read": (Check(0, (1, 2)), Check(5, (8,), 0x18))}, {})
    program = compile_filter(policy, "x86_64", KILL)
    arch = AUDIT_ARCH["x86_64"]
    for first, last in [(1, 8), (2, 0xFFE8)]:
        assert run(program, 0, arch, (first, 0, 0, 0, 0, last)) == seccomp.RET_ALLOW
    for first, last in [(3, 8), (1, 0), (1, 0x18), (0, 8)]:
        assert run(program, 0, arch, (first, 0, 0, 0, 0, last)) == KILL


def test_a_list_of_every_call_jumps_far_and_right() -> None:
    table = numbers("x86_64")
    checks = {name: (Check(0, (8,)), Check(5, (8,))) for name in table}
    program = compile_filter(Policy(frozenset(), checks, {}), "x86_64", KILL)
    arch = AUDIT_ARCH["x86_64"]
    for index in table.values():
        assert run(program, index, arch, (8,) * 6) == seccomp.RET_ALLOW
        assert run(program, index, arch, (8, 8, 8, 8, 8, 9)) == KILL
    assert run(program, 599, arch) == KILL


def test_a_conditional_jump_too_far_is_refused() -> None:
    program = bpf.Program()
    program.jump_if(bpf.JEQ_K, 1, "end", "")
    for _ in range(256):
        program.load(0)
    program.label("end")
    program.ret(0)
    with pytest.raises(SandboxError, match="too far"):
        program.assemble()


def test_a_program_longer_than_the_kernel_takes_is_refused() -> None:
    program = bpf.Program()
    for _ in range(bpf.MAX_INSTRUCTIONS + 1):
        program.ret(0)
    with pytest.raises(SandboxError, match="too long"):
        program.assemble()


def test_an_unknown_machine_is_told_what_to_do() -> None:
    with pytest.raises(UsageError, match="not of riscv64: run with --sandbox none"):
        numbers("riscv64")


@machines
def test_names_and_numbers_are_one_to_one(machine: str) -> None:
    assert {index: name for name, index in numbers(machine).items()} == names(machine)


def test_the_numbers_are_those_of_this_machines_headers() -> None:
    header = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")
    if not header.exists():
        pytest.skip("no kernel headers for x86-64")
    found = dict(re.findall(r"#define __NR_(\w+) (\d+)", header.read_text()))
    table = numbers("x86_64")
    assert {name: int(index) for name, index in found.items()}.items() <= table.items()


def test_numbers_since_5_1_are_the_same_everywhere() -> None:
    x86, arm = numbers("x86_64"), numbers("aarch64")
    young = {name: index for name, index in x86.items() if index >= 424}
    assert len(young) > 40
    assert {name: arm.get(name) for name in young} == young


def test_the_libc_agrees_on_getpid() -> None:
    assert ctypes.CDLL(None).syscall(number("getpid")) == ctypes.CDLL(None).getpid()


def test_all_names_on_the_list_exist() -> None:
    known = numbers("x86_64").keys() | numbers("aarch64").keys()
    assert (POLICY.allowed | CHECKS.keys() | REFUSED.keys()) <= known
    assert not POLICY.allowed & (CHECKS.keys() | REFUSED.keys())
