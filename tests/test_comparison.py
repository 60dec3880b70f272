"""Comparison of clusterings and of matrices, against plain implementations, exact counts and reference values."""

import itertools
import math
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch

from comparison import (
    ALIGN_VERSION,
    adjusted_element_similarity,
    align_modules,
    alignment_null,
    alignment_score,
    contingency_table,
    element_similarity,
    expected_element_similarity,
    log_num_tables,
    normalized_information,
    normalized_reduced_information,
    reduced_mutual_information,
    spearman_correlation,
    variation_of_information,
)
from modularity import find_modules, girvan_newman

REFERENCE = dict(np.load(Path(__file__).parent / "reference" / "alignment.npz"))
PAIRS = range(len(REFERENCE["tags"]))
COLUMNS = {
    "score": "alignment_score",
    "rmi": "rmi",
    "rmi_norm": "rmi_normalized",
    "vi": "vi",
    "vi_norm": "vi_entropy",
    "element_sim": "element_sim",
    "transfer_AaPb": "transfer_AaPb",
    "transfer_AbPa": "transfer_AbPa",
}
FLOAT32 = {"score", "transfer_AaPb", "transfer_AbPa"}  # measured in single precision
MEASURES = (alignment_score, variation_of_information, normalized_information, element_similarity)
CHANCE = (expected_element_similarity, adjusted_element_similarity)
INFORMATION = (reduced_mutual_information, normalized_reduced_information)

settings = hypothesis.settings(max_examples=40, deadline=None, derandomize=True, database=None)
clusterings = st.tuples(st.integers(0, 2**32 - 1), st.integers(2, 30), st.integers(1, 6), st.integers(1, 6))


def one_hot(labels, c=None):
    labels = np.asarray(labels)
    return torch.from_numpy((labels[:, None] == np.arange(c or labels.max() + 1)).astype(np.float32))


def random_pair(numbers, dead=True):
    seed, n, R, S = numbers
    random = np.random.default_rng(seed)
    return [one_hot(random.integers(-dead, c, n), c) for c in (R, S)]


def reference_modules(i):
    def tensor(key):
        return torch.from_numpy(REFERENCE[f"{i:02d}__{key}"])

    def modules(adj, clusters):
        return {"adj": adj, "clusters": clusters, "score": girvan_newman(adj, clusters).item()}

    return modules(tensor("adj_a"), tensor("c1")), modules(tensor("adj_b"), tensor("c2"))


def same(a, b, error=1e-12):
    return abs(a - b) < error or (math.isnan(a) and math.isnan(b))


# ---- reference values -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("i", PAIRS)
def test_the_reference_values_are_reproduced(i):
    a, b = reference_modules(i)
    aligned = align_modules(a, b, shuffles=10)
    for key, column in COLUMNS.items():
        assert same(aligned[key], float(REFERENCE[column][i]), 3e-7 if key in FLOAT32 else 1e-13), key
    assert same(align_modules(b, a, shuffles=10)["score"], float(REFERENCE["alignment_score_rev"][i]), 1e-7)


@pytest.mark.parametrize("i", PAIRS)
def test_the_null_has_the_reference_distribution(i):
    a, b = reference_modules(i)
    null, _ = alignment_null(a["clusters"], b["clusters"], 5000, seed=0)
    theirs = REFERENCE[f"{i:02d}__null2000"].astype(float)
    ours = null.double().numpy()
    step = 1 / min(a["clusters"].sum(), b["clusters"].sum()).item()
    assert abs(ours.mean() - theirs.mean()) < 4 * theirs.std() * math.sqrt(1 / 5000 + 1 / 2000) + 1e-7
    assert abs(ours.std() - theirs.std()) < 0.08 * theirs.std() + 1e-7
    assert np.abs(np.percentile(ours, [5, 50, 95]) - np.percentile(theirs, [5, 50, 95])).max() < 1.01 * step
    counts = [np.array([(np.round(x / step) <= k).mean() for k in range(100)]) for x in (ours, theirs)]
    assert np.abs(counts[0] - counts[1]).max() < 2.2 * math.sqrt(1 / 5000 + 1 / 2000)  # Kolmogorov–Smirnov, p < 1e-4


