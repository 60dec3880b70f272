"""Modularity, the searches for its maximum, and its nulls, against slow plain implementations and known optima."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import igraph
import leidenalg
import networkx
import numba
import numpy as np
import pytest
import scipy.optimize
import scipy.sparse
import torch

import modularity
from comparison import element_similarity
from modularity import (
    MODULES_VERSION,
    find_modules,
    girvan_newman,
    is_valid_adjacency_matrix,
    monte_carlo_modularity,
    refine_modularity,
    soft_num_clusters,
    sort_by_cluster,
    sparsify,
    spectral_modularity,
)
from numerics import nulls, search, spectral
from numerics.adjacency import modularity_matrix

REFERENCE = Path(__file__).parent / "reference"
BEST_KNOWN = json.loads((REFERENCE / "best_known_q.json").read_text())
REAL = {key: torch.from_numpy(A) for key, A in np.load(REFERENCE / "assoc_evaluated.npz").items()}
with np.load(REFERENCE / "modularity.npz") as _graphs:
    GRAPHS = {f"{i:02d}_{name}": torch.from_numpy(_graphs[f"{i:02d}__adj"]) for i, name in enumerate(_graphs["names"])}

seeds = st.integers(0, 2**32 - 1)
settings = hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None)


# ---- slow, plain implementations ------------------------------------------------------------------------------------


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


# ---- Q --------------------------------------------------------------------------------------------------------------


@settings
@hypothesis.given(seeds, st.integers(2, 12), st.integers(1, 5))
def test_q_is_newmans_sum_over_pairs_with_units_left_out(seed, n, c):
    A, labels = random_graph(seed, n), np.random.default_rng(seed).integers(-1, c, n)
    assert abs(q_of(A, one_hot(labels, c)) - slow_q(A, labels)) < 1e-12


@settings
@hypothesis.given(seeds, st.integers(2, 12), st.floats(1e-6, 1e6))
def test_q_is_bounded_and_does_not_depend_on_scale_or_order_of_units(seed, n, scale):
    A, random = random_graph(seed, n, 2), np.random.default_rng(seed)
    P, order = one_hot(random.integers(0, 3, n), 3), torch.from_numpy(random.permutation(n))
    q = q_of(A, P)
    assert -0.5 <= q < 1
    assert abs(q_of(scale * A[order][:, order], P[order]) - q) < 1e-12


@pytest.mark.parametrize("k", [1, 2, 5])
def test_q_of_k_equal_disjoint_cliques_is_one_minus_one_over_k(k):
    A = torch.block_diag(*[1 - torch.eye(4)] * k)
    assert abs(q_of(A, one_hot(np.arange(k).repeat(4))) - (1 - 1 / k)) < 1e-12
    assert abs(q_of(A, torch.ones(4 * k, 1))) < 1e-12


def test_q_of_fractional_clusters_is_the_trace_formula():
    A, P = random_graph(0, 5), torch.rand(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    units = range(5)
    e = [[sum(P[i, c] * A[i, j] * P[j, d] for i in units for j in units) / A.sum() for d in range(3)] for c in range(3)]
    expected = sum(e[c][c] for c in range(3)) - sum(sum(e[c]) ** 2 for c in range(3))
    assert abs(q_of(A, P) - expected) < 1e-12


def test_q_of_a_matrix_without_weight_is_nan():
    assert math.isnan(q_of(torch.zeros(3, 3), torch.ones(3, 1)))


def test_number_of_clusters_is_the_exponential_of_the_entropy_of_live_units():
    assert abs(soft_num_clusters(one_hot([0, 1, 2, 0, 1, 2])).item() - 3) < 1e-12
    p = np.array([3, 1]) / 4
    assert abs(soft_num_clusters(one_hot([0, 0, 0, 1, -1, -1], 5)).item() - np.exp(-(p * np.log(p)).sum())) < 1e-12
    assert soft_num_clusters(torch.zeros(3, 0)) == 0


def test_sparsify_keeps_the_strongest_fraction_of_pairs():
    A = torch.tensor([[9.0, 3, 2, 0], [3, 9, 1, 5], [2, 1, 9, 4], [0, 5, 4, 9]])  # pairs 5 > 4 > 3 > 2 > 1, one zero
    for fraction, weakest in ((0, 9), (0.2, 5), (0.4, 4), (0.6, 3), (1, 1)):
        expected = (A.ge(weakest) & ~torch.eye(4, dtype=bool)).float()
        assert torch.equal(sparsify(A, fraction), expected)
    assert sparsify(torch.ones(5, 5), 0.5).sum() == 10  # exactly half of ten tied pairs
    with pytest.raises(ValueError, match="fraction"):
        sparsify(A, 1.5)


def test_sorting_by_cluster_puts_large_clusters_first_and_dead_units_last():
    assert sort_by_cluster(one_hot([1, -1, 0, 1, 0, 1])).tolist() == [0, 3, 5, 2, 4, 1]
    assert sort_by_cluster(torch.zeros(3, 0)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("adj", "problem"),
    [
        (torch.rand(3, 4), "not square"),
        (torch.zeros(0, 0), "empty"),
        (torch.tensor([[0, -1.0], [-1, 0]]), "negative"),
        (torch.tensor([[0, 1.0], [2, 0]]), "not symmetric"),
        (torch.full((2, 2), math.nan), "not finite"),
        (torch.full((2, 2), math.inf), "not finite"),
    ],
)
def test_an_invalid_matrix_is_refused_by_name(adj, problem):
    assert not is_valid_adjacency_matrix(adj)
    clusters = torch.ones(len(adj), 1)
    for function in (lambda: girvan_newman(adj, clusters), *(lambda f=f: f(adj) for f in SEARCHES)):
        with pytest.raises(ValueError, match=problem):
            function()


SEARCHES = (spectral_modularity, monte_carlo_modularity, refine_modularity, lambda adj: sparsify(adj, 0.5))


def test_validity_forgives_float32_rounding_but_not_a_diagonal():
    A = random_graph(0, 6).float()
    A[0, 1] *= 1 + 3e-7
    assert is_valid_adjacency_matrix(A)
    assert not is_valid_adjacency_matrix(A + torch.eye(6))


def test_clusterings_that_do_not_fit_are_refused():
    A = random_graph(0, 6)
    with pytest.raises(ValueError, match="5, 2"):
        girvan_newman(A, torch.ones(5, 2))
    with pytest.raises(ValueError, match="negative"):
        girvan_newman(A, -torch.ones(6, 2))
    with pytest.raises(ValueError, match="one-hot"):
        monte_carlo_modularity(A, clusters=torch.ones(6, 2))
    with pytest.raises(ValueError, match="max_clusters = 2"):
        monte_carlo_modularity(A, clusters=torch.eye(6), max_clusters=2)
    with pytest.raises(ValueError, match="no cluster"):
        spectral_modularity(A, max_clusters=0)
    for find in SEARCHES[:3]:
        with pytest.raises(ValueError, match="no weight"):
            find(torch.eye(4))


# ---- spectral bisection ---------------------------------------------------------------------------------------------


def slow_spectral_q(A):
    """Q of Newman's repeated bisection, with numpy's eigenvectors."""
    A = A.double().numpy()
    B = A / A.sum() - np.outer(A.sum(1), A.sum(1)) / A.sum() ** 2

    def q_of_group(g):
        inner = B[np.ix_(g, g)]
        v = np.linalg.eigh(inner - np.diag(inner.sum(1)))[1][:, -1]
        parts = [g[v < 0], g[v >= 0]]
        halves = [B[np.ix_(part, part)].sum() for part in parts]
        return sum(map(q_of_group, parts)) if sum(halves) > inner.sum() + 1e-12 else inner.sum()

    return q_of_group(np.arange(len(A)))


@pytest.mark.parametrize("key", [key for key in GRAPHS if "dead" not in key and "real" not in key])
def test_spectral_bisection_is_newmans(key):
    assert abs(q_of(GRAPHS[key], spectral_modularity(GRAPHS[key])) - slow_spectral_q(GRAPHS[key])) < 1e-12


def test_spectral_bisection_splits_where_the_largest_eigenvalue_is_negative():
    A = torch.from_numpy(networkx.to_numpy_array(networkx.karate_club_graph(), weight=None))
    B = modularity_matrix(A)[0]
    values = np.linalg.eigvalsh(B + np.diag(-((A.sum(1) / A.sum()) ** 2).numpy()))
    assert -values[0] > values[-1]
    assert q_of(A, spectral_modularity(A)) > 0.39


@settings
@hypothesis.given(seeds, st.integers(2, 40))
def test_the_leading_eigenvector_is_lapacks(seed, n):
    inner = np.random.default_rng(seed).normal(size=(n, n))
    inner += inner.T
    excess = inner.sum(1)
    values, vectors = np.linalg.eigh(inner - np.diag(excess))
    hypothesis.assume(values[-1] - values[-2] > 1e-3)
    assert abs(abs(spectral.leading_eigenvector(inner, excess) @ vectors[:, -1]) - 1) < 1e-9


def test_large_groups_are_split_as_small_ones(monkeypatch):
    A = random_graph(1, 200, 4)
    exact, monkey = spectral_modularity(A), spectral.DENSE_UNITS
    monkeypatch.setattr(spectral, "DENSE_UNITS", 200)
    assert monkey < 200
    assert torch.equal(spectral_modularity(A), exact)


def test_spectral_bisection_stops_at_the_number_of_clusters_allowed():
    A = torch.block_diag(*[1 - torch.eye(4)] * 4)
    assert [spectral_modularity(A, max_clusters=c).shape[1] for c in (1, 2, 3, 4, 9)] == [1, 2, 3, 4, 4]


# ---- the Monte Carlo chain ------------------------------------------------------------------------------------------


def splitmix(state):
    """The kernels' random numbers, in Python's integers."""
    mask = 2**64 - 1
    while True:
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield ((z ^ (z >> 31)) >> 11) / 2**53


def entropy_at(q, T):
    """Entropy in nats of a choice with probability ∝ exp(q/T)."""
    w = np.exp((q - q.max()) / T)
    p = w[w > 0] / w.sum()
    return -(p * np.log(p)).sum()


def temperature_at(q, entropy):
    """T at which a choice with probability ∝ exp(q/T) has the entropy, by bisection."""
    log_range = np.log(1e-6), np.log(1e6)
    return np.exp(scipy.optimize.brentq(lambda x: entropy_at(q, np.exp(x)) - entropy, *log_range, xtol=1e-12))


def slow_chain(A, labels, steps, target, max_clusters, uniform):
    """The chain with Q recomputed from the definition for every candidate, and T by scipy's root finder."""
    labels, scores, temperatures = list(labels), [], []
    for _ in range(steps):
        u = int(next(uniform) * len(labels))
        alone, k = labels.count(labels[u]) == 1, max(labels) + 1
        homes = list(range(k + 1 if not alone and k < max_clusters else k))
        q = np.array([slow_q(A, [*labels[:u], c, *labels[u + 1 :]]) for c in homes])

        T = temperature_at(q, target)
        p = np.exp((q - q.max()) / T)
        c = int(np.searchsorted(np.cumsum(p / p.sum()), next(uniform), side="right"))
        a, labels[u] = labels[u], c
        if a not in labels:  # the last cluster takes the emptied one's number
            last = max([*labels, a])
            labels = [a if label == last else label for label in labels]
        scores.append(slow_q(A, labels))
        temperatures.append(T)
    return labels, np.array(scores), np.array(temperatures)


