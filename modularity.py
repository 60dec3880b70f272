"""Newman's modularity Q of a clustering of units, the clustering that maximizes it, and its significance.

An association matrix A (n, n) is symmetric, non-negative and has a zero diagonal; k = A·1 are the strengths of its
units and m = Σ_ij A_ij. A clustering P (n, c) has one-hot rows, its columns in the order of their first unit. A unit is
dead when k_i ≤ 1e-9 · max k: rounding would decide which cluster it is in, so that its row of P is zero.
"""

import math

import numpy as np
import torch

from numerics import nulls, search
from numerics.adjacency import adjacency_problem, modularity_matrix, one_hot, start_labels
from numerics.spectral import spectral_labels

MODULES_VERSION = 101
DEFAULT_NULL_DRAWS = 20
NULL_ROUNDS = 250  # of refinement, for a matrix drawn from a null
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


def sparsify(adj: torch.Tensor, fraction: float) -> torch.Tensor:
    """The binary graph of the strongest associations.

    Args:
        adj: (n, n), symmetric, non-negative; the diagonal is ignored.
        fraction: share of the pairs with a non-zero entry to keep, in [0, 1]; the number kept is rounded to the
            nearest, and equal entries are taken in row-major order.

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
    if not clusters.any():
        return torch.arange(len(clusters))
    rank = clusters.sum(0).argsort(descending=True, stable=True).argsort()  # (c,) place of each cluster
    return torch.where(clusters.any(1), rank[clusters.argmax(1)], len(rank)).argsort(stable=True)


# ---- the best clustering --------------------------------------------------------------------------------------------


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
    adj: torch.Tensor, clusters: torch.Tensor | None = None, rounds: int | None = None, seed: int | None = None
) -> torch.Tensor:
    """The clustering with the highest Q that iterated local search finds, starting from a given one.

    Each round kicks the clustering (reassigns many units at random, deals the units of two clusters to new ones, or
    breaks some clusters up into single units), polishes it (single-unit moves, unions of clusters, Kernighan–Lin
    passes, until none raises Q), and goes on from there unless Q fell by more than a random, shrinking amount. The best
    clustering on the way is the result. On 64 units every seed found the best Q known; on 256 or more that have no
    clear clusters different seeds find different ones.

    Args:
        adj: A, (n, n), symmetric, non-negative; the diagonal is ignored.
        clusters: where to start, (n, c), one-hot on live units; by default the spectral clustering.
        rounds: number of kicks, by default `default_rounds` of the number of live units.
        seed: the same seed, the same result; None for a different search each time.

    Returns: P, (n, c), float32, one-hot; dead units have zero rows. Q is never below that of the start.
    Raises: ValueError if A is invalid or has no weight, or if `clusters` does not fit A.

    Reference: Kernighan & Lin (1970), Bell Syst. Tech. J. 49:291–307, for the passes.
    """
    B, _, live = modularity_matrix(adj)
    labels = spectral_labels(B) if clusters is None else start_labels(clusters, live, len(B))
    rounds = default_rounds(len(B)) if rounds is None else rounds
    return one_hot(_refine(B, labels, rounds, _stream(seed, REFINEMENT)), live)


def default_rounds(n: int) -> int:
    """Rounds of refinement for n units: 1,000 up to 64, up to 21,000 near 118, then what about a second allows.

    More units need more rounds, and each costs more. Sparse random graphs of 50 to 250 units are the hardest matrices
    met: with these numbers single runs on them were as good as the best of 50 of Leiden's.
    """
    return max(1, round(min(1000 * max(1, n / 64) ** 5, 2.5e6 / n, 6.4e8 / n**2)))


def _null_rounds(n: int) -> int:
    return max(1, min(NULL_ROUNDS, round(NULL_ROUNDS * (256 / n) ** 2)))


def _room(max_clusters: int | None, n: int) -> int:
    if max_clusters is not None and max_clusters < 1:
        raise ValueError(f"max_clusters = {max_clusters} leaves no cluster")
    return n if max_clusters is None else min(max_clusters, n)


def _stream(seed: int | None, *stream: int) -> np.ndarray:
    seed = np.random.SeedSequence().entropy if seed is None else seed
    return search.random_state(seed, *stream)


def _ties(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Space for S and the sizes of up to n clusters and one new; rows padded, so that columns spread over the cache."""
    return np.zeros((n + 2, n + 8)), np.zeros(n + 2, dtype=np.int64)


