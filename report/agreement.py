"""The study's second finding as numbers: how well the clusterings of different methods agree.

A method and its own `_norm` form share their matrix up to a scale of each unit, so that their agreement is no evidence
for a family; it has a group of its own. Every similarity stands beside its chance level: its mean over all permutations
of one clustering's units.
"""

import numpy as np
import pandas as pd

from associations import METHODS, PAPER_METHODS, UPSTREAM
from report.experiments import GRID_POINT, Results
from report.findings import per_network, present_regularizers, trained, untrained, usable
from report.intervals import mean_columns
from report.text import setting

GROUPS = ("within upstream", "within downstream", "across")
OWN_FORMS = "a method and its _norm"
RAW_METHODS = tuple(method for method in PAPER_METHODS if not method.endswith("_norm"))
SIGNIFICANT = 0.05
WITH_INTERVALS = ("element_sim", "adjusted", "score", "rmi_norm", "excess")
CERTAIN = 1 - 1e-9  # a chance level above this leaves nothing beyond chance


def with_group(align: pd.DataFrame, methods=PAPER_METHODS) -> pd.DataFrame:
    """The rows about two different ones of some methods, with their `group`: one of GROUPS, or OWN_FORMS."""
    a, b = align["assoc_a"].astype(str), align["assoc_b"].astype(str)
    chosen = (a != b) & a.isin(methods) & b.isin(methods)
    a, b = a[chosen], b[chosen]
    group = (a.isin(UPSTREAM).astype(int) + b.isin(UPSTREAM)).map(dict(zip((2, 0, 1), GROUPS, strict=True)))
    group = group.mask(a.str.removesuffix("_norm") == b.str.removesuffix("_norm"), OWN_FORMS)
    return align[chosen].assign(group=pd.Categorical(group, categories=[*GROUPS, OWN_FORMS]))


def network_agreement(results: Results, methods=PAPER_METHODS) -> pd.DataFrame:
    """Agreement in each usable network and group of pairs: means over pairs and layers.

    Returns: a row per network and group: element_sim; expected, its chance level; adjusted, (element_sim − expected)/
        (1 − expected); score, null (its mean over shuffled clusterings), excess (score − null); rmi_norm; significant
        (share of pairs with p < 0.05, which is 0.05 by chance).
    """
    align = with_group(usable(results.align, results.models), methods)
    expected = align["element_sim_expected"] if "element_sim_expected" in align else pd.Series(np.nan, align.index)
    align = align.assign(
        expected=expected,
        adjusted=((align["element_sim"] - expected) / (1 - expected)).where(expected < CERTAIN),
        excess=align["score"] - align["null_mean"],
        null=align["null_mean"],
        significant=(align["p"] < SIGNIFICANT).where(align["p"].notna()).astype(float),
    )
    return per_network(align, [*WITH_INTERVALS, "expected", "null", "significant"], by=("group",))


def agreement(results: Results, methods=PAPER_METHODS) -> pd.DataFrame:
    """Finding 2: how well the clusterings of different methods agree, within each family and across the two.

    Every value is a mean over networks of `network_agreement`; intervals are over networks. Those of all trained ones
    hold the differences between grid points too, so that they are wide rather than narrow.

    Args: methods: those whose pairs count; RAW_METHODS leaves out the normalized forms.

    Returns: a row per condition (untrained, trained: all regularizers, and each regularizer) and group:
        n, points: networks, and grid points.
        element_sim, adjusted, score, rmi_norm, excess, each with _low and _high; expected, null, significant.
        lowest, lowest_at, highest, highest_at: the extreme means of adjusted among the condition's grid points.
    """
    networks = network_agreement(results, methods).dropna(subset="element_sim")
    conditions = {"untrained": untrained(networks), "trained": trained(networks)}
    conditions |= {part: networks[networks["part"] == part] for part in present_regularizers(networks)}
    rows = []
    for condition, chosen in conditions.items():
        for group, values in chosen.groupby("group", observed=True):
            points = values.groupby(list(GRID_POINT), observed=True)["adjusted"].mean()
            row = {"condition": condition, "group": group, "points": len(points)}
            for measure in WITH_INTERVALS:
                row |= mean_columns(measure, values[measure])
            row |= {name: values[name].mean() for name in ("expected", "null", "significant")} | {"n": len(values)}
            known = points.dropna()
            for name, at in (("lowest", known.idxmin()), ("highest", known.idxmax())) if len(known) else ():
                row |= {name: known[at], f"{name}_at": point_name(at)}
            rows.append(row)
    measures = [f"{name}{end}" for name in WITH_INTERVALS for end in ("", "_low", "_high")]
    columns = ["condition", "group", "n", "points", *measures, "expected", "null", "significant"]
    return pd.DataFrame(rows, columns=[*columns, "lowest", "lowest_at", "highest", "highest_at"])