def run_chain(A, labels, steps, target=0.15, max_clusters=None, seed=0):
    B, q0, _ = modularity_matrix(A)
    labels, histories = np.array(labels), np.empty((3, steps))
    space = np.zeros((len(B) + 2, len(B))), np.zeros(len(B) + 2, dtype=np.int64)
    state = np.array([seed], dtype=np.uint64)
    best = search.run_chain(B, q0, labels, *space, max_clusters or len(B), target, state, *histories)
    return labels, best, *histories


@pytest.mark.parametrize(("n", "max_clusters", "start"), [(9, 9, 1), (9, 3, 3), (7, 7, 7)])
def test_the_chain_is_the_plain_one(monkeypatch, n, max_clusters, start):
    A, labels = random_graph(n, n, 2), np.arange(n) % start
    fast, _, scores, temperatures, entropies = run_chain(A, labels, 150, 0.5, max_clusters, seed=4)
    slow, slow_scores, slow_temperatures = slow_chain(A, labels, 150, 0.5, max_clusters, splitmix(4))
    assert list(fast) == slow
    assert np.abs(scores - slow_scores).max() < 1e-12
    assert np.abs(entropies - 0.5).max() < 1e-3
    assert np.abs(np.log(temperatures / slow_temperatures)).max() < 0.02  # both within 0.001 nats of the target


