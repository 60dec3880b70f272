"""Newman's Q, the measures beside it, and what is taken for a matrix, a clustering and a seed."""

import math

import hypothesis
import hypothesis.strategies as st
import networkx
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from made_up_graphs import one_hot, q_of, random_graph, slow_q, sparse_graph

from modularity import (
    find_clusters,
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

seeds = st.integers(0, 2**32 - 1)
settings = hypothesis.settings(max_examples=25, deadline=None, derandomize=True, database=None)


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
    A, P = random_graph(0, 5), torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(3), 5))
    P[1] *= 0.4  # partly in no cluster
    units = range(5)
    e = [[sum(P[i, c] * A[i, j] * P[j, d] for i in units for j in units) / A.sum() for d in range(3)] for c in range(3)]
    expected = sum(e[c][c] for c in range(3)) - sum(sum(e[c]) ** 2 for c in range(3))
    assert abs(q_of(A, P) - expected) < 1e-12


def slow_number(P):
    """exp of the entropy of the fractions of the assigned units in each cluster."""
    p = P.sum(0) / P.sum()
    return math.exp(-sum(x * math.log(x) for x in p.tolist() if x > 0))


def test_the_number_of_fractional_clusters_is_that_of_their_sums():
    P = torch.from_numpy(np.random.default_rng(0).dirichlet(np.ones(3), 5))
    P[0], P[1] = 0, P[1] / 2
    assert abs(soft_num_clusters(P).item() - slow_number(P)) < 1e-12


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
    assert sparsify(torch.ones(5, 5), 0.5).sum() == 10  # exactly half of ten equal pairs
    assert sparsify(torch.ones(4, 4), 0.3).nonzero().tolist() == [[0, 1], [0, 2], [1, 0], [2, 0]]  # the first of them
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
    for function in (lambda adj: girvan_newman(adj, clusters), find_modules, *SEARCHES):
        if problem == "not finite" and function is find_modules:  # recorded: a network may have diverged
            assert math.isnan(find_modules(adj)["score"])
            continue
        with pytest.raises(ValueError, match=problem):
            function(adj)


SEARCHES = (
    *(spectral_modularity, monte_carlo_modularity, refine_modularity, find_clusters),
    lambda adj: find_clusters(adj, "leiden"),
    lambda adj: sparsify(adj, 0.5),
)


def test_validity_forgives_float32_rounding_but_not_a_diagonal():
    A = random_graph(0, 6).float()
    A[0, 1] *= 1 + 3e-7
    assert is_valid_adjacency_matrix(A)
    assert not is_valid_adjacency_matrix(A + torch.eye(6))


def test_clusterings_that_do_not_fit_are_refused():
    A = random_graph(0, 6)
    with pytest.raises(ValueError, match="5, 2"):
        girvan_newman(A, torch.zeros(5, 2))
    with pytest.raises(ValueError, match="negative"):
        girvan_newman(A, -torch.ones(6, 2))
    with pytest.raises(ValueError, match="one-hot"):
        monte_carlo_modularity(A, clusters=torch.ones(6, 2))
    with pytest.raises(ValueError, match="max_clusters = 2"):
        monte_carlo_modularity(A, clusters=torch.eye(6), max_clusters=2)
    with pytest.raises(ValueError, match="no cluster"):
        spectral_modularity(A, max_clusters=0)
    for find in SEARCHES[:5]:
        with pytest.raises(ValueError, match="no weight"):
            find(torch.eye(4))


# ---- what is taken --------------------------------------------------------------------------------------------------


