"""The nulls of Q: what they keep, what they draw, and the significance that follows."""

import itertools
import math

import igraph
import networkx
import numpy as np
import pytest
import scipy.stats
import torch
from made_up_graphs import KARATE, REAL, sparse_graph

from modularity import find_modules, is_valid_adjacency_matrix, sparsify
from numerics import nulls
from numerics.adjacency import problem_of


def latent_correlations(n, factors, seed, groups=0):
    """|correlation| of n units driven by common factors, or by one factor for each of `groups` groups; its signs."""
    random = np.random.default_rng(seed)
    weights = random.normal(size=(n, factors))
    if groups:
        weights = 0.7 * np.eye(groups)[np.arange(n) % groups]
    Z = weights @ random.normal(size=(weights.shape[1], 500)) + random.normal(size=(n, 500))
    C = torch.from_numpy(np.corrcoef(Z))
    return C.abs(), C.sign().to(torch.int8)


def plain_balancing(W, strengths):
    """W scaled to these strengths by x ← √(x · strengths/Wx), for as long as it takes."""
    x = np.ones(len(W))
    for _ in range(1000):
        x = np.sqrt(x * strengths / (W @ x))
    return W * np.outer(x, x)


def symmetric(entries, n):
    """The matrix with these entries above its diagonal, row by row."""
    W = np.zeros((n, n))
    W[np.triu_indices(n, 1)] = entries
    return W + W.T


WEIGHTED = np.abs(np.random.default_rng(5).normal(size=(9, 9))) + 0.1
WEIGHTED = symmetric(WEIGHTED[np.triu_indices(9, 1)] * 4 ** np.random.default_rng(6).random(36), 9)


def test_a_draw_is_the_permuted_entries_at_equal_strengths_scaled_back():
    n, upper = len(WEIGHTED), np.triu_indices(len(WEIGHTED), 1)
    strengths = WEIGHTED.sum(1)
    assert strengths.max() > 1.5 * strengths.min()
    scaled = plain_balancing(WEIGHTED, np.full(n, n - 1.0))
    for seed in range(3):
        permuted = symmetric(np.random.default_rng(seed).permutation(scaled[upper]), n)
        drawn = nulls.strength_preserving(WEIGHTED)(np.random.default_rng(seed))
        assert np.abs(drawn - plain_balancing(permuted, strengths)).max() < 1e-5


def test_equal_strengths_make_a_draw_the_matrix_own_entries_permuted_and_scaled():
    n = 8
    A = sum(
        w * (np.roll(np.eye(n), s, 1) + np.roll(np.eye(n), -s, 1)) for s, w in ((1, 1.0), (2, 0.3), (3, 2.0), (4, 0.7))
    )
    assert np.ptp(A.sum(1)) < 1e-12
    drawn = nulls.strength_preserving(A)(np.random.default_rng(0))
    permuted = symmetric(np.random.default_rng(0).permutation(A[np.triu_indices(n, 1)]), n)
    assert not np.allclose(permuted, A)
    ratio = drawn / (permuted + np.eye(n))  # x_i x_j off the diagonal
    for i, j, k, m in ((0, 1, 2, 3), (4, 6, 5, 7), (0, 7, 3, 4)):
        assert abs(ratio[i, j] * ratio[k, m] - ratio[i, m] * ratio[k, j]) < 1e-6
    assert np.abs(drawn.sum(1) - A.sum(1)).max() < 1e-6


@pytest.mark.parametrize("key", ["backward_jac/1", "forward_cov_norm/0", "backward_hess/0"])
def test_the_strength_preserving_null_keeps_strengths_and_shuffles_the_rest(key):
    A = problem_of(REAL[key]).A
    draw = nulls.strength_preserving(A)
    first, second = (draw(np.random.default_rng(seed)) for seed in (0, 1))
    for B in (first, second):
        assert is_valid_adjacency_matrix(torch.from_numpy(B))
        assert np.abs(B.sum(1) / A.sum(1) - 1).max() < 1e-5
    upper = np.triu_indices(len(A), 1)
    expected = np.outer(A.sum(1), A.sum(1))[upper]
    first, second, real = ((B[upper] / expected) for B in (first, second, A))  # what strengths alone do not explain
    for a, b in ((first, second), (first, real), (second, real)):
        assert abs(scipy.stats.spearmanr(a, b)[0]) < 0.15
    assert np.array_equal(draw(np.random.default_rng(0))[upper] / expected, first)