@pytest.mark.parametrize("key", ["forward_cov/0", "backward_hess/1"])
def test_scores_stay_exact_over_5000_steps(key):
    A = REAL[key]
    B, _, live = modularity_matrix(A)
    labels, best, scores, _, _ = run_chain(A, np.zeros(len(B), dtype=np.int64), 5000)
    for found, q in ((labels, scores[-1]), (best, scores.max())):
        full = np.full(len(A), -1)
        full[live] = found
        assert abs(q_of(A, one_hot(full)) - q) < 1e-12


def test_a_step_samples_homes_in_proportion_to_exp_q_over_t():
    A, labels, draws = random_graph(3, 6), np.array([0, 0, 1, 1, 2, 2]), 6000
    expected = {}
    for u in range(6):
        homes = np.array([slow_q(A, [*labels[:u], c, *labels[u + 1 :]]) for c in range(4)])
        w = np.exp((homes - max(homes)) / temperature_at(homes, 0.7))
        for q, share in zip(homes, w / w.sum(), strict=True):
            expected[round(q, 9)] = expected.get(round(q, 9), 0) + share / 6
    state, counts = np.random.default_rng(0), dict.fromkeys(expected, 0)
    for seed in state.integers(0, 2**62, draws):
        counts[round(run_chain(A, labels, 1, 0.7, seed=seed)[2][0], 9)] += 1
    for q, p in expected.items():
        assert abs(counts[q] - draws * p) < 4.5 * math.sqrt(draws * p * (1 - p)) + 20  # T within its tolerance


