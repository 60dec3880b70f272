"""The finding of lesions on made-up tables: each number again by plain loops, and each artist of each figure."""

import math
import statistics

import made_up
import numpy as np
import pandas as pd
import pytest
import scipy.stats
from matplotlib.colors import to_rgb
from test_findings import cells, difference_text, key, mean_text, network_means, points, untrained_of, with_chance
from test_plots import assert_band, assert_curve, bands, error_bars, legend_of, note_of, shown

from associations import DOWNSTREAM, METHODS, UPSTREAM
from report import lesion_figures, lesion_findings, lesion_text, style, summary
from study import grids

KINDS = {"mean": "lesions to the mean", "zero": "lesions to zero"}


@pytest.fixture(scope="module")
def distinct():
    """Every cell has a value of its own; some methods have no z in some networks, one network none downstream."""
    found = made_up.distinct()
    random, lesions = np.random.default_rng(5), found.lesions
    for kind in KINDS:
        lesions.loc[random.random(len(lesions)) < 0.1, f"{kind}_specialization_z"] = np.nan
    first = (lesions["part"] == "l2") & (lesions["run"] == 1) & np.isclose(lesions["l2"], 1e-2)
    lesions.loc[first & lesions["assoc"].isin(DOWNSTREAM), "mean_specialization_z"] = np.nan
    return found


def usable_points(found):
    """{(regularizer, strength): networks}."""
    return {(name, s): runs for name in ("drop", "l1", "l2") for s, runs in points(found, name).items()}


def networks_of(found):
    """{condition: usable networks}; those of a regularizer are its own part's."""
    by_part = {}
    for runs in usable_points(found).values():
        for network in runs:
            by_part.setdefault(network[0], {})[network] = None
    everything = {network: None for part in by_part.values() for network in part}
    return {"untrained": untrained_of(found), "trained": list(everything)} | {k: list(v) for k, v in by_part.items()}


def each_z(found, value):
    """{(method, layer): {network: value}} where it is known."""
    z = {}
    for row in found.lesions.to_dict("records"):
        if not math.isnan(row[value]):
            z.setdefault((row["assoc"], row["layer"]), {})[key(row)] = row[value]
    return z


def differences(found, kind, layer):
    """{network: (mean z upstream, mean z downstream)} where both are known."""
    up, down = ({}, {})
    for row in found.lesions.to_dict("records"):
        z = row[f"{kind}_specialization_z"]
        if row["layer"] == layer and not math.isnan(z):
            (up if row["assoc"] in UPSTREAM else down).setdefault(key(row), []).append(z)
    return {n: (statistics.fmean(up[n]), statistics.fmean(down[n])) for n in up if n in down}


