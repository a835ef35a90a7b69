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
MIX = (np.uint64(0xFF51AFD7ED558CCD), np.uint64(0xC4CEB9FE1A85EC53))  # MurmurHash3's finalizer


def key(seed: int, *address: int | str) -> int:
    """The 64-bit number that stands at an address: `key(0, "replay", 17)`."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *address))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def generator(seed: int, *address: int | str) -> np.random.Generator:
    """A counter-based generator (Philox) that starts at an address."""
    return np.random.Generator(np.random.Philox(key=key(seed, *address)))


def permute(index: NDArray[np.int64], n: int, at: int) -> NDArray[np.int64]:
    """The images of `index` under the permutation of [0, n) that the key `at` names.

    An alternating Feistel network over the smallest power of two that holds n; images outside
    [0, n) are walked on until they fall inside, which keeps it a permutation. Nothing of size n
    is ever made, so n = 10**12 costs what n = 10**3 costs.
    """
    assert index.size == 0 or (index.min() >= 0 and index.max() < n), "index outside [0, n)"
    images = np.array(index, dtype=np.uint64)
    if n < 2:
        return images.astype(np.int64)
    outside = np.ones(images.shape, dtype=bool)
    while outside.any():
        images[outside] = _feistel(images[outside], (n - 1).bit_length(), at)
        outside = images >= n
    return images.astype(np.int64)


def _feistel(x: NDArray[np.uint64], bits: int, at: int) -> NDArray[np.uint64]:
    """One pass over [0, 2**bits); the halves change places and widths at each round."""
    low = bits // 2
    right, left = x & np.uint64((1 << low) - 1), x >> np.uint64(low)
    widths = (bits - low, low)  # of left and right
    for round_ in range(ROUNDS):
        salt = np.uint64((at + 0x9E3779B97F4A7C15 * (round_ + 1)) % 2**64)
        mixed = (left ^ _mix(right + salt)) & np.uint64((1 << widths[0]) - 1)
        left, right, widths = right, mixed, widths[::-1]
    return (left << np.uint64(widths[1])) | right


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    for factor in MIX:
        x = (x ^ (x >> np.uint64(33))) * factor
    return x ^ (x >> np.uint64(33))
