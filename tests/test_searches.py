"""The searches for the highest Q, against slow plain implementations and known optima."""

import itertools
import math

import hypothesis
import hypothesis.strategies as st
import igraph
import leidenalg
import numpy as np
import pytest
import scipy.optimize
import torch
from made_up_graphs import (
    BEST_KNOWN,
    GRAPHS,
    KARATE,
    REAL,
    best_of_every_clustering,
    labels_of,
    one_hot,
    proven_optimum,
    q_of,
    random_graph,
    ring_of_cliques,
    slow_q,
    sparse_graph,
)

from comparison import element_similarity
from modularity import monte_carlo_modularity, refine_modularity, spectral_modularity
from numerics import search, spectral
from numerics.adjacency import problem_of

seeds = st.integers(0, 2**32 - 1)
settings = hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None)


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
    B = problem_of(KARATE).B
    values = np.linalg.eigvalsh(B + np.diag(-((KARATE.sum(1) / KARATE.sum()) ** 2).numpy()))
    assert -values[0] > values[-1]
    assert q_of(KARATE, spectral_modularity(KARATE)) > 0.39


@settings
@hypothesis.given(seeds, st.integers(2, 40))
def test_the_leading_eigenvector_is_lapacks(seed, n):
    inner = np.random.default_rng(seed).normal(size=(n, n))
    inner += inner.T
    excess = inner.sum(1)
    values, vectors = np.linalg.eigh(inner - np.diag(excess))
    hypothesis.assume(values[-1] - values[-2] > 1e-3)
    v = spectral.leading_eigenvector(inner, excess)
    shadow = vectors[:, -1] * (vectors[:, -1] @ spectral.start_vector(n))
    assert np.abs(v - shadow).max() < 1e-9


def test_of_an_eigenspace_the_leading_vector_does_not_depend_on_rounding():
    """Three equal cliques: a plane of leading eigenvectors, of which LAPACK returns whichever rounding prefers."""
    inner = problem_of(torch.block_diag(*[1 - torch.eye(4)] * 3)).B
    excess = inner.sum(1)
    v = spectral.leading_eigenvector(inner, excess)
    values, vectors = np.linalg.eigh(inner - np.diag(excess))
    top = vectors[:, values > values[-1] - 1e-9]
    assert top.shape[1] == 2
    shadow = top @ (top.T @ spectral.start_vector(12))
    assert np.abs(v - shadow).max() < 1e-9
    noise = 1e-14 * np.random.default_rng(0).normal(size=(12, 12))
    assert np.abs(spectral.leading_eigenvector(inner + noise + noise.T, excess) - v).max() < 1e-9


def test_large_groups_are_split_as_small_ones(monkeypatch):
    A = random_graph(1, 200, 4)
    exact = spectral_modularity(A)
    monkeypatch.setattr(spectral, "DENSE_UNITS", 16)
    assert torch.equal(spectral_modularity(A), exact)


def test_spectral_bisection_stops_at_the_number_of_clusters_allowed():
    A = torch.block_diag(*[1 - torch.eye(4)] * 4)
    assert [spectral_modularity(A, max_clusters=c).shape[1] for c in (1, 2, 3, 4, 9)] == [1, 2, 3, 4, 4]


# ---- the Monte Carlo chain ------------------------------------------------------------------------------------------


def entropy_at(q, T):
    """Entropy in nats of a choice with probability ∝ exp(q/T)."""
    w = np.exp((q - q.max()) / T)
    p = w[w > 0] / w.sum()
    return -(p * np.log(p)).sum()


def temperature_at(q, entropy):
    """T at which a choice with probability ∝ exp(q/T) has the entropy, by bisection."""
    log_range = np.log(1e-6), np.log(1e6)
    return np.exp(scipy.optimize.brentq(lambda x: entropy_at(q, np.exp(x)) - entropy, *log_range, xtol=1e-12))


def slow_chain(A, labels, steps, target, max_clusters, random):
    """The chain with Q recomputed from the definition for every candidate, and T by scipy's root finder."""
    labels, scores, temperatures = list(labels), [], []
    for _ in range(steps):
        u = int(random.random() * len(labels))
        alone, k = labels.count(labels[u]) == 1, max(labels) + 1
        homes = list(range(k + 1 if not alone and k < max_clusters else k))
        q = np.array([slow_q(A, [*labels[:u], c, *labels[u + 1 :]]) for c in homes])

        T = temperature_at(q, target)
        p = np.exp((q - q.max()) / T)
        c = int(np.searchsorted(np.cumsum(p / p.sum()), random.random(), side="right"))
        a, labels[u] = labels[u], c
        if a not in labels:  # the last cluster takes the emptied one's number
            last = max([*labels, a])
            labels = [a if label == last else label for label in labels]
        scores.append(slow_q(A, labels))
        temperatures.append(T)
    return labels, np.array(scores), np.array(temperatures)