@settings
@hypothesis.given(seeds, st.integers(2, 12), st.integers(-5, 5), st.sampled_from([0.05, 0.15, 0.6]))
def test_the_temperature_gives_the_target_entropy_over_decades_of_scale(seed, count, decade, target):
    random = np.random.default_rng(seed)
    gaps = np.concatenate([[0.0], 10.0 ** random.uniform(-1, 1, count - 1)]) * 10.0**decade * 0.1
    T, entropy, _, evaluations = search.solve_temperature(gaps.copy(), count, target, 3.0, np.empty(count))
    assert abs(entropy - entropy_at(-gaps, T)) < 1e-9
    assert abs(entropy - target) < 1e-3 or (T == 1e-6 and entropy > target) or (T == 1e6 and entropy < target)
    assert evaluations < 15


def test_a_warm_start_needs_three_evaluations_or_so():
    random, x, used = np.random.default_rng(0), 3.0, []
    for _ in range(2000):
        gaps = np.concatenate([[0.0], random.uniform(0.2, 2, 4)]) * 1e-2
        _, _, x, evaluations = search.solve_temperature(gaps, 5, 0.15, x, np.empty(5))
        used.append(evaluations)
    assert np.mean(used) < 3.2


def test_tied_best_homes_are_equally_likely_at_the_lowest_temperature():
    weights = np.empty(4)
    T, entropy, _, _ = search.solve_temperature(np.array([0.0, 0.0, 0.1, 0.2]), 4, 0.15, 3.0, weights)
    assert T == 1e-6 and abs(entropy - math.log(2)) < 1e-12
    assert weights[0] == weights[1] and weights[2] == 0


@pytest.mark.parametrize("key", ["forward_cov/1", "backward_jac_norm/0"])
def test_the_chain_keeps_the_best_clustering_it_saw(key):
    clusters, scores, temperatures, entropies = monte_carlo_modularity(REAL[key], seed=0)
    start = q_of(REAL[key], spectral_modularity(REAL[key]))
    assert abs(q_of(REAL[key], clusters) - max(scores.max().item(), start)) < 1e-12
    assert len(scores) == len(temperatures) == len(entropies) == 5000
    assert ((entropies - 0.15).abs() < 0.01).double().mean() > 0.99


def test_the_chain_goes_on_from_given_clusters_and_never_has_too_many():
    A = REAL["forward_cov/0"]
    start = spectral_modularity(A, max_clusters=2)
    clusters = monte_carlo_modularity(A, start, max_clusters=2, steps=500, seed=1)[0]
    assert clusters.shape[1] <= 2
    assert q_of(A, clusters) >= q_of(A, start) - 1e-12


def test_zero_steps_return_the_start():
    A = random_graph(0, 8, 2)
    clusters, scores, _, _ = monte_carlo_modularity(A, steps=0)
    assert torch.equal(clusters, spectral_modularity(A)) and len(scores) == 0


# ---- refinement -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", REAL)
def test_every_seed_finds_the_best_known_q_of_a_real_matrix_and_the_same_clusters(key):
    A, best = REAL[key], BEST_KNOWN[f"checkpoints/evaluated/best.ckpt {key}"]
    found = [refine_modularity(A, monte_carlo_modularity(A, seed=seed)[0], seed=seed) for seed in range(5)]
    assert min(q_of(A, P) for P in found) >= best - 1e-9
    assert min(element_similarity(found[0], P) for P in found) >= 0.99


@pytest.mark.parametrize("key", GRAPHS)
def test_the_best_known_q_of_a_graph_is_found(key):
    assert max(q_of(GRAPHS[key], refine_modularity(GRAPHS[key], seed=s)) for s in range(2)) >= BEST_KNOWN[key] - 1e-9


def ring_of_cliques(k, size):
    A = torch.block_diag(*[1 - torch.eye(size)] * k)
    for c in range(k):
        i, j = size * c, size * ((c + 1) % k) + 1
        A[i, j] = A[j, i] = 1
    return A


def heavy_edge(n, weight):
    A = random_graph(1, n)
    A[0, 1] = A[1, 0] = weight
    return A


def dead(A, units):
    A = A.clone()
    for u in units:
        A[u] = A[:, u] = 0
    return A


def decades(n):
    random = np.random.default_rng(2)
    A = np.triu(10.0 ** random.uniform(-6, 6, (n, n)), 1)
    return torch.from_numpy(A + A.T)


def bipartite(a, b):
    return torch.cat([torch.cat([torch.zeros(a, a), torch.ones(a, b)], 1), torch.ones(b, a + b)], 0).triu(1)


