"""Random matrices without modules to hold a real matrix's Q against, and the significance that follows.

Each null is a function of a numpy generator that draws one matrix (n, n), float64, symmetric, non-negative, with a zero
diagonal.
"""

import math
from collections.abc import Callable

import numpy as np

from numerics.search import jit

NORMALISED = 1e-4  # a diagonal this close to 1 is that of a normalised matrix
EVERYWHERE = 1e-3  # share of the expected weight added to every pair, so that the scaling exists for sparse matrices
BALANCE_STEPS, BALANCE_ERROR = 200, 1e-9
Q_ROUNDING = 1e-12


def significance(score: float, null: list[float]) -> dict:
    """Where a score lies among those of its null's draws.

    Returns:
        null_mean, null_std (sample standard deviation), z = (score − mean)/std and
        p = (1 + draws with at least the score)/(1 + draws). NaN where undefined: all for a score that is NaN or without
        draws; z for a null that does not vary.
    """
    if math.isnan(score) or not null:
        return dict.fromkeys(("null_mean", "null_std", "z", "p"), math.nan)
    mean = float(np.mean(null))
    std = float(np.std(null, ddof=1)) if len(null) > 1 else math.nan
    z = (score - mean) / std if std > Q_ROUNDING else math.nan
    p = (1 + sum(q >= score - Q_ROUNDING for q in null)) / (1 + len(null))
    return {"null_mean": mean, "null_std": std, "z": z, "p": p}


def strength_preserving(A: np.ndarray) -> Callable[[np.random.Generator], np.ndarray]:
    """Null with every unit's strength kept: A's off-diagonal entries shuffled after scaling them to unit strengths.

    W = DAD with D diagonal and the strengths of W all equal (Sinkhorn's scaling); the entries of W's upper triangle are
    permuted, and the result is scaled to A's strengths in the same way. For a sparse matrix there may be no such
    scaling; the strengths are then kept as nearly as the iteration gets.

    Args: A: (n, n), symmetric, non-negative, zero diagonal, every strength positive.
    Reference: Sinkhorn & Knopp (1967), Pacific J. Math. 21:343–348.
    """
    A = A.astype(np.float64)
    k = A.sum(1) / A.sum()
    expected = np.outer(k, k)
    np.fill_diagonal(expected, 0)
    d = balancing(A / A.sum() + EVERYWHERE * expected, np.full(len(A), 1 / len(A)), 1 / np.sqrt(len(A) * k))
    W = A * d[:, None] * d
    upper = np.triu_indices(len(A), 1)
    entries = W[upper]

    def draw(random: np.random.Generator) -> np.ndarray:
        W = np.zeros_like(A)
        W[upper] = random.permutation(entries)
        W += W.T
        x = balancing(W, k * A.sum(), 1 / d)
        return W * x[:, None] * x  # the product of two x, which may overflow where W is zero, is never formed

    return draw


@jit
def balancing(W, strengths, x):
    """x with x_i Σ_j W_ij x_j = strengths_i, by x ← x·√(strengths/(x·Wx)), for as long as that brings it closer.

    Rows of W without weight keep their x.
    """
    n, x = len(W), x.copy()
    error, best, kept = np.inf, np.inf, x.copy()
    for _ in range(BALANCE_STEPS):
        y = np.empty(n)
        for i in range(n):
            y[i] = np.dot(W[i], x)
        error = 0.0
        for i in range(n):
            if y[i] > 0.0:
                ratio = strengths[i] / (x[i] * y[i])
                error += abs(x[i] * y[i] - strengths[i])
                y[i] = x[i] * np.sqrt(ratio)
            else:
                error += strengths[i]
                y[i] = x[i]
        if error < best:
            best = error
            kept[:] = x
        if error < BALANCE_ERROR * strengths.sum():
            break
        x = y
    return kept


def rotation(C: np.ndarray) -> Callable[[np.random.Generator], np.ndarray]:
    """Null with the spectrum kept: the absolute value of OCOᵀ, O a random orthogonal matrix.

    Where C has a unit diagonal (a normalised matrix) the rotated matrix is normalised again.

    Args: C: (n, n), signed, symmetric, diagonal included. Of a network that regularisation has all but silenced, single
        entries of the diagonal may have underflowed to zero.
    """
    diagonal = np.diagonal(C)
    if (diagonal < 0).any() or not diagonal.any():
        raise ValueError("the rotation null needs the diagonal of the signed matrix")
    normalised = np.abs(diagonal - 1).max() < NORMALISED

    def draw(random: np.random.Generator) -> np.ndarray:
        rotated = C.copy()
        rotate(rotated, random.normal(size=(len(C) * (len(C) + 1) // 2)))
        if normalised:
            scale = 1 / np.sqrt(np.maximum(np.diagonal(rotated), 1e-12))
            rotated *= np.outer(scale, scale)
        np.fill_diagonal(rotated, 0)
        return np.abs(rotated + rotated.T) / 2

    return draw


@jit
def rotate(C, normals):
    """C ← OCOᵀ in place, O from the Haar distribution up to the signs of its rows.

    O is a product of n − 1 Householder reflections with normal random vectors of length 2 … n, taken from `normals`.

    Reference: Stewart (1980), SIAM J. Numer. Anal. 17:403–409.
    """
    n = len(C)
    u, w, used = np.zeros(n), np.zeros(n), 0
    for first in range(n - 2, -1, -1):
        square = 0.0
        for i in range(first, n):
            u[i] = normals[used]
            used += 1
            square += u[i] * u[i]
        if square == 0.0:
            continue
        length = np.sqrt(square)
        square -= u[first] * u[first]
        u[first] += length if u[first] > 0.0 else -length
        scale = np.sqrt(2.0 / (square + u[first] * u[first]))
        u[first:] *= scale  # the reflection is now I − uuᵀ
        for i in range(n):
            w[i] = np.dot(C[i], u)
        half = 0.5 * np.dot(u, w)
        for i in range(n):
            w[i] -= half * u[i]
        for i in range(n):
            for j in range(n):
                C[i, j] -= u[i] * w[j] + w[i] * u[j]
