"""Newman's modularity Q of a clustering of units, the clustering that maximizes it, and its significance.

An association matrix A (n, n) is symmetric, non-negative and has a zero diagonal; k = A·1 are the strengths of its units
and m = Σ_ij A_ij. A clustering P (n, c) has one-hot rows. A unit is dead when k_i ≤ 1e-9 · max k: which cluster it is in
would be decided by rounding, so that its row of P is zero. Columns are in the order of their first unit.
"""

import math

import numpy as np
import torch

import optimize_q
import q_nulls
from spectral_q import spectral_labels

MODULES_VERSION = 100
DEFAULT_NULL_DRAWS = 20
DEFAULT_ROUNDS = 1000
DEAD = 1e-9  # relative to the largest strength
ASYMMETRY = 1e-5  # relative to the largest entry: more than float32 sums in another order differ by
CHAIN, REFINEMENT, STRENGTH_NULL, ROTATION_NULL = range(4)  # streams of random numbers drawn from one seed


def girvan_newman(adj: torch.Tensor, clusters: torch.Tensor) -> torch.Tensor:
    """Newman's modularity Q of a clustering of a weighted undirected graph.

    Computes Q = tr(e) − Σ_c a_c², with e = PᵀAP/m, a_c = Σ_c' e_cc' and m = ΣA. With every unit assigned this is
    Σ_c [Σ_{ij∈c} A_ij/m − (Σ_{i∈c} k_i/m)²].

    Args:
        adj: A, (n, n), symmetric, non-negative, zero diagonal.
        clusters: P, (n, c), non-negative; rows are one-hot, or zero for units in no cluster, or fractions.

    Returns:
        Q, a float64 scalar in [−1/2, 1): 0 when all units share a cluster, 1 − 1/c for c equal disjoint cliques, each
        its own cluster; NaN when A has no weight.

    Raises:
        ValueError: shapes that do not fit; A asymmetric, negative or not finite; P negative or not finite.

    Reference: Newman (2006), PNAS 103:8577–8582, doi:10.1073/pnas.0601602103.

    >>> two_pairs = torch.tensor([[0., 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    >>> girvan_newman(two_pairs, torch.tensor([[1., 0], [1, 0], [0, 1], [0, 1]])).item()
    0.5
    """
    if problem := adjacency_problem(adj):
        raise ValueError(f"adjacency matrix {problem}")
    if clusters.ndim != 2 or len(clusters) != len(adj):
        raise ValueError(f"clusters of shape {tuple(clusters.shape)} for {len(adj)} units")
    if not (clusters >= 0).all() or not clusters.isfinite().all():
        raise ValueError("clusters are negative or not finite")
    return _modularity(adj, clusters)


def _modularity(adj: torch.Tensor, clusters: torch.Tensor) -> torch.Tensor:
    """Q as in `girvan_newman`, of arguments known to be valid."""
    A, P = adj.double(), clusters.double()
    e = P.T @ A @ P / A.sum()
    return e.trace() - e.sum(1).square().sum()


def soft_num_clusters(clusters: torch.Tensor) -> torch.Tensor:
    """Effective number of clusters: exp(−Σ_c p_c ln p_c), p_c the fraction of the assigned units that is in cluster c.

    Args: clusters: P, (n, c), rows one-hot or zero.
    Returns: a float64 scalar in [1, c]: c for c equal clusters; 0 when no unit is assigned.
    """
    sizes = clusters.double().sum(0)
    if not sizes.sum() > 0:
        return torch.zeros((), dtype=torch.float64)
    p = sizes[sizes > 0] / sizes.sum()
    return torch.exp(-(p * p.log()).sum())


def is_valid_adjacency_matrix(adj: torch.Tensor) -> bool:
    """Whether adj is a square, finite, non-negative matrix with zero diagonal, symmetric up to float32 rounding."""
    return not adjacency_problem(adj) and not adj.diagonal().any()


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


