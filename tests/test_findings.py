"""The findings on made-up tables with known answers."""

import itertools

import made_up
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from associations import METHODS, UPSTREAM
from report import findings, summary


@pytest.fixture(scope="module")
def exact():
    return made_up.results(noise=0.0)


# ---- intervals ------------------------------------------------------------------------------------------------------


def test_the_interval_of_the_mean_is_the_quantiles_of_resampled_means():
    values = np.array([1.0, 4.0, 2.0, 7.0])
    means = sorted(np.mean(sample) for sample in itertools.product(values, repeat=4))  # all 256 resamples
    row = findings.mean_and_interval(values)
    assert row["mean"] == 3.5 and row["n"] == 4
    assert row["low"] == pytest.approx(np.quantile(means, 0.025), abs=0.15)
    assert row["high"] == pytest.approx(np.quantile(means, 0.975), abs=0.15)


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says():
    random = np.random.default_rng(0)
    rows = [findings.mean_and_interval(random.normal(size=30)) for _ in range(300)]
    covered = np.mean([row["low"] <= 0 <= row["high"] for row in rows])
    assert 0.90 <= covered <= 0.97


def test_intervals_are_the_same_every_time_and_nan_for_one_value():
    assert findings.mean_and_interval([1, 2, 4]).equals(findings.mean_and_interval([1, 2, 4]))
    one = findings.mean_and_interval([3.0, np.nan])
    assert one["mean"] == 3 and one["n"] == 1 and np.isnan(one["low"])
    assert np.isnan(findings.mean_and_interval([np.nan])["mean"])


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=3, max_size=12))
def test_spearman_is_scipys_also_with_ties(pairs):
    x, y = np.array(pairs, dtype=float).T
    ours = findings.spearman(x, y)
    if len(set(x)) < 2 or len(set(y)) < 2:
        assert np.isnan(ours)
    else:
        assert ours == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)


def test_resamples_stay_within_their_groups():
    groups = np.array([0, 1, 0, 2, 1, 1])
    draws = findings.resamples(groups, draws=200)
    assert (groups[draws] == groups).all() and set(draws[:, 0]) == {0, 2} and set(draws[:, 3]) == {3}


# ---- regularisation -------------------------------------------------------------------------------------------------


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


def test_usable_rows_are_those_that_networks_can_bear(exact):
    kept = findings.usable(exact.modules, exact.models)
    assert kept["drop"].max() == 0.65 and kept["l1"].max() == pytest.approx(3.16228e-3) and kept["l2"].max() == 1e-2
    assert (kept["part"] == "dummy").sum() == (exact.modules["part"] == "dummy").sum()


@pytest.mark.parametrize("per_layer", [True, False])
def test_effects_are_those_that_were_made_up(exact, per_layer):
    table = findings.regularizer_effects(exact, per_layer)
    assert len(table) == 3 * 8 * (2 if per_layer else 1)
    drop, rest = table[table["regularizer"] == "drop"], table[table["regularizer"] != "drop"]
    up = drop["assoc"].isin(UPSTREAM)
    for name in ("change", "gain"):
        np.testing.assert_allclose(drop.loc[up, name], 0.2 * 0.65, atol=1e-12)
        np.testing.assert_allclose(drop.loc[~up, name], 0, atol=1e-12)
        np.testing.assert_allclose(rest[name], 0, atol=1e-12)
    assert (drop.loc[up, "rho"].round(9) == 1).all() and (drop["at"] == 0.65).all()
    assert (drop["n"] == 14 * 2).all() and (drop["n_untrained"] == 4).all() and drop["weakest"].round(9).eq(0.1).all()


def test_an_interval_of_the_effect_holds_it_and_shrinks_with_more_runs():
    few, many = (
        findings.regularizer_effects(made_up.results(runs=runs), False).query("regularizer == 'drop'")
        for runs in (3, 9)
    )
    truth = np.where(many["assoc"].isin(UPSTREAM), 0.13, 0.0)
    assert np.mean((many["change_low"] <= truth) & (truth <= many["change_high"])) >= 0.6
    assert (many["change_high"] - many["change_low"]).mean() < (few["change_high"] - few["change_low"]).mean()


def test_networks_are_averaged_over_layers_before_they_are_counted(exact):
    networks = findings.per_network(exact.modules, ["score"])
    assert len(networks) == len(exact.models) * len(METHODS)


# ---- agreement ------------------------------------------------------------------------------------------------------


