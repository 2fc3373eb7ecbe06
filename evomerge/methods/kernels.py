"""The loops of ``compiled``: they see addresses, formats and numbers, and know nothing of tensors.

numba compiles them at first use and keeps the result on disk. It looks only at this file for changes, which is why all
that they call is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numba import carray, njit, types
from numba.extending import intrinsic

from evomerge.methods.trim import BAND, MAGNITUDE, RANDOM

BLOCK = 512  # elements: six fp32 rows of it fit into 32 KiB
SUM, ELECTED_SUM, ELECTED_MEAN = 0, 1, 2  # modes
FLOAT32, BFLOAT16, FLOAT16, NOWHERE = 0, 1, 2, 3  # formats


def _pointer_to(kind: types.Type) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def pointer(typing_context: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return types.CPointer(kind)(address), generate

    return pointer


def _same_bits(old: types.Type, new: types.Type) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def cast(typing_context: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            return builder.bitcast(arguments[0], context.get_value_type(new))

        return new(old), generate

    return cast


_uint16_at, _int16_at, _float32_at = map(_pointer_to, (types.uint16, types.int16, types.float32))
_as_float = _same_bits(types.uint32, types.float32)
_as_bits = _same_bits(types.float32, types.uint32)
_compile: Callable[..., Any] = njit(nogil=True, cache=True, error_model="numpy")
_inline: Callable[..., Any] = njit(nogil=True, inline="always", error_model="numpy")


# numba computes in 64 bits unless every step says otherwise, which halves what a vector instruction does.


@_inline
def _and(word, mask):  # type: ignore[no-untyped-def]
    return np.uint32(word & np.uint32(mask))


@_inline
def _or(word, other):  # type: ignore[no-untyped-def]
    return np.uint32(word | other)


@_inline
def _left(word, count):  # type: ignore[no-untyped-def]
    return np.uint32(word << np.uint32(count))


@_inline
def _right(word, count):  # type: ignore[no-untyped-def]
    return np.uint32(word >> np.uint32(count))


@_inline
def _plus(word, other):  # type: ignore[no-untyped-def]
    return np.uint32(word + np.uint32(other))


@_inline
def _from_bfloat16(half):  # type: ignore[no-untyped-def]
    return _as_float(_left(np.uint32(half), 16))


@_inline
def _from_float16(half):  # type: ignore[no-untyped-def]
    """The exponent is moved by a product, which is exact for subnormal numbers too."""
    word = np.uint32(half)
    moved = _as_float(_left(_and(word, 0x7FFF), 13)) * np.float32(2.0**112)
    special = np.uint32(0x7F800000) if _and(word, 0x7C00) == np.uint32(0x7C00) else np.uint32(0)
    return _as_float(_or(_or(_as_bits(moved), special), _left(_and(word, 0x8000), 16)))


@_inline
def _to_bfloat16(value):  # type: ignore[no-untyped-def]
    """To the nearest, ties to even."""
    word = _as_bits(value)
    rounded = _right(_plus(_plus(word, 0x7FFF), _and(_right(word, 16), 1)), 16)
    return np.uint16(rounded) if value == value else np.uint16(0x7FC0)


@_inline
def _to_float16(value):  # type: ignore[no-untyped-def]
    """To the nearest, ties to even."""
    word = _and(_as_bits(value), 0x7FFFFFFF)
    rounded = _right(_plus(_plus(word, 0x100000000 - 0x38000000 + 0xFFF), _and(_right(word, 13), 1)), 13)
    # Small ones count steps of the smallest subnormal number; 2^23, added and taken off, rounds to whole ones.
    is_small, whole = word < np.uint32(0x38800000), np.float32(2.0**23)
    steps = (abs(value) * np.float32(2.0**24) + whole) - whole if is_small else np.float32(0.0)
    special = np.uint32(0x7C00) if value == value else np.uint32(0x7E00)
    finite = np.uint32(steps) if is_small else rounded
    sign = _and(_right(_as_bits(value), 16), 0x8000)
    return np.uint16(_or(sign, special if word >= np.uint32(0x47800000) else finite))


@_inline
def _load_scaled(address, format_, start, weight, values):  # type: ignore[no-untyped-def]
    """Add ``weight`` times the elements from ``start`` on."""
    size = len(values)
    if format_ == BFLOAT16:
        halves = carray(_uint16_at(address + np.uint64(2 * start)), size)
        for i in range(size):
            values[i] += _from_bfloat16(halves[i]) * weight
    elif format_ == FLOAT16:
        halves = carray(_uint16_at(address + np.uint64(2 * start)), size)
        for i in range(size):
            values[i] += _from_float16(halves[i]) * weight
    else:
        floats = carray(_float32_at(address + np.uint64(4 * start)), size)
        for i in range(size):
            values[i] += floats[i] * weight


@_inline
def _load_entries(address, format_, start, origin, floor, factor, entries):  # type: ignore[no-untyped-def]
    """Fill ``entries`` with ``factor`` times the elements from ``start`` on minus ``origin``, 0 up to ``floor``.

    The product is rounded before it is added to others: experts that cancel exactly, which the coarse grid of bf16
    makes common, then sum to 0 and not to what a fused multiply-add leaves over.
    """
    size = len(entries)
    if format_ == BFLOAT16:
        halves = carray(_uint16_at(address + np.uint64(2 * start)), size)
        for i in range(size):
            entries[i] = _trimmed(_from_bfloat16(halves[i]) - origin[i], floor, factor)
    elif format_ == FLOAT16:
        halves = carray(_uint16_at(address + np.uint64(2 * start)), size)
        for i in range(size):
            entries[i] = _trimmed(_from_float16(halves[i]) - origin[i], floor, factor)
    else:
        floats = carray(_float32_at(address + np.uint64(4 * start)), size)
        for i in range(size):
            entries[i] = _trimmed(floats[i] - origin[i], floor, factor)


@_inline
def _trimmed(delta, floor, factor):  # type: ignore[no-untyped-def]
    """NaN is never dropped, so that the check of the result finds it."""
    return np.float32(0.0) if abs(delta) <= floor else delta * factor


@_inline
def _floor(kind, limit, cut, start, size):  # type: ignore[no-untyped-def]
    """Up to which magnitude a rule drops all entries of a block; -1 where it drops by index or not at all."""
    if kind == MAGNITUDE and cut <= start:
        return limit
    if kind == MAGNITUDE and cut >= start + size:
        return np.nextafter(limit, np.float32(0.0))
    return np.float32(-1.0)


@_inline
def _drop(integers, numbers, codes, start, entries):  # type: ignore[no-untyped-def]
    """Zero what a rule drops by index, and multiply by the factor. One expert's columns of merge_deltas."""
    _, kind, cut, upper_cut = integers
    factor, _, limit, upper = numbers
    zero, size = np.float32(0.0), len(entries)
    if kind == MAGNITUDE and start < cut < start + size:
        below = np.nextafter(limit, zero)
        for i in range(size):
            entries[i] = _trimmed(entries[i], below if i < cut - start else limit, factor)
    elif kind == RANDOM:
        drawn = carray(_int16_at(codes + np.uint64(2 * start)), size)
        for i in range(size):
            entries[i] = zero if drawn[i] <= limit else entries[i] * factor
    elif kind == BAND:
        below, under = np.nextafter(limit, zero), np.nextafter(upper, zero)
        for i in range(size):
            roof = under if i < upper_cut - start else upper
            kept = _trimmed(entries[i], below if i < cut - start else limit, factor)
            entries[i] = zero if abs(entries[i]) > roof else kept