def run_chain(A, labels, steps, target=0.15, max_clusters=None, seed=0):
    problem = problem_of(A)
    p = search.partition(problem.B, np.array(labels))
    random = np.random.default_rng(seed)
    best, histories = search.run_chain(p, problem.q0, max_clusters or len(problem.B), steps, target, random)
    return p.labels, best, *histories


@pytest.mark.parametrize(("n", "max_clusters", "start"), [(9, 9, 1), (9, 3, 3), (7, 7, 7)])
def test_the_chain_is_the_plain_one(n, max_clusters, start):
    A, labels = random_graph(n, n, 2), np.arange(n) % start
    fast, _, scores, temperatures, entropies = run_chain(A, labels, 150, 0.5, max_clusters, seed=4)
    slow, slow_scores, slow_temperatures = slow_chain(A, labels, 150, 0.5, max_clusters, np.random.default_rng(4))
    assert list(fast) == slow
    assert np.abs(scores - slow_scores).max() < 1e-12
    assert np.abs(entropies - 0.5).max() < 1e-3
    assert np.abs(np.log(temperatures / slow_temperatures)).max() < 0.02  # both within 0.001 nats of the target


@pytest.mark.parametrize("key", ["forward_cov/0", "backward_hess/1"])
def test_scores_stay_exact_over_5000_steps(key):
    A = REAL[key]
    live = problem_of(A).live
    labels, best, scores, _, _ = run_chain(A, np.zeros(live.sum(), dtype=np.int64), 5000)
    for found, q in ((labels, scores[-1]), (best, scores.max())):
        full = np.full(len(A), -1)
        full[live] = found
        assert abs(q_of(A, one_hot(full)) - q) < 1e-12


def test_a_step_samples_homes_in_proportion_to_exp_q_over_t():
    A, labels, draws = random_graph(3, 6), np.array([0, 0, 1, 1, 2, 2]), 3000
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
    T, entropy, _ = search.solve_temperature(gaps.copy(), count, target, 3.0, np.empty(count))
    assert abs(entropy - entropy_at(-gaps, T)) < 1e-9
    assert abs(entropy - target) < 1e-3 or (T == 1e-6 and entropy > target) or (T == 1e6 and entropy < target)


@pytest.fixture
def evaluations(monkeypatch):
    """Counts the evaluations of the entropy by the solver for T, run as plain Python."""
    counted = []
    plain = search.choice_entropy
    monkeypatch.setattr(search, "choice_entropy", lambda *args: counted.append(1) or plain(*args))
    return counted


def test_a_warm_start_needs_three_evaluations_or_so(evaluations):
    random, x, steps = np.random.default_rng(0), 3.0, 500
    for _ in range(steps):
        gaps = np.concatenate([[0.0], random.uniform(0.2, 2, 4)]) * 1e-2
        _, entropy, x = search.solve_temperature.py_func(gaps, 5, 0.15, x, np.empty(5))
        assert abs(entropy - 0.15) < 1e-3
    assert len(evaluations) < 3.2 * steps


def test_the_temperature_is_found_quickly_over_decades_of_scale(evaluations):
    random = np.random.default_rng(0)
    for decade in range(-5, 6):
        for target in (0.05, 0.15, 0.6):
            gaps = np.concatenate([[0.0], 10.0 ** random.uniform(-1, 1, 9)]) * 10.0**decade * 0.1
            evaluations.clear()
            search.solve_temperature.py_func(gaps, 10, target, 3.0, np.empty(10))
            assert len(evaluations) < 15


def test_tied_best_homes_are_equally_likely_at_the_lowest_temperature():
    weights = np.empty(4)
    T, entropy, _ = search.solve_temperature(np.array([0.0, 0.0, 0.1, 0.2]), 4, 0.15, 3.0, weights)
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
    p, space = search.partition(problem_of(A).B, labels), search.scratch(n)
    locked = random.random(n) < 0.3
    u, c, half = search.best_free_move(p, locked, space.top)
    free = [v for v in range(n) if not locked[v]]
    moves = [(v, d) for v in free for d in range(k + (p.sizes[labels[v]] > 1)) if d != labels[v]]
    gains = {(v, d): slow_q(A, [*labels[:v], d, *labels[v + 1 :]]) - slow_q(A, labels) for v, d in moves}
    if gains:
        assert (u, c) in gains and abs(2 * half - max(gains.values())) < 1e-12 > abs(gains[u, c] - 2 * half)
    gain = search.kernighan_lin(p, space)
    assert gain >= 0 and abs(slow_q(A, p.labels) - slow_q(A, labels) - gain) < 1e-12
    check_books(p)