def test_agreement_is_that_made_up(exact):
    table = findings.agreement(exact).set_index(["condition", "group"])
    for condition in ("untrained", "trained", "drop", "l1", "l2"):
        values = table.loc[condition]
        np.testing.assert_allclose(values["element_sim"].reindex(findings.GROUPS), [0.6, 0.5, 0.3])
        np.testing.assert_allclose(values["excess"].reindex(findings.GROUPS), [0.35, 0.25, 0.05])
        np.testing.assert_allclose(values["significant"].reindex(findings.GROUPS), [1, 1, 0])
    assert (table.loc["untrained", "n"] == 4).all() and (table.loc["drop", "n"] == 13 * 2).all()


def test_a_method_with_itself_does_not_count_as_agreement(exact):
    align = exact.align.copy()
    same = align["assoc_a"].astype(str) == align["assoc_b"].astype(str)
    align.loc[same, "element_sim"] = 1.0
    changed = findings.agreement(exact._replace(align=align))
    pd.testing.assert_frame_equal(changed, findings.agreement(exact))


def test_there_are_six_pairs_within_each_family_and_sixteen_across(exact):
    one = findings.with_group(exact.align).query("part == 'dummy' and run == 1000 and layer == 0")
    assert one["group"].value_counts().to_dict() == {"within upstream": 6, "within downstream": 6, "across": 16}


def test_the_alignment_matrix_is_symmetric_and_holds_means(exact):
    matrix = findings.alignment_matrix(exact.align)
    assert (
        matrix.shape == (8, 8)
        and matrix.equals(matrix.T)
        and matrix.loc["forward_cov", "backward_jac"] == pytest.approx(0.3)
    )


def test_a_rising_function_of_a_measure_correlates_perfectly_with_it(exact):
    align = made_up.results("demo").align
    align["rmi"] = np.exp(3 * align["element_sim"])
    align["vi"] = -align["element_sim"]
    values = findings.measure_correlations(align, ["element_sim", "rmi", "vi"])
    np.testing.assert_allclose(values.loc["element_sim"], [1, 1, -1])


# ---- beyond the study -----------------------------------------------------------------------------------------------


def test_matched_correlation_ignores_what_regularisation_does_to_both():
    found = made_up.results("demo", runs=2, layers=1)
    modules = found.modules
    modules["score"] = 0.1 + 0.2 * modules["drop"] + 0.01 * modules["run"]
    modules["test_acc"] = 0.95 - 0.2 * modules["drop"] + 0.01 * modules["run"]
    table = findings.accuracy_correlations(found)
    assert (table["matched"].round(9) == 1).all() and (table["overall"] < 0).all() and (table["n"] == 12).all()


def test_clusters_repeat_where_number_and_sizes_are_the_same():
    found = made_up.results("demo", layers=1)
    table = findings.cluster_repeatability(found.modules)
    assert (table["size_overlap"] == 1).all() and (table["spread"] == 0).all()
    modules = found.modules
    modules["sizes"] = [np.array([10, 2]) if run % 2 else np.array([6, 6]) for run in modules["run"]]
    modules["num_clusters"] = 3.0 + modules["run"] % 2
    table = findings.cluster_repeatability(modules).query("part != 'dummy'")
    np.testing.assert_allclose(table["size_overlap"], 8 / 12)
    np.testing.assert_allclose(table["spread"], np.std([3, 4], ddof=1))


def test_single_runs_have_effects_without_intervals():
    single = made_up.results(noise=0.0, runs=1)
    rows = findings.regularizer_effects(single, per_layer=False).set_index(["regularizer", "assoc"])
    row = rows.loc["drop", "forward_jac"]
    assert row["change"] == pytest.approx(0.13) and row["rho"] == pytest.approx(1)
    bounds = [f"{name}_{end}" for name in ("change", "gain", "rho") for end in ("low", "high")]
    assert row[bounds].isna().all()
    assert summary.interval(row, "change", "+.2f") == "+0.13"
    assert summary.accuracy(single, 0.0) == "0.980 (n = 1)"


def test_an_experiment_in_which_no_network_learnt_has_a_summary_without_effects():
    failed = made_up.results("demo")
    failed.models.loc[failed.models["part"] != "dummy", "test_acc"] = 0.5
    assert len(findings.regularizer_effects(failed)) == 0
    lines = list(summary.summary("demo", failed))
    assert len(lines) == 2 and lines[1].startswith("agreement of clusterings: nan (0.60 untrained)")
    assert len(summary.effects_table(failed).splitlines()) == 2


def test_the_table_of_curves_has_the_means_at_each_strength_and_of_untrained_networks(exact):
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in summary.curves_table(exact).splitlines()]
    rows = {(line[0], line[1]): dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert rows["untrained", "0"]["forward_jac"] == rows["drop", "0"]["forward_jac"] == "0.100"
    assert rows["drop", "0.5"]["forward_jac"] == "0.200" and rows["drop", "0.5"]["backward_jac"] == "0.100"
    assert rows["untrained", "0"]["n"] == "4" and rows["drop", "0.5"]["test_acc"] == "0.980"
