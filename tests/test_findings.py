"""The findings on made-up tables: each number again by plain loops over rows in which every cell has its own value."""

import itertools
import math
import statistics

import made_up
import numpy as np
import pandas as pd
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st

from associations import DOWNSTREAM, METHODS, UPSTREAM
from comparison import expected_element_similarity
from report import agreement, experiments, findings, intervals, summary, text


@pytest.fixture(scope="module")
def exact():
    return made_up.results(noise=0.0)


@pytest.fixture(scope="module")
def distinct():
    return made_up.distinct()


# ---- the same by plain loops ----------------------------------------------------------------------------------------


def key(row):
    return row["part"], row["l2"], row["l1"], row["drop"], row["run"]


def network_means(table, value, **wanted):
    """{network: mean of a column over its rows that are as wanted}, NaN left out."""
    collected = {}
    for row in table.to_dict("records"):
        if all(str(row[name]) == str(x) for name, x in wanted.items()) and not math.isnan(row[value]):
            collected.setdefault(key(row), []).append(row[value])
    return {network: statistics.fmean(values) for network, values in collected.items()}


def points(found, regularizer, usable=True):
    """{strength: networks} of one regularizer, its zero point included."""
    place = ("part", "l2", "l1", "drop").index(regularizer)
    strengths = {}
    for row in found.models.to_dict("records"):
        network = key(row)
        if network[0] == regularizer or (regularizer != "l2" and network[0] == "l2" and network[1] == 1e-5):
            strengths.setdefault(network[place], []).append((network, row["test_acc"] < row["pass_mark"]))
    return {
        strength: [network for network, _ in runs]
        for strength, runs in sorted(strengths.items())
        if not usable or sum(failed for _, failed in runs) * 2 <= len(runs)
    }


def untrained_of(found):
    return [key(row) for row in found.models.to_dict("records") if row["part"] == "dummy"]


def mean_text(values, form):
    """A mean with Student's interval, by scipy's test."""
    low, high = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    return f"{statistics.fmean(values):{form}} [{low:{form}}, {high:{form}}]"


def difference_text(a, b, form):
    """A difference with Welch's interval, by scipy's test."""
    low, high = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval()
    return f"{statistics.fmean(a) - statistics.fmean(b):{form}} [{low:{form}}, {high:{form}}]"


