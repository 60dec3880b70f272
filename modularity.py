"""Newman's modularity Q of a clustering of units, the clustering that maximizes it, and its significance.

An association matrix A (n, n) is symmetric and non-negative; its diagonal is ignored everywhere, as if it were zero. It
may be a tensor or a numpy array, dense or sparse, a list of lists or a DataFrame. k = A·1 are the strengths of its
units and m = Σ_ij A_ij. A clustering P (n, c) has one-hot rows, its columns in the order of their first unit; integer
labels (n,), −1 for none, are taken for one too. A unit is dead when k_i ≤ 1e-9 · max k: rounding would decide which
cluster it is in, so that its row of P is zero.
A seed is an integer of 0 or more: the same seed, the same result; None is for a different one each time.
"""

import math
import operator

import numpy as np
import torch

from numerics import nulls
from numerics.adjacency import (
    Matrix,
    adjacency,
    as_array,
    cluster_fractions,
    cluster_labels,
    off_diagonal,
    one_hot,
    problem_of,
    q_of_labels,
    start_labels,
)
from numerics.searches import REFINEMENT, SEARCHES, Search, chain, default_rounds, refine
from numerics.seeds import checked_seed, generator
from numerics.spectral import spectral_labels

MODULES_VERSION = 102
DEFAULT_STEPS, DEFAULT_ENTROPY, DEFAULT_NULL_DRAWS = 5000, 0.15, 20
STRENGTH_NULL, ROTATION_NULL = 3, 4  # streams of random numbers, beside those of the searches


def girvan_newman(adj: Matrix, clusters: Matrix) -> torch.Tensor:
    """Newman's modularity Q of a clustering of a weighted undirected graph.

    Computes Q = tr(e) − Σ_c a_c², with e = PᵀAP/m, a_c = Σ_c' e_cc' and m = ΣA. With every unit assigned this is
    Σ_c [Σ_{ij∈c} A_ij/m − (Σ_{i∈c} k_i/m)²].

    Args:
        adj: A, (n, n), symmetric, non-negative; the diagonal is ignored.
        clusters: P, (n, c), non-negative; rows are one-hot, or zero for units in no cluster, or fractions that sum to 1
            or less; or integer labels (n,), −1 for units in no cluster.

    Returns:
        Q, a float64 scalar in [−1/2, 1): 0 when all units share a cluster, 1 − 1/c for c equal disjoint cliques, each
        its own cluster; NaN when A has no weight.

    Raises:
        ValueError: shapes that do not fit; A asymmetric, negative or not finite; P negative, not finite, or with rows
            that sum to more than 1.

    Reference: Newman (2006), PNAS 103:8577–8582, doi:10.1073/pnas.0601602103.

    >>> two_pairs = torch.tensor([[0., 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])
    >>> girvan_newman(two_pairs, torch.tensor([[1., 0], [1, 0], [0, 1], [0, 1]])).item()
    0.5
    >>> girvan_newman(two_pairs, [0, 0, 1, 1]).item()
    0.5
    """
    A = adjacency(adj)
    P = cluster_fractions(clusters, len(A))
    if not A.any():
        return torch.tensor(math.nan, dtype=torch.float64)
    e = P.T @ A @ P / A.sum()
    return torch.tensor(e.trace() - np.square(e.sum(1)).sum(), dtype=torch.float64)


def soft_num_clusters(clusters: Matrix) -> torch.Tensor:
    """Effective number of clusters: exp(−Σ_c p_c ln p_c), p_c the fraction of the assigned units that is in cluster c.

    Args: clusters: P, (n, c), rows one-hot, zero, or fractions that sum to 1 or less; or integer labels (n,), −1 for
        units in no cluster.
    Returns: a float64 scalar in [1, c]: c for c equal clusters; 0 when no unit is assigned.
    Raises: ValueError for anything else.
    """
    sizes = torch.from_numpy(cluster_fractions(clusters).sum(0))
    if not len(sizes):
        return torch.zeros((), dtype=torch.float64)
    p = sizes / sizes.sum()
    return torch.exp(-(p * p.log()).sum())