ADVERSARIAL = {
    "pair": torch.tensor([[0.0, 1], [1, 0]]),
    "cliques": torch.block_diag(*[1 - torch.eye(3)] * 3),
    "ring of cliques": ring_of_cliques(3, 3),
    "bipartite": bipartite(4, 5) + bipartite(4, 5).T - bipartite(4, 5).T * bipartite(4, 5),
    "star": torch.tensor([[float((i == 0) != (j == 0)) for i in range(9)] for j in range(9)]),
    "equal": 1 - torch.eye(8),
    "nearly zero": random_graph(5, 8) * 1e-30,
    "nearly zero, float32": random_graph(5, 8).float() * 1e-36,
    "huge": random_graph(5, 8) * 1e200,
    "heavy edge": heavy_edge(8, 1e6),
    "dead units": dead(random_graph(6, 9, 2), [0, 5]),
    "nearly dead unit": dead(random_graph(6, 8), [3]) + 1e-13 * (1 - torch.eye(8)),
    "12 decades": decades(8),
    "path": torch.diag(torch.ones(8), 1) + torch.diag(torch.ones(8), -1),
}


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_the_optimum_of_an_adversarial_matrix_is_found(name):
    A = ADVERSARIAL[name]
    A = torch.maximum(A, A.T)
    for seed in range(3):
        P = refine_modularity(A, seed=seed)
        live = A.sum(1) > 1e-9 * A.sum(1).max()
        assert torch.equal(P.sum(1), live.float())
        assert abs(q_of(A, P) - best_of_every_clustering(A)) < 1e-9


@settings
@hypothesis.given(seeds, st.integers(2, 8), st.integers(1, 3))
def test_the_optimum_of_a_small_matrix_is_found(seed, n, groups):
    A = random_graph(seed, n, groups)
    assert abs(q_of(A, refine_modularity(A, rounds=100, seed=0)) - best_of_every_clustering(A)) < 1e-9


SOLVABLE = [random_graph(0, 14, 3), random_graph(1, 12), random_graph(2, 20, 4), ring_of_cliques(5, 4)]


@pytest.mark.parametrize("A", SOLVABLE)
def test_the_proven_optimum_is_found(A):
    assert abs(q_of(A, refine_modularity(A, seed=0)) - proven_optimum(A)) < 1e-9


def test_ring_of_many_cliques_is_found_whole():
    A = ring_of_cliques(24, 5)  # pairs of cliques beat single ones: the resolution limit
    pairs = one_hot(np.arange(12).repeat(10))
    assert q_of(A, refine_modularity(A, seed=0)) >= q_of(A, pairs) - 1e-12


@settings
@hypothesis.given(seeds, st.integers(10, 60), st.integers(1, 5))
def test_refinement_is_a_local_optimum_not_below_its_start(seed, n, groups):
    A = random_graph(seed, n, groups)
    start = spectral_modularity(A)
    P = refine_modularity(A, start, rounds=3, seed=seed % 7)
    q, labels = q_of(A, P), labels_of(P)
    assert q >= q_of(A, start) - 1e-12
    for u in range(0, n, 5):
        for c in range(P.shape[1] + 1):
            moved = labels.copy()
            moved[u] = c
            assert q_of(A, one_hot(moved, P.shape[1] + 1)) < q + 1e-12


@settings
@hypothesis.given(seeds, st.integers(3, 12), st.integers(1, 4))
def test_the_best_move_is_the_best_of_all_and_kernighan_lin_keeps_its_books(seed, n, k):
    random, A = np.random.default_rng(seed), random_graph(seed, n)
    labels = np.concatenate([np.arange(k), random.integers(0, k, n)])[:n]
    k = labels.max() + 1
    B, _q0, _ = modularity_matrix(A)
    S, sizes, top = np.zeros((n + 2, n)), np.zeros(n + 2, dtype=np.int64), np.empty(n)
    search.tally(B, labels, S, sizes)
    locked = random.random(n) < 0.3
    u, c, half = search.best_free_move(labels, S, sizes, k, locked, top)
    free = [v for v in range(n) if not locked[v]]
    moves = [(v, d) for v in free for d in range(k + (sizes[labels[v]] > 1)) if d != labels[v]]
    gains = {(v, d): slow_q(A, [*labels[:v], d, *labels[v + 1 :]]) - slow_q(A, labels) for v, d in moves}
    if gains:
        assert (u, c) in gains and abs(2 * half - max(gains.values())) < 1e-12 > abs(gains[u, c] - 2 * half)
    before, scratch = slow_q(A, labels), np.empty((2, n), dtype=np.int64)
    k, gain = search.kernighan_lin(B, labels, S, sizes, k, locked, top, *scratch)
    assert gain >= 0 and abs(slow_q(A, labels) - before - gain) < 1e-12
    recomputed = np.zeros_like(S)
    assert search.tally(B, labels, recomputed, sizes) == k and (sizes[:k] > 0).all()
    assert np.abs(S[:k] - recomputed[:k]).max() < 1e-12