def binary(edges, n):
    A = np.zeros((n, n))
    for i, j in edges:
        A[i, j] = A[j, i] = 1
    return A


def test_a_binary_graph_becomes_every_graph_of_its_degrees_equally_often():
    edges = [(0, 1), (1, 2), (2, 3), (3, 0), (0, 4), (1, 5)]
    A, n, draws = binary(edges, 6), 6, 2000
    pairs = list(itertools.combinations(range(n), 2))
    graphs = (binary(chosen, n) for chosen in itertools.combinations(pairs, len(edges)))
    alike = {graph.tobytes() for graph in graphs if np.array_equal(graph.sum(0), A.sum(0))}
    draw, counts = nulls.strength_preserving(A), dict.fromkeys(alike, 0)
    for seed in range(draws):
        counts[np.round(draw(np.random.default_rng(seed)), 6).tobytes()] += 1
    assert len(alike) > 10
    assert scipy.stats.chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("complement", [False, True])
def test_rewiring_is_igraphs(complement):
    """As many triangles as igraph's rewiring leaves, in a sparse graph and in a dense one."""
    A = KARATE.numpy()
    A = 1 - np.eye(len(A)) - A if complement else A

    def triangles(B):
        return np.trace(np.linalg.matrix_power(np.round(B), 3)) / 6

    draw = nulls.strength_preserving(A)
    ours, theirs = [], []
    for seed in range(100):
        drawn = draw(np.random.default_rng(seed))
        assert np.array_equal(np.round(drawn).sum(0), A.sum(0)) and np.abs(drawn - np.round(drawn)).max() < 1e-9
        ours.append(triangles(drawn))
        graph = igraph.Graph.Adjacency(A.tolist(), mode="undirected")
        graph.rewire(n=30 * graph.ecount())
        theirs.append(triangles(np.array(graph.get_adjacency().data)))
    difference = np.mean(ours) - np.mean(theirs)
    assert abs(difference) < 4 * math.sqrt((np.var(ours) + np.var(theirs)) / 100)
    assert abs(np.mean(ours) - triangles(A)) > 5 * np.std(ours) / math.sqrt(100)


def planted(n=64, groups=4):
    same = np.arange(n)[:, None] % groups == np.arange(n) % groups
    return symmetric((np.random.default_rng(0).random((n, n)) * (0.3 + same))[np.triu_indices(n, 1)], n)


SPARSE = {
    "karate": (KARATE, 6, 15),
    "weighted karate": (networkx.to_numpy_array(networkx.karate_club_graph()), 4, 15),
    "random": (networkx.to_numpy_array(networkx.gnp_random_graph(64, 0.08, seed=0)), -3, 3),
    "random weights": (sparse_graph(64, 3).numpy() * planted(64, 1), -3, 3),
    "strongest of planted": (sparsify(planted(), 0.05), 8, 40),
    "strongest of planted, weighted": (sparsify(planted(), 0.1).numpy() * planted(), 15, 100),
    "nearly full": (sparsify(planted(), 0.95).numpy() * planted(), 30, 150),
}


@pytest.mark.parametrize("name", SPARSE)
def test_z_of_sparse_graphs_is_high_where_there_are_groups_and_nowhere_else(name):
    A, low, high = SPARSE[name]
    modules = find_modules(A, steps=500)
    assert low < modules["z"] < high and modules["null_problem"] == ""


@pytest.mark.parametrize("name", SPARSE)
def test_draws_of_sparse_graphs_keep_strengths_within_the_bound_and_numbers_of_links(name):
    A = np.asarray(SPARSE[name][0], dtype=float)
    A = A[np.ix_(A.any(1), A.any(1))]
    draw = nulls.strength_preserving(A)
    for seed in range(5):
        B = draw(np.random.default_rng(seed))
        assert is_valid_adjacency_matrix(B)
        assert np.abs(B.sum(1) / A.sum(1) - 1).max() <= 0.01
        assert np.array_equal((B > 0).sum(1), (A > 0).sum(1))
        assert not np.allclose(B, A)


def test_where_no_draw_keeps_the_strengths_z_is_nan_with_the_reason():
    pairs = np.kron(np.diag(10.0 ** np.arange(7)), [[0, 1], [1, 0]])  # other partners have other strengths
    with pytest.raises(nulls.NoNull, match=r"20 random matrices .* missed some unit's strength by \d"):
        nulls.strength_preserving(pairs)(np.random.default_rng(0))
    modules = find_modules(pairs, null_draws=3)
    assert modules["score"] > 0 and all(math.isnan(modules[key]) for key in ("z", "p", "null_mean", "null_std"))
    assert "missed some unit's strength" in modules["null_problem"]
    assert find_modules(pairs, null_draws=0)["null_problem"] == ""


