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
FLOAT32, BFLOAT16, FLOAT16, UPPER_BFLOAT16 = 0, 1, 2, 3  # formats


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


_uint16_at, _int16_at, _uint32_at, _float32_at = map(
    _pointer_to, (types.uint16, types.int16, types.uint32, types.float32)
)
_as_float = _same_bits(types.uint32, types.float32)
_as_bits = _same_bits(types.float32, types.uint32)
_compile: Callable[..., Any] = njit(nogil=True, cache=True, error_model="numpy")
_inline: Callable[..., Any] = njit(nogil=True, forceinline=True, error_model="numpy")


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
def _halves(address, start, size):  # type: ignore[no-untyped-def]
    return carray(_uint16_at(address + np.uint64(2 * start)), size)


@_inline
def _codes(address, start, size):  # type: ignore[no-untyped-def]
    return carray(_int16_at(address + np.uint64(2 * start)), size)


@_inline
def _load_scaled(address, format_, start, weight, values):  # type: ignore[no-untyped-def]
    """Add ``weight`` times the elements from ``start`` on."""
    size = len(values)
    if format_ == BFLOAT16:
        halves = _halves(address, start, size)
        for i in range(size):
            values[i] += _from_bfloat16(halves[i]) * weight
    elif format_ == FLOAT16:
        halves = _halves(address, start, size)
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
        halves = _halves(address, start, size)
        for i in range(size):
            entries[i] = _trimmed(_from_bfloat16(halves[i]) - origin[i], floor, factor)
    elif format_ == FLOAT16:
        halves = _halves(address, start, size)
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
def _drawn(delta, code, limit, factor):  # type: ignore[no-untyped-def]
    return np.float32(0.0) if code <= limit else delta * factor


@_inline
def _bound(is_bound, limit, cut, start):  # type: ignore[no-untyped-def]
    """The limit from the cut on, before it the next smaller magnitude, -1 without. No cut divides a block."""
    found = limit if cut <= start else np.nextafter(limit, np.float32(0.0))
    return found if is_bound else np.float32(-1.0)


@_inline
def _load_trimmed(place, integers, numbers, start, origin, entries):  # type: ignore[no-untyped-def]
    """Fill ``entries`` with one expert's part; the arguments are its columns of what merge_deltas takes."""
    (address, codes), (format_, kind, cut, upper_cut), (factor, _, limit, upper) = place, integers, numbers
    at_once = factor if kind != RANDOM and kind != BAND else np.float32(1.0)
    floor = _bound(kind in (MAGNITUDE, BAND), limit, cut, start)
    _load_entries(address, format_, start, origin, floor, at_once, entries)
    if kind == RANDOM:
        drawn = _codes(codes, start, len(entries))
        for i in range(len(entries)):
            entries[i] = _drawn(entries[i], drawn[i], limit, factor)
    elif kind == BAND:
        roof = _bound(True, upper, upper_cut, start)
        for i in range(len(entries)):
            entries[i] = np.float32(0.0) if abs(entries[i]) > roof else entries[i] * factor


@_inline
def _store(address, format_, start, values):  # type: ignore[no-untyped-def]
    size = len(values)
    if format_ == BFLOAT16:
        halves = _halves(address, start, size)
        for i in range(size):
            halves[i] = _to_bfloat16(values[i])
    elif format_ == FLOAT16:
        halves = _halves(address, start, size)
        for i in range(size):
            halves[i] = _to_float16(values[i])
    elif format_ == UPPER_BFLOAT16:
        words = carray(_uint32_at(address + np.uint64(4 * start)), size)
        for i in range(size):
            words[i] = _or(_and(words[i], 0xFFFF), _left(np.uint32(_to_bfloat16(values[i])), 16))
    else:
        floats = carray(_float32_at(address + np.uint64(4 * start)), size)
        for i in range(size):
            floats[i] = values[i]


@_compile
def is_finite(address, format_, first, last):  # type: ignore[no-untyped-def]
    """Whether elements ``first`` to ``last`` are: whether no exponent has all its bits."""
    size, found = last - first, np.uint32(0)
    if format_ == FLOAT32:
        words = carray(_uint32_at(address + np.uint64(4 * first)), size)
        for i in range(size):
            found |= np.uint32(1) if _and(words[i], 0x7F800000) == np.uint32(0x7F800000) else np.uint32(0)
        return found == np.uint32(0)
    halves = _halves(address, first, size)
    mask = np.uint16(0x7F80 if format_ == BFLOAT16 else 0x7C00)
    for i in range(size):
        found |= np.uint32(1) if np.uint16(halves[i] & mask) == mask else np.uint32(0)
    return found == np.uint32(0)


