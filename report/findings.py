"""The study's findings as numbers: tables of effects and agreements, with bootstrap intervals over networks.

Everywhere n counts networks (never layers, methods or pairs, which are averaged within each network first), and
intervals are 95% percentile intervals of the mean, by a seeded bootstrap over networks. A strength of regularisation is
"too much" when over half of its runs stay below the experiment's pass mark (0.8 test accuracy in all of the study's
grids); such networks are left out of every statistic.
"""

import itertools

import numpy as np
import pandas as pd
import scipy.stats

from associations import METHODS, UPSTREAM
from report.experiments import Results
from study import grids

LEVEL = 0.95
DRAWS = 2000
REGULARIZERS = ("drop", "l1", "l2")
GROUPS = ("within upstream", "within downstream", "across")
SIGNIFICANT = 0.05


# ---- intervals ------------------------------------------------------------------------------------------------------


def bootstrap_means(values, draws=DRAWS, seed=0):
    """Means of `draws` resamples, with replacement, of the values: (draws,)."""
    values = np.asarray(values, dtype=float)
    return values[np.random.default_rng(seed).integers(len(values), size=(draws, len(values)))].mean(1)


def interval(draws):
    """(low, high): the central 95% of bootstrap draws; NaN where the statistic is undefined in over 5% of them."""
    if np.isnan(draws).mean() > 1 - LEVEL:
        return np.nan, np.nan
    return tuple(np.nanquantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]))