def cells(markdown):
    """A Markdown table as dicts."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    return [dict(zip(lines[0], line, strict=True)) for line in lines[2:]]


# ---- intervals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 3, 9])
def test_intervals_of_means_and_differences_are_students_and_welchs(n):
    random = np.random.default_rng(n)
    a, b = random.normal(3, 1, n), random.normal(1, 5, n + 2)
    mean = intervals.mean_and_interval([*a, np.nan])
    expected = scipy.stats.ttest_1samp(a, 0).confidence_interval()
    np.testing.assert_allclose(mean, [a.mean(), *expected, n], rtol=1e-12)
    welch = scipy.stats.ttest_ind(a, b, equal_var=False)
    found = intervals.combination([a, b], [1, -1])
    np.testing.assert_allclose(found, [a.mean() - b.mean(), *welch.confidence_interval(), welch.pvalue], rtol=1e-10)


def test_a_weighted_sum_of_three_groups_has_the_interval_of_its_variance():
    groups, weights = [np.array(g, float) for g in ([1, 2, 4], [5, 9], [7, 7, 8, 2])], [0.25, 0.75, -1.0]
    parts = [w * w * statistics.variance(g) / len(g) for g, w in zip(groups, weights, strict=True)]
    freedom = sum(parts) ** 2 / sum(v * v / (len(g) - 1) for g, v in zip(groups, parts, strict=True))
    reach = scipy.stats.t.ppf(0.975, freedom) * math.sqrt(sum(parts))
    value = 0.25 * 7 / 3 + 0.75 * 7 - 6
    found = intervals.combination(groups, weights)
    np.testing.assert_allclose(found[:3], [value, value - reach, value + reach], rtol=1e-12)


@pytest.mark.parametrize(
    "sizes, weights", [([3], [1]), ([9], [1]), ([3, 3], [1, -1]), ([9, 9], [1, -1]), ([3, 9], [1, -1])]
)
def test_intervals_cover_the_truth_in_95_of_100_experiments(sizes, weights):
    random, spreads = np.random.default_rng(0), (1.0, 2.0)
    covered = 0
    for _ in range(3000):
        groups = [random.normal(0, spread, n) for n, spread in zip(sizes, spreads, strict=False)]
        _, low, high, _ = intervals.combination(groups, weights)
        covered += low <= 0 <= high
    assert abs(covered / 3000 - 0.95) < 0.015


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(-64, 64)), min_size=3, max_size=9))
def test_the_trend_is_the_change_along_the_line_of_least_squares(pairs):
    x, y = np.array(pairs, dtype=float).T / [[1], [64]]
    found = intervals.trend(x, y)
    if len(set(x)) < 2:
        assert np.isnan(found).all()
        return
    design = np.stack([np.ones(len(x)), x], 1)
    (_, slope), span = np.linalg.lstsq(design, y, rcond=None)[0], x.max() - x.min()
    residuals = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
    error = span * math.sqrt((residuals**2).sum() / (len(x) - 2) * np.linalg.inv(design.T @ design)[1, 1])
    reach = scipy.stats.t.ppf(0.975, len(x) - 2) * error
    np.testing.assert_allclose(found[:3], [span * slope, span * slope - reach, span * slope + reach], atol=1e-6)
    if error > 1e-6:
        assert found.p == pytest.approx(2 * scipy.stats.t.sf(abs(span * slope) / error, len(x) - 2), abs=1e-6)


def test_the_trend_of_single_runs_covers_the_truth_in_95_of_100_experiments():
    random, x = np.random.default_rng(0), np.arange(6)
    trends = [intervals.trend(x, 0.2 * x + random.normal(0, 1, 6)) for _ in range(3000)]
    assert abs(np.mean([low <= 1 <= high for _, low, high, _ in trends]) - 0.95) < 0.015
    assert np.isnan(intervals.trend([0, 1], [0, 1])).all()


def test_one_value_has_no_interval_no_value_no_mean_and_equal_values_one_of_no_width():
    one = intervals.mean_and_interval([3.0, np.nan])
    assert one["mean"] == 3 and one["n"] == 1 and np.isnan(one["low"]) and np.isnan(one["high"])
    assert np.isnan(intervals.mean_and_interval([np.nan])["mean"])
    assert intervals.combination([[1.0, 1.0], [2.0, 2.0]], [1, -1]) == (-1, -1, -1, 0)
    assert np.isnan(intervals.combination([[1.0, 2.0], []], [1, -1])).all()


def test_the_bootstrap_interval_is_the_central_95_of_100_draws():
    for draws in (np.arange(1001.0), np.r_[np.arange(1001.0), [np.nan] * 20]):
        assert intervals.bootstrap_interval(draws) == pytest.approx((25, 975))
    assert np.isnan(intervals.bootstrap_interval(np.r_[np.arange(90.0), [np.nan] * 10])).all()


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=12))
def test_spearman_is_scipys_also_with_ties(pairs):
    x, y = np.array(pairs, dtype=float).T
    ours = intervals.spearman(x, y)
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert np.isnan(ours)
    else:
        assert ours == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)


def test_resamples_stay_within_their_groups():
    groups = np.array([0, 1, 0, 2, 1, 1])
    draws = intervals.resamples(groups, draws=200)
    assert (groups[draws] == groups).all() and set(draws[:, 0]) == {0, 2} and set(draws[:, 3]) == {3}
    assert np.array_equal(draws, intervals.resamples(groups, draws=200))


# ---- regularization -------------------------------------------------------------------------------------------------


def test_the_zero_point_of_drop_and_l1_is_the_l2_grids_smallest(exact):
    for regularizer in ("drop", "l1"):
        rows = findings.along(exact.models, regularizer)
        zero = rows[rows["strength"] == 0]
        assert (zero["part"] == "l2").all() and np.allclose(zero["l2"], 1e-5) and len(zero) == 2
    assert findings.along(exact.models, "l2")["strength"].min() == 1e-5


def test_too_much_is_where_over_half_of_the_runs_fail():
    models = made_up.results("demo").models
    at = (models["part"] == "drop") & (models["drop"] == 0.6)
    for pass_mark, accuracies, too_much in (
        (0.8, [0.5, 0.9], False),
        (0.8, [0.5, 0.7], True),
        (0.8, [0.81, 0.9], False),
        (0.5, [0.5, 0.7], False),
        (0.95, [0.81, 0.9], True),
    ):
        models["pass_mark"] = pass_mark
        models.loc[at, "test_acc"] = accuracies
        row = findings.failures(models).query("regularizer == 'drop' and strength == 0.6")
        assert row["too_much"].item() == too_much and row["n"].item() == 2
    models["pass_mark"] = 0.8
    models.loc[at, "test_acc"] = [0.5, np.nan]  # one was not evaluated
    row = findings.failures(models).query("regularizer == 'drop' and strength == 0.6")
    assert row["n"].item() == row["failed"].item() == 1 and row["too_much"].item()


def test_usable_rows_are_those_that_networks_can_bear(exact):
    kept = findings.usable(exact.modules, exact.models)
    assert kept["drop"].max() == 0.65 and kept["l1"].max() == pytest.approx(3.16228e-3) and kept["l2"].max() == 1e-2
    assert (kept["part"] == "dummy").sum() == (exact.modules["part"] == "dummy").sum()


@pytest.mark.parametrize("value", ["score", "rotation_z"])
@pytest.mark.parametrize("per_layer", [True, False])
def test_every_cell_of_the_effects_is_what_plain_loops_give(distinct, per_layer, value):
    rows = cells(summary.effects_table(distinct, per_layer, value))
    assert len(rows) == 3 * 8 * (2 if per_layer else 1)
    for row in rows:
        wanted = {"assoc": row["assoc"]} | ({"layer": row["layer"]} if per_layer else {})
        q = network_means(distinct.modules, value, **wanted)
        curve = points(distinct, row["regularizer"])
        weakest, *_, strongest = curve
        a, b = ([q[network] for network in curve[strength]] for strength in (strongest, weakest))
        null = [q[network] for network in untrained_of(distinct)]
        assert row["n"] == str(sum(map(len, curve.values())))
        assert row["untrained"] == f"{statistics.fmean(null):.3f}"
        assert row["weakest"] == f"{statistics.fmean(b):.3f} at {text.number(weakest)}"
        assert row["strongest"] == f"{statistics.fmean(a):.3f} at {text.number(strongest)}"
        assert row["change"] == difference_text(a, b, "+.3f") and row["gain"] == difference_text(a, null, "+.3f")
        places = [i for i, runs in enumerate(curve.values()) for _ in runs]
        line, span = scipy.stats.linregress(places, [q[n] for runs in curve.values() for n in runs]), len(curve) - 1
        middle, reach = line.slope * span, scipy.stats.t.ppf(0.975, len(places) - 2) * line.stderr * span
        assert row["trend"] == f"{middle:+.3f} [{middle - reach:+.3f}, {middle + reach:+.3f}]"
        pairs = [(strength, q[network]) for strength, runs in curve.items() for network in runs]
        rho = scipy.stats.spearmanr(*zip(*pairs, strict=True)).statistic
        assert row["rho"] == f"{rho:+.2f}"


@pytest.mark.parametrize("of", ["change", "trend", "few"])
def test_each_family_is_counted_in_each_layer(distinct, of):
    """Single runs are judged by the trend, and two of them by nothing."""
    modules = distinct.modules
    if of != "change":
        modules = modules[modules["part"].eq("dummy") | modules["run"].eq(0)]
    if of == "few":
        for name in ("drop", "l1", "l2"):
            weakest = sorted(modules.loc[modules["part"].eq(name), name].unique())[: 2 if name == "l2" else 1]
            modules = modules[modules["part"].ne(name) | modules[name].isin(weakest)]
    found = distinct._replace(modules=modules)
    effects = findings.regularizer_effects(found).astype({"assoc": str}).to_dict("records")
    rows = cells(summary.families_table(found))
    assert len(rows) == 3 * 2 and {row["of"] for row in rows} == {"change" if of == "few" else of}
    for row in rows:
        for family, methods in (("upstream", UPSTREAM), ("downstream", DOWNSTREAM)):
            own = [
                effect
                for effect in effects
                if effect["regularizer"] == row["regularizer"]
                and str(effect["layer"]) == row["layer"]
                and effect["assoc"] in methods
            ]
            middle = statistics.median(effect[row["of"]] for effect in own)
            up = sum(effect[f"{row['of']}_low"] > 0 for effect in own)
            down = sum(effect[f"{row['of']}_high"] < 0 for effect in own)
            counts = "too few for intervals" if of == "few" else f"{up} up, {down} down of 4"
            assert row[family] == f"{middle:+.3f} ({counts})"


def test_made_up_effects_are_found(exact):
    table = findings.regularizer_effects(exact)
    drop, rest = table[table["regularizer"] == "drop"], table[table["regularizer"] != "drop"]
    up = drop["assoc"].isin(UPSTREAM)
    for name in ("change", "gain"):
        np.testing.assert_allclose(drop.loc[up, name], 0.2 * 0.65, atol=1e-12)
        np.testing.assert_allclose(drop.loc[~up, name], 0, atol=1e-12)
        np.testing.assert_allclose(rest[name], 0, atol=1e-12)
    assert (drop["n_untrained"] == 4).all() and (drop["at"] == 0.65).all() and (drop["at_weakest"] == 0).all()


def test_layers_that_change_in_opposite_directions_are_told(distinct):
    found = distinct._replace(modules=distinct.modules.copy())
    modules, random = found.modules, np.random.default_rng(0)
    modules["score"] = 0.5 + 0.001 * random.normal(size=len(modules))
    opposed = (modules["assoc"] == "backward_jac") & np.isclose(modules["drop"], 0.6)
    modules.loc[opposed, "score"] += np.where(modules.loc[opposed, "layer"] == 0, 0.1, -0.2)
    both_up = (modules["assoc"] == "forward_cov") & np.isclose(modules["drop"], 0.6)
    modules.loc[both_up, "score"] += 0.1
    rows = findings.opposed_layers(findings.regularizer_effects(found))
    assert rows[["regularizer", "assoc", "layer"]].astype(str).to_numpy().tolist() == [
        ["drop", "backward_jac", "0"],
        ["drop", "backward_jac", "1"],
    ]
    told = [line for line in summary.verdicts(found) if "opposite" in line]
    assert len(told) == 1 and told[0].startswith("drop, backward_jac: ")
    assert "+0.1" in told[0].split("layer 0")[0] and "-0.2" in told[0].split("layer 0")[1]


def test_layers_of_single_runs_are_told_by_their_trend_also_beside_regularizers_of_several(distinct):
    found = distinct._replace(
        modules=distinct.modules[(distinct.modules["part"] != "drop") | (distinct.modules["run"] == 0)]
    )
    modules, random = found.modules.copy(), np.random.default_rng(0)
    modules["score"] = 0.5 + 0.001 * random.normal(size=len(modules))
    modules["score"] += (
        modules["drop"] * np.where(modules["layer"] == 0, 0.1, -0.2) * (modules["assoc"] == "forward_cov")
    )
    found = found._replace(modules=modules)
    rows = findings.opposed_layers(findings.regularizer_effects(found))
    assert rows[["regularizer", "assoc"]].drop_duplicates().astype(str).to_numpy().tolist() == [["drop", "forward_cov"]]
    (told,) = (line for line in summary.verdicts(found) if "opposite" in line)
    trends = [text.with_interval(row, "trend", "+.3f") for _, row in rows.iterrows()]
    assert told == (
        f"drop, forward_cov: layers change in opposite directions, {trends[0]} in layer 0 and {trends[1]} in layer 1."
    )


def test_networks_are_averaged_over_layers_before_they_are_counted(exact):
    networks = findings.per_network(exact.modules, ["score"])
    assert len(networks) == len(exact.models) * len(METHODS)


# ---- effects at equal accuracy --------------------------------------------------------------------------------------


def test_effects_at_equal_accuracy_are_interpolated_between_the_strengths_around_it(distinct):
    found = findings.at_equal_accuracy(distinct)
    accuracies = {key(row): row["test_acc"] for row in distinct.models.to_dict("records")}
    curves = {name: points(distinct, name) for name in ("drop", "l1", "l2")}
    means = {
        name: [statistics.fmean(accuracies[n] for n in runs) for runs in curve.values()]
        for name, curve in curves.items()
    }
    shared = max(min(values) for values in means.values())
    assert len(found) == 24 and found["accuracy"].to_numpy() == pytest.approx(shared, abs=1e-12)
    for row in found.to_dict("records"):
        q = network_means(distinct.modules, "score", assoc=row["assoc"])
        runs, a = list(curves[row["regularizer"]].values()), means[row["regularizer"]]
        i = max(i for i in range(len(a) - 1) if a[i] >= shared - 1e-12 and a[i + 1] <= shared + 1e-12)
        w = (a[i] - shared) / (a[i] - a[i + 1])
        at = [statistics.fmean(q[network] for network in each) for each in runs]
        expected = (1 - w) * at[i] + w * at[i + 1]
        assert row["q"] == pytest.approx(expected, abs=1e-9)
        assert row["weakest"] == pytest.approx(at[0]) and row["change"] == pytest.approx(expected - at[0], abs=1e-9)
        low, high = list(curves[row["regularizer"]])[i : i + 2]
        linear = row["regularizer"] == "drop" or low == 0
        assert row["strength"] == pytest.approx((1 - w) * low + w * high if linear else low ** (1 - w) * high**w)
    header = cells(summary.equal_accuracy_table(distinct))[0]
    for title, value in list(header.items())[1:]:
        regularizer = {"dropout": "drop", "L1": "l1", "L2": "l2"}[title.split()[0]]
        row = found[(found["regularizer"] == regularizer) & (found["assoc"] == header["assoc"])].iloc[0]
        assert value == text.with_interval(row, "change", "+.3f") and f"(accuracy {shared:.3f})" in title


def test_effects_can_be_asked_for_at_any_accuracy(distinct):
    found = findings.at_equal_accuracy(distinct, 0.95).set_index(["regularizer", "assoc"])
    accuracies = {key(row): row["test_acc"] for row in distinct.models.to_dict("records")}
    q, at = network_means(distinct.modules, "score", assoc="forward_jac"), {}
    for strength, runs in points(distinct, "l2").items():
        at[strength] = [statistics.fmean(values[n] for n in runs) for values in (accuracies, q)]
    (a, q_a), (b, q_b) = at[1e-4], at[1e-3]
    assert a > 0.95 > b and (found["accuracy"] == 0.95).all()
    row = found.loc["l2", "forward_jac"]
    assert row["q"] == pytest.approx(q_a + (q_b - q_a) * (a - 0.95) / (a - b))
    assert row["strength"] == pytest.approx(10 ** (-4 + (a - 0.95) / (a - b)))


def test_next_to_the_weakest_strength_its_networks_count_once(distinct):
    """Where accuracies do not scatter, half the way to the next strength has half the change, and half its interval."""
    points_of = [
        pd.DataFrame({"strength": strength, "test_acc": accuracy, "score": values})
        for strength, accuracy, values in ((0.0, 0.98, [0.1, 0.3, 0.8]), (0.2, 0.94, [0.5, 0.9, 1.8]))
    ]
    row = findings._between(*points_of, points_of[0], 0.96, "score")
    welch = scipy.stats.ttest_ind(points_of[1]["score"], points_of[0]["score"], equal_var=False)
    low, high = welch.confidence_interval()
    found = [row["change"], row["change_low"], row["change_high"], row["change_p"]]
    assert found == pytest.approx([(16 - 6) / 15 / 2, low / 2, high / 2, welch.pvalue])


@pytest.mark.parametrize("at", [0, 1])
def test_at_the_accuracy_of_one_strength_a_single_network_of_its_neighbour_does_not_count(at):
    """Though that accuracy, worked out elsewhere, differs by rounding from what is worked out here."""
    many, one = {"test_acc": 0.94 if at else 0.96, "score": [0.5, 0.9, 1.8]}, {"test_acc": 0.95, "score": [0.7]}
    weakest = pd.DataFrame({"strength": 0.0, "test_acc": 0.98, "score": [0.1, 0.3, 0.8]})
    before, after = (pd.DataFrame({"strength": 0.2 + i} | (many if i == at else one)) for i in range(2))
    accuracy = np.nextafter((before, after)[at]["test_acc"].mean(), 0.95)
    row = findings._between(before, after, weakest, accuracy, "score")
    welch = scipy.stats.ttest_ind(many["score"], weakest["score"], equal_var=False)
    found = [row["change"], row["change_low"], row["change_high"], row["change_p"]]
    assert found == pytest.approx([(32 - 12) / 30, *welch.confidence_interval(), welch.pvalue])


def test_intervals_at_equal_accuracy_cover_the_truth_though_accuracies_scatter():
    random, covered = np.random.default_rng(0), 0
    for _ in range(500):
        at = [
            pd.DataFrame({"strength": s, "test_acc": a + 0.01 * random.normal(size=9)})
            for s, a in enumerate((0.98, 0.94))
        ]
        at = [
            t.assign(score=1 - t["test_acc"].mean() * 0 + s * 0.2 + 0.01 * random.normal(size=9))
            for s, t in enumerate(at)
        ]
        base = pd.DataFrame({"strength": 0.0, "score": random.normal(0.5, 0.01, 9), "test_acc": 0.99})
        row = findings._between(*at, base, 0.96, "score")
        covered += row["change_low"] <= 1.1 - 0.5 <= row["change_high"]
    assert abs(covered / 500 - 0.95) < 0.025


# ---- agreement ------------------------------------------------------------------------------------------------------


def group_of(a, b):
    """The group of a pair of methods, spelt out."""
    if a.replace("_norm", "") == b.replace("_norm", ""):
        return "a method and its _norm"
    ups = a.startswith("forward") + b.startswith("forward")
    return {2: "within upstream", 0: "within downstream", 1: "across"}[ups]


def agreement_of_networks(found, methods):
    """{(network, group): {column: mean over pairs and layers}} by plain loops."""
    usable = {n for name in ("drop", "l1", "l2") for runs in points(found, name).values() for n in runs}
    usable |= set(untrained_of(found))
    collected = {}
    for row in found.align.to_dict("records"):
        a, b = row["assoc_a"], row["assoc_b"]
        if a != b and a in methods and b in methods and key(row) in usable:
            values = collected.setdefault((key(row), group_of(a, b)), {})
            expected = row["element_sim_expected"]
            for name, x in {
                "element_sim": row["element_sim"],
                "adjusted": (row["element_sim"] - expected) / (1 - expected),
                "score": row["score"],
                "rmi_norm": row["rmi_norm"],
                "excess": row["score"] - row["null_mean"],
                "expected": expected,
                "null": row["null_mean"],
                "significant": row["p"] if math.isnan(row["p"]) else float(row["p"] < 0.05),
            }.items():
                if not math.isnan(x):
                    values.setdefault(name, []).append(x)
    return {k: {name: statistics.fmean(x) for name, x in values.items()} for k, values in collected.items()}


@pytest.mark.parametrize("raw", [False, True])
def test_every_cell_of_the_agreement_is_what_plain_loops_give(distinct, raw):
    methods = ["forward_cov", "forward_jac", "backward_jac", "backward_hess"] if raw else METHODS
    networks = agreement_of_networks(distinct, methods)
    rows = [row for row in cells(summary.agreement_table(distinct)) if ("raw only" in row["pairs"]) == raw]
    assert len(rows) == 5 * (3 if raw else 4)
    for row in rows:
        group, condition = row["pairs"].replace(", raw only", ""), row["condition"]
        parts = {"untrained": ["dummy"], "trained": ["l2", "l1", "drop"]}.get(condition, [condition])
        chosen = {n: values for (n, g), values in networks.items() if g == group and n[0] in parts}
        assert row["n"] == str(len(chosen)) and row["points"] == str(len({n[:4] for n in chosen}))
        for name in ("element_sim", "adjusted", "score", "rmi_norm", "excess"):
            assert row[name] == mean_text([values[name] for values in chosen.values()], ".2f"), (row, name)
        for name in ("expected", "null"):
            assert row[name] == f"{statistics.fmean(values[name] for values in chosen.values()):.2f}"
        known = [values["significant"] for values in chosen.values() if "significant" in values]
        assert row["significant"] == f"{statistics.fmean(known):.0%}"
        at = {}
        for n, values in chosen.items():
            at.setdefault(n[:4], []).append(values["adjusted"])
        means = {point: statistics.fmean(values) for point, values in at.items()}
        lowest, highest = min(means.values()), max(means.values())
        if condition == "untrained":
            assert row["range"] == "–"
            continue
        assert row["range"].startswith(f"{lowest:.2f} (") and f"… {highest:.2f} (" in row["range"]
        if condition == "drop":
            (strength,) = [point[3] for point, mean in means.items() if mean == highest]
            assert row["range"].endswith(f"(dropout {strength:g})")


def test_a_method_with_itself_does_not_count_as_agreement(exact):
    align = exact.align.copy()
    align.loc[align["assoc_a"].astype(str) == align["assoc_b"].astype(str), "element_sim"] = 1.0
    pd.testing.assert_frame_equal(agreement.agreement(exact._replace(align=align)), agreement.agreement(exact))


def test_networks_and_pairs_of_which_agreement_is_unknown_do_not_count(distinct):
    align = distinct.align.copy()
    of_network = (align["part"] == "dummy") & (align["run"] == 1000)
    across = agreement.with_group(align)["group"] == "across"
    align.loc[across.index[across & of_network[across.index]], "element_sim"] = np.nan
    rows = agreement.agreement(distinct._replace(align=align)).set_index(["condition", "group"])
    assert rows.loc["untrained", "n"].to_dict() == {
        "within upstream": 4,
        "within downstream": 4,
        "across": 3,
        "a method and its _norm": 4,
    }


def with_chance(found, level):
    """Results in which a pair of methods of one network agrees so much by chance."""
    align = found.align.copy()
    pair = align.query("part == 'l2' and run == 0 and assoc_a == 'backward_jac' and assoc_b == 'forward_jac'")
    align.loc[pair.index, "element_sim_expected"] = level
    return found._replace(align=align)


def test_where_chance_leaves_nothing_beyond_it_agreement_is_not_adjusted(distinct):
    tables = [
        agreement.agreement(with_chance(distinct, level)).filter(like="adjusted") for level in (1 - 1e-12, np.nan)
    ]
    pd.testing.assert_frame_equal(*tables)


def test_there_are_four_pairs_of_different_methods_within_each_family_and_sixteen_across(exact):
    one = exact.align.query("part == 'dummy' and run == 1000 and layer == 0")
    counts = {"within upstream": 4, "within downstream": 4, "across": 16, "a method and its _norm": 4}
    assert agreement.with_group(one)["group"].value_counts().to_dict() == counts
    raw = agreement.with_group(one, agreement.RAW_METHODS)["group"].value_counts()
    assert raw.to_dict() == {"within upstream": 1, "within downstream": 1, "across": 4, "a method and its _norm": 0}


def test_further_methods_leave_the_headline_numbers_alone(distinct):
    extra = distinct.align[distinct.align["assoc_a"] == "backward_jac"].assign(element_sim=0.0, score=0.0)
    extra["assoc_a"] = "forward_other"
    more = pd.concat([distinct.align.astype({"assoc_a": str, "assoc_b": str}), extra.astype({"assoc_b": str})])
    found = distinct._replace(align=more)
    pd.testing.assert_frame_equal(agreement.agreement(found), agreement.agreement(distinct))
    modules = distinct.modules.astype({"assoc": str})
    other = modules[modules["assoc"] == "forward_jac"].assign(assoc="forward_other", score=9.0)
    with_ninth = distinct._replace(modules=pd.concat([modules, other]))
    assert list(summary.verdicts(with_ninth))[:3] == list(summary.verdicts(distinct))[:3]
    assert len(findings.regularizer_effects(with_ninth, False)) == 27


def test_the_chance_level_follows_from_sizes_where_it_was_not_stored(distinct):
    one = distinct.align.query("part == 'dummy' and run == 1000")
    modules = distinct.modules.query("part == 'dummy' and run == 1000").copy()
    modules["dead"] = 0.0
    modules["sizes"] = [np.array([6, 6]) if m in UPSTREAM else np.array([5, 4, 1]) for m in modules["assoc"]]
    modules.loc[modules["assoc"].isin(DOWNSTREAM), "dead"] = 2.0
    levels = experiments.with_chance_level(one.drop(columns="element_sim_expected"), modules)["element_sim_expected"]
    two = np.eye(2)[[0] * 6 + [1] * 6]
    three = np.eye(4)[[0] * 5 + [1] * 4 + [2] + [3] * 2] * [1, 1, 1, 0]  # the last two units are dead
    for row, level in zip(one.itertuples(), levels, strict=True):
        a, b = (two if m in UPSTREAM else three for m in (row.assoc_a, row.assoc_b))

        assert level == pytest.approx(expected_element_similarity(torch.from_numpy(a), torch.from_numpy(b)))
    stored = experiments.with_chance_level(one, modules)["element_sim_expected"]
    pd.testing.assert_series_equal(stored, one["element_sim_expected"])


def test_where_agreement_across_is_as_high_as_within_it_is_said(distinct):
    found = distinct._replace(align=distinct.align.copy())
    align = found.align
    across = agreement.with_group(align)["group"] == "across"
    rows = across.index[across]
    align.loc[rows, "element_sim"] = 0.2 + 0.001 * np.arange(len(rows)) / len(rows)
    strong = rows[np.isclose(align.loc[rows, "l2"], 1e-3)]
    align.loc[strong, "element_sim"] = 0.9
    told = [line for line in summary.verdicts(found) if line.startswith("But at")]
    point = agreement.agreement_by_point(found).query("part == 'l2' and strength > 5e-4 and strength < 5e-3")
    up, down, beyond = (
        point.set_index("group").loc[name, "adjusted"] for name in ("within upstream", "within downstream", "across")
    )
    assert told == [
        f"But at L2 weight 0.001 agreement across is 0.90 [0.90, 0.90] (n = 3), {beyond:.2f} beyond chance, as much as "
        f"within a family on average; there it is {up:.2f} within upstream and {down:.2f} within downstream."
    ]


def test_the_alignment_matrix_is_symmetric_and_holds_means(distinct):
    matrix = agreement.alignment_matrix(distinct.align, "rmi_norm")
    assert list(matrix.index) == list(METHODS) and matrix.equals(matrix.T)
    for a, b in itertools.combinations_with_replacement(METHODS, 2):
        names = sorted((a, b))
        values = [
            row["rmi_norm"] for row in distinct.align.to_dict("records") if [row["assoc_a"], row["assoc_b"]] == names
        ]
        assert matrix.loc[a, b] == pytest.approx(statistics.fmean(values))


def test_a_rising_function_of_a_measure_correlates_perfectly_with_it():
    align = made_up.results("demo").align
    align["rmi"] = np.exp(3 * align["element_sim"])
    align["vi"] = -align["element_sim"]
    own = align["assoc_a"].astype(str) == align["assoc_b"].astype(str)
    align.loc[own, "rmi"] = -100.0  # a method with itself does not count
    values = agreement.measure_correlations(align, ["element_sim", "rmi", "vi"])
    np.testing.assert_allclose(values.loc["element_sim"], [1, 1, -1])


# ---- beyond the study -----------------------------------------------------------------------------------------------


def test_matched_correlation_ignores_what_regularization_does_to_both():
    found = made_up.results("demo", runs=2, layers=1)
    modules = found.modules
    modules["score"] = 0.1 + 0.2 * modules["drop"] + 0.01 * modules["run"]
    modules["test_acc"] = 0.95 - 0.2 * modules["drop"] + 0.01 * modules["run"]
    table = findings.accuracy_correlations(found)
    assert (table["matched"].round(9) == 1).all() and (table["overall"] < 0).all() and (table["n"] == 12).all()
    assert (table[["low", "high"]].round(9) == 1).all(axis=None)  # of resamples within each strength


def test_overall_and_matched_correlations_are_those_of_plain_loops(distinct):
    table = findings.accuracy_correlations(distinct).set_index("assoc")
    accuracies = {key(row): row["test_acc"] for row in distinct.models.to_dict("records")}
    usable = {n for name in ("drop", "l1", "l2") for runs in points(distinct, name).values() for n in runs}
    for method in METHODS:
        q = network_means(distinct.modules, "score", assoc=method)
        pairs = {n: (q[n], accuracies[n]) for n in usable}
        assert table.loc[method, "n"] == len(pairs)
        assert table.loc[method, "overall"] == pytest.approx(scipy.stats.spearmanr(list(pairs.values())).statistic)
        centred = []
        for n, (x, y) in pairs.items():
            same = [pairs[m] for m in pairs if m[:4] == n[:4]]
            centred.append((x - statistics.fmean(s[0] for s in same), y - statistics.fmean(s[1] for s in same)))
        assert table.loc[method, "matched"] == pytest.approx(scipy.stats.spearmanr(centred).statistic, abs=1e-6)


def test_the_interval_of_a_matched_correlation_resamples_networks_within_grid_points(distinct):
    row = findings.accuracy_correlations(distinct).set_index("assoc").loc["forward_jac"]
    accuracies = {key(row): row["test_acc"] for row in distinct.models.to_dict("records")}
    q, random = network_means(distinct.modules, "score", assoc="forward_jac"), np.random.default_rng(5)
    at = {}
    for n in sorted({n for name in ("drop", "l1", "l2") for runs in points(distinct, name).values() for n in runs}):
        at.setdefault(n[:4], []).append((q[n], accuracies[n]))
    draws = []
    for _ in range(4000):
        samples = (np.array(runs)[random.integers(len(runs), size=len(runs))] for runs in at.values())
        centred = np.concatenate([sample - sample.mean(0) for sample in samples])
        draws.append(scipy.stats.spearmanr(centred.round(12)).statistic)
    assert [row["low"], row["high"]] == pytest.approx(list(np.quantile(draws, [0.025, 0.975])), abs=0.03)


# ---- in words -------------------------------------------------------------------------------------------------------


def test_the_five_lines_hold_the_numbers_of_plain_loops(distinct):
    lines = list(summary.summary("mnist-wide", distinct))
    accuracies = {key(row): row["test_acc"] for row in distinct.models.to_dict("records")}
    curve = points(distinct, "drop")
    first, last = ([accuracies[n] for n in curve[strength]] for strength in (0.0, 0.6))
    assert lines[0] == (
        "mnist-wide: 45 trained and 4 untrained networks on mnist; left out, most runs being below 0.8 test accuracy: "
        "L1 weight 0.01, L2 weight 0.1 (n = 6)"
    )
    assert lines[1] == (
        f"test accuracy: {mean_text(first, '.3f')} (n = 3) without dropout, "
        f"{mean_text(last, '.3f')} (n = 3) with dropout 0.6"
    )
    for line, method, kind in ((lines[2], "forward_jac", "upstream"), (lines[3], "backward_jac", "downstream")):
        q = network_means(distinct.modules, "score", assoc=method)
        a, b = ([q[n] for n in curve[strength]] for strength in (0.6, 0.0))
        null = statistics.fmean(q[n] for n in untrained_of(distinct))
        assert line == (
            f"modularity Q, {method} ({kind}): {null:.3f} untrained, {statistics.fmean(b):.3f} without dropout, "
            f"{statistics.fmean(a):.3f} with dropout 0.6; change {difference_text(a, b, '+.3f')}"
        )
    networks = agreement_of_networks(distinct, METHODS)
    texts = []
    for group in ("within upstream", "within downstream", "across"):
        values = []
        for is_untrained in (False, True):
            chosen = [v for (n, g), v in networks.items() if g == group and (n[0] == "dummy") == is_untrained]
            sim, adjusted = (statistics.fmean(v[name] for v in chosen) for name in ("element_sim", "adjusted"))
            values.append(f"{sim:.2f} ({adjusted:.2f})")
        texts.append(f"{values[0]}, untrained {values[1]}, {group}")
    assert lines[4] == "agreement of clusterings (beyond chance): " + "; ".join(texts)


def test_the_values_compared_are_named_where_the_reference_is_missing(distinct):
    kept = [table[~((table["part"] == "l2") & np.isclose(table["l2"], 1e-5))] for table in distinct[:3]]
    lines = list(summary.summary("mnist-wide", experiments.Results(*kept, distinct.examples)))
    assert all(" with dropout 0.1" in line and "without" not in line for line in lines[1:4])
    unevaluated = distinct.modules.assign(score=distinct.modules["score"].where(distinct.modules["part"] != "drop"))
    lines = list(summary.summary("mnist-wide", distinct._replace(modules=unevaluated)))
    assert len(lines) == 2 and not any("change" in line for line in lines)


def test_a_method_that_is_known_at_one_strength_only_has_no_effect(distinct):
    unknown = (distinct.modules["assoc"] == "forward_jac") & (distinct.modules["part"] == "drop")
    modules = distinct.modules.assign(score=distinct.modules["score"].mask(unknown))
    effects = findings.regularizer_effects(distinct._replace(modules=modules), False)
    having = {name: set(rows["assoc"]) for name, rows in effects.groupby("regularizer")}
    assert having == {"l2": set(METHODS), "l1": set(METHODS), "drop": set(METHODS) - {"forward_jac"}}


@pytest.mark.parametrize("absent", ["dummy", "drop"])
def test_the_summary_makes_do_without_untrained_or_without_dropped_out_networks(absent):
    found = experiments.Results(*(table[table["part"] != absent] for table in made_up.results("demo")))
    lines = list(summary.summary("demo", found))
    assert len(lines) == (5 if absent == "dummy" else 2)
    assert ("untrained nan (nan)" in lines[-1]) == (absent == "dummy")


def with_known_effects(found):
    """Results in which Q of some methods rises, and of some falls, at the strongest dropout: much, or hardly."""
    found = found._replace(modules=found.modules.copy())
    modules, random = found.modules, np.random.default_rng(2)
    modules["score"] = 0.5 + 0.02 * random.normal(size=len(modules))
    strong = np.isclose(modules["drop"], 0.6)
    modules.loc[strong & modules["assoc"].isin(METHODS[:3]), "score"] += 0.3
    modules.loc[strong & (modules["assoc"] == METHODS[4]), "score"] -= 0.4
    modules.loc[strong & (modules["assoc"] == METHODS[3]), "score"] += 0.04
    modules.loc[strong & (modules["assoc"] == METHODS[5]), "score"] -= 0.04
    return found


def test_verdicts_count_the_methods_whose_interval_is_clear_of_zero(distinct):
    found = with_known_effects(distinct)
    modules = found.modules
    effects = findings.regularizer_effects(found, False).query("regularizer == 'drop'")
    q = {method: network_means(modules, "score", assoc=method) for method in METHODS}
    curve = points(found, "drop")
    tests = {
        m: scipy.stats.ttest_ind(*([q[m][n] for n in curve[s]] for s in (0.6, 0.0)), equal_var=False) for m in METHODS
    }
    up, down = (sum(t.pvalue < 0.05 and sign * t.statistic > 0 for t in tests.values()) for sign in (1, -1))
    clear = [sum(t.pvalue < 0.05 / 8 and sign * t.statistic > 0 for t in tests.values()) for sign in (1, -1)]
    assert 0 < clear[0] < up and 0 < clear[1] < down
    trends, far = [0, 0], {}
    for m in METHODS:
        places, values = zip(*[(i, q[m][n]) for i, runs in enumerate(curve.values()) for n in runs], strict=True)
        line = scipy.stats.linregress(places, values)
        trends[int(line.slope < 0)] += int(line.pvalue < 0.05)
        means = {s: statistics.fmean(q[m][n] for n in runs) for s, runs in curve.items()}
        far |= {(m, s): mean - means[0.0] for s, mean in means.items()}
    method, at = max(far, key=lambda key: abs(far[key]))
    (line,) = [line for line in summary.verdicts(found) if line.startswith("drop, ") and "Q rises" in line]
    assert line == (
        f"drop, 21 networks from 0 to 0.6: Q rises for {up} of 8 methods and falls for {down} "
        f"({clear[0]} and {clear[1]} after Bonferroni's correction; {' and '.join(map(str, trends))} by the trend); "
        f"median change {effects['change'].median():+.3f}, largest change along the grid {far[method, at]:+.3f} "
        f"({method}, at {at:g})."
    )


def test_every_cell_of_the_curves_is_a_mean_at_one_strength(distinct):
    accuracies = {key(row): row["test_acc"] for row in distinct.models.to_dict("records")}
    for value, form in (("score", "{:.3f}"), ("z", "{:.1f}"), ("rotation_z", "{:.1f}")):
        rows = cells(summary.curves_table(distinct, value, form))
        q = {method: network_means(distinct.modules, value, assoc=method) for method in METHODS}
        expected = {("untrained", "0"): untrained_of(distinct)}
        for name in ("drop", "l1", "l2"):
            curve = points(distinct, name, usable=False)
            expected |= {(name, text.number(strength)): runs for strength, runs in curve.items()}
        assert [(row["regularizer"], row["strength"]) for row in rows] == list(expected)
        for row, runs in zip(rows, expected.values(), strict=True):
            assert (
                row["n"] == str(len(runs)) and row["test_acc"] == f"{statistics.fmean(map(accuracies.get, runs)):.3f}"
            )
            for method in METHODS:
                assert row[method] == form.format(statistics.fmean(map(q[method].get, runs)))


def test_a_value_that_no_network_has_leaves_strengths_and_accuracies(distinct):
    rows = cells(summary.curves_table(distinct._replace(modules=distinct.modules.assign(z=np.nan)), "z", "{:.1f}"))
    names = ("regularizer", "strength", "test_acc")
    assert [[row[name] for name in names] for row in rows] == [
        [row[name] for name in names] for row in cells(summary.curves_table(distinct))
    ]
    assert set(rows[0]) == {*names, "n"} and {row["n"] for row in rows} == {"0"}


def test_the_n_of_a_curve_is_that_of_its_means(distinct):
    """Networks without a method's value, and those without any, do not count."""
    modules = distinct.modules.copy()
    last = np.isclose(modules["drop"], 0.6)
    modules.loc[last & (modules["run"] == 0), "score"] = np.nan
    modules.loc[last & (modules["run"] == 1) & (modules["assoc"] == "forward_cov"), "score"] = np.nan
    last = np.isclose(modules["drop"], 0.5)
    modules.loc[last & (modules["assoc"] == "forward_cov"), "score"] = np.nan
    rows = cells(summary.curves_table(distinct._replace(modules=modules)))
    at = {row["strength"]: row for row in rows if row["regularizer"] == "drop"}
    assert at["0.6"]["n"] == "1–2" and at["0.5"]["n"] == "0–3" and at["0.3"]["n"] == "3"
    assert at["0.5"]["forward_cov"] == "–"