@_inline
def _sum_three(sources, weights, start, values):  # type: ignore[no-untyped-def]
    """Weighted sum of three sources in bf16, read in one loop."""
    size, (f, g, h) = len(values), (weights[0], weights[1], weights[2])
    a, b, c = _halves(sources[0], start, size), _halves(sources[1], start, size), _halves(sources[2], start, size)
    for i in range(size):
        values[i] = (_from_bfloat16(a[i]) * f + _from_bfloat16(b[i]) * g) + _from_bfloat16(c[i]) * h


@_compile
def weighted_sum(out, modes, sources, formats, weights, first, last):  # type: ignore[no-untyped-def]
    """Write elements ``first`` to ``last``. ``modes``: the format of ``out``, and whether to take ``_sum_three``."""
    block = np.empty(BLOCK, np.float32)
    for start in range(first, last, BLOCK):
        total = block[: min(BLOCK, last - start)]
        if modes[1]:
            _sum_three(sources, weights, start, total)
        else:
            total[:] = np.float32(0.0)
            for e in range(len(sources)):
                _load_scaled(sources[e], formats[e], start, weights[e], total)
        _store(out, modes[0], start, total)


@_inline
def _agreeing(value, total, share):  # type: ignore[no-untyped-def]
    """Magnitude and share of a value that has the sign of ``total``, else 0 and 0; NaN stays."""
    turned = value if total >= np.float32(0.0) else -value
    is_other = turned <= np.float32(0.0)
    return np.float32(0.0) if is_other else turned, np.float32(0.0) if is_other else share


@_inline
def _elected(total, magnitude, divisor):  # type: ignore[no-untyped-def]
    turned = magnitude if total >= np.float32(0.0) else -magnitude
    return turned / (divisor if divisor != np.float32(0.0) else np.float32(1.0))


@_inline
def _elect(x, y, z, shares):  # type: ignore[no-untyped-def]
    """Mean of those of three entries that have the sign of their sum; their sum where the shares are 0."""
    total, (p, q, r) = (x + y) + z, shares
    (x, p), (y, q), (z, r) = _agreeing(x, total, p), _agreeing(y, total, q), _agreeing(z, total, r)
    return _elected(total, (x + y) + z, (p + q) + r)


@_inline
def _merge_trimmed(is_elected, sources, bounds, numbers, values):  # type: ignore[no-untyped-def]
    """Base and three experts in bf16, read in one loop, which costs half of what one loop for each expert does."""
    (base, a, b, c), (low_a, low_b, low_c), ((f, g, h), shares, scale) = sources, bounds, numbers
    if is_elected:
        for i in range(len(values)):
            origin = _from_bfloat16(base[i])
            x = _trimmed(_from_bfloat16(a[i]) - origin, low_a, f)
            y = _trimmed(_from_bfloat16(b[i]) - origin, low_b, g)
            z = _trimmed(_from_bfloat16(c[i]) - origin, low_c, h)
            values[i] = origin + _elect(x, y, z, shares) * scale
        return
    for i in range(len(values)):
        origin = _from_bfloat16(base[i])
        x = _trimmed(_from_bfloat16(a[i]) - origin, low_a, f)
        y = _trimmed(_from_bfloat16(b[i]) - origin, low_b, g)
        z = _trimmed(_from_bfloat16(c[i]) - origin, low_c, h)
        values[i] = origin + ((x + y) + z) * scale


@_inline
def _merge_drawn(is_elected, sources, drawn, bounds, numbers, values):  # type: ignore[no-untyped-def]
    """The same with entries dropped at random."""
    (base, a, b, c), (drawn_a, drawn_b, drawn_c) = sources, drawn
    (low_a, low_b, low_c), ((f, g, h), shares, scale) = bounds, numbers
    if is_elected:
        for i in range(len(values)):
            origin = _from_bfloat16(base[i])
            x = _drawn(_from_bfloat16(a[i]) - origin, drawn_a[i], low_a, f)
            y = _drawn(_from_bfloat16(b[i]) - origin, drawn_b[i], low_b, g)
            z = _drawn(_from_bfloat16(c[i]) - origin, drawn_c[i], low_c, h)
            values[i] = origin + _elect(x, y, z, shares) * scale
        return
    for i in range(len(values)):
        origin = _from_bfloat16(base[i])
        x = _drawn(_from_bfloat16(a[i]) - origin, drawn_a[i], low_a, f)
        y = _drawn(_from_bfloat16(b[i]) - origin, drawn_b[i], low_b, g)
        z = _drawn(_from_bfloat16(c[i]) - origin, drawn_c[i], low_c, h)
        values[i] = origin + ((x + y) + z) * scale