def _chain(B, q0, labels, room, steps, target_entropy, state):
    histories = np.empty((3, steps))
    best = search.run_chain(B, q0, labels.copy(), *_ties(len(B)), room, target_entropy, state, *histories)
    return best, *histories


def _refine(B, labels, rounds, state):
    labels = labels.copy()
    search.iterated_local_search(B, labels, *_ties(len(B)), rounds, state)
    return labels


def _search(B, q0, seed, steps, target_entropy, *stream):
    """Labels after the spectral start, chain and short refinement that every matrix gets, real or drawn; the chain."""
    chain = _chain(B, q0, spectral_labels(B), len(B), steps, target_entropy, _stream(seed, CHAIN, *stream))
    return _refine(B, chain[0], _null_rounds(len(B)), _stream(seed, REFINEMENT, *stream)), chain


def _q(B, q0, labels):
    return q0 + float(sum(B[np.ix_(labels == c, labels == c)].sum() for c in range(labels.max() + 1)))


# ---- evaluation -----------------------------------------------------------------------------------------------------


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
        mc_clusters (the plain chain's best), mc_scores, mc_temperatures, mc_entropies (float32), null_mean, null_std,
        z, p (against the strength-preserving null), null_draws, null_effort_score, version; with `sign` also
        rotation_null_mean, rotation_null_std, rotation_z and rotation_p. z and p are those of null_effort_score, the Q
        that the search reaches with the effort spent on each draw; the search for `score` goes on from there.
        A matrix with entries that are not finite, or without weight, has no modules: scores and statistics are NaN,
        there are zero clusters, histories are empty.

    Raises: ValueError if A is not square, empty, negative or asymmetric, or `sign` has another shape.
    """
    signed = None if sign is None else _signed(adj, sign)
    adj = _without_diagonal(adj)
    if not adj.isfinite().all() or not adj.any():
        return _no_modules(adj, null_draws, signed is not None)
    B, q0, live = modularity_matrix(adj)
    labels, (mc_labels, *histories) = _search(B, q0, seed, steps, target_entropy)
    effort_score = _q(B, q0, labels)
    labels = _refine(B, labels, default_rounds(len(B)), _stream(seed, REFINEMENT, REFINEMENT))
    clusters, mc_clusters = one_hot(labels, live), one_hot(mc_labels, live)
    scores, temperatures, entropies = (torch.from_numpy(history).float() for history in histories)
    modules = {
        "adj": adj,
        "clusters": clusters,
        "score": _q(B, q0, labels),
        "num_clusters": soft_num_clusters(clusters).item(),
        "mc_score": _q(B, q0, mc_labels),
        "mc_clusters": mc_clusters,
        "mc_scores": scores,
        "mc_temperatures": temperatures,
        "mc_entropies": entropies,
        "null_effort_score": effort_score,
    }

    inner = np.ix_(live, live)

    def null_scores(null, matrix, stream):
        draw = null(matrix[inner]) if null_draws else None
        for i in range(null_draws):
            B, q0, _ = modularity_matrix(torch.from_numpy(draw(np.random.default_rng((seed, stream, i)))))
            labels, _ = _search(B, q0, seed, steps, target_entropy, stream, i)
            yield _q(B, q0, labels)

    shuffled = null_scores(nulls.strength_preserving, adj.numpy(), STRENGTH_NULL)
    modules |= nulls.significance(effort_score, list(shuffled))
    if signed is not None:
        rotated = null_scores(nulls.rotation, signed, ROTATION_NULL)
        modules |= _prefixed("rotation_", nulls.significance(effort_score, list(rotated)))
    return modules | {"null_draws": null_draws, "version": MODULES_VERSION}


def _prefixed(prefix: str, values: dict) -> dict:
    return {prefix + key: value for key, value in values.items()}


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
    modules = {"adj": adj, "clusters": empty, "num_clusters": 0.0, "mc_clusters": empty.clone()}
    modules |= dict.fromkeys(("score", "mc_score", "null_effort_score"), math.nan)
    modules |= {key: torch.zeros(0) for key in ("mc_scores", "mc_temperatures", "mc_entropies")}
    statistics = nulls.significance(math.nan, [])
    if rotated:
        modules |= _prefixed("rotation_", statistics)
    return modules | statistics | {"null_draws": null_draws, "version": MODULES_VERSION}