def point_name(point: tuple) -> str:
    """A grid point (part and strengths, as in GRID_POINT) in words."""
    part = point[0]
    return "untrained" if part == "dummy" else setting(part, point[GRID_POINT.index(part)])


def agreement_by_point(results: Results, methods=PAPER_METHODS) -> pd.DataFrame:
    """Agreement at each grid point: part, strength, group, n, element_sim and adjusted with _low and _high."""
    networks = trained(network_agreement(results, methods)).dropna(subset="element_sim")
    rows = []
    for (*point, group), values in networks.groupby([*GRID_POINT, "group"], observed=True):
        row = {"part": point[0], "strength": point[GRID_POINT.index(point[0])], "group": group}
        for measure in ("element_sim", "adjusted"):
            row |= mean_columns(measure, values[measure])
        rows.append(row | {"n": len(values)})
    bounds = [f"{name}{end}" for name in ("element_sim", "adjusted") for end in ("", "_low", "_high")]
    return pd.DataFrame(rows, columns=["part", "strength", "group", "n", *bounds])


def agreeing_across(points: pd.DataFrame, within: float) -> pd.DataFrame:
    """The grid points of `agreement_by_point` at which the two families agree, beyond chance, at least as `within`."""
    across = points[points["group"] == "across"]
    return across[across["adjusted"] >= within]


def less_across(results: Results, methods=PAPER_METHODS) -> pd.DataFrame:
    """By how much methods of two families agree less than methods of one, beyond chance, within each trained network.

    Returns: a row per family: its group, difference (adjusted within less adjusted across, a mean over networks) with
        difference_low and difference_high, and n.
    """
    networks = trained(network_agreement(results, methods)).astype({"group": str})
    groups = networks.pivot_table("adjusted", [*GRID_POINT, "run"], "group", observed=True).reindex(columns=GROUPS)
    return pd.DataFrame(
        {"group": group} | mean_columns("difference", groups[group] - groups["across"]) for group in GROUPS[:2]
    )


def alignment_matrix(align: pd.DataFrame, measure="element_sim") -> pd.DataFrame:
    """Mean agreement of each pair of the methods present over networks and layers, symmetric; NaN for no pair."""
    means = align.groupby(["assoc_a", "assoc_b"], observed=True)[measure].mean()
    names = {str(name) for pair in means.index for name in pair}
    methods = [m for m in METHODS if m in names] + sorted(names - set(METHODS))
    matrix = pd.DataFrame(np.nan, index=methods, columns=methods)
    for (a, b), value in means.items():
        matrix.loc[a, b] = matrix.loc[b, a] = value
    return matrix


def measure_correlations(align: pd.DataFrame, measures) -> pd.DataFrame:
    """Rank correlations between measures of agreement over all networks, layers and pairs of different methods."""
    different = align["assoc_a"].astype(str) != align["assoc_b"].astype(str)
    return align.loc[different, list(measures)].corr(method="spearman")
