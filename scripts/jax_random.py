"""The normal draws of ``jax.random`` (Threefry, partitionable) in numpy, so that networks begin as the authors' do.

Reference: Salmon et al. 2011, Parallel random numbers: as easy as 1, 2, 3.
"""

from __future__ import annotations

import numpy as np
from scipy.special import erfinv

Key = tuple[int, int]
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def threefry(key: Key, high: np.ndarray, low: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Threefry-2x32 with 20 rounds of counters ``(high, low)``, both uint32."""
    words = [np.uint32(key[0]), np.uint32(key[1]), np.uint32(key[0] ^ key[1] ^ 0x1BD11BDA)]
    x, y = high + words[0], low + words[1]
    for group in range(5):
        for turn in ROTATIONS[group % 2]:
            x = x + y
            y = (y << np.uint32(turn)) | (y >> np.uint32(32 - turn))
            y = y ^ x
        x = x + words[(group + 1) % 3]
        y = y + words[(group + 2) % 3] + np.uint32(group + 1)
    return x, y


def prng_key(seed: int) -> Key:
    """``jax.random.PRNGKey``."""
    return (seed >> 32) & 0xFFFFFFFF, seed & 0xFFFFFFFF


def split(key: Key, count: int) -> list[Key]:
    """``jax.random.split``."""
    high, low = threefry(key, np.zeros(count, np.uint32), np.arange(count, dtype=np.uint32))
    return [(int(a), int(b)) for a, b in zip(high, low)]


def normal(key: Key, count: int) -> np.ndarray:
    """``jax.random.normal`` in float32, ``(count,)``, up to the rounding of erfinv."""
    high, low = threefry(key, np.zeros(count, np.uint32), np.arange(count, dtype=np.uint32))
    bits = ((high ^ low) >> np.uint32(9)) | np.uint32(0x3F800000)
    least = np.nextafter(np.float32(-1), np.float32(0))
    uniform = np.maximum(least, (bits.view(np.float32) - np.float32(1)) * (np.float32(1) - least) + least)
    return (np.sqrt(2) * erfinv(uniform.astype(np.float64))).astype(np.float32)