@pytest.mark.parametrize("singles", [True, False])
def test_unions_and_kicks_keep_their_books(singles):
    A, n = ring_of_cliques(6, 4).double(), 24
    B, state = modularity_matrix(A)[0], search.random_state(0)
    S, sizes, scratch = np.zeros((n + 2, n)), np.zeros(n + 2, dtype=np.int64), np.empty(n, dtype=np.int64)
    labels = np.arange(n) if singles else np.arange(n) // 8
    k = search.tally(B, labels, S, sizes)
    for kick in (search.shatter, search.dissolve, search.scatter, search.shatter):
        before = slow_q(A, labels)
        k = search.merge(labels, S, sizes, k)
        assert slow_q(A, labels) >= before - 1e-12
        for a, b in itertools.combinations(range(k), 2):
            assert slow_q(A, np.where(labels == a, b, labels)) < slow_q(A, labels) + 1e-12
        k = kick(B, labels, S, sizes, k, np.arange(n) if kick is search.scatter else scratch, state)
        recomputed = np.zeros_like(S)
        assert search.tally(B, labels, recomputed, sizes) == k and (sizes[:k] > 0).all()
        assert np.abs(S[:k] - recomputed[:k]).max() < 1e-12


@pytest.mark.parametrize(("n", "groups"), [(12, 1), (30, 1), (48, 3), (64, 1), (100, 6), (160, 1)])
def test_refinement_is_not_below_leiden(n, groups):
    A = random_graph(n, n, groups)
    graph = igraph.Graph.Weighted_Adjacency(A.numpy(), mode="undirected", loops=False)
    partition = leidenalg.ModularityVertexPartition
    runs = [leidenalg.find_partition(graph, partition, weights="weight", seed=s, n_iterations=-1) for s in range(10)]
    leiden = max(q_of(A, one_hot(run.membership)) for run in runs)
    assert q_of(A, refine_modularity(A, seed=0)) >= leiden - 1e-12


# ---- nulls ----------------------------------------------------------------------------------------------------------


