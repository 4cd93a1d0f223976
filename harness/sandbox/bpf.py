"""An assembler of classic BPF. Linux: linux/bpf_common.h, Documentation/networking/filter.rst."""

from __future__ import annotations

import struct
from typing import Final

from harness.sandbox.errors import SandboxError

LD_W_ABS: Final = 0x20
AND_K: Final = 0x54
JA: Final = 0x05
JEQ_K: Final = 0x15
JGT_K: Final = 0x25
JGE_K: Final = 0x35
JSET_K: Final = 0x45
RET_K: Final = 0x06

MAX_INSTRUCTIONS: Final = 4096
_CONDITIONAL_REACH: Final = 255
_INSTRUCTION: Final = struct.Struct("=HBBI")


class Program:
    """struct sock_fprog in the making: instructions, and labels that later ones are jumped to by.

    Jumps go forwards only, as in the kernel. An empty label is the next instruction.
    """

    __slots__ = ("_code", "_labels")

    def __init__(self) -> None:
        self._code: list[tuple[int, str, str, int]] = []
        self._labels: dict[str, int] = {}

    def load(self, offset: int) -> None:
        """The accumulator becomes the 32-bit word at ``offset`` of the data."""
        self._code.append((LD_W_ABS, "", "", offset))

    def mask(self, bits: int) -> None:
        """The accumulator keeps ``bits`` only."""
        self._code.append((AND_K, "", "", bits))

    def jump_if(self, test: int, operand: int, then: str = "", otherwise: str = "") -> None:
        """Jump by how the accumulator compares (JEQ_K, ...); the labels are 255 away at most."""
        self._code.append((test, then, otherwise, operand))

    def jump(self, label: str) -> None:
        """Jump, however far."""
        self._code.append((JA, label, "", 0))

    def ret(self, value: int) -> None:
        self._code.append((RET_K, "", "", value))

    def label(self, name: str) -> None:
        """Name the next instruction."""
        assert name and name not in self._labels, name
        self._labels[name] = len(self._code)

    def assemble(self) -> bytes:
        """The array of struct sock_filter.

        Raises:
            SandboxError: too many instructions, or a conditional jump that reaches too far.
        """
        if len(self._code) > MAX_INSTRUCTIONS:
            raise SandboxError(f"a filter of {len(self._code)} instructions is too long")
        return b"".join(
            self._encode(index, *instruction) for index, instruction in enumerate(self._code)
        )

    def _encode(self, index: int, code: int, then: str, otherwise: str, operand: int) -> bytes:
        if code == JA:
            return _INSTRUCTION.pack(code, 0, 0, self._distance(index, then))
        jt, jf = self._distance(index, then), self._distance(index, otherwise)
        if max(jt, jf) > _CONDITIONAL_REACH:
            raise SandboxError(f"a jump over {max(jt, jf)} instructions is too far")
        return _INSTRUCTION.pack(code, jt, jf, operand)

    def _distance(self, index: int, label: str) -> int:
        distance = self._labels[label] - index - 1 if label else 0
        assert distance >= 0, f"{label} is behind"
        return distance