def mean_and_interval(values) -> pd.Series:
    """Mean of the values that are not NaN, its bootstrap interval (NaN for fewer than two), and their number.

    Returns: mean, low, high, n.
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    low, high = interval(bootstrap_means(values)) if len(values) > 1 else (np.nan, np.nan)
    return pd.Series({"mean": values.mean() if len(values) else np.nan, "low": low, "high": high, "n": len(values)})


def means_by(table, by, value) -> pd.DataFrame:
    """`mean_and_interval` of a column for each combination of others: columns *by, mean, low, high, n."""
    groups = table.groupby(by, observed=True)[value]
    rows = [dict(zip(by, key, strict=True)) | dict(mean_and_interval(values)) for key, values in groups]
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "n"])


def spearman(x, y):
    """Rank correlation of the last axis of two arrays, ties sharing their mean rank; NaN where either is constant."""
    x, y = (scipy.stats.rankdata(a, axis=-1) for a in (x, y))
    x, y = (a - a.mean(-1, keepdims=True) for a in (x, y))
    scale = np.sqrt((x * x).sum(-1) * (y * y).sum(-1))
    return np.divide((x * y).sum(-1), scale, out=np.full_like(scale, np.nan), where=scale > 0)


def resamples(groups, draws=DRAWS, seed=0):
    """Indices of resamples that keep the size of each group: (draws, n); column i draws from the group of i."""
    groups, random = np.asarray(groups), np.random.default_rng(seed)
    indices = np.empty((draws, len(groups)), dtype=int)
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        indices[:, members] = members[random.integers(len(members), size=(draws, len(members)))]
    return indices


# ---- regularisation -------------------------------------------------------------------------------------------------


def untrained(table):
    """The rows of untrained networks."""
    return table[table["part"] == "dummy"]


def trained(table):
    """The rows of trained networks."""
    return table[table["part"] != "dummy"]


def along(table, regularizer):
    """The rows that show one regulariser's effect, with its value as `strength`.

    These are its own grid and, for drop and l1, their zero point: the l2 = 1e-5 runs of the l2 grid.
    """
    rows = table["part"] == regularizer
    if regularizer != "l2":
        rows |= (table["part"] == "l2") & np.isclose(table["l2"], grids.L2_ALONE)
    return table[rows].assign(strength=table.loc[rows, regularizer])


def failures(models) -> pd.DataFrame:
    """How often networks fail to learn at each strength: columns regularizer, strength, n, failed (share whose test
    accuracy is below the pass mark), too_much (that share exceeds one half)."""
    rows = []
    for regularizer in REGULARIZERS:
        for strength, runs in along(models, regularizer).dropna(subset="test_acc").groupby("strength"):
            failed = (runs["test_acc"] < runs["pass_mark"]).mean()
            rows.append((regularizer, strength, len(runs), failed, failed > 0.5))
    return pd.DataFrame(rows, columns=["regularizer", "strength", "n", "failed", "too_much"])


def present_regularizers(table):
    """Those of drop, l1, l2 of which a table has at least two strengths."""
    return [regularizer for regularizer in REGULARIZERS if along(table, regularizer)["strength"].nunique() > 1]


def usable(table, models):
    """The rows of untrained networks and of those trained with no more regularisation than networks can bear."""
    table = table.reset_index(drop=True)
    keep = pd.Series(True, index=table.index)
    for row in failures(models).query("too_much").itertuples():
        keep &= ~((table["part"] == row.regularizer) & np.isclose(table[row.regularizer], row.strength))
    return table[keep]


def per_network(table, values, by=("assoc",)):
    """Means over layers (and whatever else is not in `by`) within each network."""
    network = ["part", *(name for name in ("l2", "l1", "drop", "run") if name in table)]
    return table.groupby([*network, *by], observed=True)[list(values)].mean().reset_index()


def regularizer_effects(results: Results, per_layer=True, value="score") -> pd.DataFrame:
    """Finding 1: what each regulariser does to Q, per method and layer.

    Args: value: another column of the modules than Q, such as its z.

    Returns: a row per regulariser, method (and layer, or else for the mean over layers):
        n, n_untrained: networks with usable strengths, and untrained ones.
        untrained, weakest, strongest: mean Q of untrained networks and at both ends of the usable grid; at: its end.
        change, change_low, change_high: strongest − weakest.
        gain, gain_low, gain_high: strongest − untrained.
        rho, rho_low, rho_high: rank correlation of Q with strength over usable networks (resampled within strengths).
    """
    modules = usable(results.modules, results.models)
    by = ["assoc", "layer"] if per_layer else ["assoc"]
    if not per_layer:
        modules = per_network(modules, [value])
    null = {
        key: values.to_numpy()
        for key, values in untrained(modules).dropna(subset=value).groupby(by, observed=True)[value]
    }
    rows = []
    for regularizer in present_regularizers(modules):
        curves = along(modules, regularizer).dropna(subset=value)
        for key, curve in curves.groupby(by, observed=True):
            names = {"regularizer": regularizer} | dict(zip(by, key, strict=True))
            rows.append(
                names | _effect(curve["strength"].to_numpy(), curve[value].to_numpy(), null.get(key, np.array([])))
            )
    bounds = [f"{name}{end}" for name in ("change", "gain", "rho") for end in ("", "_low", "_high")]
    counts = ["n", "n_untrained", "untrained", "weakest", "strongest", "at"]
    return pd.DataFrame(rows, columns=["regularizer", *by, *counts, *bounds])  # no rows where no network learnt


def _effect(strength, q, null):
    """One row of `regularizer_effects`."""
    weakest, strongest = q[strength == strength.min()], q[strength == strength.max()]
    row = {
        "n": len(q),
        "n_untrained": len(null),
        "untrained": null.mean() if len(null) else np.nan,
        "weakest": weakest.mean(),
        "strongest": strongest.mean(),
        "at": strength.max(),
    }
    row |= _difference("change", strongest, weakest) | _difference("gain", strongest, null)
    low, high = np.nan, np.nan
    if len(strength) > len(np.unique(strength)):  # single runs leave nothing to resample
        draws = resamples(strength)
        low, high = interval(spearman(strength[draws], q[draws]))
    return row | {"rho": float(spearman(strength, q)), "rho_low": low, "rho_high": high}


def _difference(name, a, b):
    """Difference of two groups' means with its bootstrap interval, the groups resampled independently.

    The interval is NaN where a group is a single network, the difference where one is empty.
    """
    if not len(a) or not len(b):
        return {name: np.nan, f"{name}_low": np.nan, f"{name}_high": np.nan}
    low, high = np.nan, np.nan
    if len(a) > 1 and len(b) > 1:
        low, high = interval(bootstrap_means(a, seed=0) - bootstrap_means(b, seed=1))
    return {name: a.mean() - b.mean(), f"{name}_low": low, f"{name}_high": high}


# ---- agreement between methods --------------------------------------------------------------------------------------


def with_group(align):
    """The rows about two different methods, with their `group`: within upstream, within downstream, or across."""
    align = align[align["assoc_a"].astype(str) != align["assoc_b"].astype(str)]
    up = align["assoc_a"].isin(UPSTREAM).astype(int) + align["assoc_b"].isin(UPSTREAM).astype(int)
    group = up.map({2: GROUPS[0], 0: GROUPS[1], 1: GROUPS[2]})
    return align.assign(group=pd.Categorical(group, categories=GROUPS))


def agreement(results: Results) -> pd.DataFrame:
    """Finding 2: how well the clusterings of different methods agree, within each family and across the two.

    Every value is a mean over pairs of different methods and over layers within a network, then over networks.

    Returns: a row per condition (untrained, trained: all regularisers, and each regulariser) and group:
        n: networks; element_sim, score, rmi_norm, excess (score − mean score of shuffled clusterings), each with _low
        and _high; null (that mean); significant (share of pairs with p < 0.05, 0.05 by chance).
    """
    align = with_group(usable(results.align, results.models))
    align = align.assign(
        excess=align["score"] - align["null_mean"],
        null=align["null_mean"],
        significant=(align["p"] < SIGNIFICANT).where(align["p"].notna()).astype(float),
    )
    measures = ["element_sim", "score", "rmi_norm", "excess"]
    networks = per_network(align, [*measures, "null", "significant"], by=("group",))
    conditions = {"untrained": untrained(networks), "trained": trained(networks)}
    conditions |= {part: networks[networks["part"] == part] for part in present_regularizers(networks)}
    rows = []
    for condition, chosen in conditions.items():
        for group, values in chosen.groupby("group", observed=True):
            row = {"condition": condition, "group": group, "n": int(values["element_sim"].notna().sum())}
            for measure in measures:
                mean, low, high, _ = mean_and_interval(values[measure])
                row |= {measure: mean, f"{measure}_low": low, f"{measure}_high": high}
            rows.append(row | {"null": values["null"].mean(), "significant": values["significant"].mean()})
    return pd.DataFrame(rows)


def alignment_matrix(align, measure="element_sim") -> pd.DataFrame:
    """Mean agreement of each pair of methods over networks and layers, (8, 8), symmetric; NaN where there is none."""
    means = align.groupby(["assoc_a", "assoc_b"], observed=True)[measure].mean()
    matrix = pd.DataFrame(np.nan, index=METHODS, columns=METHODS)
    for (a, b), value in means.items():
        matrix.loc[a, b] = matrix.loc[b, a] = value
    return matrix


def measure_correlations(align, measures) -> pd.DataFrame:
    """Rank correlations between measures of agreement over all networks, layers and pairs of different methods."""
    different = align["assoc_a"].astype(str) != align["assoc_b"].astype(str)
    return align.loc[different, list(measures)].corr(method="spearman")


# ---- beyond the study -----------------------------------------------------------------------------------------------


def accuracy_correlations(results: Results) -> pd.DataFrame:
    """Does modularity go with accuracy? Rank correlation of Q (mean over layers) with test accuracy, per method.

    Returns: assoc, n, overall (over all usable trained networks), matched, low, high: the same after subtracting from
        both their means over the runs of the same regularisation, resampled within these.
    """
    modules = trained(usable(results.modules, results.models)).dropna(subset=["score", "test_acc"])
    networks = per_network(modules, ["score", "test_acc"])
    networks["point"] = networks.groupby(["part", "l2", "l1", "drop"], observed=True).ngroup()
    rows = []
    for assoc, curve in networks.sort_values("point").groupby("assoc", observed=True):
        q, accuracy, point = (curve[name].to_numpy() for name in ("score", "test_acc", "point"))
        draws = resamples(point)
        low, high = interval(spearman(_centred(q[draws], point), _centred(accuracy[draws], point)))
        rows.append(
            {
                "assoc": assoc,
                "n": len(q),
                "overall": float(spearman(q, accuracy)),
                "matched": float(spearman(_centred(q, point), _centred(accuracy, point))),
                "low": low,
                "high": high,
            }
        )
    return pd.DataFrame(rows)


def _centred(values, groups):
    """Values less their group's mean, along the last axis; rounded, so that equal values stay tied."""
    centred = np.array(values, dtype=float)
    for group in np.unique(groups):
        members = groups == group
        centred[..., members] -= centred[..., members].mean(-1, keepdims=True)
    return centred.round(12)