def test_the_null_is_that_of_random_tables_with_the_same_margins():
    P1, P2 = one_hot([0] * 9 + [1] * 6 + [2] * 4 + [-1]), one_hot([0] * 7 + [1] * 7 + [-1] * 2 + [2] * 4)
    null, _ = alignment_null(P1, P2, 5000, seed=1)
    tables = scipy.stats.random_table([9, 6, 4, 1], [7, 7, 4, 2]).rvs(5000, random_state=np.random.default_rng(0))
    expected = np.array([slow_overlap(table[:3, :3]) for table in tables.astype(int)]) / 18
    assert scipy.stats.ks_2samp(null.double().numpy(), expected.astype(np.float32)).pvalue > 1e-3


# ---- alignment score ------------------------------------------------------------------------------------------------


def slow_overlap(table):
    table, overlap = np.array(table, dtype=float), 0
    for _ in range(min(table.shape)):
        i, j = np.unravel_index(table.argmax(), table.shape)
        overlap += table[i, j]
        table[i, :] = table[:, j] = -1
    return overlap


@settings
@hypothesis.given(clusterings)
def test_the_alignment_score_is_the_greedy_sum(numbers):
    P1, P2 = random_pair(numbers)
    assigned = min(P1.sum().item(), P2.sum().item())
    expected = slow_overlap(P1.T.double().numpy() @ P2.double().numpy()) / assigned if assigned else math.nan
    assert same(alignment_score(P1, P2), expected)


def test_equal_cells_are_taken_in_row_major_order():
    table = [[2, 2, 0], [2, 0, 0]]  # the first 2 leaves nothing for the second row; the other two would take 4
    P1 = one_hot(np.repeat([0, 0, 1], 2))
    P2 = one_hot(np.repeat([0, 1, 0], 2))
    assert slow_overlap(table) == 2 and alignment_score(P1, P2) == 2 / 6
    assert alignment_score(P1[:, [1, 0]], P2) == 4 / 6  # invariant to relabelling only up to ties


def test_labels_are_taken_as_their_one_hot_rows():
    labels_1, labels_2 = np.array([3, 3, 0, -1, 1, 0, 3]), np.array([0, 0, 1, 1, 2, -1, 2])
    P1, P2 = one_hot(labels_1), one_hot(labels_2)
    for measure in (*MEASURES, *INFORMATION, *CHANCE):
        expected = measure(P1, P2)
        assert not math.isnan(expected)
        pairs = [(labels_1, labels_2), (labels_1.tolist(), P2), (torch.from_numpy(labels_1), labels_2.astype(np.int8))]
        assert [measure(*pair) for pair in pairs] == [expected] * 3
    assert torch.equal(*(alignment_null(*pair, 50, seed=1)[0] for pair in ((labels_1, labels_2), (P1, P2))))
    binary = np.array([0, 1, 1, 0, 1])
    assert alignment_score(binary, 1 - binary) == 1


def test_empty_columns_change_nothing():
    P1, P2 = random_pair((0, 20, 4, 3))
    wide = torch.cat([P1, torch.zeros(20, 5)], 1)
    for measure in (*MEASURES, *INFORMATION, *CHANCE):
        assert measure(wide, P2) == measure(P1, P2)


def test_p_counts_ties_and_itself():
    P1, P2 = one_hot([0, 0, 0, 1, 1, 1]), one_hot([0, 0, 0, 1, 1, 2])
    null, p = alignment_null(P1, P2, 999, seed=3)
    score = np.float32(alignment_score(P1, P2))
    assert p == (1 + int((null.numpy() >= score).sum())) / 1000
    assert alignment_null(one_hot([0, 0, 0]), one_hot([0, 0, 0]), 99)[1] == 1


def test_a_seed_gives_the_same_null():
    P1, P2 = random_pair((1, 30, 4, 4))
    first = alignment_null(P1, P2, 500, seed=7)[0]
    assert torch.equal(first, alignment_null(P1, P2, 500, seed=np.int64(7))[0])
    assert not torch.equal(first, alignment_null(P1, P2, 500, seed=8)[0])
    unseeded = [alignment_null(P1, P2, 500, seed=None)[0] for _ in range(2)]
    assert not torch.equal(*unseeded)
    for bad in (-1, 1.5, "7", True):
        with pytest.raises(ValueError, match="seed"):
            alignment_null(P1, P2, 5, seed=bad)


