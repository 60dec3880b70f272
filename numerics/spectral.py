"""Newman's spectral bisection of a modularity matrix: labels from the signs of leading eigenvectors."""

import numpy as np

from numerics.search import ROUNDING, jit

DENSE_UNITS = 128  # up to here the eigenvector is computed to rounding; beyond, as far as its signs need
LANCZOS_STEPS = 80
RESIDUAL = 1e-4  # relative to the eigenvalue
NEGLIGIBLE = 1e-9  # entries of an eigenvector below this, relative to the largest, are zero


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
    Small groups get the full tridiagonalisation, large ones as many Lanczos steps as the residual needs. Both run in
    one thread: LAPACK's rounding depends on the number of threads, and on small matrices they only slow it down.
    """
    n = len(inner)
    steps, residual = (n, 0.0) if n <= DENSE_UNITS else (LANCZOS_STEPS, RESIDUAL)
    v = lanczos(inner, excess, start_vector(n), steps, residual)
    size = np.abs(v).max()
    v = np.where(np.abs(v) > NEGLIGIBLE * size, v, 0)
    return v if v.max() > -v.min() * (1 - NEGLIGIBLE) else -v


def start_vector(n: int) -> np.ndarray:
    """A fixed vector with no symmetry: the golden ratio's multiples modulo 1, less a half."""
    return np.arange(1, n + 1) * ((np.sqrt(5) - 1) / 2) % 1 - 0.5


@jit
def lanczos(inner, excess, start, steps, residual):
    """Leading eigenvector of inner − diag(excess) by Lanczos iteration with full reorthogonalisation.

    Stops after the given number of steps, at the residual (relative to the eigenvalue), or when the subspace is
    invariant; n steps tridiagonalise the matrix.

    Reference: Golub & Van Loan (2013), Matrix Computations, §10.1–10.3.
    """
    n = len(inner)
    basis = np.empty((steps, n))
    alpha, beta, y = np.zeros(steps), np.zeros(steps), np.empty(n)
    basis[0] = start / np.sqrt(dot(start, start))
    weights = np.ones(1)
    scale = 0.0
    for j in range(steps):
        for i in range(n):
            y[i] = dot(inner[i], basis[j]) - excess[i] * basis[j, i]
        alpha[j] = dot(y, basis[j])
        for _ in range(2):
            for i in range(j + 1):
                overlap = dot(y, basis[i])
                for u in range(n):
                    y[u] -= overlap * basis[i, u]
        beta[j] = np.sqrt(dot(y, y))
        scale = max(scale, abs(alpha[j]) + beta[j])
        last = j + 1 == steps or beta[j] <= 1e-12 * scale
        if last or (residual > 0.0 and j % 8 == 7):
            value, weights = top_of_tridiagonal(alpha[: j + 1], beta[:j])
            if last or beta[j] * abs(weights[j]) <= residual * abs(value):
                break
        basis[j + 1] = y / beta[j]
    v = np.zeros(n)
    for i in range(len(weights)):
        v += weights[i] * basis[i]
    return v


@jit
def dot(x, y):
    """Σ x_i y_i in four interleaved sums: a fixed order of additions, fit for vector instructions."""
    a, b, c, d = 0.0, 0.0, 0.0, 0.0
    n = len(x) // 4 * 4
    for i in range(0, n, 4):
        a += x[i] * y[i]
        b += x[i + 1] * y[i + 1]
        c += x[i + 2] * y[i + 2]
        d += x[i + 3] * y[i + 3]
    for i in range(n, len(x)):
        a += x[i] * y[i]
    return (a + b) + (c + d)


@jit
def top_of_tridiagonal(alpha, beta):
    """Largest eigenvalue of a symmetric tridiagonal matrix by bisection, and its unit eigenvector by inverse iteration.

    Args: alpha: (n,), the diagonal; beta: (n − 1,), the diagonal beside it.
    """
    n = len(alpha)
    high, low = -np.inf, alpha.max()
    for i in range(n):  # Gershgorin
        reach = (abs(beta[i - 1]) if i > 0 else 0.0) + (abs(beta[i]) if i < n - 1 else 0.0)
        high = max(high, alpha[i] + reach)
    span = abs(high) + abs(low) + 1e-300
    high += 1e-14 * span
    while high - low > 4e-15 * span:
        middle = 0.5 * (low + high)
        pivot, above = alpha[0] - middle, False
        for i in range(n):
            if i > 0:
                pivot = alpha[i] - middle - beta[i - 1] * beta[i - 1] / pivot
            if pivot >= 0.0:  # not negative definite: an eigenvalue is at or above the middle
                above = True
                break
        if above:
            low = middle
        else:
            high = middle
    shift = high + 1e-14 * span  # shift − T is positive definite: elimination needs no pivoting
    v, pivots = np.ones(n), np.empty(n)
    for _ in range(4):
        pivots[0] = shift - alpha[0]
        for i in range(1, n):
            factor = -beta[i - 1] / pivots[i - 1]
            pivots[i] = shift - alpha[i] + factor * beta[i - 1]
            v[i] -= factor * v[i - 1]
        v[n - 1] /= pivots[n - 1]
        for i in range(n - 2, -1, -1):
            v[i] = (v[i] + beta[i] * v[i + 1]) / pivots[i]
        v /= np.sqrt((v * v).sum())
    return high, v
