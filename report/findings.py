"""The study's first finding as numbers: what regularization does to modularity, with intervals over networks.

Everywhere n counts networks (never layers, methods or pairs, which are averaged within each network first). A strength
of regularization is "too much" when over half of its runs stay below the experiment's pass mark (0.8 test accuracy in
all of the study's grids); such networks are left out of every statistic.
"""

import numpy as np
import pandas as pd

from associations import DOWNSTREAM, METHODS
from report.experiments import GRID_POINT, NETWORK, Results
from report.intervals import bootstrap_interval, combination, mean_and_interval, resamples, spearman, trend
from study import grids

REGULARIZERS = tuple(reversed(grids.REGULARIZERS))  # as they are shown: dropout, which matters most, first
ROUNDING = 1e-12

# ---- regularization -------------------------------------------------------------------------------------------------


def untrained(table):
    """The rows of untrained networks."""
    return table[table["part"] == "dummy"]


def trained(table):
    """The rows of trained networks."""
    return table[table["part"] != "dummy"]


def evaluated(models):
    """The rows of networks that were evaluated."""
    return models.dropna(subset="test_acc")


def along(table, regularizer):
    """The rows that show one regularizer's effect, with its value as `strength`.

    These are its own grid and, but for l2, their zero point: the l2 = 1e-5 runs of the l2 grid.
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
        for strength, runs in along(evaluated(models), regularizer).groupby("strength"):
            failed = (runs["test_acc"] < runs["pass_mark"]).mean()
            rows.append((regularizer, strength, len(runs), failed, failed > 0.5))
    return pd.DataFrame(rows, columns=["regularizer", "strength", "n", "failed", "too_much"])


def present_methods(table):
    """The methods of a table's rows, in the order of `METHODS`, unknown ones last."""
    names = table["assoc"].dropna().astype(str).unique()
    return [m for m in METHODS if m in names] + sorted(set(names) - set(METHODS))


def present_regularizers(table):
    """The regularizers of which a table has at least two strengths."""
    return [regularizer for regularizer in REGULARIZERS if along(table, regularizer)["strength"].nunique() > 1]


def usable(table, models):
    """The rows of untrained networks and of those trained with no more regularization than networks can bear."""
    table = table.reset_index(drop=True)
    keep = pd.Series(True, index=table.index)
    for row in failures(models).query("too_much").itertuples():
        keep &= ~((table["part"] == row.regularizer) & np.isclose(table[row.regularizer], row.strength))
    return table[keep]


def per_network(table, values, by=("assoc",)):
    """Means over layers (and whatever else is not in `by`) within each network."""
    return table.groupby([*NETWORK, *by], observed=True)[list(values)].mean().reset_index()


def regularizer_effects(results: Results, per_layer=True, value="score") -> pd.DataFrame:
    """Finding 1: what each regularizer does to Q, per method and layer.

    Args: value: another column of the modules than Q, such as its z.

    Returns: a row per regularizer, method (and layer, or else for the mean over layers) with two usable strengths:
        n, n_untrained: networks with usable strengths, and untrained ones.
        untrained, weakest, strongest: mean Q of untrained networks and at both ends of the usable grid.
        at_weakest, at: these ends.
        change, change_low, change_high, change_p: strongest − weakest; p of no change, by Welch's test.
        trend, trend_low, trend_high, trend_p: change from weakest to strongest along the straight line through all
            usable networks, strengths equally spaced in their order: what remains to judge by where runs are single.
        gain, gain_low, gain_high, gain_p: strongest − untrained.
        farthest, farthest_at: the mean Q along the grid that differs most from the weakest strength's, and where.
        rho: rank correlation of Q with strength over usable networks, NaN of fewer than three; no interval, since
            resampling so few runs of a strength gives one that is too narrow.
    """
    modules = usable(results.modules, results.models)
    by = ["assoc", "layer"] if per_layer else ["assoc"]
    if not per_layer:
        modules = per_network(modules, [value])
    modules = modules.dropna(subset=value)
    null = {key: values.to_numpy() for key, values in untrained(modules).groupby(by, observed=True)[value]}
    rows = []
    for regularizer in present_regularizers(modules):
        for key, curve in along(modules, regularizer).groupby(by, observed=True):
            if curve["strength"].nunique() > 1:
                names = {"regularizer": regularizer} | dict(zip(by, key, strict=True))
                q = curve[value].to_numpy()
                rows.append(names | _effect(curve["strength"].to_numpy(), q, null.get(key, np.array([]))))
    estimates = [f"{name}{end}" for name in ("change", "trend", "gain") for end in ("", "_low", "_high", "_p")]
    columns = ["n", "n_untrained", "untrained", "weakest", "strongest", "at_weakest", "at", "farthest", "farthest_at"]
    return pd.DataFrame(rows, columns=["regularizer", *by, *columns, *estimates, "rho"])


