"""Newman's spectral bisection of a modularity matrix: labels from the signs of leading eigenvectors."""

import numpy as np
import scipy.linalg
import scipy.sparse.linalg

from numerics.search import ROUNDING

DENSE_UNITS = 256  # up to here LAPACK is faster than Lanczos iteration
NEGLIGIBLE = 1e-9  # entries of an eigenvector below this, relative to the largest, are zero; so are eigenvalues' gaps


def spectral_labels(B: np.ndarray, max_clusters: int | None = None) -> np.ndarray:
    """Labels (n,) of `modularity.spectral_modularity`, given B (n, n) of `adjacency.problem_of`.

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

    Entries that are zero up to rounding are zero, and the vector lies on that fixed vector's side, so that rounding,
    which differs with the number of threads, decides no sign.
    """
    n = len(inner)
    M = inner.copy()
    M[np.diag_indices(n)] -= excess
    start = start_vector(n)
    if n <= DENSE_UNITS:
        values, vectors = scipy.linalg.eigh(M, subset_by_index=(n - 2, n - 1), check_finite=False)
        scale = np.abs(values).max()
        if values[1] - values[0] <= NEGLIGIBLE * scale:
            values, vectors = scipy.linalg.eigh(M, check_finite=False)
        top = vectors[:, values >= values[-1] - NEGLIGIBLE * scale]
    else:
        top = scipy.sparse.linalg.eigsh(M, k=1, which="LA", v0=start)[1]
    v = top @ (start @ top)
    return np.where(np.abs(v) > NEGLIGIBLE * np.abs(v).max(), v, 0)


def start_vector(n: int) -> np.ndarray:
    """A fixed vector with no symmetry: the golden ratio's multiples modulo 1, less a half."""
    return np.arange(1, n + 1) * ((np.sqrt(5) - 1) / 2) % 1 - 0.5
