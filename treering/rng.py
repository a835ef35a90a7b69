"""Randomness with an address, not a history.

Every random number of a run is a function of the seed and of an address such as
`("replay", step)`. No generator's state is ever saved: a resumed run asks for the same
addresses and is given the same numbers.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

ROUNDS = 10  # of the Feistel network; below 6 its small domains fail a chi-square test
MIX = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)  # MurmurHash3's finalizer
STEP, WORD = 0x9E3779B97F4A7C15, 2**64 - 1  # 2**64 over the golden ratio
FEW = 24


def key(seed: int, *address: int | str) -> int:
    """The 64-bit number that stands at an address: `key(0, "replay", 17)`."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *address))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(seed: int, *address: int | str) -> np.random.Generator:
    """A counter-based generator (Philox) that starts at an address."""
    return np.random.Generator(np.random.Philox(key=key(seed, *address)))


def permute(
    index: NDArray[np.int64], n: int | NDArray[np.int64], at: int | NDArray[np.uint64]
) -> NDArray[np.int64]:
    """The images of `index` under the permutation of [0, n) that the key `at` names; both may
    differ from index to index.

    An alternating Feistel network over the smallest power of two that holds n; images outside
    [0, n) are walked on until they fall inside, which keeps it a permutation. Nothing of size n
    is ever made, so n = 10**12 costs what n = 10**3 costs.
    """
    assert index.size == 0 or (index.min() >= 0 and (index < n).all()), "index outside [0, n)"
    sizes, keys = np.ravel(np.asarray(n, np.uint64)), np.ravel(np.asarray(at, np.uint64))
    bits = np.array([max(0, size - 1).bit_length() for size in sizes.tolist()], np.uint64)
    images, left = index.astype(np.uint64), np.arange(index.size)

    def of(given: NDArray[np.uint64]) -> NDArray[np.uint64]:
        return given if given.size == 1 else given[left]

    while left.size > FEW:
        images[left] = _feistel(images[left], of(bits), of(keys))
        left = left[images[left] >= of(sizes)]
    each = (np.broadcast_to(of(given), left.shape).tolist() for given in (sizes, bits, keys))
    for i, size, width, key_ in zip(left.tolist(), *each, strict=True):
        images[i] = _walked(int(images[i]), size, width, key_)
    return images.astype(np.int64)


def _walked(x: int, size: int, bits: int, at: int) -> int:
    """What `_feistel` comes to inside [0, size): for a few numbers Python's are faster."""
    low = bits // 2
    masks = ((1 << bits - low) - 1, (1 << low) - 1)
    while True:
        right, left = x & masks[1], x >> low
        for round_ in range(ROUNDS):
            mixed = right + at + STEP * (round_ + 1) & WORD
            for factor in MIX:
                mixed = (mixed ^ mixed >> 33) * factor & WORD
            left, right = right, (left ^ mixed ^ mixed >> 33) & masks[round_ % 2]
        x = left << (low if ROUNDS % 2 == 0 else bits - low) | right
        if x < size:
            return x


def _feistel(
    x: NDArray[np.uint64], bits: NDArray[np.uint64], at: NDArray[np.uint64]
) -> NDArray[np.uint64]:
    """One pass over [0, 2**bits); the halves change places and widths at each round."""
    low = bits // np.uint64(2)
    widths = (bits - low, low)  # of left and right
    masks = tuple((np.uint64(1) << width) - np.uint64(1) for width in widths)
    right, left = x & masks[1], x >> low
    for round_ in range(ROUNDS):
        salt = at + np.uint64(STEP * (round_ + 1) & WORD)
        mixed = (left ^ _mix(right + salt)) & masks[0]
        left, right, widths, masks = right, mixed, widths[::-1], masks[::-1]
    images: NDArray[np.uint64] = (left << widths[1]) | right
    return images


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for factor in MIX:
        x = (x ^ (x >> np.uint64(33))) * np.uint64(factor)
    return x ^ (x >> np.uint64(33))