def is_valid_adjacency_matrix(adj: Matrix) -> bool:
    """Whether adj is a square, finite, non-negative matrix, symmetric up to float32 rounding, whose diagonal is zero.

    What else takes a matrix here ignores its diagonal.
    """
    try:
        adjacency(adj)
    except ValueError:
        return False
    return not np.diagonal(as_array(adj, "adjacency matrix")).any()


def sparsify(adj: Matrix, fraction: float) -> torch.Tensor:
    """The binary graph of the strongest associations.

    Args:
        adj: (n, n), symmetric, non-negative; the diagonal is ignored.
        fraction: share of the pairs with a non-zero entry to keep, in [0, 1]; the number kept is rounded to the
            nearest, and equal entries are taken in row-major order.

    Returns: (n, n), adj's dtype (float64 if it is no tensor), ones and zeros, symmetric, zero diagonal.
    Raises: ValueError if adj is invalid or the fraction outside [0, 1].
    """
    A = adjacency(adj)
    if not 0 <= fraction <= 1:
        raise ValueError(f"fraction {fraction} is outside [0, 1]")
    row, column = np.triu_indices(len(A), 1)
    weights = A[row, column]
    keep = (-weights).argsort(kind="stable")[: round(fraction * np.count_nonzero(weights))]
    binary = torch.zeros(A.shape, dtype=adj.dtype if isinstance(adj, torch.Tensor) else torch.float64)
    binary[row[keep], column[keep]] = 1
    return binary + binary.T


def sort_by_cluster(clusters: Matrix) -> torch.Tensor:
    """Order of the units, (n,) int64, that puts clusters together: largest first, units by number, dead units last.

    `adj[order][:, order]` is then block-structured.

    Args: clusters: P, (n, c), rows one-hot or zero, or integer labels (n,), −1 for units in no cluster.
    Raises: ValueError for anything else.
    """
    labels = cluster_labels(clusters)
    sizes = np.bincount(labels[labels >= 0])
    rank = (-sizes).argsort(kind="stable").argsort()  # place of each cluster
    return torch.from_numpy(np.where(labels >= 0, np.append(rank, 0)[labels], len(rank)).argsort(kind="stable"))


# ---- the best clustering --------------------------------------------------------------------------------------------


def spectral_modularity(adj: Matrix, max_clusters: int | None = None) -> torch.Tensor:
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
    problem = problem_of(adj)
    return one_hot(spectral_labels(problem.B, _room(max_clusters, len(problem.B))), problem.live)