MATRIX_MEASURES = {
    "girvan_newman": lambda A: girvan_newman(A, [0, 0, 1, 1, 0, 1]).item(),
    "valid": is_valid_adjacency_matrix,
    "sparsify": lambda A: sparsify(A, 0.5).tolist(),
    "spectral": lambda A: spectral_modularity(A).tolist(),
    "chain": lambda A: monte_carlo_modularity(A, seed=0, steps=50)[1].tolist(),
    "refine": lambda A: refine_modularity(A, seed=0, rounds=5).tolist(),
    "leiden": lambda A: find_clusters(A, "leiden").tolist(),
    "find_modules": lambda A: [find_modules(A, null_draws=2, steps=20)[key] for key in ("score", "null_mean")],
}
FORMS = {
    "numpy": lambda A: A.numpy(),
    "list": lambda A: A.tolist(),
    "DataFrame": lambda A: pd.DataFrame(A.numpy(), index=list("abcdef"), columns=list("abcdef")),
    "sparse tensor": lambda A: A.to_sparse(),
    "compressed tensor": lambda A: A.to_sparse_csr(),
    "scipy sparse": lambda A: scipy.sparse.csr_array(A.numpy()),
    "scipy sparse matrix": lambda A: scipy.sparse.coo_matrix(A.numpy()),
    "with gradient": lambda A: A.clone().requires_grad_(),
    "integers": lambda A: (A * 8).to(torch.int64),
    "half precision": lambda A: A.half(),
    "truth values": None,
}


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
@pytest.mark.parametrize("measure", MATRIX_MEASURES)
@pytest.mark.parametrize("form", FORMS)
def test_a_matrix_is_taken_in_any_form(form, measure):
    A = (random_graph(3, 6, 2) * 8).round() / 8
    convert = FORMS[form]
    if convert is None:
        A, convert = (A > 0.4).double(), lambda A: A > 0
    assert MATRIX_MEASURES[measure](convert(A)) == MATRIX_MEASURES[measure](A)


@pytest.mark.parametrize("measure", [name for name in MATRIX_MEASURES if name != "valid"])
@pytest.mark.parametrize("diagonal", [0.5, 1e6, -1.0, math.nan, math.inf])
def test_the_diagonal_is_ignored(diagonal, measure):
    A = random_graph(3, 6, 2)
    expected = MATRIX_MEASURES[measure](A)
    assert MATRIX_MEASURES[measure](A.clone().fill_diagonal_(diagonal)) == expected


@pytest.mark.parametrize(
    ("adj", "words"),
    [
        ("matrix", "no table of real numbers"),
        (None, "no table of real numbers but NoneType"),
        ([[0, 1], [1]], "no table of numbers"),
        ([["0", "1"], ["1", "0"]], "no table of real numbers"),
        (torch.ones(2, 2, dtype=torch.complex64), "no table of real numbers but complex"),
        (np.ma.masked_array(np.ones((2, 2)), [[0, 1], [1, 0]]), "masked"),
        (torch.ones(2, 2, device="meta"), "no table of numbers"),
        (networkx.path_graph(3), "no table of real numbers but Graph"),
        (torch.ones(4), "not square"),
        (torch.ones(2, 2, 2), "not square"),
        (np.float64(1), "not square"),
    ],
)
def test_what_is_no_matrix_is_refused_in_a_sentence(adj, words):
    assert not is_valid_adjacency_matrix(adj)
    for function in (lambda adj: girvan_newman(adj, [0, 0]), find_modules, *SEARCHES):
        with pytest.raises(ValueError, match=words):
            function(adj)


CLUSTER_MEASURES = {
    "girvan_newman": lambda P: girvan_newman(random_graph(1, 6), P).item(),
    "soft_num_clusters": lambda P: soft_num_clusters(P).item(),
    "sort_by_cluster": lambda P: sort_by_cluster(P).tolist(),
    "chain": lambda P: monte_carlo_modularity(random_graph(1, 6), P, steps=20, seed=0)[1].tolist(),
    "refine": lambda P: refine_modularity(random_graph(1, 6), P, rounds=2, seed=0).tolist(),
}


@pytest.mark.parametrize("measure", CLUSTER_MEASURES)
def test_labels_are_taken_for_a_clustering(measure):
    labels = np.array([7, 0, 7, 2, 2, 7])  # numbers without clusters are skipped
    expected = CLUSTER_MEASURES[measure](one_hot(labels))
    forms = (labels, labels.tolist(), torch.from_numpy(labels), labels.astype(np.uint8), pd.Series(labels))
    assert [CLUSTER_MEASURES[measure](form) for form in forms] == [expected] * len(forms)
    rows = (one_hot(labels).bool(), one_hot(labels).int(), one_hot(labels).numpy(), one_hot(labels).half())
    assert [CLUSTER_MEASURES[measure](P) for P in rows] == [expected] * len(rows)


