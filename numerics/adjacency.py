"""Between the tensors outside and the arrays that the searches for the best clustering work on."""

import numpy as np
import torch

DEAD = 1e-9  # relative to the largest strength
ASYMMETRY = 1e-5  # relative to the largest entry: more than float32 sums in another order differ by


def adjacency_problem(adj: torch.Tensor) -> str:
    """What keeps adj from being the matrix of a weighted undirected graph, in words; "" if nothing does."""
    if adj.ndim != 2 or adj.shape[0] != adj.shape[1]:
        return f"is not square but {tuple(adj.shape)}"
    if not len(adj):
        return "is empty"
    if not adj.isfinite().all():
        return "has entries that are not finite"
    if adj.min() < 0:
        return f"has negative entries (down to {adj.min().item():.3g})"
    if (difference := (adj - adj.T).abs().max().item()) > ASYMMETRY * adj.max().item():
        return f"is not symmetric (differences up to {difference:.3g})"
    return ""


def modularity_matrix(adj: torch.Tensor) -> tuple[np.ndarray, float, np.ndarray]:
    """What the searches for the best clustering work on: the modularity matrix of the live units, in two parts.

    Returns:
        B: (n, n) float64, A/m − aaᵀ with its diagonal set to zero, a_i = Σ_j A_ij/m summed over live j.
        q0: the trace taken away, so that Q of a clustering of the live units is q0 + Σ_c Σ_{ij∈c} B_ij.
        live: which units these n are, bool.

    Raises: ValueError if A is invalid or has no weight.
    """
    if problem := adjacency_problem(adj):
        raise ValueError(f"adjacency matrix {problem}")
    A = adj.detach().cpu().numpy().astype(np.float64)
    np.fill_diagonal(A, 0)
    if not A.any():
        raise ValueError("adjacency matrix has no weight off its diagonal")
    A /= A.max()  # keeps sums clear of under- and overflow
    strengths = A.sum(1)
    live = strengths > DEAD * strengths.max()
    B = A if live.all() else A[np.ix_(live, live)]
    B /= strengths.sum()
    B = _symmetrized(B)
    a = B.sum(1)
    for i in range(len(B)):  # by rows: no second matrix of this size
        B[i] -= a[i] * a
    np.fill_diagonal(B, 0)
    return B, -float(a @ a), live


def _symmetrized(A: np.ndarray) -> np.ndarray:
    """A in place, the mean of itself and its transpose."""
    for i in range(len(A)):
        A[i, i:] += A[i:, i]
        A[i, i:] /= 2
        A[i:, i] = A[i, i:]
    return A


def start_labels(clusters: torch.Tensor, live: np.ndarray, room: int) -> np.ndarray:
    """Labels of the live units in a given clustering, numbered in the order of their first unit."""
    if clusters.ndim != 2 or len(clusters) != len(live):
        raise ValueError(f"clusters of shape {tuple(clusters.shape)} for {len(live)} units")
    P = clusters.detach().cpu().numpy()[live]
    if not (np.isin(P, (0, 1)).all() and (P.sum(1) == 1).all()):
        raise ValueError("clusters are not one-hot on every live unit")
    labels = in_order_of_appearance(P.argmax(1))
    if labels.max() >= room:
        raise ValueError(f"{labels.max() + 1} clusters to start from, more than max_clusters = {room}")
    return labels


def in_order_of_appearance(labels: np.ndarray) -> np.ndarray:
    """The same clustering with labels 0, 1, … numbered in the order of their first unit; int64."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return first.argsort().argsort()[inverse].astype(np.int64)


def one_hot(labels: np.ndarray, live: np.ndarray) -> torch.Tensor:
    """P, (n, c), float32, of labels of the live units; columns in the order of their first unit."""
    labels = in_order_of_appearance(labels)
    P = torch.zeros(len(live), int(labels.max()) + 1)
    P[np.flatnonzero(live), labels] = 1
    return P