@_inline
def _merge_three(is_elected, places, integers, numbers, start, values):  # type: ignore[no-untyped-def]
    (address, codes), (_, kinds, cuts, _), size = places, integers, len(values)
    base, a = _halves(address[0], start, size), _halves(address[1], start, size)
    b, c = _halves(address[2], start, size), _halves(address[3], start, size)
    factors = numbers[1, 0], numbers[2, 0], numbers[3, 0]
    scalars = factors, (numbers[1, 1], numbers[2, 1], numbers[3, 1]), numbers[0, 0]
    low_a, low_b, low_c = numbers[1:, 2]
    if kinds[1] == RANDOM:
        drawn = _codes(codes[1], start, size), _codes(codes[2], start, size), _codes(codes[3], start, size)
        _merge_drawn(is_elected, (base, a, b, c), drawn, (low_a, low_b, low_c), scalars, values)
        return
    low_a = _bound(kinds[1] == MAGNITUDE, low_a, cuts[1], start)
    low_b = _bound(kinds[2] == MAGNITUDE, low_b, cuts[2], start)
    low_c = _bound(kinds[3] == MAGNITUDE, low_c, cuts[3], start)
    _merge_trimmed(is_elected, (base, a, b, c), (low_a, low_b, low_c), scalars, values)


@_inline
def _merge_any(is_elected, places, integers, numbers, start, rows, values):  # type: ignore[no-untyped-def]
    """Any number of experts of any formats and rules; the same operations in the same order."""
    zero, size, scale = np.float32(0.0), len(values), numbers[0, 0]
    total, magnitude, divisor = rows[0], rows[1], rows[2]
    for i in range(size):
        values[i] = total[i] = magnitude[i] = divisor[i] = zero
    _load_scaled(places[0, 0], integers[0, 0], start, np.float32(1.0), values)
    for e in range(1, len(numbers)):
        entries = rows[2 + e][:size]
        _load_trimmed(places[:, e], integers[:, e], numbers[e], start, values, entries)
        for i in range(size):
            total[i] += entries[i]
    if is_elected:
        for e in range(1, len(numbers)):
            entries, share = rows[2 + e][:size], numbers[e, 1]
            for i in range(size):
                elected, counted = _agreeing(entries[i], total[i], share)
                magnitude[i] += elected
                divisor[i] += counted
        for i in range(size):
            total[i] = _elected(total[i], magnitude[i], divisor[i])
    for i in range(size):
        values[i] += total[i] * scale


@_compile
def merge_deltas(out, modes, places, integers, numbers, first, last):  # type: ignore[no-untyped-def]
    """Write elements ``first`` to ``last`` of a merge of E task vectors.

    Args:
        out: address.
        modes: int64 ``(3,)``: the format of ``out``, whether signs are elected, and whether ``_merge_three`` takes
            these: three experts, all models in bf16, all or none dropped at random, no bands.
        places: uint64 ``(2, 1 + E)``, addresses of base and experts, and of the experts' codes.
        integers: int64 ``(4, 1 + E)``, their formats, and the experts' kinds of trim, cuts and upper cuts.
        numbers: fp32 ``(1 + E, 4)``, the experts' factors, shares, limits and upper limits; at 0, 0 the scale.
        first: where to begin.
        last: the end.
    """
    out_format, is_elected, is_three = modes[0], modes[1] == 1, modes[2] == 1
    rows = np.empty((3 + len(numbers), BLOCK + 48), np.float32)  # addresses 4 KiB apart would slow each other down
    start = first
    while start < last:
        end = min(last, start + BLOCK)
        for e in range(1, len(numbers)):
            for cut in integers[2:, e]:
                end = cut if start < cut < end else end
        values = rows[2 + len(numbers)][: end - start]
        if is_three:
            _merge_three(is_elected, places, integers, numbers, start, values)
        else:
            _merge_any(is_elected, places, integers, numbers, start, rows, values)
        _store(out, out_format, start, values)
        start = end
