"""How alike two clusterings of the same units are, and how alike the matrices behind them.

A clustering P (n, c) has one-hot rows; rows of zeros are dead units, empty columns are ignored. Integer labels (n,), −1
for dead units, are taken for one too; anything else is refused with a ValueError. Every measure of two clusterings
depends on their contingency table alone: n_rs units lie in cluster r of the first and s of the second.
"""

import math

import numpy as np
import scipy.special
import scipy.stats
import torch

from modularity import girvan_newman
from numerics.adjacency import Matrix, as_array, cluster_labels, off_diagonal
from numerics.jit import jit
from numerics.seeds import checked_seed

ALIGN_VERSION = 102
ROUNDING = 1e-12
BATCH = 2**20  # cells of random tables held at once while the null is drawn


def contingency_table(clusters_1: Matrix, clusters_2: Matrix) -> np.ndarray:
    """n_rs, (R, S) int64: units in cluster r of one clustering and s of the other; dead units are one more cluster.

    Raises: ValueError for clusterings of different lengths or of no units.
    """
    labels_1, labels_2 = _labels_of_both(clusters_1, clusters_2)
    _, rows = np.unique(labels_1, return_inverse=True)
    _, columns = np.unique(labels_2, return_inverse=True)
    table = np.zeros((rows.max() + 1, columns.max() + 1), dtype=np.int64)
    np.add.at(table, (rows, columns), 1)
    return table


def _labels_of_both(clusters_1, clusters_2):
    labels_1, labels_2 = cluster_labels(clusters_1), cluster_labels(clusters_2)
    if len(labels_1) != len(labels_2):
        raise ValueError(f"clusterings of different lengths, {len(labels_1)} and {len(labels_2)} units")
    if not len(labels_1):
        raise ValueError("clusterings of no units")
    return labels_1, labels_2


# ---- greedy alignment -----------------------------------------------------------------------------------------------


def alignment_score(clusters_1: Matrix, clusters_2: Matrix) -> float:
    """Fraction of the units that fall into clusters matched one to one, largest overlap first.

    Takes the largest cell of the contingency table (the first in row-major order among equals), drops its row and
    column, and so on; the score is the sum of the cells taken / min(units assigned in 1, in 2). Dead units are left
    out.

    Args: clusters_1, clusters_2: (n, R) and (n, S), rows one-hot or zero, or labels (n,).
    Returns: a number in [0, 1], 1 for identical clusterings; NaN when either assigns no unit. It does not depend on the
        order of the units, nor, ties apart, on that of the clusters.
    Raises: ValueError for clusterings of different lengths.
    """
    labels_1, labels_2 = _labels_of_both(clusters_1, clusters_2)
    return float(_share(_overlap(labels_1, labels_2), labels_1, labels_2))