def test_q_without_silent_units_stands_beside_q(distinct):
    """Layer by layer, and how many units do not vary, which says how many never fire."""
    rows = cells(summary.silent_table(distinct))
    curves = {("untrained", "0"): untrained_of(distinct)}
    for name in ("drop", "l1", "l2"):
        curves |= {(name, text.number(strength)): runs for strength, runs in points(distinct, name).items()}
    places = [(*place, layer) for place in curves for layer in ("0", "1")]
    assert [(row["regularizer"], row["strength"], row["layer"]) for row in rows] == places
    for row, (*place, layer) in zip(rows, places, strict=True):
        runs = curves[tuple(place)]
        dead = network_means(distinct.modules, "dead", assoc="forward_cov", layer=layer)
        assert row["n"] == str(len(runs)) and row["dead"] == f"{statistics.fmean(dead[n] for n in runs):.1f}"
        for method in DOWNSTREAM:
            both = (
                network_means(distinct.modules, name, assoc=method, layer=layer)
                for name in ("score", "score_without_silent")
            )
            assert row[method] == " → ".join(f"{statistics.fmean(q[n] for n in runs):.3f}" for q in both)
        assert not set(UPSTREAM) & set(row)
    without = distinct._replace(modules=distinct.modules.drop(columns="score_without_silent"))
    assert summary.has_silent(distinct) and not summary.has_silent(without)
    assert len(list(summary.tables(without))) == len(list(summary.tables(distinct))) - 1
    assert not list(summary.silent_verdict(without))