def latent_correlations(n, factors, seed, groups=0):
    """|correlation| of n units driven by common factors, or by one factor for each of `groups` groups; its signs."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(n, factors))
    if groups:
        weights = 0.7 * np.eye(groups)[np.arange(n) % groups]
    Z = weights @ random.normal(size=(weights.shape[1], 500)) + random.normal(size=(n, 500))
    C = torch.from_numpy(np.corrcoef(Z))
    return C.abs(), C.sign().to(torch.int8)


def test_the_strength_preserving_null_keeps_strengths_and_shuffles_the_rest():
    A = REAL["backward_jac/1"].double().numpy()
    A = A[np.ix_(A.sum(1) > 1e-3 * A.sum(1).max(), A.sum(1) > 1e-3 * A.sum(1).max())]
    draw = nulls.strength_preserving(A)
    first, second = (draw(np.random.default_rng(seed)) for seed in (0, 1))
    for B in (first, second):
        assert is_valid_adjacency_matrix(torch.from_numpy(B))
        assert np.abs(B.sum(1) / A.sum(1) - 1).max() < 1e-6
    upper = np.triu_indices(len(A), 1)
    assert abs(np.corrcoef(first[upper], second[upper])[0, 1]) < 0.999
    assert not np.allclose(first, A)
    assert np.array_equal(draw(np.random.default_rng(0)), first)


def test_equal_strengths_make_the_null_a_plain_shuffle():
    A = np.zeros((8, 8))
    A[np.arange(8), (np.arange(8) + 1) % 8] = 1
    A[np.arange(8), (np.arange(8) + 4) % 8] += 0.5
    A = A + A.T
    k = A.sum(1)
    assert np.ptp(k) < 1e-12
    d = nulls.balancing(A, np.ones(8), np.ones(8))
    assert np.ptp(d) < 1e-6


@pytest.mark.parametrize("key", ["13_karate_unweighted", "12_binary_er_n16_p0.3"])
def test_the_null_of_a_sparse_graph_is_a_valid_matrix_of_about_its_strengths(key):
    A = GRAPHS[key].double().numpy()
    for seed in range(5):
        B = nulls.strength_preserving(A)(np.random.default_rng(seed))
        assert is_valid_adjacency_matrix(torch.from_numpy(B))
        assert np.abs(B.sum(1) - A.sum(1)).sum() < 0.25 * A.sum()  # no scaling keeps them all


@pytest.mark.parametrize("seed", [14, 17])
def test_the_null_of_a_nearly_empty_matrix_is_finite_where_the_scaling_diverges(seed):
    random, n = np.random.default_rng(seed), 25
    size = random.uniform(-9, 0, n)
    A = 10.0 ** (size[:, None] + size + random.uniform(-3, 0, (n, n))) * (random.random((n, n)) < 0.08)
    A = np.triu(A, 1) + np.triu(A, 1).T
    A = A[np.ix_(A.any(1), A.any(1))]
    draw = nulls.strength_preserving(A)
    for i in range(8):
        assert is_valid_adjacency_matrix(torch.from_numpy(draw(np.random.default_rng(i))))


def test_rotation_keeps_the_spectrum():
    random = np.random.default_rng(0)
    C = np.cov(random.normal(size=(12, 40)))
    rotated = C.copy()
    nulls.rotate(rotated, random.normal(size=12 * 13 // 2))
    assert np.abs(np.linalg.eigvalsh(rotated) - np.linalg.eigvalsh(C)).max() < 1e-12
    assert not np.allclose(rotated, C)


def test_rotations_are_uniform():
    """E (O D Oᵀ)_ij = δ_ij tr(D)/n, and E (O D Oᵀ)_ii² = (2 tr D² + (tr D)²)/(n(n + 2)), for Haar-distributed O."""
    n, draws, random = 4, 20000, np.random.default_rng(0)
    D = np.diag([1.0, 2, 3, 4])
    rotated = np.empty((draws, n, n))
    for C in rotated:
        C[:] = D
        nulls.rotate(C, random.normal(size=n * (n + 1) // 2))
    assert np.abs(rotated.mean(0) - np.eye(n) * 2.5).max() < 0.03
    second = (rotated**2).mean(0).diagonal()
    assert np.abs(second - (2 * 30 + 100) / 24).max() < 0.08


def test_a_normalised_matrix_is_normalised_again_after_rotation():
    A, sign = latent_correlations(10, 2, 0)
    rotated = nulls.rotation((A * sign).numpy())(np.random.default_rng(0))
    assert is_valid_adjacency_matrix(torch.from_numpy(rotated)) and rotated.max() <= 1 + 1e-12
    with pytest.raises(ValueError, match="diagonal"):
        nulls.rotation((A * sign).numpy() - np.eye(10))


def test_significance_is_its_definition():
    assert nulls.significance(3.0, [1.0, 2.0, 3.0]) == {"null_mean": 2.0, "null_std": 1.0, "z": 1.0, "p": 0.5}
    assert nulls.significance(3.0, [1.0, 2.0])["p"] == 1 / 3
    flat = nulls.significance(0.0, [0.0, 0.0, 0.0])
    assert math.isnan(flat["z"]) and flat["p"] == 1
    for undefined in (nulls.significance(1.0, []), nulls.significance(math.nan, [1.0])):
        assert all(math.isnan(value) for value in undefined.values())


def test_planted_groups_are_significant_under_both_nulls():
    A, sign = latent_correlations(48, 0, 0, groups=4)
    modules = find_modules(A, sign=sign, steps=200)
    assert modules["z"] > 8 and modules["rotation_z"] > 8
    assert modules["p"] == modules["rotation_p"] == 1 / 21


def test_noise_is_not_significant_under_either_null():
    zs = []
    for seed in range(3):
        A, sign = latent_correlations(48, 0, seed)
        modules = find_modules(A, sign=sign, steps=200)
        zs.append((modules["z"], modules["rotation_z"]))
    assert np.abs(zs).max() < 4.5 and np.abs(np.mean(zs, axis=0)).max() < 2.5


def test_a_diagonal_that_underflowed_in_places_has_a_rotation_null():
    """As in networks that regularisation has all but silenced: units too weak for float32 to hold their square."""
    random = np.random.default_rng(0)
    J = 1e-18 * random.normal(size=(20, 30)) * np.where(np.arange(20) < 5, 3e-6, 1)[:, None]
    C = torch.from_numpy(J @ J.T).float()
    assert (C.diagonal()[:5] == 0).all() and modularity_matrix(C.abs())[2].all()
    modules = find_modules(C.abs(), sign=C.sign().to(torch.int8), null_draws=5)
    assert all(math.isfinite(modules[key]) for key in ("score", "z", "rotation_z"))


def test_low_rank_correlation_without_groups_is_not_significant_under_rotation():
    modules = [find_modules(A, sign=sign, steps=200) for A, sign in (latent_correlations(48, 5, s) for s in range(3))]
    assert max(abs(m["rotation_z"]) for m in modules) < 4
    assert min(m["z"] for m in modules) > 4  # where keeping the strengths alone misleads


# ---- evaluation -----------------------------------------------------------------------------------------------------

KEYS = {
    *("adj", "clusters", "score", "num_clusters", "mc_score", "mc_clusters", "mc_scores", "mc_temperatures"),
    *("mc_entropies", "null_mean", "null_std", "z", "p", "null_draws", "null_effort_score", "version"),
}
ROTATION = {"rotation_null_mean", "rotation_null_std", "rotation_z", "rotation_p"}


def test_modules_hold_what_they_say_and_load_as_plain_data(tmp_path):
    diagonal = torch.diag(torch.arange(64.0))
    A = REAL["forward_cov/1"]
    modules = find_modules(A + diagonal, null_draws=3)
    torch.save(modules, tmp_path / "modules.pt")
    modules = torch.load(tmp_path / "modules.pt", weights_only=True)
    assert set(modules) == KEYS and modules["version"] == MODULES_VERSION and modules["null_draws"] == 3
    assert torch.equal(modules["adj"], A)
    P = modules["clusters"]
    assert P.any(0).all() and torch.equal(P.any(1), A.sum(1) > 1e-9 * A.sum(1).max())
    assert abs(modules["score"] - q_of(A, P)) < 1e-12
    assert abs(modules["mc_score"] - q_of(A, modules["mc_clusters"])) < 1e-12
    assert modules["mc_score"] <= modules["null_effort_score"] + 1e-12 <= modules["score"] + 2e-12
    assert modules["num_clusters"] == soft_num_clusters(P).item()
    assert abs(modules["z"] - (modules["null_effort_score"] - modules["null_mean"]) / modules["null_std"]) < 1e-9
    for key in ("mc_scores", "mc_temperatures", "mc_entropies"):
        assert modules[key].shape == (5000,) and modules[key].dtype == torch.float32


def test_seeds_give_the_same_modules_in_any_process_with_any_number_of_threads(tmp_path):
    def digest(threads):
        code = f"""