# ---- numbers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["mean_specialization_z", "zero_importance"])
def test_values_in_each_condition_and_their_gain_are_those_of_plain_loops(distinct, value):
    table = lesion_findings.by_condition(distinct, value).set_index(["condition", "assoc", "layer"])
    conditions, all_z = networks_of(distinct), each_z(distinct, value)
    assert len(table) == len(conditions) * len(METHODS) * 2
    for (condition, assoc, layer), row in table.iterrows():
        z = all_z[assoc, layer]
        values = [z[n] for n in conditions[condition] if n in z]
        null = [z[n] for n in conditions["untrained"] if n in z]
        assert row["n"] == len(values)
        mean = scipy.stats.ttest_1samp(values, 0).confidence_interval()
        np.testing.assert_allclose(row[[value, f"{value}_low", f"{value}_high"]].astype(float),
                                   [statistics.fmean(values), *mean], atol=1e-9)  # fmt: skip
        if condition == "untrained":
            assert math.isnan(row["gain"])
            continue
        welch = scipy.stats.ttest_ind(values, null, equal_var=False)
        expected = [statistics.fmean(values) - statistics.fmean(null), *welch.confidence_interval(), welch.pvalue]
        np.testing.assert_allclose(row[["gain", "gain_low", "gain_high", "gain_p"]].astype(float), expected, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_differences_are_upstream_less_downstream_within_each_network(distinct, kind):
    table = lesion_findings.family_differences(distinct, kind)
    groups = {(name, "nan"): networks for name, networks in networks_of(distinct).items()}
    groups |= {(name, str(strength)): networks for (name, strength), networks in usable_points(distinct).items()}
    assert len(table) == 2 * len(groups)
    for _, row in table.iterrows():
        networks = groups[row["condition"], str(row["strength"])]
        pairs = differences(distinct, kind, row["layer"])
        up, down = zip(*[pairs[n] for n in networks if n in pairs], strict=True)
        paired = scipy.stats.ttest_rel(up, down).confidence_interval()
        names = ["upstream", "downstream", "difference", "difference_low", "difference_high", "n"]
        means = statistics.fmean(up), statistics.fmean(down)
        expected = [*means, means[0] - means[1], *paired, len(up)]
        np.testing.assert_allclose(row[names].astype(float), expected, atol=1e-9)
    assert table["n"].max() == (38 if kind == "mean" else 39)  # one network has no z downstream


def matched(pairs):
    """(overall, matched) rank correlation of {network: (x, y)}."""
    centred = []
    for n, (x, y) in pairs.items():
        same = [pairs[m] for m in pairs if m[:4] == n[:4]]
        centred.append((x - statistics.fmean(s[0] for s in same), y - statistics.fmean(s[1] for s in same)))
    return [scipy.stats.spearmanr(list(each)).statistic for each in (pairs.values(), centred)]


@pytest.mark.parametrize("kind", KINDS)
def test_correlations_with_q_are_those_of_plain_loops(distinct, kind):
    table = lesion_findings.modularity_correlations(distinct, kind).set_index(["assoc", "layer"])
    assert len(table) == len(METHODS) * 2
    all_z = each_z(distinct, f"{kind}_specialization_z")
    for (assoc, layer), row in table.iterrows():
        q = network_means(distinct.modules, "score", assoc=assoc, layer=layer)
        z = all_z[assoc, layer]
        pairs = {n: (q[n], z[n]) for n in networks_of(distinct)["trained"] if n in z}
        assert row["n"] == len(pairs)
        np.testing.assert_allclose(row[["overall", "matched"]].astype(float), matched(pairs), atol=1e-6)


def test_correlations_with_agreement_are_those_of_plain_loops(distinct):
    table = lesion_findings.agreement_correlations(distinct, "zero").set_index(["family", "layer"])
    assert len(table) == 6
    for (family, layer), row in table.iterrows():
        agreed, z = {}, {}
        for each in distinct.align.to_dict("records"):
            across = (each["assoc_a"] in UPSTREAM) != (each["assoc_b"] in UPSTREAM)
            if across and each["layer"] == layer:
                beyond = (each["element_sim"] - each["element_sim_expected"]) / (1 - each["element_sim_expected"])
                agreed.setdefault(key(each), []).append(beyond)
        names = {"upstream": UPSTREAM, "downstream": DOWNSTREAM, "both": METHODS}[family]
        for each in distinct.lesions.to_dict("records"):
            value = each["zero_specialization_z"]
            if each["assoc"] in names and each["layer"] == layer and not math.isnan(value):
                z.setdefault(key(each), []).append(value)
        wanted = [n for n in networks_of(distinct)["trained"] if n in z]
        pairs = {n: (statistics.fmean(agreed[n]), statistics.fmean(z[n])) for n in wanted}
        assert row["n"] == len(pairs)
        np.testing.assert_allclose(row[["overall", "matched"]].astype(float), matched(pairs), atol=1e-6)


def test_pairs_that_agree_by_chance_alone_do_not_count(distinct):
    tables = [lesion_findings.agreement_correlations(with_chance(distinct, level)) for level in (1 - 1e-12, np.nan)]
    pd.testing.assert_frame_equal(*tables)


def test_made_up_specialization_is_found():
    found = made_up.results(noise=0.0)
    table = lesion_findings.family_differences(found).query("strength.isna()").set_index(["condition", "layer"])
    assert table.loc[("trained", 1), "difference"] == pytest.approx(-3)
    assert table.loc[("untrained", 0), "difference"] == 0
    effects = lesion_findings.specialization_effects(found, "zero")
    np.testing.assert_allclose(effects.loc[effects["regularizer"] == "drop", "change"], 0.65)


# ---- words and tables -----------------------------------------------------------------------------------------------


def test_sentences_hold_the_numbers_of_plain_loops(distinct):
    lines = list(lesion_text.verdicts(distinct))
    assert len(lines) == 2 * (2 + 3 + 2)
    conditions, i = networks_of(distinct), 0
    for kind, title in KINDS.items():
        all_z = each_z(distinct, f"{kind}_specialization_z")
        for layer in (0, 1):
            texts = []
            for condition in ("trained", "untrained"):
                pairs = differences(distinct, kind, layer)
                up, down = zip(*[pairs[n] for n in conditions[condition] if n in pairs], strict=True)
                paired = mean_text([a - b for a, b in zip(up, down, strict=True)], "+.2f")
                texts.append(
                    f"{condition} upstream {statistics.fmean(up):.2f}, downstream {statistics.fmean(down):.2f}, "
                    f"difference within networks {paired} (n = {len(up)})"
                )
            means = {}
            for (name, strength), networks in usable_points(distinct).items():
                known = [pairs[n][0] - pairs[n][1] for n in networks if n in pairs]
                means[f"{grids.REGULARIZERS[name].label} {strength:.2g}".replace("e-0", "e-")] = statistics.fmean(known)
            low, high = min(means, key=means.get), max(means, key=means.get)
            texts.append(
                f"at single grid points the difference is {means[low]:+.2f} at {low} to {means[high]:+.2f} at {high}"
            )
            assert lines[i + layer] == f"z of specialization, {title}, layer {layer}: {'; '.join(texts)}."
        ends = {"dropout": (0.0, 0.6, "drop"), "L1 weight": (0.0, 1e-3, "l1"), "L2 weight": (1e-5, 1e-2, "l2")}
        for line, (label, (low, high, name)) in zip(lines[i + 2 : i + 5], ends.items(), strict=True):
            texts = []
            for layer in (0, 1):
                changes = []
                for method in METHODS:
                    z = all_z[method, layer]
                    a, b = ([z[n] for n in points(distinct, name)[at] if n in z] for at in (high, low))
                    known = len(a) > 1 and len(b) > 1
                    welch = scipy.stats.ttest_ind(a, b, equal_var=False).confidence_interval() if known else (-1, 1)
                    changes.append((statistics.fmean(a) - statistics.fmean(b), *welch))
                up, down = sum(c[1] > 0 for c in changes), sum(c[2] < 0 for c in changes)
                median = statistics.median(c[0] for c in changes)
                texts.append(f"{up} up and {down} down of 8 methods in layer {layer}, median change {median:+.2f}")
            first, last = (f"{s:.2g}".replace("e-0", "e-") for s in (low, high))
            assert line == (
                f"z of specialization, {title}, {label} {first} to {last} (95% interval of the change clear of zero; "
                f"by chance 0.2 up and as many down): {'; '.join(texts)}."
            )
        for line, table in (
            (lines[i + 5], lesion_findings.modularity_correlations(distinct, kind)),
            (lines[i + 6], lesion_findings.agreement_correlations(distinct, kind)),
        ):
            up, down = sum(table["low"] > 0), sum(table["high"] < 0)
            assert line.endswith(
                f"rank correlation at matched regularization {min(table['matched']):+.2f} to "
                f"{max(table['matched']):+.2f}, positive in {up} and negative in {down} of {len(table)} cases "
                f"(95% interval clear of zero; by chance {len(table) / 40:.1f} of each)."
            )
        assert " and Q: " in lines[i + 5] and " and agreement across families: " in lines[i + 6]
        i += 7


def test_cells_of_the_tables_are_means_and_differences(distinct):
    conditions = networks_of(distinct)
    rows = cells(lesion_text.specialization_table(distinct))
    assert len(rows) == 2 * 2 * len(METHODS)
    all_z = {title: each_z(distinct, f"{kind}_specialization_z") for kind, title in KINDS.items()}
    for row in rows:
        z = all_z[row["z, by"]][row["method"], int(row["layer"])]
        values = {name: [z[n] for n in networks if n in z] for name, networks in conditions.items()}
        for name, each in values.items():
            assert row[name] == f"{mean_text(each, '.2f')}, n = {len(each)}"
        assert row["trained − untrained"] == difference_text(values["trained"], values["untrained"], "+.2f")
        a, b = ([z[n] for n in points(distinct, "drop")[at] if n in z] for at in (0.6, 0.0))
        if len(a) > 1 and len(b) > 1:
            known = sum(n in z for runs in points(distinct, "drop").values() for n in runs)
            assert row["dropout 0 to 0.6"] == f"{difference_text(a, b, '+.2f')}, n = {known}"
    families = cells(lesion_text.family_table(distinct))
    (row,) = [r for r in families if (r["networks"], r["layer"], r["z, by"]) == ("L1 weight 0", "1", "lesions to zero")]
    pairs = differences(distinct, "zero", 1)
    up, down = zip(*[pairs[n] for n in points(distinct, "l1")[0.0]], strict=True)
    assert row["upstream"] == f"{statistics.fmean(up):.2f}" and row["downstream"] == f"{statistics.fmean(down):.2f}"
    assert row["difference"] == mean_text([a - b for a, b in zip(up, down, strict=True)], "+.2f") and row["n"] == "3"
    table = lesion_findings.modularity_correlations(distinct, "zero").set_index(["assoc", "layer"])
    for row in cells(lesion_text.correlation_table(distinct)):
        if (row["z, by"], row["with"], row["layer"]) == ("lesions to zero", "Q", "1"):
            own = table.loc[(row["of"], 1)]
            assert row["overall"] == f"{own['overall']:+.2f}"
            assert row["matched"] == f"{own['matched']:+.2f} [{own['low']:+.2f}, {own['high']:+.2f}]"


def test_without_intervals_nothing_is_counted(distinct):
    rows = lesion_findings.specialization_effects(distinct).query("regularizer == 'drop' and layer == 0")
    few = rows.assign(**{f"{name}_{end}": np.nan for name in ("change", "trend") for end in ("low", "high", "p")})
    assert lesion_text.effect_verdict(few) == (
        f"dropout 0 to 0.6 (too few for intervals): in layer 0, median change {rows['change'].median():+.2f}"
    )


def test_where_nothing_was_lesioned_nothing_is_said(distinct):
    without = distinct._replace(lesions=distinct.lesions.iloc[:0])
    assert not list(lesion_text.verdicts(without)) and not list(lesion_text.tables(without))
    for draw in (
        lambda: lesion_figures.specialization_vs_regularization(without),
        lambda: lesion_figures.specialization_by_layer(without, "drop"),
        lambda: lesion_figures.family_differences(without),
        lambda: lesion_figures.conditions(without),
        lambda: lesion_figures.effects_side_by_side(without.examples.drop(columns="mean_effects")),
        lambda: lesion_figures.effects_of_methods(without.examples.iloc[:0]),
    ):
        assert draw().axes[0].texts[0].get_text().startswith("No lesions in these tables")


def test_the_summary_ends_with_what_lesions_say_where_there_are_any():
    found = made_up.results("demo", layers=1)
    verdicts, tables = list(lesion_text.verdicts(found)), list(lesion_text.tables(found))
    assert list(summary.verdicts(found))[-len(verdicts) :] == verdicts
    assert list(summary.tables(found))[-3:] == tables


# ---- figures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_each_method_has_the_curve_of_its_z_and_its_own_untrained_band_in_its_colour(distinct, kind):
    panels = np.array(lesion_figures.specialization_vs_regularization(distinct, kind).axes).reshape(2, 3)
    for row, family in zip(panels, (UPSTREAM, DOWNSTREAM), strict=True):
        assert row[0].get_ylabel() == f"z of specialization\n({KINDS[kind]})"
        for ax, regularizer in zip(row, ("drop", "l1", "l2"), strict=True):
            expected = []
            for method in family:
                z = network_means(distinct.lesions, f"{kind}_specialization_z", assoc=method)
                _, y, *_, line = error_bars(ax)[method.replace("_", " ")]
                assert to_rgb(line.get_color()) == to_rgb(style.COLORS[method])
                runs = points(distinct, regularizer, usable=False)
                np.testing.assert_allclose(
                    y, [statistics.fmean(z[n] for n in each if n in z) for each in runs.values()]
                )
                expected.append((to_rgb(style.COLORS[method]), [z[n] for n in untrained_of(distinct)]))
            for band, (color, values) in zip(bands(ax), sorted(expected), strict=True):
                assert_band(band, values, color)


def test_each_layer_has_its_line(distinct):
    drawn = lesion_figures.specialization_by_layer(distinct, "drop", "zero")
    for ax, method in zip(drawn.axes, METHODS, strict=True):
        for layer, container in enumerate(ax.containers):
            z = network_means(distinct.lesions, "zero_specialization_z", assoc=method, layer=layer)
            runs = points(distinct, "drop", usable=False)
            expected = [[z[n] for n in each if n in z] for each in runs.values()]
            y = np.array(container.lines[0].get_ydata(), dtype=float)
            np.testing.assert_allclose(y, [statistics.fmean(e) for e in expected if e])


def test_differences_are_drawn_upstream_less_downstream_a_row_a_kind(distinct):
    panels = np.array(lesion_figures.family_differences(distinct).axes).reshape(2, 3)
    assert legend_of(panels[0, -1]) == ["layer 0", "layer 1"]
    assert "Shaded: mean ± σ of untrained networks (n = 4)." in note_of(panels[0, 0].figure)
    for row, kind in zip(panels, KINDS, strict=True):
        assert row[0].get_ylabel() == f"upstream − downstream\nz, {KINDS[kind]}"
        for ax, regularizer in zip(row, ("drop", "l1", "l2"), strict=True):
            curves, expected = error_bars(ax), []
            for layer in (0, 1):
                values = {n: a - b for n, (a, b) in differences(distinct, kind, layer).items()}
                known = at_known(distinct, regularizer, values)
                if all(len(each) > 1 for each in known.values()):
                    assert_curve(curves[f"layer {layer}"], known)
                color = curves[f"layer {layer}"][-1].get_color()
                expected.append((to_rgb(color), [values[n] for n in untrained_of(distinct)]))
            for band, (color, values) in zip(bands(ax), sorted(expected), strict=True):
                assert_band(band, values, color)


def at_known(found, regularizer, values):
    """{strength: values of its networks that have one}."""
    runs = points(found, regularizer, usable=False)
    return {strength: [values[n] for n in each if n in values] for strength, each in runs.items()}


def test_conditions_stand_in_the_row_of_their_method(distinct):
    drawn = lesion_figures.conditions(distinct, "zero")
    conditions, all_z = networks_of(distinct), each_z(distinct, "zero_specialization_z")
    names = [tick.get_text() for tick in drawn.axes[0].get_yticklabels()]
    assert names == [method.replace("_", " ") for method in METHODS]
    legend = []
    for condition in ("untrained", "trained"):
        sizes = [len(set(conditions[condition]) & set(all_z[method, 1])) for method in METHODS]
        assert min(sizes) < max(sizes)
        legend.append(f"{condition} (n = {min(sizes)}–{max(sizes)})")
    assert legend_of(drawn.axes[-1]) == legend
    assert note_of(drawn).startswith("z of specialization, lesions to zero. Bars: 95% intervals")
    for layer, ax in enumerate(drawn.axes):
        assert ax.get_title() == f"layer {layer}" and ax.get_xlabel() == "z"
        colors = {to_rgb(style.UNTRAINED): "untrained", to_rgb(style.TRAINED): "trained"}
        assert len(ax.containers) == 2 * len(METHODS)
        for container in ax.containers:
            line, _, (bars,) = container.lines
            method, condition = METHODS[round(line.get_ydata()[0])], colors[to_rgb(line.get_color())]
            z = all_z[method, layer]
            values = [z[n] for n in conditions[condition] if n in z]
            assert line.get_xdata()[0] == pytest.approx(statistics.fmean(values))
            interval = scipy.stats.ttest_1samp(values, 0).confidence_interval()
            np.testing.assert_allclose(sorted(bars.get_segments()[0][:, 0]), interval)


def test_effects_of_all_methods_are_clusters_by_classes_in_their_panels(distinct):
    table = distinct.examples.query("part == 'l2' and layer == 1")
    panels = np.array(lesion_figures.effects_of_methods(table).axes).reshape(2, 2, 4)
    rows = {row.assoc: row for row in table.itertuples()}
    for pair, family in zip(panels, (UPSTREAM, DOWNSTREAM), strict=True):
        assert [ax.get_ylabel() for ax in pair[:, 0]] == [f"{title}\ncluster" for title in KINDS.values()]
        for column, method in zip(pair.T, family, strict=True):
            bits = [getattr(rows[method], f"{kind}_specialization") for kind in KINDS]
            assert column[0].get_title() == f"{method.replace('_', ' ')}: {bits[0]:.2f} bits"
            assert column[1].get_title() == f"{bits[1]:.2f} bits"
            for ax, kind in zip(column, KINDS, strict=True):
                effects = getattr(rows[method], f"{kind}_effects")
                np.testing.assert_array_equal(shown(ax), effects)
                assert ax.images[0].get_clim() == pytest.approx((-np.abs(effects).max(), np.abs(effects).max()))
                assert [t.get_text() for t in ax.get_xticklabels()] == [str(k) for k in range(10)]
                assert [t.get_text() for t in ax.get_yticklabels()] == ["1", "2", "3"]


def test_an_upstream_and_a_downstream_methods_effects_stand_side_by_side(distinct):
    examples = distinct.examples.replace({"layer": {1: 3}})
    drawn = lesion_figures.effects_side_by_side(examples, kind="zero")
    assert note_of(drawn) == (
        "Lesions to zero. Red: a lesion of the cluster raises the class's loss; blue: it lowers it; each panel to its "
        "own largest effect."
    )
    panels = np.array(drawn.axes).reshape(2, 4)
    for line, (part, drop, words) in zip(
        panels, (("l2", 0.0, "L2 weight 1e-5"), ("drop", 0.6, "dropout 0.6")), strict=True
    ):
        assert line[0].get_ylabel() == f"{words}\ncluster"
        places = [(layer, method) for layer in (0, 3) for method in ("forward_jac", "backward_jac")]
        for ax, (layer, method) in zip(line, places, strict=True):
            t = examples
            rows = t[(t["part"] == part) & (t["drop"] == drop) & (t["layer"] == layer) & (t["assoc"] == method)]
            (row,) = rows.itertuples()
            np.testing.assert_array_equal(shown(ax), row.zero_effects)
            title = f"layer {layer}, {method.replace('_', ' ')}: {row.zero_specialization:.2f} bits"
            assert ax.get_title() == title and to_rgb(ax.title.get_color()) == to_rgb(style.COLORS[method])


def test_red_is_what_hurts(distinct):
    table = distinct.examples.query("part == 'l2' and layer == 0")
    ax = lesion_figures.effects_of_methods(table).axes[0]
    red, _, blue, _ = ax.images[0].cmap(ax.images[0].norm(5.0))
    assert red > blue