def _effect(strength, q, null):
    """One row of `regularizer_effects`."""
    weakest, strongest = q[strength == strength.min()], q[strength == strength.max()]
    means = {at: q[strength == at].mean() for at in np.unique(strength)}
    farthest = max(means, key=lambda at: abs(means[at] - weakest.mean()))
    row = {
        "n": len(q),
        "n_untrained": len(null),
        "untrained": null.mean() if len(null) else np.nan,
        "weakest": weakest.mean(),
        "strongest": strongest.mean(),
        "at_weakest": strength.min(),
        "at": strength.max(),
        "farthest": means[farthest],
        "farthest_at": farthest,
        "rho": float(spearman(strength, q)) if len(q) > 2 else np.nan,
    }
    row |= named("change", combination([strongest, weakest], [1, -1]))
    row |= named("trend", trend(np.unique(strength, return_inverse=True)[1], q))
    return row | named("gain", combination([strongest, null], [1, -1]))


def named(name, estimate):
    """An estimate as columns: name, name_low, name_high, name_p."""
    return {name: estimate.value} | {f"{name}_{end}": getattr(estimate, end) for end in ("low", "high", "p")}


def judged_by(effects) -> str:
    """Which column of a regularizer's effects tells what rises and falls: "change", or "trend" where only that has
    intervals, an end of the grid having a single run."""
    return "trend" if effects["change_p"].isna().all() and effects["trend_p"].notna().any() else "change"


def opposed_layers(effects) -> pd.DataFrame:
    """The rows of `regularizer_effects` (per layer) whose layers change in opposite directions, both clear of zero."""
    groups = effects.groupby(["regularizer", "assoc"], observed=True, sort=False)
    kept = []
    for _, rows in groups:
        low, high = (rows[f"{judged_by(rows)}_{end}"] for end in ("low", "high"))
        if (low > 0).any() and (high < 0).any():
            kept.append(rows)
    return pd.concat(kept) if kept else effects.iloc[:0]


def without_silent(results: Results) -> pd.DataFrame:
    """Q of the downstream methods with and without the units that never fire, at each usable strength.

    Returns: a row per regularizer ("untrained": none), strength, layer and method: regularizer, strength, layer, assoc;
        n networks; and means over these: dead, the number of units whose activations do not vary over the test images,
        as those of units that never fire; score, score_without_silent.
    """
    modules = usable(results.modules, results.models)
    dead = modules[modules["assoc"] == "forward_cov"].set_index([*NETWORK, "layer"])["dead"]
    modules = modules[modules["assoc"].isin(DOWNSTREAM)].drop(columns="dead").join(dead, on=[*NETWORK, "layer"])
    columns = ["dead", "score", "score_without_silent"]
    modules = modules.dropna(subset="score_without_silent")
    curves = {"untrained": untrained(modules).assign(strength=0.0)}
    curves |= {name: along(modules, name) for name in present_regularizers(modules)}
    found = []
    for name, curve in curves.items():
        groups = curve.groupby(["strength", "layer", "assoc"], observed=True)[columns]
        found.append(groups.mean().assign(n=groups.size(), regularizer=name).reset_index())
    return pd.concat(found, ignore_index=True)


# ---- effects at equal accuracy --------------------------------------------------------------------------------------


def accuracy_curves(results: Results, value="score") -> pd.DataFrame:
    """Usable trained networks of each regularizer, by its strength: regularizer, strength, assoc, test_acc, value."""
    networks = per_network(usable(results.modules, results.models), ["test_acc", value])
    networks = networks.dropna(subset=["test_acc", value])
    found = [along(networks, name).assign(regularizer=name) for name in present_regularizers(networks)]
    return pd.concat(found) if found else networks.iloc[:0].assign(regularizer="", strength=0.0)


def shared_accuracy(curves) -> float:
    """The lowest test accuracy that every regularizer brings networks down to: the highest of their lowest means."""
    means = curves.groupby(["regularizer", "strength"])["test_acc"].mean()
    return means.groupby("regularizer").min().max()


def costs_accuracy(results: Results) -> bool:
    """Whether the lowest accuracy that every regularizer reaches is clearly lost: below the 95% interval of the mean
    without regularization, or below that of a single network. Else there is nothing to compare at equal accuracy but
    noise."""
    curves = accuracy_curves(results)
    alone = curves[(curves["part"] == "l2") & np.isclose(curves["l2"], grids.L2_ALONE)].drop_duplicates(list(NETWORK))
    mean, low, *_ = mean_and_interval(alone["test_acc"])
    return bool(shared_accuracy(curves) < (mean if np.isnan(low) else low) - ROUNDING)