def test_every_batch_of_the_null_is_drawn(monkeypatch):
    P1, P2 = random_pair((1, 30, 4, 4))
    whole = alignment_null(P1, P2, 2000, seed=7)[0].numpy()
    monkeypatch.setattr("comparison.BATCH", 1000)
    parts = alignment_null(P1, P2, 2000, seed=7)[0].numpy()
    for half in (parts[:1000], parts[1000:]):
        assert scipy.stats.ks_2samp(half, whole).pvalue > 1e-3
    assert not np.array_equal(parts[:25], parts[25:50])


# ---- information ----------------------------------------------------------------------------------------------------


def labels_of(P):
    return np.where(P.any(1), P.argmax(1), -1)


@settings
@hypothesis.given(clusterings)
def test_information_is_scikit_learns(numbers):
    P1, P2 = random_pair(numbers)
    a, b = labels_of(P1), labels_of(P2)
    mutual = sklearn.metrics.mutual_info_score(a, b) / math.log(2)
    H1, H2 = (sklearn.metrics.mutual_info_score(x, x) / math.log(2) for x in (a, b))
    assert abs(variation_of_information(P1, P2) - (H1 + H2 - 2 * mutual)) < 1e-9
    expected = (mutual / H1 + mutual / H2) / 2 if min(len(set(a)), len(set(b))) > 1 else math.nan
    assert same(normalized_information(P1, P2), expected, 1e-9)


@settings
@hypothesis.given(clusterings)
def test_element_similarity_is_its_mean_over_units(numbers):
    P1, P2 = random_pair(numbers)
    a, b = labels_of(P1), labels_of(P2)
    shares = [((a == a[i]) & (b == b[i])).sum() / max((a == a[i]).sum(), (b == b[i]).sum()) for i in range(len(a))]
    assert abs(element_similarity(P1, P2) - np.mean(shares)) < 1e-12


@pytest.mark.parametrize(
    ("labels_1", "labels_2"),
    [
        ([0, 0, 1, 1], [0, 0, 1, 1]),
        ([0, 0, 0, 1, 1, 2], [0, 1, 1, 1, 2, -1]),
        ([0, 0, 0, 1, 2, -1], [0, 1, 1, 2, 2, 2]),
        ([0, 1, 2, 3, 4], [0, 0, 0, 0, 0]),
    ],
)
def test_the_chance_level_of_element_similarity_is_its_mean_over_all_permutations(labels_1, labels_2):
    P1, P2 = one_hot(labels_1), one_hot(labels_2)
    orders = itertools.permutations(range(len(labels_1)))
    expected = np.mean([element_similarity(P1, P2[list(order)]) for order in orders])
    assert abs(expected_element_similarity(P1, P2) - expected) < 1e-12
    adjusted = (element_similarity(P1, P2) - expected) / (1 - expected)
    assert abs(adjusted_element_similarity(P1, P2) - adjusted) < 1e-12


