"""Models kept as combinations of seeds are the models that dense arithmetic gives."""

import json

import numpy as np
import pytest

from evomerge.search.lineage import (
    Chromosome,
    Cut,
    Lineage,
    check_chromosomes,
    crossover,
    inner,
    slerp_scales,
    whole,
)
from evomerge.search.seed_gram import NOISE_BLOCK, CellGram, Noise

SIZE = 5000


def seeds(count: int = 3, size: int = SIZE, dtype: type = np.float64) -> np.ndarray:
    rng = np.random.default_rng(7)
    shared = rng.standard_normal(size)  # seeds of one family are alike
    return (0.7 * shared + rng.standard_normal((count, size))).astype(dtype)


def slerp(weight: np.ndarray | float, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Of whole vectors, written down plainly; ``weight`` may differ from parameter to parameter."""
    cosine = float(a.astype(np.float64) @ b) / (np.linalg.norm(a) * np.linalg.norm(b))
    angle = np.arccos(np.clip(cosine, -1, 1))
    if np.sin(angle) <= 1e-6:
        return (1 - weight) * a + weight * b
    return (np.sin((1 - weight) * angle) * a + np.sin(weight * angle) * b) / np.sin(angle)


def dense_child(a: np.ndarray, b: np.ndarray, cut: Cut) -> np.ndarray:
    weight = np.where(np.arange(len(a)) < cut.split, cut.weight, 1 - cut.weight)
    return slerp(weight, a, b).astype(a.dtype)


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-12), (np.float32, 1e-5)])
@pytest.mark.parametrize("cell", [64, 1000, SIZE])
def test_nested_crossovers_are_those_of_dense_vectors(dtype: type, tolerance: float, cell: int) -> None:
    vectors = seeds(dtype=dtype)
    gram = CellGram.of_vectors(vectors, cell)
    family = [(Lineage.of_seed(k, 3, SIZE), vectors[k]) for k in range(3)]
    rng = np.random.default_rng(3)
    most = 0.0
    for _ in range(40):
        (a, dense_a), (b, dense_b) = (family[int(rng.integers(len(family)))] for _ in range(2))
        cut = Cut(int(rng.integers(SIZE)), float(rng.random()))
        child = crossover(a, b, [cut], gram)
        family.append((child, dense_child(dense_a, dense_b, cut)))
        most = max(most, float(np.abs(child.values(vectors) - family[-1][1]).max()))
    assert most <= tolerance
    assert max(lineage.num_segments for lineage, _ in family) > 5
    parts = [
        family[-1][0].values(vectors[:, low : low + 700], low, min(low + 700, SIZE)) for low in range(0, SIZE, 700)
    ]
    np.testing.assert_array_equal(np.concatenate(parts), family[-1][0].values(vectors))


def test_a_split_at_either_end_is_plain_interpolation() -> None:
    vectors = seeds(2)
    gram = CellGram.of_vectors(vectors)
    a, b = (Lineage.of_seed(k, 2, SIZE) for k in range(2))
    for split, weight in ((0, 0.7), (SIZE, 0.3)):
        child = crossover(a, b, [Cut(split, 0.3)], gram)
        assert child.num_segments == 1
        np.testing.assert_allclose(child.values(vectors), slerp(weight, *vectors), atol=1e-12)
    assert crossover(a, b, [Cut(SIZE, 0.0)], gram).coefficients.tolist() == [[1.0, 0.0]]


def test_parallel_and_zero_vectors_are_mixed_linearly() -> None:
    assert slerp_scales(0.25, 2.0, 1.0, 4.0) == (0.75, 0.25)
    assert slerp_scales(0.25, -2.0, 1.0, 4.0) == (0.75, 0.25)
    assert slerp_scales(0.25, 0.0, 0.0, 4.0) == (0.75, 0.25)
    gram = CellGram.of_vectors(seeds())
    one = Lineage.of_seed(1, 3, SIZE)
    child = crossover(one, one, [Cut(99, 0.4)], gram)
    np.testing.assert_allclose(child.coefficients.sum(axis=0), [0, 1 * child.num_segments, 0], atol=1e-12)


def test_chromosomes_are_split_on_their_own() -> None:
    vectors = seeds(2)
    gram = CellGram.of_vectors(vectors, 512)
    attention = Chromosome("attention", ((100, 900), (2000, 3000)))
    rest = Chromosome("rest", ((0, 100), (900, 2000), (3000, SIZE)))
    check_chromosomes((attention, rest), SIZE)
    a, b = (Lineage.of_seed(k, 2, SIZE) for k in range(2))
    child = crossover(a, b, [Cut(1000, 0.2), Cut(50, 0.9)], gram, (attention, rest))
    weight = np.empty(SIZE)
    weight[np.r_[100:900, 2000:2200]], weight[2200:3000] = 0.2, 0.8
    weight[:50], weight[np.r_[50:100, 900:2000, 3000:SIZE]] = 0.9, 1 - 0.9
    np.testing.assert_allclose(child.values(vectors), slerp(weight, *vectors), atol=1e-12)
    for wrong in ((attention,), (attention, attention, rest), (attention, Chromosome("rest", ((0, 100), (900, 2000))))):
        with pytest.raises(ValueError, match="chromosomes"):
            check_chromosomes(wrong, SIZE)
    with pytest.raises(ValueError, match="cannot be cut"):
        crossover(a, b, [Cut(SIZE + 1, 0.5)], gram)


def test_noise_is_a_seed_that_is_rebuilt() -> None:
    vectors = seeds(2)
    gram = CellGram.of_vectors(vectors, 512)
    a, b = (Lineage.of_seed(k, 2, SIZE) for k in range(2))
    noises = [Noise(2**62 + 11, 0.1), Noise(5, 0.3)]
    drawn = [noise.values(0, SIZE) for noise in noises]
    assert abs(drawn[1].std() - 0.3) < 0.02
    first, second = a.mutated(noises[0]), b.mutated(noises[1])
    dense_first, dense_second = vectors[0] + drawn[0], vectors[1] + drawn[1]
    child = crossover(first, second, [Cut(1234, 0.35)], gram)
    dense = dense_child(dense_first, dense_second, Cut(1234, 0.35))
    np.testing.assert_allclose(child.values(vectors), dense, atol=1e-12)
    grandchild = crossover(child, first, [Cut(2500, 0.6)], gram)
    np.testing.assert_allclose(grandchild.values(vectors), dense_child(dense, dense_first, Cut(2500, 0.6)), atol=1e-12)
    assert inner(grandchild, first, gram) == pytest.approx(float(grandchild.values(vectors) @ dense_first), rel=1e-12)
    assert crossover(first, second, [Cut(SIZE, 0.0)], gram).noises == (noises[0],)


def test_noise_does_not_depend_on_where_it_is_read() -> None:
    noise = Noise(9, 1.0)
    everything = noise.values(0, 2 * NOISE_BLOCK + 10)
    for start, end in ((0, 1), (5, 700), (NOISE_BLOCK - 3, NOISE_BLOCK + 3), (NOISE_BLOCK, 2 * NOISE_BLOCK + 10)):
        np.testing.assert_array_equal(noise.values(start, end), everything[start:end])


def test_the_written_form_gives_the_same_bits_back() -> None:
    gram = CellGram.of_vectors(seeds())
    family = [Lineage.of_seed(k, 3, SIZE) for k in range(3)]
    rng = np.random.default_rng(1)
    for _ in range(10):
        a, b = (family[int(rng.integers(len(family)))] for _ in range(2))
        family.append(crossover(a, b, [Cut(int(rng.integers(SIZE)), float(rng.random()))], gram))
    for lineage in (*family, family[-1].mutated(Noise(2**63 - 1, 0.01))):
        read = Lineage.from_genotype(np.array(json.loads(json.dumps(lineage.genotype().tolist()))))
        np.testing.assert_array_equal(read.boundaries, lineage.boundaries)
        assert read.coefficients.tobytes() == lineage.coefficients.tobytes()
        assert read.noises == lineage.noises
    good = family[-1].genotype()
    for bad in (
        good[:-1],
        good[:2],
        np.append(good, 0.0),
        np.where(np.arange(len(good)) == 4, 0.5, good),
        good * np.nan,
    ):
        with pytest.raises(ValueError, match=r"lineage|segments|boundaries"):
            Lineage.from_genotype(bad)


def test_inner_products_do_not_depend_on_what_was_asked_before() -> None:
    vectors = seeds()
    used, fresh = (CellGram.of_vectors(vectors, 300) for _ in range(2))
    for position in (17, 299, 300, 301, 4999):
        used.gram(0, position)
    assert used.gram(17, 4999).tobytes() == fresh.gram(17, 4999).tobytes()
    np.testing.assert_allclose(fresh.gram(17, 4999), vectors[:, 17:4999] @ vectors[:, 17:4999].T, rtol=1e-12)


def test_seeds_are_read_by_cell() -> None:
    vectors, asked = seeds(), []

    def read(start: int, end: int) -> np.ndarray:
        asked.append(end - start)
        return vectors[:, start:end]

    gram = CellGram(read, [0, 2000, 2100, SIZE])
    assert asked == [2000, 100, 2900]
    gram.gram(0, SIZE)
    gram.gram(2000, SIZE)
    assert len(asked) == 3
    gram.gram(50, 2150)
    gram.gram(50, 2150)
    assert asked[3:] == [50, 50] or asked[3:] == [50, 50][::-1]
    assert gram.size == SIZE
    assert gram.num_seeds == 3
    with pytest.raises(ValueError, match="edges"):
        CellGram(read, [0, 5, 5])


def test_what_is_no_lineage_is_refused() -> None:
    for bounds, rows in (
        ([0, 5, 5], [[1.0], [1.0]]),
        ([1, 5], [[1.0]]),
        ([0, 5], [[1.0], [2.0]]),
        ([0, 5], [[np.nan]]),
    ):
        with pytest.raises(ValueError, match=r"boundaries|segments|finite"):
            Lineage(np.array(bounds), np.array(rows))
    with pytest.raises(ValueError, match="seed of a noise"):
        Noise(-1, 0.1)
    assert whole(SIZE)[0].size == SIZE