def at_equal_accuracy(results: Results, accuracy=None, value="score") -> pd.DataFrame:
    """What regularizers do to Q where they cost the same accuracy, by linear interpolation between mean values.

    Between the last two neighbouring strengths s, t whose mean accuracies A_s ≥ accuracy ≥ A_t enclose it, with
    w = (A_s − accuracy)/(A_s − A_t): Q = (1 − w)·Q_s + w·Q_t. The interval counts the scatter of accuracies as well,
    by the delta method: of each network Q − β·(its accuracy) is averaged, β = (Q_t − Q_s)/(A_t − A_s).

    Args: accuracy: by default the lowest that every regularizer reaches (`shared_accuracy`).

    Returns: a row per regularizer and method: accuracy, strength (interpolated, on the axis of its grid), weakest (Q at
        the weakest strength), q, change (q − weakest) with change_low, change_high and change_p.
    """
    curves = accuracy_curves(results, value)
    accuracy = shared_accuracy(curves) if accuracy is None else accuracy
    rows = []
    for (regularizer, assoc), curve in curves.groupby(["regularizer", "assoc"], observed=True, sort=False):
        points = [points for _, points in curve.groupby("strength")]
        means = np.array([point["test_acc"].mean() for point in points])
        crossings = np.flatnonzero((means[:-1] >= accuracy - ROUNDING) & (means[1:] <= accuracy + ROUNDING))
        if len(crossings):
            last = crossings[-1]
            row = _between(points[last], points[last + 1], points[0], accuracy, value)
            row["strength"] = _strength_between(regularizer, *row.pop("strengths"), row.pop("share"))
            rows.append({"regularizer": regularizer, "assoc": assoc, "accuracy": accuracy} | row)
    estimates = ["change", "change_low", "change_high", "change_p"]
    return pd.DataFrame(rows, columns=["regularizer", "assoc", "accuracy", "strength", "weakest", "q", *estimates])


def _between(before, after, weakest, accuracy, value):
    """One row of `at_equal_accuracy`, from the networks at two neighbouring strengths and at the weakest one."""
    drop = before["test_acc"].mean() - after["test_acc"].mean()
    share = np.clip((before["test_acc"].mean() - accuracy) / drop, 0, 1) if drop else 0.0
    slope = (before[value].mean() - after[value].mean()) / drop if drop else 0.0
    moved = [point[value] - slope * (point["test_acc"] - point["test_acc"].mean()) for point in (before, after)]
    if before is weakest:  # one group of networks, not two
        parts = [((1 - share) * moved[0] - weakest[value], 1.0), (moved[1], share)]
    else:
        parts = [(moved[0], 1 - share), (moved[1], share), (weakest[value], -1.0)]
    change = combination(*zip(*[(group, weight) for group, weight in parts if abs(weight) > ROUNDING], strict=True))
    q = (1 - share) * before[value].mean() + share * after[value].mean()
    strengths = before["strength"].iloc[0], after["strength"].iloc[0]
    return {"strengths": strengths, "share": share, "weakest": weakest[value].mean(), "q": q} | named("change", change)


def _strength_between(regularizer, low, high, share):
    """The strength a share of the way from one to another, on the axis of the regularizer's grid."""
    if grids.REGULARIZERS[regularizer].scale == "log" and low > 0:
        return low ** (1 - share) * high**share
    return (1 - share) * low + share * high


# ---- beyond the study -----------------------------------------------------------------------------------------------


def accuracy_correlations(results: Results) -> pd.DataFrame:
    """Does modularity go with accuracy? Rank correlation of Q (mean over layers) with test accuracy, per method.

    Returns: assoc, n, overall (over all usable trained networks), matched, low, high: the same after subtracting from
        both their means over the runs of the same regularization, resampled within these.
    """
    modules = trained(usable(results.modules, results.models)).dropna(subset=["score", "test_acc"])
    return matched_correlations(per_network(modules, ["score", "test_acc"]), "score", "test_acc", ["assoc"])


def matched_correlations(table, x, y, by) -> pd.DataFrame:
    """Rank correlation over networks of two columns, at matched regularization.

    Returns: a row per combination of the columns `by`, with n, overall, matched, low, high: of the networks as they
        are, and after subtracting from both columns their means over the runs of the same regularization, with the
        interval of resamples within these.
    """
    table = table.dropna(subset=[x, y])
    table = table.assign(point=table.groupby(list(GRID_POINT), observed=True).ngroup())
    rows = []
    for key, curve in table.sort_values("point").groupby(by, observed=True):
        a, b, point = (curve[name].to_numpy() for name in (x, y, "point"))
        draws = resamples(point)
        low, high = bootstrap_interval(spearman(_centred(a[draws], point), _centred(b[draws], point)))
        matched = float(spearman(_centred(a, point), _centred(b, point)))
        row = {"n": len(a), "overall": float(spearman(a, b)), "matched": matched, "low": low, "high": high}
        rows.append(dict(zip(by, key, strict=True)) | row)
    return pd.DataFrame(rows, columns=[*by, "n", "overall", "matched", "low", "high"])


def _centred(values, groups):
    """Values less their group's mean, along the last axis; rounded, so that equal values stay tied."""
    centred = np.array(values, dtype=float)
    for group in np.unique(groups):
        members = groups == group
        centred[..., members] -= centred[..., members].mean(-1, keepdims=True)
    return centred.round(12)
