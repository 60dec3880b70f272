"""The ways there are to find the clustering of a graph with the highest Q, under their names.

Labels (n,), 0, 1, …, are those of a problem's live units.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from numerics.adjacency import Problem
from numerics.leiden import leiden_labels
from numerics.search import iterated_local_search, partition, run_chain, scratch
from numerics.seeds import generator
from numerics.spectral import spectral_labels

BRIEF_ROUNDS = 250  # of refinement, for a matrix drawn from a null
CHAIN, REFINEMENT, FURTHER = range(3)  # streams of random numbers drawn from one seed


class Search(NamedTuple):
    """A way to find the clustering with the highest Q."""

    title: str
    find: Callable  # (problem, seed, steps, target_entropy) → labels; null matrices get the same effort
    further: Callable | None = None  # (problem, labels, seed) → labels: where the search of a real matrix goes on to


def chain(
    problem: Problem, start: np.ndarray | None, room: int, steps: int, target_entropy: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The Monte Carlo chain from a start, or the spectral labels: its best labels; (3, steps), its histories."""
    start = spectral_labels(problem.B, room) if start is None else start
    return run_chain(partition(problem.B, start), problem.q0, room, steps, target_entropy, generator(seed, CHAIN))


def refine(problem: Problem, start: np.ndarray, rounds: int, rng: np.random.Generator) -> np.ndarray:
    """The best labels of so many rounds of iterated local search from a start."""
    B = problem.B
    return iterated_local_search(partition(B, start), partition(B, start), scratch(len(B)), rounds, rng)


def default_rounds(n: int) -> int:
    """Rounds of refinement for n units: 1,000 up to 64, up to 21,000 near 118, then what about a second allows.

    More units need more rounds, and each costs more. Sparse random graphs of 50 to 250 units are the hardest matrices
    met: with these numbers single runs on them were as good as the best of 50 of Leiden's.
    """
    return max(1, round(min(1000 * max(1, n / 64) ** 5, 2.5e6 / n, 6.4e8 / n**2)))


def _brief_rounds(n: int) -> int:
    return max(1, min(BRIEF_ROUNDS, round(BRIEF_ROUNDS * (256 / n) ** 2)))


def _plain_chain(problem, seed, steps, target_entropy):
    return chain(problem, None, len(problem.B), steps, target_entropy, seed)[0]


def _brief(problem, seed, steps, target_entropy):
    start = _plain_chain(problem, seed, steps, target_entropy)
    return refine(problem, start, _brief_rounds(len(start)), generator(seed, REFINEMENT))


def _further(problem, labels, seed):
    return refine(problem, labels, default_rounds(len(labels)), generator(seed, FURTHER))


def _leiden(problem, seed, steps, target_entropy):
    return leiden_labels(problem.A, seed % 2**31)


SEARCHES = {
    "refined": Search("chain, refined (default)", _brief, _further),
    "chain": Search("plain chain", _plain_chain),
    "leiden": Search("Leiden, one run", _leiden),
}