def alignment_null(
    clusters_1: Matrix, clusters_2: Matrix, shuffles: int = 5000, seed: int | None = 0
) -> tuple[torch.Tensor, float]:
    """Alignment scores under random permutations of one clustering's units, dead ones included, and the score's p.

    Permutations are random tables of the same margins, in which the dead units of either clustering are one more row
    or column.

    Args: seed: an integer of 0 or more: the same seed, the same null; None for a different one each time.
    Returns:
        scores, (shuffles,) float32, and p = (1 + shuffles with at least the real score)/(1 + shuffles); NaN when either
        clustering assigns no unit.
    """
    labels_1, labels_2 = _labels_of_both(clusters_1, clusters_2)
    random = np.random.default_rng(checked_seed(seed))
    margins = [np.bincount(labels + 1) for labels in (labels_1, labels_2)]  # dead units first
    tables = scipy.stats.random_table(*margins)
    null, batch = np.empty(shuffles, dtype=np.int64), max(1, BATCH // math.prod(map(len, margins)))
    for start in range(0, shuffles, batch):
        part = null[start : start + batch]
        part[:] = greedy_overlaps(tables.rvs(len(part), random_state=random)[:, 1:, 1:])
    null_scores = torch.from_numpy(_share(null, labels_1, labels_2)).float()
    if labels_1.max() < 0 or labels_2.max() < 0:
        return null_scores, math.nan
    return null_scores, (1 + int((null >= _overlap(labels_1, labels_2)).sum())) / (1 + shuffles)


def _overlap(labels_1, labels_2):
    """Units in greedily matched clusters, which are taken in stored order."""
    R, S = labels_1.max() + 1, labels_2.max() + 1
    both = (labels_1 >= 0) & (labels_2 >= 0)
    table = np.bincount(labels_1[both] * S + labels_2[both], minlength=R * S).reshape(1, R, S)
    return int(greedy_overlaps(table)[0])


def _share(overlaps, labels_1, labels_2):
    assigned = min((labels_1 >= 0).sum(), (labels_2 >= 0).sum())
    return np.divide(overlaps, assigned) if assigned else np.full_like(overlaps, np.nan, dtype=float)


@jit
def greedy_overlaps(tables):
    """Sum of the cells taken from each table (k, R, S), largest first, each with its row and column; (k,) int64."""
    overlaps = np.zeros(len(tables), np.int64)
    for k in range(len(tables)):
        table = tables[k]
        R, S = table.shape
        rows, columns = np.arange(R), np.arange(S)  # those left, in order
        while R > 0 and S > 0:
            largest, i, j = -1, 0, 0
            for r in range(R):
                for s in range(S):
                    if table[rows[r], columns[s]] > largest:
                        largest, i, j = table[rows[r], columns[s]], r, s
            overlaps[k] += largest
            R -= 1
            S -= 1
            rows[i:R] = rows[i + 1 : R + 1]
            columns[j:S] = columns[j + 1 : S + 1]
    return overlaps


# ---- information ----------------------------------------------------------------------------------------------------


def entropies(clusters_1: Matrix, clusters_2: Matrix) -> tuple[float, float, float]:
    """H₁, H₂ and H₁₂ in bits: of each clustering's labels and of both jointly."""
    table = contingency_table(clusters_1, clusters_2)

    def entropy(counts):
        p = counts[counts > 0] / counts.sum()
        return float(-(p * np.log2(p)).sum()) + 0.0  # no −0

    return entropy(table.sum(1)), entropy(table.sum(0)), entropy(table)


def variation_of_information(clusters_1: Matrix, clusters_2: Matrix) -> float:
    """2H₁₂ − H₁ − H₂ in bits, a metric: 0 for identical clusterings, at most log₂ n.

    Reference: Meilă (2007), J. Multivar. Anal. 98:873–895.
    """
    H1, H2, H12 = entropies(clusters_1, clusters_2)
    return max(0.0, 2 * H12 - H1 - H2)


def normalized_information(clusters_1: Matrix, clusters_2: Matrix) -> float:
    """1 − ½[(H₁₂ − H₁)/H₂ + (H₁₂ − H₂)/H₁] = ½(I/H₁ + I/H₂), a similarity in [0, 1]; 1 for identical clusterings.

    NaN when either clustering has one cluster.
    """
    H1, H2, H12 = entropies(clusters_1, clusters_2)
    if H1 == 0 or H2 == 0:
        return math.nan
    return 1 - ((H12 - H1) / H2 + (H12 - H2) / H1) / 2


def element_similarity(clusters_1: Matrix, clusters_2: Matrix) -> float:
    """Element-centric similarity of two partitions, in (0, 1]; 1 for identical ones only.

    The mean over units of (units that share its cluster in both)/max(size of its cluster in 1, of that in 2).

    Reference: Gates, Wood, Hetrick & Ahn (2019), Sci. Rep. 9:8574, which for partitions reduces to this.
    """
    table = contingency_table(clusters_1, clusters_2)
    larger = np.maximum(table.sum(1)[:, None], table.sum(0)[None, :])
    return float((table * table / larger).sum() / table.sum())


def expected_element_similarity(clusters_1: Matrix, clusters_2: Matrix) -> float:
    """Chance level of element-centric similarity: its exact mean over all permutations of one clustering's units.

    Returns: a number in (0, 1]; 1 where every permutation gives the same clustering.

    >>> pairs = torch.tensor([[1., 0], [1, 0], [0, 1], [0, 1]])  # a third of all permutations split both pairs alike
    >>> round(expected_element_similarity(pairs, pairs), 4)
    0.6667
    """
    table = contingency_table(clusters_1, clusters_2)
    return expected_similarity_of_sizes(table.sum(1), table.sum(0))


def expected_similarity_of_sizes(sizes_1: np.ndarray, sizes_2: np.ndarray) -> float:
    """The same from the sizes of the clusters alone, of which dead units are one, in either clustering.

    Each n_rs is hypergeometric, so that E = (1/n) Σ_rs E[n_rs²]/max(r, s) with
    E[n_rs²] = rs/n + r(r − 1)s(s − 1)/(n(n − 1)), r and s the clusters' sizes.
    """
    rows, columns = np.asarray(sizes_1)[:, None], np.asarray(sizes_2)[None, :]
    n = rows.sum()
    pairs = rows * (rows - 1) * columns * (columns - 1) / (n * max(n - 1, 1))
    return float(((rows * columns / n + pairs) / np.maximum(rows, columns)).sum() / n)


def adjusted_element_similarity(clusters_1: Matrix, clusters_2: Matrix) -> float:
    """Element-centric similarity beyond chance, (observed − expected)/(1 − expected): 1 for identical clusterings.

    0 on average for unrelated ones; NaN where chance alone gives 1 (both have one cluster, or all units are alone).
    """
    expected = expected_element_similarity(clusters_1, clusters_2)
    if expected > 1 - ROUNDING:
        return math.nan
    return (element_similarity(clusters_1, clusters_2) - expected) / (1 - expected)


def reduced_mutual_information(clusters_1: Matrix, clusters_2: Matrix) -> float:
    """Mutual information less the cost of the contingency table, in bits a unit; may be negative.

    X = ln[n! Π n_rs!/(Π r! Π c!)] − ln Ω(r, c), divided by n ln 2; r and c are the table's row and column sums and
    Ω(r, c) is the number of tables with these (`log_num_tables`).

    Reference: Newman, Cantwell & Young (2020), Phys. Rev. E 101:042304.
    """
    table = contingency_table(clusters_1, clusters_2)
    return _reduced_information(table) / (int(table.sum()) * math.log(2))


def normalized_reduced_information(clusters_1: Matrix, clusters_2: Matrix) -> float:
    """Reduced mutual information over the mean of that of each clustering with itself.

    1 for identical clusterings, 0 or so for unrelated ones; NaN if both have one cluster.
    """
    table = contingency_table(clusters_1, clusters_2)
    if table.size == 1:
        return math.nan
    own = [_reduced_information(np.diag(table.sum(axis))) for axis in (0, 1)]
    return _reduced_information(table) / (sum(own) / 2)


def _reduced_information(table: np.ndarray) -> float:
    """X of `reduced_mutual_information`, in nats for all units together."""

    def log_factorials(counts):
        return scipy.special.gammaln(counts + 1.0).sum()

    rows, columns = table.sum(1), table.sum(0)
    log_ways = log_factorials(table.sum()) + log_factorials(table) - log_factorials(rows) - log_factorials(columns)
    return float(log_ways - log_num_tables(rows, columns))


def log_num_tables(rows: np.ndarray, columns: np.ndarray) -> float:
    """ln Ω, Ω the number of non-negative integer tables with row sums r (R of them) and column sums c (S of them).

    An estimate: w = n/(n + RS/2), x_i = (1 − w)/R + w r_i/n, y_j = (1 − w)/S + w c_j/n,
    ν = (S + 1)/(S Σx²) − 1/S, μ = (R + 1)/(R Σy²) − 1/R,
    ln Ω = (R − 1)(S − 1) ln(n + RS/2) + ½(R + ν − 2) Σ ln y + ½(S + μ − 2) Σ ln x
    + ½[lnΓ(μR) + lnΓ(νS) − R(lnΓ(S) + lnΓ(μ)) − S(lnΓ(R) + lnΓ(ν))].

    Reference: Diaconis & Efron (1985), Ann. Stat. 13:845–874.
    """
    ln_gamma = scipy.special.gammaln
    R, S, n = len(rows), len(columns), rows.sum()
    w = n / (n + R * S / 2)
    x, y = (1 - w) / R + w * rows / n, (1 - w) / S + w * columns / n
    nu = (S + 1) / (S * (x * x).sum()) - 1 / S
    mu = (R + 1) / (R * (y * y).sum()) - 1 / R
    shape = (R + nu - 2) * np.log(y).sum() + (S + mu - 2) * np.log(x).sum()
    gammas = ln_gamma(mu * R) + ln_gamma(nu * S) - R * (ln_gamma(S) + ln_gamma(mu)) - S * (ln_gamma(R) + ln_gamma(nu))
    return float((R - 1) * (S - 1) * np.log(n + R * S / 2) + (shape + gammas) / 2)


# ---- matrices and evaluation ----------------------------------------------------------------------------------------


def spearman_correlation(adj_a: Matrix, adj_b: Matrix) -> tuple[float, float]:
    """Spearman's rank correlation of two matrices' strict upper triangles, and its two-sided p (Student's t).

    The diagonals are ignored. NaN where either triangle is constant, has fewer than three entries, or has entries that
    are not finite.

    Raises: ValueError unless both are square and of the same size.
    """
    A, B = (off_diagonal(as_array(adj, "matrix"), "matrix") for adj in (adj_a, adj_b))
    if A.shape != B.shape:
        raise ValueError(f"matrices of different shapes, {A.shape} and {B.shape}")
    upper = np.triu_indices(len(A), 1)
    a, b = A[upper], B[upper]
    if len(a) < 3 or not np.isfinite([a, b]).all() or (a == a[0]).all() or (b == b[0]).all():
        return math.nan, math.nan
    r, p = scipy.stats.spearmanr(a, b)
    return float(r), float(p)


def align_modules(modules_a: dict, modules_b: dict, *, shuffles: int = 5000, seed: int | None = 0) -> dict:
    """Everything that a checkpoint keeps about how two methods' modules of one layer agree.

    Args:
        modules_a, modules_b: as `modularity.find_modules` returns them.
        shuffles: permutations that make the alignment score's null.
        seed: an integer of 0 or more: the same seed, the same null; None for a different one each time.

    Returns:
        score, null (float32), p, rmi, rmi_norm, vi, vi_norm, element_sim, element_sim_expected (its chance level),
        element_sim_adjusted, adj_spearman_r, adj_spearman_p, transfer_AaPb, transfer_AbPa (Q of one method's matrix
        under the other's clusters), both also _norm (divided by that matrix's own Q + 1e-3), version. Where either has
        no modules (score NaN) all but the version are NaN. Diagonals are ignored.

    Raises: ValueError if they are not about the same number of units.
    """
    P1, P2 = modules_a["clusters"], modules_b["clusters"]
    _labels_of_both(P1, P2)
    if math.isnan(modules_a["score"]) or math.isnan(modules_b["score"]):
        undefined = dict.fromkeys((*MEASURES, *STATISTICS), math.nan)
        return undefined | {"null": torch.full((shuffles,), math.nan), "version": ALIGN_VERSION}
    null, p = alignment_null(P1, P2, shuffles, seed)
    r, r_p = spearman_correlation(modules_a["adj"], modules_b["adj"])
    AaPb = girvan_newman(modules_a["adj"], P2).item()
    AbPa = girvan_newman(modules_b["adj"], P1).item()
    return {key: measure(P1, P2) for key, measure in MEASURES.items()} | {
        "null": null,
        "p": p,
        "adj_spearman_r": r,
        "adj_spearman_p": r_p,
        "transfer_AaPb": AaPb,
        "transfer_AbPa": AbPa,
        "transfer_AaPb_norm": AaPb / (float(modules_a["score"]) + 1e-3),
        "transfer_AbPa_norm": AbPa / (float(modules_b["score"]) + 1e-3),
        "version": ALIGN_VERSION,
    }


MEASURES = {
    "score": alignment_score,
    "rmi": reduced_mutual_information,
    "rmi_norm": normalized_reduced_information,
    "vi": variation_of_information,
    "vi_norm": normalized_information,
    "element_sim": element_similarity,
    "element_sim_expected": expected_element_similarity,
    "element_sim_adjusted": adjusted_element_similarity,
}
STATISTICS = (
    *("p", "adj_spearman_r", "adj_spearman_p"),
    *("transfer_AaPb", "transfer_AbPa", "transfer_AaPb_norm", "transfer_AbPa_norm"),
)
