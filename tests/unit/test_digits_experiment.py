"""The network and the methods of scripts/m2n2_digits.py."""

import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(autouse=True)
def scripts_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPTS))


def test_draws_are_those_of_jax() -> None:
    """Known answers: of Threefry from its paper's code, of the draws from the documentation of jax.random."""
    from jax_random import normal, prng_key, split, threefry

    zero, ones = np.zeros(1, np.uint32), np.full(1, 0xFFFFFFFF, np.uint32)
    assert [int(word[0]) for word in threefry((0, 0), zero, zero)] == [0x6B200159, 0x99BA4EFE]
    assert [int(word[0]) for word in threefry((0xFFFFFFFF, 0xFFFFFFFF), ones, ones)] == [0x1CB996FC, 0xBB002BE7]
    assert normal(prng_key(0), 1)[0] == pytest.approx(1.6226422, abs=1e-6)
    assert normal(prng_key(42), 1)[0] == pytest.approx(-0.02830462, abs=1e-7)
    assert len({*split(prng_key(42), 3)}) == 3


def test_the_gradient_is_that_of_finite_differences() -> None:
    from digits_network import SIZE, gradient, load_digits

    train, test = load_digits()
    assert (len(train.labels), len(test.labels)) == (1437, 360)
    rng = np.random.default_rng(0)
    parameters = 0.05 * rng.standard_normal(SIZE)

    def loss(row: np.ndarray) -> float:
        hidden = np.maximum(test.images @ row[: 64 * 256].reshape(64, 256) + row[64 * 256 : 65 * 256], 0)
        outputs = hidden @ row[65 * 256 : -10].reshape(256, 10) + row[-10:]
        outputs -= np.log(np.exp(outputs).sum(axis=1, keepdims=True))
        return -float(outputs[np.arange(len(outputs)), test.labels].mean())

    found = gradient(parameters, test)
    for _ in range(3):
        step = rng.standard_normal(SIZE) * 1e-8  # small: a kink of a ReLU that is crossed counts as error
        slope = loss(parameters + step) - loss(parameters - step)
        assert slope == pytest.approx(2 * float(found @ step), rel=1e-4)


def test_pre_trained_halves_and_their_middle_are_the_authors() -> None:
    """Brute force of the authors' code: best weight 0.501, test accuracy 64.72 %; one digit of 360 is 0.28."""
    from digits_methods import interpolated
    from digits_network import SIZE, Network, load_digits, pre_trained_pair

    train, test = load_digits()
    pair = pre_trained_pair(train, 0.01)
    network = Network(train)
    for row, half in zip(pair, (train.labels < 5, train.labels >= 5)):
        correct = network.correct(row)
        assert correct[half].mean() > 0.9
        assert not correct[~half].any()
    middle = interpolated(0.501, SIZE, *pair)
    assert Network(test).accuracy(middle) == pytest.approx(0.6472, abs=0.006)


@pytest.mark.parametrize("method", ["m2n2", "no_matchmaker", "no_split_point", "ga", "map_elites", "sep_cma"])
def test_methods_repeat_and_keep_the_best(method: str) -> None:
    from digits_methods import Task, trace
    from digits_network import load_digits, random_pair

    train, test = load_digits()
    few = type(train)(train.images[:200], train.labels[:200])
    options = {"archive": 5, "grid": 10, "cma": {"population": 6, "sigma": 0.01}}
    task = Task(few, test, random_pair(42, 0.01), 0.01, 24, 42, options)
    first, again = ([value for value, _ in trace(method, task)] for _ in range(2))
    assert first == again
    assert len(first) == 24
    assert first[-1] > 0.1
    assert method not in ("ga", "map_elites", "sep_cma") or first == sorted(first)


def test_children_in_flight_are_bred_before_the_first_is_scored() -> None:
    from digits_methods import Task, trace
    from digits_network import load_digits, random_pair

    train, test = load_digits()
    few = type(train)(train.images[:100], train.labels[:100])
    task = Task(few, test, random_pair(42, 0.01), 0.01, 10, 42, {"archive": 4})
    runs = {lag: [value for value, _ in trace("m2n2", task, lag)] for lag in (1, 4)}
    assert [len(values) for values in runs.values()] == [10, 10]
    assert runs[4] == [value for value, _ in trace("m2n2", task, 4)]


def test_a_run_is_written_and_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    import m2n2_digits

    command = ["m2n2_digits.py", str(tmp_path), "--stage", "pre_trained", "--method", "m2n2", "ga"]
    monkeypatch.setattr(sys, "argv", [*command, "--runs", "1", "--passes", "12"])
    m2n2_digits.main()
    files = sorted((tmp_path / "runs").iterdir())
    assert len(files) == 2
    before = [path.stat().st_mtime_ns for path in files]
    m2n2_digits.main()
    assert [path.stat().st_mtime_ns for path in files] == before
    assert len(json.loads((tmp_path / "result.json").read_text())) == 2
    assert "<svg" in (tmp_path / "pre_trained.svg").read_text()
    assert "genetic algorithm" in (tmp_path / "result.md").read_text()