def test_units_labelled_minus_one_are_in_no_cluster():
    A, labels = random_graph(1, 6), [1, -1, 0, 1, -1, 1]
    assert abs(q_of(A, labels) - slow_q(A, labels)) < 1e-12
    assert abs(soft_num_clusters(labels).item() - slow_number(one_hot(labels))) < 1e-12
    assert sort_by_cluster(labels).tolist() == [0, 3, 5, 2, 1, 4]
    assert soft_num_clusters([-1, -1]) == 0 and sort_by_cluster([-1, -1]).tolist() == [0, 1]
    with pytest.raises(ValueError, match="every live unit"):
        refine_modularity(A, labels)


FRACTIONS = ("girvan_newman", "soft_num_clusters")


@pytest.mark.parametrize("measure", CLUSTER_MEASURES)
@pytest.mark.parametrize(
    ("clusters", "words"),
    [
        (torch.tensor([[0], [1], [1], [0], [2], [0]]), "labels as a vector"),
        (torch.tensor([[0], [1], [1], [0], [1], [0]]), "labels as a vector"),
        (torch.tensor([[0.0], [1], [1], [0], [2], [0]]), "labels are given as a vector"),
        (torch.ones(6, 3), "labels are given as a vector"),
        (torch.tensor([0.0, 1, 1, 0, 0, 1]), "must be integers"),
        (torch.tensor([True, False, True, True, False, True]), "must be integers"),
        ([0, 1, 1, 0, -2, 1], "label -2"),
        (torch.zeros(6, 2, 2), "shape"),
        (torch.full((6, 2), math.nan), "not finite|one-hot"),
        (-torch.eye(6), "negative|one-hot"),
        (["a", "b", "a", "b", "a", "b"], "no table of real numbers"),
        ({0: 0, 1: 1}, "no table of real numbers but dict"),
    ],
)
def test_what_is_no_clustering_is_refused_in_a_sentence(clusters, words, measure):
    with pytest.raises(ValueError, match=words):
        CLUSTER_MEASURES[measure](clusters)


@pytest.mark.parametrize("measure", CLUSTER_MEASURES)
def test_fractions_are_for_q_and_the_number_of_clusters_alone(measure):
    P = torch.full((6, 2), 0.5)
    if measure in FRACTIONS:
        assert math.isfinite(CLUSTER_MEASURES[measure](P))
        softmax = torch.softmax(torch.arange(18.0).reshape(6, 3), 1)
        assert math.isfinite(CLUSTER_MEASURES[measure](softmax))  # sums to 1 up to float32's rounding
    else:
        with pytest.raises(ValueError, match="one-hot"):
            CLUSTER_MEASURES[measure](P)


@pytest.mark.parametrize("measure", [name for name in CLUSTER_MEASURES if name in ("girvan_newman", "chain", "refine")])
def test_clusterings_of_other_numbers_of_units_are_refused(measure):
    for clusters in ([0, 1, 0], torch.eye(5), torch.zeros(0, 2)):
        with pytest.raises(ValueError, match="for 6 units"):
            CLUSTER_MEASURES[measure](clusters)


@pytest.mark.parametrize("search", [monte_carlo_modularity, refine_modularity, find_clusters])
def test_seeds_are_taken_alike(search):
    A = sparse_graph(30, 0)

    def found(seed):
        result = search(A, seed=seed)
        return result[1].tolist() if search is monte_carlo_modularity else result.tolist()

    assert found(3) == found(np.int64(3)) == found(torch.tensor(3)) == found(np.uint8(3))
    found(None)
    for bad in (-1, np.int64(-1), 1.0, "1", True, [1]):
        with pytest.raises(ValueError, match="seed"):
            found(bad)