def monte_carlo_modularity(
    adj: Matrix,
    clusters: Matrix | None = None,
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
        clusters: where to start, (n, c), one-hot on live units, or labels (n,); by default the spectral clustering.
        max_clusters: never have more than this many clusters.
        steps: length of the chain.
        target_entropy: nats.
        seed: an integer of 0 or more, or None.

    Returns:
        clusters: best clustering seen, (n, c), float32, one-hot; dead units have zero rows.
        scores, temperatures, entropies: (steps,), float64: Q after each step, T and the entropy of the choice in it.

    Raises: ValueError if A is invalid or has no weight, or if `clusters` does not fit A or max_clusters, or for a bad
        number of steps, entropy or seed.
    """
    problem = problem_of(adj)
    room = _room(max_clusters, len(problem.B))
    start = None if clusters is None else start_labels(clusters, problem.live, room)
    labels, histories = chain(problem, start, room, _steps(steps), _entropy(target_entropy), checked_seed(seed))
    return one_hot(labels, problem.live), *map(torch.from_numpy, histories)


def refine_modularity(
    adj: Matrix, clusters: Matrix | None = None, rounds: int | None = None, seed: int | None = None
) -> torch.Tensor:
    """The clustering with the highest Q that iterated local search finds, starting from a given one.

    Each round kicks the clustering (reassigns many units at random, deals the units of two clusters to new ones, or
    breaks some clusters up into single units), polishes it (single-unit moves, unions of clusters, Kernighan–Lin
    passes, until none raises Q), and goes on from there unless Q fell by more than a random, shrinking amount. The best
    clustering on the way is the result. On 64 units every seed found the best Q known; on 256 or more that have no
    clear clusters different seeds find different ones.

    Args:
        adj: A, (n, n), symmetric, non-negative; the diagonal is ignored.
        clusters: where to start, (n, c), one-hot on live units, or labels (n,); by default the spectral clustering.
        rounds: number of kicks, by default `default_rounds` of the number of live units.
        seed: an integer of 0 or more, or None.

    Returns: P, (n, c), float32, one-hot; dead units have zero rows. Q is never below that of the start.
    Raises: ValueError if A is invalid or has no weight, or if `clusters` does not fit A.

    Reference: Kernighan & Lin (1970), Bell Syst. Tech. J. 49:291–307, for the passes.
    """
    problem = problem_of(adj)
    n = len(problem.B)
    start = spectral_labels(problem.B) if clusters is None else start_labels(clusters, problem.live, n)
    rounds = default_rounds(n) if rounds is None else _count(rounds, "rounds")
    return one_hot(refine(problem, start, rounds, generator(seed, REFINEMENT)), problem.live)


def _room(max_clusters, n):
    if max_clusters is not None and max_clusters < 1:
        raise ValueError(f"max_clusters = {max_clusters} leaves no cluster")
    return n if max_clusters is None else min(max_clusters, n)


def _count(value, name):
    try:
        number = operator.index(value)
    except TypeError:
        number = -1
    if number < 0:
        raise ValueError(f"{name} = {value!r}: expected an integer of 0 or more")
    return number


def _steps(steps):
    return _count(steps, "steps")


def _entropy(target_entropy):
    if not 0 < target_entropy < math.inf:
        raise ValueError(f"target_entropy = {target_entropy!r}: expected a positive number of nats")
    return float(target_entropy)


def find_clusters(
    adj: Matrix,
    search: str = "refined",
    *,
    seed: int | None = 0,
    steps: int = DEFAULT_STEPS,
    target_entropy: float = DEFAULT_ENTROPY,
) -> torch.Tensor:
    """The best clustering that one of the SEARCHES finds.

    Args:
        adj: A, (n, n), symmetric, non-negative; the diagonal is ignored.
        search: "refined", the chain refined; "chain", the Monte Carlo chain; "leiden", one run of Leiden's algorithm.
        seed: an integer of 0 or more, or None.
        steps, target_entropy: of the Monte Carlo chain.

    Returns: P, (n, c), float32, one-hot; dead units have zero rows.
    Raises: ValueError if A is invalid or has no weight, or for an unknown search or a bad seed.
    """
    found, seed, problem = search_named(search), checked_seed(seed), problem_of(adj)
    labels = found.find(problem, seed, _steps(steps), _entropy(target_entropy))
    if found.further:
        labels = found.further(problem, labels, seed)
    return one_hot(labels, problem.live)


def search_named(name: str) -> Search:
    """The search of this name; ValueError, listing the names, where there is none."""
    if name not in SEARCHES:
        raise ValueError(f"unknown search {name!r}: expected one of {', '.join(SEARCHES)}")
    return SEARCHES[name]


# ---- evaluation -----------------------------------------------------------------------------------------------------


def find_modules(
    adj: Matrix,
    *,
    sign: Matrix | None = None,
    search: str = "refined",
    seed: int | None = 0,
    steps: int = DEFAULT_STEPS,
    target_entropy: float = DEFAULT_ENTROPY,
    null_draws: int = DEFAULT_NULL_DRAWS,
) -> dict:
    """Everything that a checkpoint keeps about the modules of one association matrix.

    Args:
        adj: A, (n, n), symmetric, non-negative; the diagonal is ignored (but for the rotation null).
        sign: signs of the signed associations, (n, n); adds the rotation null.
        search: one of SEARCHES, for the clusters.
        seed: an integer of 0 or more, or None.
        steps, target_entropy: of the Monte Carlo chain.
        null_draws: matrices drawn from each null; 0 for none.

    Returns:
        adj (diagonal removed; float32, or float64 for entries that float32 does not hold), clusters, score (Q of
        clusters, the best found), num_clusters, mc_score and mc_clusters (the plain chain's best), mc_scores,
        mc_temperatures, mc_entropies (float32), null_mean, null_std, z, p (against the strength-preserving null),
        null_problem (why these are NaN, or ""), null_effort_score; with `sign` also rotation_null_mean,
        rotation_null_std, rotation_z and rotation_p. z and p are those of null_effort_score, the Q that the search
        reaches with the effort spent on each draw; the search for `score` goes on from there.
        What they were made with: search, seed, steps, target_entropy, null_draws, version.
        A matrix with entries that are not finite, or without weight, has no modules: scores and statistics are NaN,
        there are zero clusters, histories are empty.

    Raises: ValueError if A is not square, empty, negative or asymmetric, or `sign` has another shape, or for an unknown
        search, a bad seed, number of steps or draws, or entropy.
    """
    found = search_named(search)
    made = {
        "search": search,
        "seed": checked_seed(seed),
        "steps": _steps(steps),
        "target_entropy": _entropy(target_entropy),
        "null_draws": _count(null_draws, "null_draws"),
        "version": MODULES_VERSION,
    }
    weights = as_array(adj, "adjacency matrix")
    A = off_diagonal(weights)
    signed = None if sign is None else _signed(weights, sign)
    if not np.isfinite(A).all() or not A.any():
        return _no_modules(A, signed is not None) | made

    problem = problem_of(A)
    of_chain = made["steps"], made["target_entropy"]
    best_of_chain, histories = chain(problem, None, len(problem.B), *of_chain, made["seed"])
    labels = found.find(problem, made["seed"], *of_chain)
    effort_score = q_of_labels(problem, labels)
    if found.further:
        labels = found.further(problem, labels, made["seed"])
    clusters = one_hot(labels, problem.live)
    modules = {
        "adj": _stored(A),
        "clusters": clusters,
        "score": q_of_labels(problem, labels),
        "num_clusters": soft_num_clusters(clusters).item(),
        "mc_score": q_of_labels(problem, best_of_chain),
        "mc_clusters": one_hot(best_of_chain, problem.live),
        "null_effort_score": effort_score,
    }
    for name, history in zip(("mc_scores", "mc_temperatures", "mc_entropies"), histories, strict=True):
        modules[name] = torch.from_numpy(history).float()

    scores, no_null = _null_scores(nulls.strength_preserving, problem.A, STRENGTH_NULL, found, made)
    modules |= nulls.significance(effort_score, scores) | {"null_problem": no_null}
    if signed is not None:
        signed = signed[np.ix_(problem.live, problem.live)]
        scores, _ = _null_scores(nulls.rotation, signed, ROTATION_NULL, found, made)
        modules |= _prefixed("rotation_", nulls.significance(effort_score, scores))
    return modules | made


def _null_scores(null, matrix, stream, found, made) -> tuple[list[float], str]:
    """Q of the best clustering of each matrix drawn from a null; why there are none, or ""."""
    scores = []
    draw = null(matrix) if made["null_draws"] else None
    for i in range(made["null_draws"]):
        rng = generator(made["seed"], stream, i)
        try:
            problem = problem_of(draw(rng))
        except nulls.NoNull as error:
            return [], str(error)
        labels = found.find(problem, int(rng.integers(2**63)), made["steps"], made["target_entropy"])
        scores.append(q_of_labels(problem, labels))
    return scores, ""


def _prefixed(prefix, values):
    return {prefix + key: value for key, value in values.items()}


def _stored(A):
    """A as a float32 tensor, or as a float64 one where it is too large or too small for float32."""
    single = torch.from_numpy(A).float()
    return single if np.abs(single.double().numpy() - A).max() <= 1e-6 * A.max() else torch.from_numpy(A)


def _signed(weights, sign):
    """The signed association matrix, diagonal included."""
    sign = as_array(sign, "signs")
    if sign.shape != weights.shape:
        raise ValueError(f"signs of shape {sign.shape} for an adjacency matrix of shape {weights.shape}")
    return weights * sign


def _no_modules(A, rotated):
    """What `find_modules` records for a matrix that has no modules."""
    empty = torch.zeros(len(A), 0)
    modules = {"adj": torch.from_numpy(A).float(), "clusters": empty, "num_clusters": 0.0, "mc_clusters": empty.clone()}
    modules |= dict.fromkeys(("score", "mc_score", "null_effort_score"), math.nan)
    modules |= {key: torch.zeros(0) for key in ("mc_scores", "mc_temperatures", "mc_entropies")}
    statistics = nulls.significance(math.nan, [])
    if rotated:
        modules |= _prefixed("rotation_", statistics)
    return modules | statistics | {"null_problem": ""}