def cluster_repeatability(modules) -> pd.DataFrame:
    """Do clusters repeat between runs? Units cannot be matched across networks, so compares their number and sizes.

    Returns: a row per regularisation, method and layer with at least two runs: part, l2, l1, drop, assoc, layer, n,
        num_clusters (mean), spread (its standard deviation over runs), size_overlap: mean over pairs of runs of the
        share of units in common when largest cluster is laid on largest, second on second, and so on.
    """
    by = ["part", "l2", "l1", "drop", "assoc", "layer"]
    rows = []
    for key, runs in modules.dropna(subset="score").groupby(by, observed=True):
        if len(runs) > 1:
            overlap = np.mean([size_overlap(a, b) for a, b in itertools.combinations(runs["sizes"], 2)])
            rows.append(
                dict(zip(by, key, strict=True))
                | {
                    "n": len(runs),
                    "num_clusters": runs["num_clusters"].mean(),
                    "spread": runs["num_clusters"].std(),
                    "size_overlap": overlap,
                }
            )
    return pd.DataFrame(rows, columns=[*by, "n", "num_clusters", "spread", "size_overlap"])


def size_overlap(sizes_1, sizes_2) -> float:
    """Σ min(s₁, s₂)/max(Σ s₁, Σ s₂) of two lists of cluster sizes, largest first: 1 for the same sizes.

    >>> size_overlap([3, 1], [2, 2])
    0.75
    """
    shared = sum(min(a, b) for a, b in zip(sizes_1, sizes_2, strict=False))
    return float(shared / max(sum(sizes_1), sum(sizes_2)))