def sparsify(adj: torch.Tensor, fraction: float) -> torch.Tensor:
    """The binary graph of the strongest associations.

    Args:
        adj: (n, n), symmetric, non-negative; the diagonal is ignored.
        fraction: share of the pairs with a non-zero entry to keep, in [0, 1]; the number kept is rounded to the nearest,
            and equal entries are taken in row-major order.

    Returns: (n, n), adj's dtype, ones and zeros, symmetric, zero diagonal.
    Raises: ValueError if adj is invalid or the fraction outside [0, 1].
    """
    if problem := adjacency_problem(adj):
        raise ValueError(f"adjacency matrix {problem}")
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction {fraction} is outside [0, 1]")
    row, column = torch.triu_indices(len(adj), len(adj), offset=1)
    weights = adj[row, column]
    keep = weights.argsort(descending=True, stable=True)[: round(fraction * int((weights > 0).sum()))]
    binary = torch.zeros_like(adj)
    binary[row[keep], column[keep]] = 1
    return binary + binary.T


def sort_by_cluster(clusters: torch.Tensor) -> torch.Tensor:
    """Order of the units, (n,) int64, that puts clusters together: largest first, units by number, dead units last.

    `adj[order][:, order]` is then block-structured.

    Args: clusters: P, (n, c), rows one-hot or zero.
    """
    rank = clusters.sum(0).argsort(descending=True, stable=True).argsort()  # (c,) place of each cluster
    place = torch.where(clusters.any(1), rank[clusters.argmax(1)], len(rank)) if len(rank) else torch.zeros(len(clusters))
    return place.argsort(stable=True)


# ---- the best clustering ------------------------------------------------------------------------------------------------


def spectral_modularity(adj: torch.Tensor, max_clusters: int | None = None) -> torch.Tensor:
    """Clustering by Newman's repeated bisection.

    Each group g is split by the signs of the leading (most positive) eigenvector of its generalised modularity matrix
    B(g)_ij = B_ij − δ_ij Σ_{k∈g} B_ik, B = A/m − kkᵀ/m², as long as that raises Q.

    Args:
        adj: A, (n, n), symmetric, non-negative; the diagonal is ignored.
        max_clusters: stop at this many clusters.

    Returns: P, (n, c), float32, one-hot; dead units have zero rows.
    Raises: ValueError if A is invalid or has no weight.
    Reference: Newman (2006), PNAS 103:8577–8582.
    """
    B, _, live = modularity_matrix(adj)
    return one_hot(spectral_labels(B, _room(max_clusters, len(B))), live)