import sys; sys.path.insert(0, {str(Path(modularity.__file__).parent)!r})
import hashlib, numpy, torch
torch.set_num_threads({threads})
from modularity import find_modules
A = torch.from_numpy(numpy.load({str(REFERENCE / "assoc_evaluated.npz")!r})["forward_jac/0"])
modules = find_modules(A + torch.eye(64) * A.max(), sign=torch.ones(64, 64, dtype=torch.int8), seed=0, null_draws=2)
tensors = [value.numpy().tobytes() for value in modules.values() if isinstance(value, torch.Tensor)]
print(hashlib.sha256(b"".join(tensors)).hexdigest(), [v for v in modules.values() if isinstance(v, float)])
"""
        environment = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads), "PATH": ""}
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
        return run.stdout

    assert digest(1) == digest(2)


def test_another_seed_gives_another_chain():
    A = REAL["forward_cov/0"]
    histories = [monte_carlo_modularity(A, steps=200, seed=seed)[1] for seed in (0, 0, 1)]
    assert torch.equal(histories[0], histories[1]) and not torch.equal(histories[0], histories[2])
    unseeded = [monte_carlo_modularity(A, steps=200)[1] for _ in range(2)]
    assert not torch.equal(*unseeded)


@pytest.mark.parametrize("A", [torch.zeros(4, 4), torch.full((4, 4), math.nan), torch.ones(1, 1), torch.eye(3)])
def test_a_matrix_without_modules_is_recorded_as_such(A):
    modules = find_modules(A, sign=torch.ones(A.shape, dtype=torch.int8))
    assert set(modules) == KEYS | ROTATION
    assert modules["clusters"].shape == (len(A), 0) and modules["num_clusters"] == 0
    assert modules["version"] == MODULES_VERSION
    assert all(math.isnan(modules[key]) for key in ("score", "mc_score", "z", "p", "rotation_z"))


def test_modules_of_an_invalid_matrix_are_refused():
    with pytest.raises(ValueError, match="negative"):
        find_modules(torch.tensor([[0, -1.0], [-1, 0]]))
    with pytest.raises(ValueError, match="not symmetric"):
        find_modules(torch.tensor([[0, 1.0], [2, 0]]))
    with pytest.raises(ValueError, match="not square"):
        find_modules(torch.ones(2, 3))
    with pytest.raises(ValueError, match="empty"):
        find_modules(torch.ones(0, 0))
    with pytest.raises(ValueError, match="signs"):
        find_modules(torch.ones(2, 2), sign=torch.ones(3, 3))


def test_two_units_have_one_cluster_and_a_null_that_does_not_vary():
    modules = find_modules(torch.ones(2, 2), null_draws=3)
    assert modules["score"] == 0 and modules["num_clusters"] == 1 and modules["p"] == 1 and math.isnan(modules["z"])


def test_without_a_place_to_keep_it_the_compiled_code_is_made_anew(monkeypatch):
    plain = numba.njit

    def njit(*args, cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return plain(*args, **options)

    monkeypatch.setattr(numba, "njit", njit)
    assert search.jit(lambda x: x + 1)(1) == 2