def test_what_silent_units_change_is_said(distinct):
    modules = distinct.modules.copy()
    modules["score_without_silent"] = modules["score"].where(modules["assoc"].isin(DOWNSTREAM))
    assert list(summary.silent_verdict(distinct._replace(modules=modules))) == [
        "Without the units that never fire, if there are any, the downstream methods' Q is the same."
    ]
    changed = modules["drop"].eq(0.3) & modules["part"].eq("drop") & modules["layer"].eq(1)
    modules.loc[changed & modules["assoc"].eq("backward_hess"), "score_without_silent"] -= 3.0
    modules.loc[changed & modules["assoc"].eq("forward_cov"), "dead"] = 7.0
    strongest = modules["drop"].eq(0.6) & modules["part"].eq("drop") & modules["assoc"].eq("backward_jac_norm")
    modules.loc[strongest & modules["layer"].eq(0), "score_without_silent"] += 4.0
    modules.loc[modules["drop"].eq(0.6) & modules["assoc"].eq("forward_cov") & modules["layer"].eq(0), "dead"] = 2.5
    found = distinct._replace(modules=modules)
    counts = {}
    for value in ("score", "score_without_silent"):
        effects = findings.regularizer_effects(found, per_layer=False, value=value)
        effects = effects[effects["assoc"].isin(DOWNSTREAM)]
        counts[value] = {
            name: ((rows["change_low"] > 0).sum(), (rows["change_high"] < 0).sum())
            for name, rows in effects.groupby("regularizer")
        }
    differing = [name for name in ("drop", "l1", "l2") if counts["score"][name] != counts["score_without_silent"][name]]
    assert differing == ["drop"]
    (up, down), (all_up, all_down) = counts["score_without_silent"]["drop"], counts["score"]["drop"]
    assert list(summary.silent_verdict(found)) == [
        "Without the units that never fire, downstream Q moves by -3.000 (backward_hess, layer 1, dropout 0.3: 7.0 "
        "dead units) to +4.000 (backward_jac_norm, layer 0, dropout 0.6: 2.5 dead units), that of raw methods by at "
        f"most 3.000; of 4 methods, drop makes it rise for {up} and fall for {down}, not {all_up} and {all_down}."
    ]
    modules.loc[strongest, "score_without_silent"] = modules.loc[strongest, "score"]
    (line,) = summary.silent_verdict(distinct._replace(modules=modules))
    assert line.endswith("; each regularizer does the same.")


