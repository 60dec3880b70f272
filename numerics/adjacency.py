"""Between what callers give (matrices, clusterings, seeds) and the arrays that the searches work on."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import ArrayLike

Matrix = torch.Tensor | ArrayLike  # also sparse, or a DataFrame
DEAD = 1e-9  # relative to the largest strength
ASYMMETRY = 1e-5  # relative to the largest entry: more than float32 sums in another order differ by
WHOLE = 1e-3  # by how much the fractions of a unit may exceed 1, as those of half precision do


# ---- matrices -------------------------------------------------------------------------------------------------------


def as_array(values, name: str) -> np.ndarray:
    """Any table of numbers as float64, on the CPU: tensors and numpy arrays, sparse ones, lists, DataFrames.

    Raises: ValueError for what is not numbers, in a sentence that starts with the name.
    """
    return _numbers(values, name).astype(np.float64)


def _numbers(values, name):
    """The same in a dtype of numpy's: integers and truth values stay what they are."""
    refusal = f"{name} is no table of real numbers but %s: give a tensor or a numpy array"
    if isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name} is a masked array: fill in what is masked first")
    if hasattr(values, "toarray"):
        values = values.toarray()
    if not isinstance(values, list | tuple | torch.Tensor) and not hasattr(values, "__array__"):
        raise ValueError(refusal % type(values).__name__)
    try:
        if isinstance(values, torch.Tensor):
            values = values.detach()
            values = (values if values.layout == torch.strided else values.to_dense()).cpu()
            array = (values.double() if values.is_floating_point() else values).numpy()
        else:
            array = np.asarray(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} is no table of numbers: {' '.join(str(error).split())[:200]}") from None
    if array.dtype.kind not in "biuf":
        raise ValueError(refusal % (type(values).__name__ if array.dtype.kind == "O" else array.dtype))
    return array


def adjacency(adj: Matrix, name: str = "adjacency matrix") -> np.ndarray:
    """The matrix of a weighted undirected graph, float64, its diagonal zero whatever it was, its largest entry 1.

    Raises: ValueError if adj is not square, empty, asymmetric, negative or not finite off its diagonal.
    """
    return _scaled(off_diagonal(as_array(adj, name), name), name)


def off_diagonal(A: np.ndarray, name: str = "adjacency matrix") -> np.ndarray:
    """A with a diagonal of zeros; ValueError unless A is square and has rows."""
    if A.ndim != 2 or A.shape[0] != A.shape[1]:
        raise ValueError(f"{name} is not square but {A.shape}")
    if not len(A):
        raise ValueError(f"{name} is empty")
    A = A.copy()
    np.fill_diagonal(A, 0)
    return A


def _scaled(A, name):
    if not np.isfinite(A).all():
        raise ValueError(f"{name} has entries that are not finite")
    if A.min() < 0:
        raise ValueError(f"{name} has negative entries (down to {A.min():.3g})")
    largest = A.max()
    if largest == 0:
        return A
    A = A / largest  # sums of entries as small or as large as float64 holds would underflow or overflow
    difference = np.abs(A - A.T).max()
    if difference > ASYMMETRY:
        raise ValueError(f"{name} is not symmetric (differences up to {difference * largest:.3g})")
    return (A + A.T) / 2


class Problem(NamedTuple):
    """What the searches for the best clustering work on: the live units of a graph, n of them."""

    A: np.ndarray  # (n, n) float64, symmetric, zero diagonal
    B: np.ndarray  # (n, n): A/m − aaᵀ with its diagonal set to zero, a_i = Σ_j A_ij/m
    q0: float  # the trace taken away: Q of a clustering of the live units is q0 + Σ_c Σ_{ij∈c} B_ij
    live: np.ndarray  # which units these n are, bool


