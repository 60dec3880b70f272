"""Random matrices that keep a real matrix's strengths, or its spectrum, to hold its Q against; what follows from that.

Each null is a function of a numpy generator that draws one matrix (n, n), float64, symmetric, non-negative, with a zero
diagonal.
"""

import math
from collections.abc import Callable

import numpy as np
import scipy.stats

from numerics.jit import jit

STRENGTH_ERROR = 0.01  # of a unit's strength: draws that miss one by more are not used
TRIES = 20  # draws in a row that miss it, after which there is no such null
SWAPS = 10  # tried for each link, or pair without one where these are fewer
BALANCE_STEPS, BALANCE_ERROR = 500, 1e-7
NORMALIZED = 1e-4  # a diagonal this close to 1 is that of a normalized matrix
Q_ROUNDING = 1e-12


class NoNull(ValueError):
    """No matrix was found that keeps what the null keeps."""


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
    """Null with the strength of every unit kept, and the number of units that it is linked to.

    W = DAD, D diagonal, so that each unit's strength in W is its number of links (Sinkhorn's scaling; for a binary
    graph W = A, for a matrix without zeros all strengths are equal). Links are rewired, the entries of W permuted among
    them, and the result is scaled in the same way to A's strengths, which a matrix without zeros always allows. Where
    links are few it may not: a draw that misses a unit's strength by over 1% is made again, up to 20 times.
    Single very heavy links look like modules to it: independent log-normal weights (σ = 1.5) of 64 units get z = +10.

    Args: A: (n, n), symmetric, non-negative, zero diagonal, every strength positive.
    Returns: the function that draws; it raises NoNull, with the reason, where no draw keeps the strengths.
    References: Sinkhorn & Knopp (1967), Pacific J. Math. 21:343–348; Maslov & Sneppen (2002), Science 296:910–913, for
        the rewiring.
    """
    A = A.astype(np.float64)
    linked = A > 0
    strengths, links = A.sum(1), linked.sum(1)
    d = balancing(A, links.astype(np.float64), np.sqrt(links / strengths))
    W = A * d[:, None] * d
    upper = np.triu(linked, 1)
    entries = W[upper]

    def draw(random: np.random.Generator) -> np.ndarray:
        missed = np.inf
        for _ in range(TRIES):
            rewired = linked.copy()
            rewire(rewired, random)
            W = np.zeros_like(A)
            W[np.triu(rewired, 1)] = random.permutation(entries)
            W += W.T
            x = balancing(W, strengths, 1 / d)
            W = W * x[:, None] * x  # the product of two x, which may overflow where W is zero, is never formed
            error = np.abs(W.sum(1) / strengths - 1).max()
            if error <= STRENGTH_ERROR:
                return W
            missed = min(missed, error)
        raise NoNull(f"{TRIES} random matrices with these links missed some unit's strength by {missed:.1%} or more")

    return draw


@jit
def rewire(linked, random):
    """Swap the ends of random pairs of links (a–b, c–d become a–d, c–b), so that every unit keeps their number.

    Where most pairs are linked, the pairs that are not are swapped instead, which comes to the same.

    Args: linked: (n, n) bool, symmetric, no unit linked to itself; changed in place.
    """
    n = len(linked)
    kind = 2 * linked.sum() <= n * (n - 1)
    pairs = np.empty((n * (n - 1) // 2, 2), np.int64)
    count = 0
    for i in range(n):
        for j in range(i):
            if linked[i, j] == kind:
                pairs[count, 0], pairs[count, 1] = i, j
                count += 1
    for _ in range(SWAPS * count):
        e, f = np.int64(random.random() * count), np.int64(random.random() * count)
        side = np.int64(random.random() * 2)
        a, b, c, d = pairs[e, 0], pairs[e, 1], pairs[f, side], pairs[f, 1 - side]
        if a in (c, d) or b in (c, d) or linked[a, d] == kind or linked[c, b] == kind:
            continue
        linked[a, b] = linked[b, a] = linked[c, d] = linked[d, c] = not kind
        linked[a, d] = linked[d, a] = linked[c, b] = linked[b, c] = kind
        pairs[e, 0], pairs[e, 1], pairs[f, 0], pairs[f, 1] = a, d, c, b


@jit
def balancing(W, strengths, x):
    """x with x_i Σ_j W_ij x_j = strengths_i, by x ← x·√(strengths/(x·Wx)), or the x that came closest.

    Closest by the largest error relative to a unit's strength. Every row of W must have weight.
    """
    n, x = len(W), x.copy()
    best, kept = np.inf, x.copy()
    for _ in range(BALANCE_STEPS):
        y = np.empty(n)
        error = 0.0
        for i in range(n):
            ratio = strengths[i] / (x[i] * np.dot(W[i], x))
            if not 0.0 < ratio < np.inf:  # there is no such x: some entries grow and others vanish, without end
                return kept
            error = max(error, abs(1.0 / ratio - 1.0))
            y[i] = x[i] * np.sqrt(ratio)
        if error < best:
            best = error
            kept[:] = x
        if error < BALANCE_ERROR:
            break
        x = y
    return kept


def rotation(C: np.ndarray) -> Callable[[np.random.Generator], np.ndarray]:
    """Null with the spectrum kept: the absolute value of OCOᵀ, O a random orthogonal matrix (Haar's distribution).

    Where C has a unit diagonal (a normalized matrix) the rotated matrix is normalized again.

    Args: C: (n, n), signed, symmetric, diagonal included. Of a network that regularization has all but silenced, single
        entries of the diagonal may have underflowed to zero.
    """
    diagonal = np.diagonal(C)
    if not (diagonal >= 0).all() or not diagonal.any():
        raise ValueError("the rotation null needs the diagonal of the signed matrix")
    normalized = np.abs(diagonal - 1).max() < NORMALIZED
    C = C / np.abs(C).max()

    def draw(random: np.random.Generator) -> np.ndarray:
        orthogonal = scipy.stats.ortho_group.rvs(len(C), random_state=random)
        rotated = orthogonal @ C @ orthogonal.T
        if normalized:
            scale = 1 / np.sqrt(np.maximum(np.diagonal(rotated), 1e-12))
            rotated *= np.outer(scale, scale)
        np.fill_diagonal(rotated, 0)
        return np.abs(rotated + rotated.T) / 2

    return draw
