"""Newman's spectral bisection of a modularity matrix: labels from the signs of leading eigenvectors."""

import numpy as np

from optimize_q import ROUNDING, jit

DENSE_UNITS = 128  # up to here a full eigendecomposition is faster than Lanczos iteration
LANCZOS_STEPS = 80
RESIDUAL = 1e-4  # relative to the eigenvalue: only the signs of the eigenvector matter
DEGENERATE = 1e-9  # eigenvalues closer than this, relative to the largest, share an eigenspace


def spectral_labels(B: np.ndarray, max_clusters: int | None = None) -> np.ndarray:
    """Labels (n,) of `modularity.spectral_modularity`, given B (n, n) of `modularity.modularity_matrix`.

    The diagonal of B does not matter: it cancels in B(g).
    """
    n = len(B)
    labels, k = np.zeros(n, dtype=np.int64), 1
    waiting = [np.arange(n)]
    while waiting and k < (max_clusters or n):
        group = waiting.pop(0)
        part = bisection(B, group)
        if part is not None:
            labels[group[part]] = k
            k += 1
            waiting += [group[~part], group[part]]
    return labels


def bisection(B: np.ndarray, group: np.ndarray) -> np.ndarray | None:
    """Which units of the group to split off, bool; None where the leading eigenvector's split does not raise Q."""
    if len(group) < 2:
        return None
    inner = B if len(group) == len(B) else B[np.ix_(group, group)]
    excess = inner.sum(1)  # Σ_{k∈g} B_ik, taken off the diagonal
    v = leading_eigenvector(inner, excess)
    part = v < 0
    s = np.where(part, -1.0, 1.0)
    gain = (s @ (inner @ s) - excess.sum()) / 2
    return part if part.any() and gain > ROUNDING else None


def leading_eigenvector(inner: np.ndarray, excess: np.ndarray) -> np.ndarray:
    """Eigenvector of inner − diag(excess) for the most positive eigenvalue; of an eigenspace, a fixed vector's shadow.

    Entries that are zero up to rounding are zero, and the largest entry is positive, so that rounding decides no sign.
    """
    if len(inner) <= DENSE_UNITS:
        values, vectors = np.linalg.eigh(inner - np.diag(excess))
        top = vectors[:, values >= values[-1] - DEGENERATE * np.abs(values).max()]
        v = top[:, 0] if top.shape[1] == 1 else top @ (top.T @ start_vector(len(inner)))
    else:
        v = lanczos(inner, excess, start_vector(len(inner)), LANCZOS_STEPS, RESIDUAL)
    size = np.abs(v).max()
    v = np.where(np.abs(v) > DEGENERATE * size, v, 0)
    return v if v.max() > -v.min() * (1 - DEGENERATE) else -v


def start_vector(n: int) -> np.ndarray:
    """A fixed vector with no symmetry: the golden ratio's multiples modulo 1, less a half."""
    return np.arange(1, n + 1) * ((np.sqrt(5) - 1) / 2) % 1 - 0.5


@jit
def lanczos(inner, excess, start, steps, residual):
    """Leading eigenvector by Lanczos iteration with full reorthogonalisation (Golub & Van Loan, §10.1–10.3).

    Single-threaded, so that its rounding does not depend on the machine's number of cores.
    """
    n, steps = len(inner), min(steps, len(inner))
    basis = np.zeros((steps, n))
    alpha, beta = np.zeros(steps), np.zeros(steps)
    basis[0] = start / np.sqrt((start * start).sum())
    weights = np.ones((1, 1))
    for j in range(steps):
        y = -excess * basis[j]
        for i in range(n):
            y[i] += np.dot(inner[i], basis[j])
        alpha[j] = (y * basis[j]).sum()
        for _ in range(2):
            for i in range(j + 1):
                y -= (y * basis[i]).sum() * basis[i]
        beta[j] = np.sqrt((y * y).sum())
        last = j + 1 == steps or beta[j] < 1e-14
        if last or j % 8 == 7:
            T = np.diag(alpha[: j + 1])
            for i in range(j):
                T[i, i + 1] = T[i + 1, i] = beta[i]
            values, weights = np.linalg.eigh(T)
            if last or beta[j] * abs(weights[j, -1]) <= residual * abs(values[-1]):
                break
        basis[j + 1] = y / beta[j]
    v = np.zeros(n)
    for i in range(len(weights)):
        v += weights[i, -1] * basis[i]
    return v