@pytest.mark.parametrize("n", [1, 2, 7, 64])
def test_where_chance_gives_perfect_agreement_nothing_is_beyond_chance(n):
    for labels in (np.zeros(n, dtype=int), np.arange(n)):
        assert abs(expected_element_similarity(one_hot(labels), one_hot(labels)) - 1) < 1e-12
        assert math.isnan(adjusted_element_similarity(one_hot(labels), one_hot(labels)))
    if n > 2:
        assert adjusted_element_similarity(*[one_hot(np.arange(n) // 2)] * 2) == 1


@pytest.mark.parametrize("labels", [([0, 0, 1, 1, 1, 2], [0, 1, 1, 0, 2, 2]), ([0] * 4 + [1] * 4, [0, 1] * 4)])
def test_reduced_mutual_information_is_its_formula(labels):
    (labels_1, labels_2), f, n = labels, math.factorial, len(labels[0])
    table = contingency_table(one_hot(labels_1), one_hot(labels_2)).tolist()
    rows, columns = [sum(row) for row in table], [sum(column) for column in zip(*table, strict=True)]
    ways = f(n) * math.prod(f(x) for row in table for x in row) / math.prod(map(f, rows + columns))
    X = math.log(ways) - log_num_tables(np.array(rows), np.array(columns))
    assert abs(reduced_mutual_information(one_hot(labels_1), one_hot(labels_2)) - X / (n * math.log(2))) < 1e-12


def num_tables(rows, columns):
    """Number of non-negative integer tables with the given sums, row by row."""
    if len(rows) == 1:
        return 1

    def fills(total, limits):
        if len(limits) == 1:
            return [(total,)] if total <= limits[0] else []
        return [(x, *rest) for x in range(min(total, limits[0]) + 1) for rest in fills(total - x, limits[1:])]

    fill = fills(rows[0], columns)
    return sum(num_tables(rows[1:], tuple(c - x for c, x in zip(columns, row, strict=True))) for row in fill)


@pytest.mark.parametrize(("rows", "columns"), [((5, 5, 5), (5, 5, 5)), ((8, 6, 4), (9, 9)), ((7, 6, 5), (6, 6, 6))])
def test_the_number_of_tables_is_about_right(rows, columns):
    exact = math.log(num_tables(rows, columns))
    assert abs(log_num_tables(np.array(rows), np.array(columns)) - exact) < 0.08 * exact
    assert abs(log_num_tables(np.array(rows), np.array([sum(rows)]))) < 1e-9  # one table


# ---- properties -----------------------------------------------------------------------------------------------------


@settings
@hypothesis.given(clusterings)
def test_measures_are_bounded_and_do_not_depend_on_the_order_of_units(numbers):
    P1, P2 = random_pair(numbers)
    order = torch.from_numpy(np.random.default_rng(numbers[0]).permutation(len(P1)))
    for measure in (*MEASURES, *INFORMATION, *CHANCE):
        value = measure(P1, P2)
        assert same(measure(P1[order], P2[order]), value, 1e-9)
        if measure in MEASURES and measure is not variation_of_information:
            assert math.isnan(value) or -1e-12 <= value <= 1 + 1e-12
    assert 0 <= variation_of_information(P1, P2) <= math.log2(len(P1)) + 1e-12


@settings
@hypothesis.given(clusterings)
def test_all_but_the_greedy_score_are_symmetric_and_do_not_depend_on_labels(numbers):
    P1, P2 = random_pair(numbers)
    for measure in (*MEASURES[1:], *INFORMATION, *CHANCE):
        value = measure(P1, P2)
        assert same(measure(P2, P1), value, 1e-9)
        assert same(measure(P1.flip(1), P2), value, 1e-9)


@settings
@hypothesis.given(clusterings)
def test_a_clustering_agrees_perfectly_with_itself(numbers):
    P, _ = random_pair(numbers)
    clusters = len(set(labels_of(P)))
    perfect = 1 if clusters > 1 else math.nan
    assert same(alignment_score(P, P), 1 if P.any() else math.nan)
    assert variation_of_information(P, P) < 1e-12 and abs(element_similarity(P, P) - 1) < 1e-12
    assert same(normalized_information(P, P), perfect) and same(normalized_reduced_information(P, P), perfect)


def test_different_clusterings_do_not_agree_perfectly():
    P1, P2 = one_hot([0, 0, 1, 1, 2, 2]), one_hot([0, 0, 1, 1, 2, 0])
    assert max(alignment_score(P1, P2), element_similarity(P1, P2), normalized_information(P1, P2)) < 0.95
    assert variation_of_information(P1, P2) > 0.1


def test_spearman_is_the_correlation_of_ranks_over_pairs():
    random = np.random.default_rng(0)
    A, B = (torch.from_numpy(x + x.T) for x in random.random((2, 9, 9)))
    ranks = [scipy.stats.rankdata(X.numpy()[np.triu_indices(9, 1)]) for X in (A, B)]
    r, p = spearman_correlation(A, B)
    assert abs(r - np.corrcoef(ranks)[0, 1]) < 1e-12
    t = r * math.sqrt(34 / (1 - r * r))
    assert abs(p - 2 * scipy.stats.t.sf(abs(t), 34)) < 1e-12
    assert all(map(math.isnan, spearman_correlation(A, torch.ones(9, 9))))
    assert all(map(math.isnan, spearman_correlation(A[:2, :2], B[:2, :2])))


# ---- evaluation -----------------------------------------------------------------------------------------------------

KEYS = {
    *("score", "null", "p", "rmi", "rmi_norm", "vi", "vi_norm", "element_sim", "adj_spearman_r", "adj_spearman_p"),
    *("element_sim_expected", "element_sim_adjusted"),
    *("transfer_AaPb", "transfer_AbPa", "transfer_AaPb_norm", "transfer_AbPa_norm", "version"),
}


def test_alignments_hold_what_they_say_and_load_as_plain_data(tmp_path):
    a, b = reference_modules(0)
    torch.save(align_modules(a, b), tmp_path / "align.pt")
    aligned = torch.load(tmp_path / "align.pt", weights_only=True)
    assert set(aligned) == KEYS and aligned["version"] == ALIGN_VERSION
    assert aligned["null"].shape == (5000,) and aligned["null"].dtype == torch.float32
    assert abs(aligned["transfer_AaPb_norm"] - aligned["transfer_AaPb"] / (a["score"] + 1e-3)) < 1e-12
    assert abs(aligned["transfer_AbPa_norm"] - aligned["transfer_AbPa"] / (b["score"] + 1e-3)) < 1e-12
    P1, P2 = a["clusters"], b["clusters"]
    assert aligned["element_sim_expected"] == expected_element_similarity(P1, P2)
    assert aligned["element_sim_adjusted"] == adjusted_element_similarity(P1, P2)
    correlation = aligned["adj_spearman_r"], aligned["adj_spearman_p"]
    assert correlation == spearman_correlation(a["adj"], b["adj"]) and correlation[0] != correlation[1]


def test_the_seed_and_number_of_shuffles_reach_the_null():
    a, b = reference_modules(0)
    for seed in (0, 3):
        aligned = align_modules(a, b, shuffles=40, seed=seed)
        null, p = alignment_null(a["clusters"], b["clusters"], 40, seed)
        assert torch.equal(aligned["null"], null) and aligned["p"] == p
    assert not torch.equal(aligned["null"], align_modules(a, b, shuffles=40, seed=0)["null"])


def test_without_modules_there_is_no_agreement():
    none = find_modules(torch.zeros(6, 6))
    some = find_modules(torch.block_diag(1 - torch.eye(3), 1 - torch.eye(3)), null_draws=0)
    for pair in ((none, some), (some, none), (none, none)):
        aligned = align_modules(*pair, shuffles=4)
        assert set(aligned) == KEYS and aligned["null"].shape == (4,) and aligned["null"].isnan().all()
        assert all(math.isnan(aligned[key]) for key in KEYS - {"null", "version"})


def test_unassigned_clusterings_have_no_score():
    nothing, something = torch.zeros(4, 0), one_hot([0, 0, 1, 1])
    for pair in ((nothing, something), (something, nothing)):
        null, p = alignment_null(*pair, 3)
        assert math.isnan(alignment_score(*pair)) and math.isnan(p) and null.isnan().all()


def test_clusterings_that_cannot_be_compared_are_refused():
    for measure in (*MEASURES, *INFORMATION, *CHANCE):
        with pytest.raises(ValueError, match="different lengths, 3 and 4"):
            measure(one_hot([0, 1, 1]), one_hot([0, 1, 1, 0]))
        with pytest.raises(ValueError, match="no units"):
            measure(torch.zeros(0, 2), torch.zeros(0, 2))
        with pytest.raises(ValueError, match="neither one-hot nor zero"):
            measure(torch.ones(3, 2), one_hot([0, 1, 1]))
        with pytest.raises(ValueError, match="must be integers"):
            measure(torch.ones(3), one_hot([0, 1, 1]))
        with pytest.raises(ValueError, match="labels as a vector"):
            measure(torch.tensor([[0], [1], [1]]), one_hot([0, 1, 1]))
    with pytest.raises(ValueError, match="different shapes"):
        spearman_correlation(torch.ones(3, 3), torch.ones(4, 4))
    with pytest.raises(ValueError, match="different lengths"):
        align_modules(find_modules(torch.ones(3, 3), null_draws=0), find_modules(torch.ones(4, 4), null_draws=0))