def problem_of(adj: Matrix) -> Problem:
    """The problem that an adjacency matrix poses; m is its whole sum, a that over live units.

    Raises: ValueError if A is invalid or has no weight; its diagonal is ignored.
    """
    A = adjacency(adj)
    if not A.any():
        raise ValueError("adjacency matrix has no weight off its diagonal")
    strengths = A.sum(1)
    live = strengths > DEAD * strengths.max()
    if not live.all():
        A = A[np.ix_(live, live)]
    B = A / strengths.sum()
    a = B.sum(1)
    B -= np.outer(a, a)
    np.fill_diagonal(B, 0)
    return Problem(A, B, -float(a @ a), live)


def q_of_labels(problem: Problem, labels: np.ndarray) -> float:
    """Q of labels (n,), 0, 1, …, of the live units."""
    P = labels[:, None] == np.arange(labels.max() + 1)
    return problem.q0 + float((problem.B @ P)[P].sum())


# ---- clusterings ----------------------------------------------------------------------------------------------------


def cluster_labels(clusters, n: int | None = None) -> np.ndarray:
    """Number of each unit's cluster among the clusters used, 0, 1, …, (n,) int64; −1 for units in no cluster.

    Args:
        clusters: (n, c), rows one-hot or zero, or labels (n,) of integers, −1 for none. Clusters are numbered in the
            order of their columns, or of their labels.
        n: the number of units that there should be.

    Raises: ValueError for anything else.
    """
    array = _clusters(clusters, n)
    if array.ndim == 1:
        return _numbered(array)
    P = array[:, array.any(0)]
    if not (((P == 0) | (P == 1)).all() and (P.sum(1) <= 1).all()):
        raise ValueError("clusters have rows that are neither one-hot nor zero; labels are given as a vector (units,)")
    return np.where(P.any(1), P.argmax(1), -1) if P.shape[1] else np.full(len(P), -1)


def cluster_fractions(clusters, n: int | None = None) -> np.ndarray:
    """P, (n, c) float64: how much of each unit is in each cluster; columns without units are left out.

    Args: clusters: (n, c), non-negative, with rows that sum to 1 or less, or labels as in `cluster_labels`.
    Raises: ValueError for anything else.
    """
    array = _clusters(clusters, n)
    if array.ndim == 1:
        labels = _numbered(array)
        return (labels[:, None] == np.arange(labels.max(initial=-1) + 1)).astype(np.float64)
    P = array.astype(np.float64)
    if not np.isfinite(P).all() or (P < 0).any():
        raise ValueError("clusters are negative or not finite")
    if (P.sum(1) > 1 + WHOLE).any():
        raise ValueError("clusters have rows that sum to more than 1; labels are given as a vector (units,)")
    return P[:, P.any(0)]


def _clusters(clusters, n):
    array = _numbers(clusters, "clusters")
    if array.ndim not in (1, 2):
        raise ValueError(f"clusters of shape {array.shape}, neither labels (units,) nor (units, clusters)")
    if n is not None and len(array) != n:
        raise ValueError(f"clusters of shape {array.shape} for {n} units")
    if array.ndim == 2 and array.shape[1] == 1 and array.dtype.kind in "iu":
        raise ValueError("clusters in one column of integers: give labels as a vector (units,), one cluster as floats")
    return array


def _numbered(labels):
    if len(labels) and labels.dtype.kind not in "iu":
        raise ValueError("clusters given as labels (units,) must be integers, −1 for units in no cluster")
    if labels.min(initial=0) < -1:
        raise ValueError(f"clusters have the label {labels.min()}: −1 is for units in no cluster, the others from 0 on")
    used = np.unique(labels[labels >= 0])
    return np.where(labels >= 0, np.searchsorted(used, labels), -1)


def start_labels(clusters, live: np.ndarray, room: int) -> np.ndarray:
    """Labels of the live units in a given clustering, numbered in the order of their first unit."""
    labels = cluster_labels(clusters, len(live))[live]
    if (labels < 0).any():
        raise ValueError("clusters to start from are not one-hot on every live unit")
    labels = in_order_of_appearance(labels)
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
