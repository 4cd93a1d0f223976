"""The hashes of names in an indexed directory. Linux: fs/ext4/hash.c.

The root of a directory's index names its hash, the superblock a seed for all of them. Machines with
signed characters and machines without hash names beyond ASCII differently; ``s_flags`` tells which
is meant by the versions below LEGACY_UNSIGNED.
"""

from __future__ import annotations

import struct
from typing import Final

DX_HASH_LEGACY: Final = 0
DX_HASH_HALF_MD4: Final = 1
DX_HASH_TEA: Final = 2
DX_HASH_LEGACY_UNSIGNED: Final = 3
DX_HASH_HALF_MD4_UNSIGNED: Final = 4
DX_HASH_TEA_UNSIGNED: Final = 5
_SIGNED: Final = 3

_M: Final = 0xFFFFFFFF
_INITIAL: Final = (0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476)
_SEED: Final = struct.Struct("<4I")
_NO_SEED: Final = (0, 0, 0, 0)
_EOF: Final = 0xFFFFFFFE
"""What a directory stream has at its end, so that no name may hash to it."""


def name_hash(name: bytes, version: int, seed: bytes = bytes(16)) -> int:
    """The hash of ``name``, bit 0 clear, by a DX_HASH_* ``version``. ``seed`` is ``s_hash_seed``.

    Raises: ValueError, for a version that is none of the above.
    """
    if not DX_HASH_LEGACY <= version <= DX_HASH_TEA_UNSIGNED:
        raise ValueError(f"no directory hash has the number {version}")
    values = [c - 256 if c > 127 else c for c in name] if version < _SIGNED else list(name)
    kind = version % _SIGNED
    if kind == DX_HASH_LEGACY:
        result = _legacy(values)
    else:
        words = _SEED.unpack(seed)
        state = _INITIAL if words == _NO_SEED else words
        step = 32 if kind == DX_HASH_HALF_MD4 else 16
        for at in range(0, len(values), step):
            block = _words(values[at:], step // 4)
            state = _half_md4(state, block) if step == 32 else _tea(state, block)
        result = state[1] if step == 32 else state[0]
    result &= ~1
    return result if result != _EOF else _EOF - 2


def _legacy(values: list[int]) -> int:
    hash0, hash1 = 0x12A3FE2D, 0x37ABE8F9
    for value in values:
        new = hash1 + (hash0 ^ value * 7152373 & _M) & _M
        if new & 0x80000000:
            new = new - 0x7FFFFFFF & _M
        hash0, hash1 = new, hash0
    return hash0 << 1 & _M


def _words(values: list[int], count: int) -> list[int]:
    """The next ``count`` words of a name, filled up with the length of what is left of it."""
    length = len(values)
    pad = (length | length << 8) & _M
    pad = (pad | pad << 16) & _M
    words = []
    for at in range(0, min(length, count * 4), 4):
        word = pad
        for value in values[at : at + 4]:
            word = value + (word << 8) & _M
        words.append(word)
    return words + [pad] * (count - len(words))


_ROUNDS: Final = (
    (0, (0, 1, 2, 3, 4, 5, 6, 7), (3, 7, 11, 19)),
    (0x5A827999, (1, 3, 5, 7, 0, 2, 4, 6), (3, 5, 9, 13)),
    (0x6ED9EBA1, (3, 7, 2, 6, 1, 5, 0, 4), (3, 9, 11, 15)),
)
"""Of each: the constant, the order of the words, the shifts."""


def _half_md4(state: tuple[int, ...], words: list[int]) -> tuple[int, ...]:
    a, b, c, d = state
    for number, (constant, order, shifts) in enumerate(_ROUNDS):
        for step, index in enumerate(order):
            if number == 0:
                mixed = d ^ b & (c ^ d)
            elif number == 1:
                mixed = (b & c) + ((b ^ c) & d)
            else:
                mixed = b ^ c ^ d
            value = a + mixed + words[index] + constant & _M
            shift = shifts[step & 3]
            a, b, c, d = d, (value << shift | value >> 32 - shift) & _M, b, c
    return tuple(x + y & _M for x, y in zip(state, (a, b, c, d), strict=True))


def _tea(state: tuple[int, ...], words: list[int]) -> tuple[int, ...]:
    total = 0
    left, right = state[0], state[1]
    a, b, c, d = words
    for _ in range(16):
        total = total + 0x9E3779B9 & _M
        left = left + ((right << 4) + a ^ right + total ^ (right >> 5) + b) & _M
        right = right + ((left << 4) + c ^ left + total ^ (left >> 5) + d) & _M
    return (state[0] + left & _M, state[1] + right & _M, state[2], state[3])