@pytest.mark.parametrize("seed", range(4))
def test_the_null_of_a_nearly_empty_matrix_keeps_its_strengths_or_says_that_it_cannot(seed):
    random, n = np.random.default_rng(seed), 25
    size = random.uniform(-9, 0, n)
    A = 10.0 ** (size[:, None] + size + random.uniform(-3, 0, (n, n))) * (random.random((n, n)) < 0.08)
    A = np.triu(A, 1) + np.triu(A, 1).T
    A = A[np.ix_(A.any(1), A.any(1))]
    try:
        B = nulls.strength_preserving(A)(np.random.default_rng(0))
    except nulls.NoNull:
        return
    assert is_valid_adjacency_matrix(B) and np.abs(B.sum(1) / A.sum(1) - 1).max() <= 0.01


def drawn_by_hand(C, seed):
    """OCOᵀ with the orthogonal matrix that a generator gives."""
    rotation = scipy.stats.ortho_group.rvs(len(C), random_state=np.random.default_rng(seed))
    assert np.abs(rotation @ rotation.T - np.eye(len(C))).max() < 1e-12
    return rotation @ C @ rotation.T


def test_rotation_keeps_the_spectrum_and_takes_the_absolute_value():
    C = np.cov(np.random.default_rng(0).normal(size=(12, 40)))
    R = drawn_by_hand(C, 3)
    assert np.abs(np.linalg.eigvalsh(R) - np.linalg.eigvalsh(C)).max() < 1e-12
    drawn = nulls.rotation(C)(np.random.default_rng(3))
    expected = np.abs(R - np.diag(np.diagonal(R)))  # up to its scale
    assert np.abs(drawn / drawn.max() - expected / expected.max()).max() < 1e-12
    assert (R < 0).any()


def test_rotations_are_uniform():
    """E |O D Oᵀ|²_ij = (n tr D² − (tr D)²)/(n(n + 2)(n − 1)) off the diagonal, for Haar-distributed O."""
    n, draws = 4, 4000
    draw, D = nulls.rotation(np.diag([1.0, 2, 3, 4])), np.diag([1.0, 2, 3, 4])
    squares = sum((4 * draw(np.random.default_rng(seed))) ** 2 for seed in range(draws)) / draws
    expected = (n * np.trace(D @ D) - np.trace(D) ** 2) / (n * (n + 2) * (n - 1))
    assert np.abs(squares + expected * np.eye(n) - expected).max() < 0.03


def test_a_normalized_matrix_is_normalized_again_after_rotation():
    A, sign = latent_correlations(10, 2, 0)
    C = (A * sign).numpy()
    drawn = nulls.rotation(C)(np.random.default_rng(0))
    R = drawn_by_hand(C, 0)
    scale = np.sqrt(np.diagonal(R))
    assert np.ptp(scale) > 0.1
    expected = np.abs(R / np.outer(scale, scale))
    np.fill_diagonal(expected, 0)
    assert np.abs(drawn - expected).max() < 1e-12
    assert is_valid_adjacency_matrix(drawn)


def test_the_rotation_null_needs_a_diagonal():
    C = np.array([[1.0, 0.5], [0.5, 1.0]])
    for diagonal in ([0, 0], [1, -1], [1, math.nan]):
        bad = C.copy()
        np.fill_diagonal(bad, diagonal)
        with pytest.raises(ValueError, match="diagonal"):
            nulls.rotation(bad)


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
    assert (C.diagonal()[:5] == 0).all() and problem_of(C.abs()).live.all()
    modules = find_modules(C.abs(), sign=C.sign().to(torch.int8), null_draws=5)
    assert all(math.isfinite(modules[key]) for key in ("score", "z", "rotation_z"))


def test_low_rank_correlation_without_groups_is_not_significant_under_rotation():
    modules = [find_modules(A, sign=sign, steps=200) for A, sign in (latent_correlations(48, 5, s) for s in range(3))]
    assert max(abs(m["rotation_z"]) for m in modules) < 4
    assert min(m["z"] for m in modules) > 4  # where keeping the strengths alone misleads