def test_single_runs_have_effects_without_intervals():
    single = made_up.results(noise=0.0, runs=1)
    rows = findings.regularizer_effects(single, per_layer=False).set_index(["regularizer", "assoc"])
    row = rows.loc["drop", "forward_jac"]
    assert row["change"] == pytest.approx(0.13) and row["rho"] == pytest.approx(1)
    assert row[["change_low", "change_high"]].isna().all()
    two = findings._effect(np.array([0.0, 0.1]), np.array([0.2, 0.3]), np.array([]))
    assert math.isnan(two["rho"]) and math.isnan(two["trend"]) and two["change"] == pytest.approx(0.1)
    assert text.with_interval(row, "change", "+.2f") == "+0.13"
    assert summary.accuracy(single, 0.0) == "0.980 (n = 1)"


def test_single_runs_are_judged_by_the_trend_over_strengths_in_their_order():
    single = made_up.results(noise=0.0, runs=1)
    random = np.random.default_rng(0)
    single.modules["score"] += 1e-3 * random.normal(size=len(single.modules))
    rows = findings.regularizer_effects(single, per_layer=False)
    assert findings.judged_by(rows) == "trend" and findings.judged_by(rows.assign(change_p=0.5)) == "change"
    drop = rows[rows["regularizer"] == "drop"]
    row = drop.set_index("assoc").loc["forward_jac"]
    q = network_means(single.modules, "score", assoc="forward_jac")
    curve = [q[runs[0]] for runs in points(single, "drop").values()]
    line = scipy.stats.linregress(range(len(curve)), curve)
    assert row["trend"] == pytest.approx((len(curve) - 1) * line.slope) and row["trend_p"] == line.pvalue
    assert row["trend_low"] < row["trend"] < row["trend_high"]
    assert not [line for line in summary.verdicts(single) if "matched regularization" in line]
    part = single._replace(
        models=single.models.assign(test_acc=single.models["test_acc"].where(single.models["part"].eq("drop")))
    )
    lines = [line.split(" | ") for line in summary.curves_table(part).splitlines()[2:]]
    assert [line[:3] for line in lines] == [["| drop", text.number(s), "1"] for s in np.arange(1, 15) / 20]
    words, up, down = summary.effect_verdict(drop), sum(drop["trend_low"] > 0), sum(drop["trend_high"] < 0)
    told = f"drop, 14 networks from 0 to 0.65: Q rises for {up} of 8 methods and falls for {down} ("
    assert up >= 4 and words.startswith(told)
    assert "correction; by the trend, an end of the grid having a single run); median trend" in words
    columns = [f"{name}_{end}" for name in ("change", "trend") for end in ("low", "high", "p")]
    assert summary.effect_verdict(drop.assign(**dict.fromkeys(columns, np.nan))).startswith(
        "drop, 14 networks from 0 to 0.65: too few for intervals; median change +"
    )


def test_intervals_of_accuracy_end_at_one():
    few = made_up.results(runs=3)
    few.models.loc[np.isclose(few.models["drop"], 0.6), "test_acc"] = [1.0, 0.99, 0.8]
    assert summary.accuracy(few, 0.6) == "0.930 [0.650, 1.000] (n = 3)"


def test_an_experiment_in_which_no_network_learnt_has_a_summary_without_effects():
    failed = made_up.results("demo")
    failed.models.loc[failed.models["part"] != "dummy", "test_acc"] = 0.5
    assert len(findings.regularizer_effects(failed)) == 0
    lines = list(summary.summary("demo", failed))
    assert len(lines) == 2 and lines[1].startswith(
        "agreement of clusterings (beyond chance): nan (nan), untrained 0.60"
    )
    assert len(summary.effects_table(failed).splitlines()) == 2
    assert all(isinstance(table, str) for table in summary.tables(failed)) and list(summary.verdicts(failed))