def monte_carlo_modularity(
    adj: torch.Tensor,
    clusters: torch.Tensor | None = None,
    max_clusters: int | None = None,
    steps: int = 5000,
    target_entropy: float = 0.15,
    seed: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Clustering by a Monte Carlo chain at constant entropy of its choices.

    Each step takes a random live unit, scores every cluster and one new cluster as its home, and samples a home with
    probability ∝ exp(Q/T). T is set each step so that the entropy of this choice is the target within 0.01 nats where
    that can be had, else the nearest T in [1e-6, 1e6].

    Args:
        adj: A, (n, n), symmetric, non-negative; the diagonal is ignored.
        clusters: where to start, (n, c), one-hot on live units; by default the spectral clustering.
        max_clusters: never have more than this many clusters.
        steps: length of the chain.
        target_entropy: nats.
        seed: the same seed, the same chain; None for a different one each time.

    Returns:
        clusters: best clustering seen, (n, c), float32, one-hot; dead units have zero rows.
        scores, temperatures, entropies: (steps,), float64: Q after each step, T and the entropy of the choice in it.

    Raises: ValueError if A is invalid or has no weight, or if `clusters` does not fit A or max_clusters.
    """
    B, q0, live = modularity_matrix(adj)
    room = _room(max_clusters, len(B))
    labels = spectral_labels(B, room) if clusters is None else start_labels(clusters, live, room)
    labels, *histories = _chain(B, q0, labels, room, steps, target_entropy, _stream(seed, CHAIN))
    return one_hot(labels, live), *map(torch.from_numpy, histories)


def refine_modularity(
    adj: torch.Tensor, clusters: torch.Tensor | None = None, rounds: int = DEFAULT_ROUNDS, seed: int | None = None
) -> torch.Tensor:
    """The clustering with the highest Q that iterated local search finds, starting from a given one.

    Args:
        adj: A, (n, n), symmetric, non-negative; the diagonal is ignored.
        clusters: where to start, (n, c), one-hot on live units; by default the spectral clustering.
        rounds: number of kicks.
        seed: the same seed, the same result; None for a different search each time.

    Returns: P, (n, c), float32, one-hot; dead units have zero rows. Q is never below that of the start.
    Raises: ValueError if A is invalid or has no weight, or if `clusters` does not fit A.
    """
    B, _, live = modularity_matrix(adj)
    labels = spectral_labels(B) if clusters is None else start_labels(clusters, live, len(B))
    return one_hot(_refine(B, labels, rounds, _stream(seed, REFINEMENT)), live)


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


def _room(max_clusters: int | None, n: int) -> int:
    if max_clusters is not None and max_clusters < 1:
        raise ValueError(f"max_clusters = {max_clusters} leaves no cluster")
    return n if max_clusters is None else min(max_clusters, n)


def _stream(seed: int | None, *stream: int) -> np.ndarray:
    seed = np.random.SeedSequence().entropy if seed is None else seed
    return optimize_q.random_state(seed, *stream)


def _ties(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Space for S and the sizes of up to n clusters and one new; rows padded, so that columns spread over the cache."""
    return np.zeros((n + 2, n + 8)), np.zeros(n + 2, dtype=np.int64)


def _chain(B, q0, labels, room, steps, target_entropy, state):
    histories = np.empty((3, steps))
    best = optimize_q.run_chain(B, q0, labels.copy(), *_ties(len(B)), room, target_entropy, state, *histories)
    return best, *histories


def _refine(B, labels, rounds, state):
    labels = labels.copy()
    optimize_q.iterated_local_search(B, labels, *_ties(len(B)), rounds, state)
    return labels


def _best_labels(B, q0, seed, steps, target_entropy, *stream):
    """The whole search, for the matrix itself and for each matrix of its null: spectral, chain, refinement."""
    chain = _chain(B, q0, spectral_labels(B), len(B), steps, target_entropy, _stream(seed, CHAIN, *stream))
    return _refine(B, chain[0], DEFAULT_ROUNDS, _stream(seed, REFINEMENT, *stream)), chain


# ---- evaluation ---------------------------------------------------------------------------------------------------------


def find_modules(
    adj: torch.Tensor,
    *,
    sign: torch.Tensor | None = None,
    seed: int = 0,
    steps: int = 5000,
    target_entropy: float = 0.15,
    null_draws: int = DEFAULT_NULL_DRAWS,
) -> dict:
    """Everything that a checkpoint keeps about the modules of one association matrix.

    Args:
        adj: A, (n, n), symmetric, non-negative. A diagonal is removed (and used by the rotation null).
        sign: signs of the signed associations, (n, n) int8; adds the rotation null.
        seed: the same seed, the same result.
        steps, target_entropy: of the Monte Carlo chain.
        null_draws: matrices drawn from each null; 0 for none.

    Returns:
        adj (float32, diagonal removed), clusters, score (Q of clusters, the best found), num_clusters, mc_score and
        mc_clusters (the plain chain's best), mc_scores, mc_temperatures, mc_entropies (float32), null_mean, null_std, z,
        p (score against the strength-preserving null), null_draws, version; with `sign` also rotation_null_mean,
        rotation_null_std, rotation_z and rotation_p. A matrix that has entries that are not finite, or no weight, has no
        modules: scores and statistics are NaN, there are zero clusters, histories are empty.

    Raises: ValueError if A is not square, empty, negative or asymmetric, or `sign` has another shape.
    """
    signed = None if sign is None else _signed(adj, sign)
    adj = _without_diagonal(adj)
    if not adj.isfinite().all() or not adj.any():
        return _no_modules(adj, null_draws, sign is not None)
    B, q0, live = modularity_matrix(adj)
    labels, (mc_labels, *histories) = _best_labels(B, q0, seed, steps, target_entropy)
    clusters, mc_clusters = one_hot(labels, live), one_hot(mc_labels, live)
    score = _modularity(adj, clusters).item()
    scores, temperatures, entropies = (torch.from_numpy(history).float() for history in histories)

    def null(draw, stream):
        return q_nulls.significance(score, [_null_q(draw(_stream(seed, stream, i)), seed, steps, target_entropy, stream, i)
                                            for i in range(null_draws)])

    modules = {
        "adj": adj,
        "clusters": clusters,
        "score": score,
        "num_clusters": soft_num_clusters(clusters).item(),
        "mc_score": _modularity(adj, mc_clusters).item(),
        "mc_clusters": mc_clusters,
        "mc_scores": scores,
        "mc_temperatures": temperatures,
        "mc_entropies": entropies,
    }
    A = adj.numpy().astype(np.float64)[np.ix_(live, live)]
    modules |= null(q_nulls.strength_preserving(A), STRENGTH_NULL)
    if signed is not None:
        rotation = null(q_nulls.rotation(signed[np.ix_(live, live)]), ROTATION_NULL)
        modules |= {f"rotation_{key}": value for key, value in rotation.items()}
    return modules | {"null_draws": null_draws, "version": MODULES_VERSION}


def _null_q(A, seed, steps, target_entropy, *stream):
    """Highest Q found for one matrix of a null, with the same effort as for the real one."""
    B, q0, _ = modularity_matrix(torch.from_numpy(A))
    labels, _ = _best_labels(B, q0, seed, steps, target_entropy, *stream)
    return q0 + float(sum(B[np.ix_(labels == c, labels == c)].sum() for c in range(labels.max() + 1)))


def _without_diagonal(adj: torch.Tensor) -> torch.Tensor:
    """A as float32 on the CPU with its diagonal removed; ValueError unless it is valid or just not finite."""
    if adj.ndim == 2 and adj.shape[0] == adj.shape[1]:
        adj = adj.detach().cpu().float().clone().fill_diagonal_(0)
    problem = adjacency_problem(adj)
    if problem and "not finite" not in problem:
        raise ValueError(f"adjacency matrix {problem}")
    return adj


def _signed(adj: torch.Tensor, sign: torch.Tensor) -> np.ndarray:
    """The signed association matrix, diagonal included."""
    if sign.shape != adj.shape:
        raise ValueError(f"signs of shape {tuple(sign.shape)} for an adjacency matrix of shape {tuple(adj.shape)}")
    return (adj.double() * sign).detach().cpu().numpy()


def _no_modules(adj: torch.Tensor, null_draws: int, rotated: bool) -> dict:
    """What `find_modules` records for a matrix that has no modules."""
    empty = torch.zeros(len(adj), 0)
    modules = {"adj": adj, "clusters": empty, "score": math.nan, "num_clusters": 0.0}
    modules |= {"mc_score": math.nan, "mc_clusters": empty.clone()}
    modules |= {key: torch.zeros(0) for key in ("mc_scores", "mc_temperatures", "mc_entropies")}
    statistics = q_nulls.significance(math.nan, [])
    if rotated:
        modules |= {f"rotation_{key}": value for key, value in statistics.items()}
    return modules | statistics | {"null_draws": null_draws, "version": MODULES_VERSION}
