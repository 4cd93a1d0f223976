"""Classic BPF, as the kernel runs it on a struct seccomp_data."""

from __future__ import annotations

import struct

from harness.sandbox import bpf


def run(program: bytes, number: int, arch: int, arguments: tuple[int, ...] = ()) -> int:
    """What the program returns; every jump is checked to stay inside."""
    padded = (*arguments, *(0,) * (6 - len(arguments)))
    data = struct.pack("=IIQ6Q", number & 0xFFFFFFFF, arch, 0, *padded)
    code = list(struct.iter_unpack("=HBBI", program))
    accumulator = at = 0
    while True:
        operation, jt, jf, k = code[at]
        at += 1
        if operation == bpf.LD_W_ABS:
            assert k % 4 == 0
            (accumulator,) = struct.unpack_from("=I", data, k)
        elif operation == bpf.AND_K:
            accumulator &= k
        elif operation == bpf.RET_K:
            return int(k)
        elif operation == bpf.JA:
            at += k
        else:
            taken = {
                bpf.JEQ_K: accumulator == k,
                bpf.JGT_K: accumulator > k,
                bpf.JGE_K: accumulator >= k,
                bpf.JSET_K: bool(accumulator & k),
            }[operation]
            at += jt if taken else jf