@_inline
def _store(address, format_, start, values):  # type: ignore[no-untyped-def]
    size = len(values)
    if format_ == BFLOAT16:
        halves = carray(_uint16_at(address + np.uint64(2 * start)), size)
        for i in range(size):
            halves[i] = _to_bfloat16(values[i])
    elif format_ == FLOAT16:
        halves = carray(_uint16_at(address + np.uint64(2 * start)), size)
        for i in range(size):
            halves[i] = _to_float16(values[i])
    else:
        floats = carray(_float32_at(address + np.uint64(4 * start)), size)
        for i in range(size):
            floats[i] = values[i]


@_compile
def copy(out, out_format, source, format_, first, last):  # type: ignore[no-untyped-def]
    """Cast elements ``first`` to ``last``, and return whether all are finite."""
    block = np.empty(BLOCK, np.float32)
    is_broken = np.uint32(0)
    for start in range(first, last, BLOCK):
        values = block[: min(BLOCK, last - start)]
        for i in range(len(values)):
            values[i] = np.float32(0.0)
        _load_scaled(source, format_, start, np.float32(1.0), values)
        for i in range(len(values)):
            exponent = _and(_as_bits(values[i]), 0x7F800000)
            is_broken |= np.uint32(1) if exponent == np.uint32(0x7F800000) else np.uint32(0)
        if out_format != NOWHERE:
            _store(out, out_format, start, values)
    return is_broken == np.uint32(0)


