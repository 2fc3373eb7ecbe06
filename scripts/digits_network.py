"""The network of the digits experiment: 64-256-10, one row of 19,210 numbers, scored on scikit-learn's 8x8 digits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from jax_random import normal, prng_key, split

INPUTS, HIDDEN, CLASSES = 64, 256, 10
FIRST = (INPUTS + 1) * HIDDEN  # weights and biases of the first layer: W1, b1
SIZE = FIRST + (HIDDEN + 1) * CLASSES  # then W2, b2
TRAIN_SHARE = 0.8


@dataclass(frozen=True)
class Digits:
    """Images ``(D, 64)`` and labels ``(D,)``: the first 80 % train, the rest tests, not shuffled."""

    images: np.ndarray
    labels: np.ndarray


def load_digits() -> tuple[Digits, Digits]:
    from sklearn.datasets import load_digits as load

    images, labels = load(return_X_y=True)
    count = int(len(images) * TRAIN_SHARE)
    return Digits(images[:count], labels[:count]), Digits(images[count:], labels[count:])


class Network:
    """Scores rows of parameters on one set of digits.

    The bias of each layer follows its weights, so both are one matrix for inputs with a one at their end; nothing is
    copied, and the buffers stay. torch, because numpy takes three times as long for the rectifier.
    """

    def __init__(self, digits: Digits) -> None:
        count = len(digits.labels)
        self._labels = digits.labels
        self._inputs = torch.ones(count, INPUTS + 1)
        self._inputs[:, :INPUTS] = torch.from_numpy(digits.images)
        self._hidden = torch.empty(count, HIDDEN)
        self._outputs = torch.empty(count, CLASSES)

    def correct(self, parameters: np.ndarray) -> np.ndarray:
        """``(D,)`` whether each digit is recognised; of equal outputs the first counts."""
        rows = torch.from_numpy(parameters)
        torch.mm(self._inputs, rows[:FIRST].view(INPUTS + 1, HIDDEN), out=self._hidden)
        self._hidden.relu_()
        second = rows[FIRST:].view(HIDDEN + 1, CLASSES)
        torch.addmm(second[HIDDEN], self._hidden, second[:HIDDEN], out=self._outputs)
        # torch does not promise which of equal outputs it finds.
        found: np.ndarray = self._outputs.numpy().argmax(axis=1) == self._labels
        return found

    def accuracy(self, parameters: np.ndarray) -> float:
        return float(self.correct(parameters).mean())


def gradient(parameters: np.ndarray, digits: Digits) -> np.ndarray:
    """Of the mean cross entropy, ``(SIZE,)``."""
    ones = np.ones((len(digits.labels), 1), parameters.dtype)
    inputs = np.hstack([digits.images.astype(parameters.dtype), ones])
    first, second = parameters[:FIRST].reshape(INPUTS + 1, HIDDEN), parameters[FIRST:].reshape(HIDDEN + 1, CLASSES)
    hidden = np.hstack([np.maximum(inputs @ first, 0), ones])
    outputs = hidden @ second
    chances = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    chances /= chances.sum(axis=1, keepdims=True)
    chances[np.arange(len(chances)), digits.labels] -= 1
    chances /= len(chances)
    back = (chances @ second[:HIDDEN].T) * (hidden[:, :HIDDEN] > 0)
    return np.concatenate([(inputs.T @ back).ravel(), (hidden.T @ chances).ravel()])


def trained(parameters: np.ndarray, digits: Digits, rate: float = 0.003, steps: int = 10) -> np.ndarray:
    """After full-batch steps of Adam, with optax's defaults."""
    mean = square = np.zeros_like(parameters)
    for step in range(1, steps + 1):
        slope = gradient(parameters, digits)
        mean = 0.9 * mean + 0.1 * slope
        square = 0.999 * square + 0.001 * slope**2
        change = mean / (1 - 0.9**step) / (np.sqrt(square / (1 - 0.999**step)) + 1e-8)
        parameters = parameters - np.float32(rate) * change
    return parameters.astype(np.float32)


def random_pair(seed: int, sigma: float) -> np.ndarray:
    """``(2, SIZE)`` normal weights, as the authors' code draws them for a run."""
    _, *keys = split(prng_key(seed), 3)
    return np.stack([normal(key, SIZE) for key in keys]) * np.float32(sigma)


def pre_trained_pair(train: Digits, sigma: float) -> np.ndarray:
    """``(2, SIZE)`` networks for digits 0-4 and 5-9, the same in every run."""
    halves = [train.labels < 5, train.labels >= 5]
    return np.stack(
        [
            trained(normal(key, SIZE) * np.float32(sigma), Digits(train.images[half], train.labels[half]))
            for key, half in zip(split(prng_key(42), 2), halves)
        ]
    )
