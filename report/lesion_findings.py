"""The third finding as numbers: do the modules of a layer serve different classes, and which modules do?

Values are those of `lesions.find_lesions`, for lesions of either kind: `mean` takes away what varies in a module,
`zero` all of it. Specialization is compared by its z among shuffled clusterings of the same sizes, since it
depends on the sizes by itself. Everywhere n counts networks; layers are kept apart, since they differ.
"""

import numpy as np
import pandas as pd

from associations import FAMILIES, PAPER_METHODS
from report import findings
from report.agreement import CERTAIN, with_group
from report.experiments import NETWORK, Results
from report.findings import named, present_regularizers, trained, untrained, usable
from report.intervals import combination, mean_columns

KINDS = {"mean": "lesions to the mean", "zero": "lesions to zero"}


def z_of(kind: str) -> str:
    """The column that says how specialized modules are, for one kind of lesion."""
    return f"{kind}_specialization_z"


def as_modules(results: Results) -> Results:
    """Results whose modules' values are those of their lesions, for findings and figures about any value of modules."""
    return results._replace(modules=results.lesions)


def specialization_effects(results: Results, kind="mean", per_layer=True) -> pd.DataFrame:
    """What each regularizer does to specialization: `findings.regularizer_effects` of its z."""
    return findings.regularizer_effects(as_modules(results), per_layer, z_of(kind))


def conditions(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The rows of untrained and of all trained networks, and of those in each regularizer's own part of the grid."""
    parts = {name: table[table["part"] == name] for name in present_regularizers(table)}
    found = {"untrained": untrained(table), "trained": trained(table)} | parts
    return {name: rows for name, rows in found.items() if len(rows)}


def by_condition(results: Results, value: str) -> pd.DataFrame:
    """Mean of a value of lesions in usable networks, and how trained networks differ from untrained ones.

    Returns: a row per condition, method and layer: value with value_low, value_high, its Student interval; n networks;
        gain with gain_low, gain_high, gain_p: less its mean in untrained networks, with Welch's interval and test.
    """
    lesions = usable(results.lesions, results.models).dropna(subset=value)
    null = {at: rows[value] for at, rows in untrained(lesions).groupby(["assoc", "layer"], observed=True)}
    rows = []
    for condition, chosen in conditions(lesions).items():
        for at, group in chosen.groupby(["assoc", "layer"], observed=True):
            row = {"condition": condition, "assoc": at[0], "layer": at[1]} | mean_columns(value, group[value])
            other = [] if condition == "untrained" else null.get(at, [])
            rows.append(row | named("gain", combination([group[value], other], [1, -1])))
    return pd.DataFrame(rows)


def network_differences(results: Results, kind="mean", methods=PAPER_METHODS) -> pd.DataFrame:
    """z of specialization upstream less downstream, within each network.

    Within a network and layer each family counts with the mean over its methods that have a z.

    Returns: a row per network and layer in which both families have one: upstream, downstream, difference.
    """
    lesions = results.lesions[results.lesions["assoc"].isin(methods)]
    family = lesions["assoc"].astype(str).map({name: title for title, names in FAMILIES.items() for name in names})
    groups = lesions.assign(family=family).groupby([*NETWORK, "layer", "family"], observed=True)
    pairs = groups[z_of(kind)].mean().unstack("family").reindex(columns=list(FAMILIES)).dropna().reset_index()
    return pairs.assign(difference=pairs["upstream"] - pairs["downstream"])


def family_differences(results: Results, kind="mean", methods=PAPER_METHODS) -> pd.DataFrame:
    """Are upstream or downstream modules the more specialized? Means of `network_differences` over usable networks.

    Returns: a row per condition or grid point, and layer: condition, strength (NaN for conditions), layer, upstream,
        downstream (means), difference with difference_low, difference_high, n.
    """
    pairs = usable(network_differences(results, kind, methods), results.models)
    groups = {(condition, np.nan): rows for condition, rows in conditions(pairs).items()}
    for regularizer in present_regularizers(pairs):
        groups |= {(regularizer, at): rows for at, rows in findings.along(pairs, regularizer).groupby("strength")}
    rows = []
    for (condition, strength), chosen in groups.items():
        for layer, group in chosen.groupby("layer"):
            row = {"condition": condition, "strength": strength, "layer": layer}
            row |= {title: group[title].mean() for title in FAMILIES}
            rows.append(row | mean_columns("difference", group["difference"]))
    ends = ["difference", "difference_low", "difference_high", "n"]
    return pd.DataFrame(rows, columns=["condition", "strength", "layer", *FAMILIES, *ends])


# ---- what goes with it ----------------------------------------------------------------------------------------------


def modularity_correlations(results: Results, kind="mean", modularity="score") -> pd.DataFrame:
    """Are modules of networks with higher Q the more specialized? Rank correlation of Q with specialization's z.

    Args: modularity: another column of the modules than Q, such as its z.

    Returns: a row per method and layer, over usable trained networks: n, overall, matched with low and high: the same
        after subtracting from both their means over the runs of the same regularization, resampled within these.
    """
    keys = [*NETWORK, "assoc", "layer"]
    lesions = usable(results.lesions, results.models).astype({"assoc": str, "part": str})
    modules = results.modules[[*keys, modularity]].astype({"assoc": str, "part": str})
    both = lesions[[*keys, z_of(kind)]].merge(modules, on=keys)
    return findings.matched_correlations(trained(both), modularity, z_of(kind), ["assoc", "layer"])


def agreement_correlations(results: Results, kind="mean") -> pd.DataFrame:
    """Are modules on which upstream and downstream methods agree the more specialized?

    A network's agreement in a layer is the mean over pairs across the two families of their element-centric similarity
    beyond chance, (observed − expected)/(1 − expected); its specialization the mean z of a family's methods.

    Returns: a row per family (or both) and layer, with columns as `modularity_correlations`.
    """
    z, keys = z_of(kind), [*NETWORK, "layer"]
    align = with_group(usable(results.align, results.models))
    align = align[align["group"] == "across"]
    expected = align["element_sim_expected"]
    beyond = (align["element_sim"] - expected) / (1 - expected)
    agreed = (
        align.assign(agreement=beyond.where(expected < CERTAIN))
        .groupby(keys, observed=True)["agreement"]
        .mean()
        .reset_index()
    )
    lesions = usable(results.lesions, results.models)
    found = []
    for family, names in (FAMILIES | {"both": PAPER_METHODS}).items():
        means = lesions[lesions["assoc"].isin(names)].groupby(keys, observed=True)[z].mean().reset_index()
        both = means.astype({"part": str}).merge(agreed.astype({"part": str}), on=keys)
        found.append(findings.matched_correlations(trained(both), "agreement", z, ["layer"]).assign(family=family))
    return pd.concat(found, ignore_index=True)