@_compile
def weighted_sum(out, out_format, sources, formats, weights, first, last):  # type: ignore[no-untyped-def]
    """Write elements ``first`` to ``last`` of the weighted sum of E sources; arrays are ``(E,)``."""
    block = np.empty(BLOCK, np.float32)
    for start in range(first, last, BLOCK):
        total = block[: min(BLOCK, last - start)]
        total[:] = np.float32(0.0)
        for e in range(len(sources)):
            _load_scaled(sources[e], formats[e], start, weights[e], total)
        _store(out, out_format, start, total)


@_inline
def _add(mode, entries, share, sums):  # type: ignore[no-untyped-def]
    """Add one expert's entries to the running sums; see ``_elect`` for what they are.

    Loops are short because the compiler gives up on vectors where many arrays might overlap.
    """
    zero, size = np.float32(0.0), len(entries)
    total, absolute, shares, balance = sums
    if mode == SUM:
        for i in range(size):
            total[i] += entries[i]
        return
    for i in range(size):
        total[i] += entries[i]
        absolute[i] += abs(entries[i])
    if mode == ELECTED_MEAN:
        for i in range(size):
            shares[i] += zero if entries[i] == zero else share
        for i in range(size):
            signed = share if entries[i] > zero else -share
            balance[i] += zero if entries[i] == zero else signed


@_inline
def _elect(mode, sums, size):  # type: ignore[no-untyped-def]
    """Replace the total by the sum, or the mean, of the entries that have its sign.

    With S the total and A the sum of magnitudes, positive entries sum to (A + S) / 2 and negative ones to (S - A) / 2.
    With W the sum of the shares of all entries that are not 0, and B that of the positive minus that of the negative
    ones, their shares are (W + B) / 2 and (W - B) / 2.
    """
    zero, one = np.float32(0.0), np.float32(1.0)
    total, absolute, shares, balance = sums
    if mode == ELECTED_SUM:
        for i in range(size):
            total[i] = (total[i] + (absolute[i] if total[i] >= zero else -absolute[i])) * np.float32(0.5)
    elif mode == ELECTED_MEAN:
        for i in range(size):
            shares[i] += balance[i] if total[i] >= zero else -balance[i]
        for i in range(size):
            elected = total[i] + (absolute[i] if total[i] >= zero else -absolute[i])
            total[i] = elected / (shares[i] if shares[i] != zero else one)


@_compile
def merge_deltas(out, mode_and_format, places, integers, numbers, first, last):  # type: ignore[no-untyped-def]
    """Write elements ``first`` to ``last`` of a merge of E task vectors.

    Args:
        out: address.
        mode_and_format: 10 times the mode plus the format of ``out``.
        places: uint64 ``(2, 1 + E)``, addresses of base and experts, and of the experts' codes.
        integers: int64 ``(4, 1 + E)``, their formats, and the experts' kinds of trim, cuts and upper cuts.
        numbers: fp32 ``(1 + E, 4)``, the experts' factors, shares, limits and upper limits; at 0, 0 the scale.
        first: a multiple of BLOCK.
        last: the end.
    """
    mode, out_format = mode_and_format // 10, mode_and_format % 10
    (address, codes), (formats, kinds, cuts, _) = places, integers
    rows = np.empty((6, BLOCK + 48), np.float32)  # addresses 4 KiB apart would slow each other down
    blocks, sums = rows[:2], rows[2:]
    total = sums[0]
    scale = numbers[0, 0]
    for start in range(first, last, BLOCK):
        size = min(BLOCK, last - start)
        origin, entries = blocks[:, :size]
        for i in range(size):
            origin[i] = np.float32(0.0)
        for row in range(1 if mode == SUM else 2 if mode == ELECTED_SUM else 4):
            for i in range(size):
                sums[row, i] = np.float32(0.0)
        _load_scaled(address[0], formats[0], start, np.float32(1.0), origin)
        for e in range(1, len(address)):
            kind, limit, cut, factor = kinds[e], numbers[e, 2], cuts[e], numbers[e, 0]
            floor = _floor(kind, limit, cut, start, size)
            by_index = kind in (RANDOM, BAND) or (kind == MAGNITUDE and floor < np.float32(0.0))
            at_once = np.float32(1.0) if by_index else factor
            _load_entries(address[e], formats[e], start, origin, floor, at_once, entries)
            if by_index:
                _drop(integers[:, e], numbers[e], codes[e], start, entries)
            _add(mode, entries, numbers[e, 1], sums)
        _elect(mode, sums, size)
        for i in range(size):
            origin[i] += total[i] * scale
        _store(out, out_format, start, origin)
