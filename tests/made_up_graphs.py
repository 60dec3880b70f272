"""Graphs with known or best known Q, and slow, plain ways to find it."""

import itertools
import json
from pathlib import Path

import networkx
import numpy as np
import scipy.optimize
import scipy.sparse
import torch

from modularity import girvan_newman

REFERENCE = Path(__file__).parent / "reference"
BEST_KNOWN = json.loads((REFERENCE / "best_known_q.json").read_text())
REAL = {key: torch.from_numpy(A) for key, A in np.load(REFERENCE / "assoc_evaluated.npz").items()}
with np.load(REFERENCE / "modularity.npz") as _graphs:
    GRAPHS = {f"{i:02d}_{name}": torch.from_numpy(_graphs[f"{i:02d}__adj"]) for i, name in enumerate(_graphs["names"])}
KARATE = torch.from_numpy(networkx.to_numpy_array(networkx.karate_club_graph(), weight=None))


def slow_q(A, labels):
    """Σ_c [Σ_{ij∈c} A_ij/m − (Σ_{i∈c} k_i/m)²], pair by pair; k over assigned units, m over all; label −1 is none."""
    A, units = np.asarray(A, dtype=float), range(len(A))
    m, assigned = A.sum(), [i for i in units if labels[i] >= 0]
    k = [sum(A[i, j] for j in assigned) for i in units]
    return sum(A[i, j] / m - k[i] * k[j] / m**2 for i in assigned for j in assigned if labels[i] == labels[j])


def labels_of(clusters):
    return np.where(clusters.any(1), clusters.argmax(1), -1)


def one_hot(labels, c=None):
    labels = np.asarray(labels)
    return torch.from_numpy((labels[:, None] == np.arange(c or labels.max() + 1)).astype(np.float64))


def q_of(A, clusters):
    return girvan_newman(A, clusters).item()


def random_graph(seed, n, groups=1):
    """Uniform weights, on top of `groups` planted blocks of random membership."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, groups, n)
    A = random.random((n, n)) * (0.3 + (labels[:, None] == labels) * (groups > 1))
    return torch.from_numpy(np.triu(A, 1) + np.triu(A, 1).T)


def every_clustering(n):
    """(Bell(n), n): all clusterings of n units, labels numbered in order of appearance."""
    labels = np.zeros((1, 1), dtype=np.int64)
    for _ in range(n - 1):
        homes = labels.max(1) + 2
        labels = np.column_stack([labels.repeat(homes, 0), np.concatenate([np.arange(h) for h in homes])])
    return labels


def best_of_every_clustering(A):
    A = A.double().numpy() / A.max().item()
    live = A.sum(1) > 1e-9 * A.sum(1).max()
    inner = A[np.ix_(live, live)]
    k, m = inner.sum(1), A.sum()
    B = inner / m - np.outer(k, k) / m**2
    labels = every_clustering(len(B))
    q = np.full(len(labels), np.trace(B))
    for i, j in itertools.combinations(range(len(B)), 2):
        q += 2 * B[i, j] * (labels[:, i] == labels[:, j])
    return q.max()


def proven_optimum(A):
    """Maximum Q by integer programming: x_ij = 1 when i and j share a cluster, transitive (Brandes et al. 2008)."""
    A = A.double().numpy()
    n, m = len(A), A.sum()
    B = A / m - np.outer(A.sum(1), A.sum(1)) / m**2
    pairs = {pair: v for v, pair in enumerate(itertools.combinations(range(n), 2))}
    rows, columns, values = [], [], []
    triangles = [t for i, j, k in itertools.combinations(range(n), 3) for t in ((i, j, k), (j, k, i), (k, i, j))]
    for row, (i, j, k) in enumerate(triangles):
        rows += [row] * 3
        columns += [pairs[min(p), max(p)] for p in ((i, j), (j, k), (i, k))]
        values += [1, 1, -1]
    transitive = scipy.sparse.csr_array((values, (rows, columns)), shape=(len(triangles), len(pairs)))
    result = scipy.optimize.milp(
        c=[-2 * B[p] for p in pairs],
        constraints=scipy.optimize.LinearConstraint(transitive, ub=1),
        integrality=np.ones(len(pairs)),
        bounds=scipy.optimize.Bounds(0, 1),
        options={"mip_rel_gap": 0},
    )
    assert result.status == 0
    return np.trace(B) - result.fun


def ring_of_cliques(k, size):
    A = torch.block_diag(*[1 - torch.eye(size)] * k)
    for c in range(k):
        i, j = size * c, size * ((c + 1) % k) + 1
        A[i, j] = A[j, i] = 1
    return A


def sparse_graph(n, seed):
    """Sparse random graphs are the hardest: they have many optima."""
    linked = np.triu(np.random.default_rng(seed).random((n, n)) < 5 / n, 1)
    return torch.from_numpy((linked | linked.T).astype(float))