def check_books(p):
    """A clustering's links, sizes and number of clusters are those of its labels."""
    again, k = search.partition(p.B, p.labels), p.count[0]
    assert again.count[0] == k and (p.sizes[:k] > 0).all()
    assert np.array_equal(p.sizes[:k], again.sizes[:k])
    n = len(p.B)
    assert np.abs(p.S[:k, :n] - again.S[:k, :n]).max() < 1e-12


@pytest.mark.parametrize("singles", [True, False])
def test_unions_and_kicks_keep_their_books(singles):
    A, n = ring_of_cliques(6, 4).double(), 24
    random, space = np.random.default_rng(0), search.scratch(n)
    p = search.partition(problem_of(A).B, np.arange(n) if singles else np.arange(n) // 8)
    for kick in (search.shatter, search.dissolve, search.scatter, search.shatter):
        before = slow_q(A, p.labels)
        search.merge(p)
        assert slow_q(A, p.labels) >= before - 1e-12
        for a, b in itertools.combinations(range(p.count[0]), 2):
            assert slow_q(A, np.where(p.labels == a, b, p.labels)) < slow_q(A, p.labels) + 1e-12
        kick(p, space, random)
        check_books(p)


class Recorder:
    """Runs the refinement as plain Python around compiled parts, and writes down what these did."""

    def __init__(self, monkeypatch):
        self.polished, self.kicks = [], []
        polish = search.polish

        def recording_polish(p, space, random):
            polish(p, space, random)
            self.polished.append(search.total(p))

        monkeypatch.setattr(search, "polish", recording_polish)
        for name in ("scatter", "shatter", "dissolve"):
            monkeypatch.setattr(search, name, self.recording(name, getattr(search, name)))

    def recording(self, name, kick):
        def recording_kick(p, space, random):
            self.kicks.append((name, search.total(p)))
            kick(p, space, random)

        return recording_kick

    def refine(self, A, rounds, seed=0):
        """Q − q0 of the result."""
        B = problem_of(A).B
        start = [search.partition(B, np.zeros(len(B), dtype=np.int64)) for _ in range(2)]
        random = np.random.default_rng(seed)
        labels = search.iterated_local_search.py_func(*start, search.scratch(len(B)), rounds, random)
        return search.total(search.partition(B, labels))


def test_refinement_returns_the_best_it_saw_and_goes_on_from_what_it_kept(monkeypatch):
    seen = Recorder(monkeypatch)
    assert abs(seen.refine(sparse_graph(100, 0), 100) - max(seen.polished)) < 1e-12
    assert len(seen.polished) == 101 and np.argmax(seen.polished) not in (0, 100)
    losses = 0
    for (_, start), before, after in zip(seen.kicks[1:], seen.polished[:-2], seen.polished[1:-1], strict=True):
        kept = [q for q in (before, after, *seen.polished) if abs(q - start) < 1e-12]
        assert kept  # every round starts from a polished clustering
        losses += start < max(seen.polished[: seen.polished.index(after) + 1]) - 1e-9
    assert 0 < losses < 99  # sometimes from one that is not the best


def test_refinement_becomes_strict_towards_its_end(monkeypatch):
    seen = Recorder(monkeypatch)
    A, rounds = sparse_graph(80, 1), 300
    seen.refine(A, rounds)
    starts = np.array([q for _, q in seen.kicks])
    falls = np.maximum(starts[:-1] - starts[1:], 0) / max(seen.polished)
    assert falls[:150].max() > falls[-75:].max() and falls[-20:].max() < 3e-3
    assert 1e-4 < falls[:100].mean() < 4e-3


@pytest.mark.parametrize(("n", "share"), [(24, 1.0), (64, 0.5), (128, 0.25)])
def test_kicks_scatter_with_probability_32_over_n(monkeypatch, n, share):
    seen, rounds = Recorder(monkeypatch), 200
    seen.refine(random_graph(0, n, 2), rounds)
    counts = [sum(name == kick for name, _ in seen.kicks) for kick in ("scatter", "shatter", "dissolve")]
    assert sum(counts) == rounds
    for count, p in zip(counts, (share, (1 - share) / 2, (1 - share) / 2), strict=True):
        assert abs(count - rounds * p) <= 4 * math.sqrt(rounds * p * (1 - p))


@pytest.mark.parametrize(("n", "groups"), [(12, 1), (30, 1), (48, 3), (64, 1), (100, 6), (160, 1)])
def test_refinement_is_not_below_leiden(n, groups):
    A = random_graph(n, n, groups)
    graph = igraph.Graph.Weighted_Adjacency(A.numpy(), mode="undirected", loops=False)
    partition = leidenalg.ModularityVertexPartition
    runs = [leidenalg.find_partition(graph, partition, weights="weight", seed=s, n_iterations=-1) for s in range(10)]
    leiden = max(q_of(A, one_hot(run.membership)) for run in runs)
    assert q_of(A, refine_modularity(A, seed=0)) >= leiden - 1e-12
