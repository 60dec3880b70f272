"""Every figure can be drawn and read, and its artists have the values, colours, labels and places of the table."""

import io
import itertools
import statistics

import made_up
import matplotlib.pyplot as plt
import numpy as np
import pytest
import scipy.stats
from matplotlib.colors import to_rgb
from PIL import Image
from test_findings import key, network_means, points, untrained_of

from associations import BASE_METHODS, DOWNSTREAM, METHODS, UPSTREAM
from report import (
    agreement,
    agreement_figures,
    effect_figures,
    findings,
    matrix_figures,
    module_figures,
    style,
    training_figures,
)
from study import grids


@pytest.fixture(scope="module")
def found():
    return made_up.results("mnist-base")


def figures(found):
    """Every figure, by name."""
    weakest = found.examples.query("part == 'l2' and layer == 0")
    trained = findings.trained(found.align)
    yield "accuracy", training_figures.accuracy_vs_regularization(found.models)
    yield "norms", training_figures.norms_vs_regularization(found.models)
    yield "failures", training_figures.failures_vs_regularization(found.models)
    yield "q", module_figures.modules_vs_regularization(found)
    yield (
        "layers",
        module_figures.modules_by_layer(found, "l1", authors=found.modules.query("part == 'dummy' and run == 1000")),
    )
    yield "depth", module_figures.modules_vs_depth(found)
    yield "null", module_figures.null_distributions(found)
    yield "effects", effect_figures.effects(findings.regularizer_effects(found, per_layer=False))
    yield "agreement", agreement_figures.agreement(agreement.agreement(found))
    yield "accuracy-modularity", effect_figures.modularity_vs_accuracy(found, findings.accuracy_correlations(found))
    yield "equal accuracy", effect_figures.modularity_at_accuracy(found)
    yield "matrices", matrix_figures.sorted_matrices(weakest)
    raw = weakest[weakest["assoc"].isin(BASE_METHODS)]
    yield "matrices of two methods a family", matrix_figures.sorted_matrices(raw)
    yield "orders", matrix_figures.matrices_in_each_order(weakest)
    yield "dropout", matrix_figures.matrices_vs_dropout(found.examples)
    yield "matrices of agreement", agreement_figures.alignment_matrices({"a": trained, "b": trained}, difference=True)
    yield "two of them", agreement_figures.alignment_matrices({"a": trained, "b": trained})
    yield "measures", agreement_figures.measure_correlations(trained)


def test_no_figure_is_empty_or_has_labels_on_top_of_each_other(found):
    for name, drawn in figures(found):
        assert drawn.axes and all(ax.has_data() for ax in drawn.axes), name
        for ax in drawn.axes:
            for axis in (ax.xaxis, ax.yaxis):
                boxes = [
                    tick.get_window_extent()
                    for minor in (False, True)
                    for tick in axis.get_ticklabels(minor=minor)
                    if tick.get_visible() and tick.get_text()
                ]
                inside = [box for box in boxes if box.width > 0]
                for a, b in itertools.combinations(inside, 2):
                    assert not a.shrunk(0.9, 0.9).overlaps(b.shrunk(0.9, 0.9)), (
                        f"{name}: {axis.axis_name} ticks overlap"
                    )
        named = [ax.yaxis.label.get_window_extent() for ax in drawn.axes if ax.get_ylabel()]
        assert not any(a.overlaps(b) for a, b in itertools.combinations(named, 2)), f"{name}: labels overlap"
        width, height = drawn.get_size_inches()
        with plt.rc_context(style.STYLE):
            for dpi in (72, 200):  # those of the SVG and PNG files
                drawn.set_dpi(dpi)
                box = drawn.get_tightbbox()
                assert min(box.x0, box.y0, width - box.x1, height - box.y1) > 0, f"{name} is cut"


def test_no_label_is_cut_where_ticks_and_layout_decide_each_other():
    @style.figure
    def stacked(height):
        fig, axes = plt.subplots(2, 1, figsize=(3, height), sharex=True, sharey=True)
        for ax in axes:
            ax.set(ylim=(-4.0086, 9.6486), title="title", ylabel="two\nlines")
        style.note(fig, "a note")
        return fig

    for height in np.linspace(3.41, 3.44, 7):  # at 3.425 each layout of free ticks brings the other's ticks
        with plt.rc_context(style.STYLE):
            assert stacked(height).get_tightbbox().x0 > 0


def test_figures_of_experiments_without_l1_or_matrices_can_be_drawn():
    found = made_up.results("demo")
    training_figures.accuracy_vs_regularization(found.models)
    module_figures.modules_vs_regularization(found)
    for draw in (
        matrix_figures.sorted_matrices,
        matrix_figures.matrices_in_each_order,
        matrix_figures.matrices_vs_dropout,
    ):
        assert "No matrices" in draw(found.examples.iloc[:0]).axes[0].texts[0].get_text()


def test_networks_that_were_not_evaluated_have_no_panel_and_do_not_count():
    models = made_up.results("demo", runs=2, untrained=4).models
    left_out = models["part"].eq("l2") & (models["l2"] > 1e-5) | models["run"].isin([1, 1001])
    part = models.assign(test_acc=models["test_acc"].where(~left_out))
    for draw in (
        training_figures.accuracy_vs_regularization,
        training_figures.norms_vs_regularization,
        training_figures.failures_vs_regularization,
    ):
        assert {ax.get_xlabel() for ax in draw(part).axes} - {""} == {"dropout"}
    drawn = training_figures.accuracy_vs_regularization(part)
    assert "(n = 1 a point)" in drawn.get_supxlabel() and "(n = 3)" in drawn.get_supxlabel()


def test_single_networks_can_be_drawn_without_empty_panels(monkeypatch):
    single = grids.EXPERIMENTS["demo"]._replace(values={"l2": [1e-5], "drop": [0.3]}, runs=1, untrained=1)
    monkeypatch.setitem(grids.EXPERIMENTS, "single", single)
    found = made_up.results("single")
    assert [ax.get_xlabel() for ax in training_figures.accuracy_vs_regularization(found.models).axes] == ["dropout"]
    correlations = findings.accuracy_correlations(found)
    titles = [ax.get_title() for ax in effect_figures.modularity_vs_accuracy(found, correlations).axes]
    assert all("ρ = " in title and "nan" not in title for title in titles)


def test_a_failed_networks_z_does_not_squeeze_the_others():
    found = made_up.results("mnist-base")
    found.modules.loc[(found.modules["part"] == "l2") & (found.modules["l2"] > 0.09), "rotation_z"] = 215.0
    highest = findings.usable(found.modules, found.models)["rotation_z"].max()
    for drawn in (
        module_figures.modules_vs_regularization(found, "rotation_z"),
        module_figures.modules_by_layer(found, "l2", "rotation_z"),
    ):
        assert all(0.1 < ax.get_ylim()[1] < 2 * highest for ax in drawn.axes if ax.has_data())


def test_an_axis_goes_below_zero_only_for_values_that_do():
    few = made_up.results("demo")
    random = np.random.default_rng(0)
    for least, expected in ((0.0, False), (-1.0, True)):
        z = least + random.exponential(size=len(few.modules)) ** 2  # whose intervals over two networks reach anywhere
        found = few._replace(modules=few.modules.assign(z=z))
        for draw in (
            module_figures.modules_vs_regularization,
            module_figures.modules_vs_depth,
            effect_figures.modularity_at_accuracy,
        ):
            axes = [ax for ax in draw(found, "z").axes if ax.has_data()]
            assert all((ax.get_ylim()[0] < -0.1 * ax.get_ylim()[1]) == expected for ax in axes)


def test_an_accuracy_of_one_is_in_the_figure():
    models = made_up.results("demo").models.assign(train_acc=1.0)
    panel = training_figures.accuracy_vs_regularization(models).axes[0]
    top = panel.get_ylim()[1]
    assert all(np.max(line.get_ydata()) < top for line in panel.lines)


def test_the_band_is_one_to_three_standard_deviations_of_the_untrained(found):
    fig, ax = plt.subplots()
    values = findings.untrained(found.models)["test_acc"]
    style.untrained_band(ax, values)
    spans = sorted((patch.get_y(), patch.get_y() + patch.get_height()) for patch in ax.patches)
    expected = [(values.mean() - k * values.std(), values.mean() + k * values.std()) for k in (3, 2, 1)]
    np.testing.assert_allclose(spans, expected)
    plt.close(fig)


def test_zero_has_a_place_on_a_logarithmic_axis():
    fig, ax = plt.subplots()
    place = style.strength_axis(ax, "l1", [0, 1e-5, 1e-4, 1e-3])
    x = place([0, 1e-5, 1e-3])
    assert 0 < x[0] < x[1] == 1e-5 and x[2] == 1e-3 and ax.get_xticklabels()[0].get_text() == "0"
    plt.close(fig)


def test_too_much_is_hatched_from_between_the_last_bearable_strength_and_the_first_unbearable(found):
    fig, ax = plt.subplots()
    style.too_much_shade(ax, findings.failures(found.models), "drop", np.asarray)
    assert 0.65 < ax.patches[0].get_x() < 0.7
    plt.close(fig)


def test_methods_differ_in_colour_and_families_in_line_and_marker_also_in_grey():
    assert len(set(style.COLORS.values())) == len(METHODS)
    for a, b in itertools.combinations(METHODS, 2):
        assert np.abs(np.subtract(to_rgb(style.COLORS[a]), to_rgb(style.COLORS[b]))).max() > 0.15
    upstream, downstream = ([style.line_style(m) for m in family] for family in (UPSTREAM, DOWNSTREAM))
    assert {s["linestyle"] for s in upstream} == {"-"} and {s["linestyle"] for s in downstream} == {"--"}
    assert {s["markerfacecolor"] for s in downstream} == {"white"} and "white" not in {
        s["markerfacecolor"] for s in upstream
    }
    assert len({s["marker"] for s in upstream}) == len({s["marker"] for s in downstream}) == 4


def test_a_figure_is_saved_as_svg_and_png_and_is_the_same_every_time(found, tmp_path):
    before = plt.get_fignums()
    saved = [
        [
            path.read_bytes()
            for path in style.save(training_figures.failures_vs_regularization(found.models), "f", tmp_path / str(i))
        ]
        for i in range(2)
    ]
    assert saved[0] == saved[1] and sorted(p.suffix for p in (tmp_path / "0").iterdir()) == [".png", ".svg"]
    assert plt.get_fignums() == before


def test_a_figure_in_a_notebook_looks_as_it_was_drawn(found, tmp_path):
    drawn = matrix_figures.matrices_vs_dropout(found.examples)
    image = Image.open(io.BytesIO(style.keep(drawn, "f", tmp_path).data))
    assert image.mode == "P" and sorted(p.name for p in tmp_path.iterdir()) == ["f.png", "f.svg"]
    drawn.savefig(tmp_path / "full.png", dpi=95)
    shown, full = (np.asarray(i.convert("RGB"), dtype=int) for i in (image, Image.open(tmp_path / "full.png")))
    assert shown.shape == full.shape and np.abs(shown - full).mean() < 1


def test_units_are_sorted_into_blocks_with_borders_between_them():
    clusters = np.zeros((6, 3), dtype=np.float32)
    clusters[[1, 3, 5], 2] = clusters[[0, 2], 0] = 1  # unit 4 is dead
    order, borders = matrix_figures.order_of(clusters)
    assert order.tolist() == [1, 3, 5, 0, 2, 4] and borders.tolist() == [2.5, 4.5]


def test_each_panel_of_orders_states_q_of_the_matrix_under_those_clusters(found):
    weakest = found.examples.query("part == 'l2' and layer == 0")
    drawn = matrix_figures.matrices_in_each_order(weakest)
    a, b = (weakest[weakest["assoc"] == method].iloc[0] for method in matrix_figures.SHOWN[:2])
    A = a["adj"].astype(float)
    m, k, labels = A.sum(), A.sum(0), b["clusters"].argmax(1)
    q = sum(A[np.ix_(labels == c, labels == c)].sum() / m - (k[labels == c].sum() / m) ** 2 for c in range(3))
    assert drawn.axes[1].get_xlabel() == f"Q = {q:.3f}"


# ---- artists against the table --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distinct():
    return made_up.distinct()


def error_bars(ax):
    """{label: (x, y, low, high, data line)} of the curves and points with error bars in a panel, in their order."""
    found = {}
    for container in ax.containers:
        line, _, bars = container.lines
        if bars:  # the original program's stars have none
            x, y = np.array(line.get_data(), dtype=float)
            low, high = np.array([np.sort(segment[:, 1]) for segment in bars[0].get_segments()]).T
            found[container.get_label()] = x, y, low, high, line
    return found


def bands(ax):
    """[(colour, low, high)] of the shaded bands, sorted."""
    patches = [patch for patch in ax.patches if not patch.get_hatch()]
    edges = [(to_rgb(p.get_facecolor()), p.get_y(), p.get_y() + p.get_height()) for p in patches]
    return sorted(edges)


def assert_curve(drawn, values):
    """Whether a curve shows the means of {strength: values of its networks}, and Student's intervals."""
    _, y, low, high, _ = drawn
    expected = [statistics.fmean(each) for each in values.values()]
    np.testing.assert_allclose(y, expected, atol=1e-12)
    bounds = [scipy.stats.ttest_1samp(each, 0).confidence_interval() for each in values.values()]
    np.testing.assert_allclose(np.array([low, high]).T, bounds, atol=1e-9)


def assert_band(band, values, color, sigmas=1):
    mean, spread = statistics.fmean(values), sigmas * statistics.stdev(values)
    np.testing.assert_allclose(band[0], to_rgb(color), atol=1e-9)
    np.testing.assert_allclose(band[1:], [mean - spread, mean + spread], atol=1e-9)


def at_strengths(found, regularizer, values):
    """{strength: values of its networks}, strengths that are too much included."""
    return {s: [values[n] for n in runs] for s, runs in points(found, regularizer, usable=False).items()}


def hatched_from(ax):
    """Where the hatched strengths of a panel begin; None if it has none."""
    return next((patch.get_x() for patch in ax.patches if patch.get_hatch()), None)


def note_of(drawn):
    return drawn.get_supxlabel()


def labels_of(drawn):
    """The labels of the x axes and of the y axes of a figure, each once."""
    return [{text(ax) for ax in drawn.axes} - {""} for text in (plt.Axes.get_xlabel, plt.Axes.get_ylabel)]


def legend_of(ax):
    legend = ax.get_legend() or ax.figure.legends[0]
    return [entry.get_text() for entry in legend.get_texts()]


def test_accuracies_are_drawn_from_their_columns_beside_the_untrained_band(distinct):
    drawn = training_figures.accuracy_vs_regularization(distinct.models.assign(pass_mark=0.7))
    first = {"drop": None, "l1": (1e-3 * 1e-2) ** 0.5, "l2": (1e-2 * 1e-1) ** 0.5}  # too much, on their axes
    for ax, regularizer in zip(drawn.axes, ("drop", "l1", "l2"), strict=True):
        assert hatched_from(ax) == (first[regularizer] and pytest.approx(first[regularizer]))
        assert ax.get_xscale() == ("linear" if regularizer == "drop" else "log")
        curves = error_bars(ax)
        assert list(curves) == ["train", "val", "test"]
        colors = [to_rgb(line.get_color()) for *_, line in curves.values()]
        assert colors == [to_rgb(c) for c in ("0.6", "#56B4E9", "black")]
        for name, curve in curves.items():
            values = {key(row): row[f"{name}_acc"] for row in distinct.models.to_dict("records")}
            assert_curve(curve, at_strengths(distinct, regularizer, values))
        null = distinct.models.loc[distinct.models["part"] == "dummy", "test_acc"].tolist()
        for band, sigmas in zip(bands(ax), (3, 2, 1), strict=True):
            assert_band(band, null, style.BAND, sigmas)
        assert ax.get_xlabel() == {"drop": "dropout", "l1": "L1 weight", "l2": "L2 weight"}[regularizer]
    assert legend_of(drawn.axes[-1]) == ["train", "val", "test"]
    assert [line.get_ydata()[0] for ax in drawn.axes for line in ax.lines if line.get_linestyle() == ":"] == [0.7] * 3
    assert note_of(drawn) == (
        "Bars: 95% intervals over networks (n = 3 a point). Grey: mean ± 1, 2, 3 σ of untrained networks (n = 4). "
        "Hatched: over half of the runs fail to learn."
    )


def test_each_row_of_the_norms_shows_its_own_column(distinct):
    drawn = training_figures.norms_vs_regularization(distinct.models)
    panels = np.array(drawn.axes).reshape(4, 3)
    labels = ("L1 norm", "L2 norm", "nuclear norm", "share of weights\nbelow 0.001")
    for row, name, text in zip(panels, ("l1_norm", "l2_norm", "nuc_norm", "sparsity"), labels, strict=True):
        values = {key(each): each[name] for each in distinct.models.to_dict("records")}
        assert row[0].get_ylabel() == text and row[0].get_yscale() == ("linear" if name == "sparsity" else "log")
        for ax, regularizer in zip(row, ("drop", "l1", "l2"), strict=True):
            (curve,) = error_bars(ax).values()
            assert_curve(curve, at_strengths(distinct, regularizer, values))
            assert_band(bands(ax)[0], [values[n] for n in untrained_of(distinct)], style.BAND, 3)


@pytest.mark.parametrize("decades", [0.2, 0.6, 0.9, 1.9, 2.1, 7])
def test_a_logarithmic_axis_has_labels_that_can_be_told_apart(decades):
    for lowest in (1, 3.3, 6.5, 9):
        with plt.rc_context(style.STYLE):
            fig, ax = plt.subplots(figsize=(2, 1.3))
            ax.set(yscale="log", ylim=(lowest, lowest * 10**decades))
            training_figures.label_log_axis(ax.yaxis)
            style.lay_out(fig)
            fig.draw_without_rendering()
            low, high = ax.get_window_extent().intervaly
            labels = [tick for minor in (False, True) for tick in ax.get_yticklabels(minor=minor) if tick.get_text()]
            boxes = [tick.get_window_extent() for tick in labels]
            plt.close(fig)
        shown = [box for box in boxes if low - 1 <= (box.y0 + box.y1) / 2 <= high + 1]
        assert len(shown) >= 2
        assert not any(a.overlaps(b) for a, b in itertools.combinations(shown, 2))


def test_the_share_of_failures_and_where_it_is_too_much_are_shown(distinct):
    drawn = training_figures.failures_vs_regularization(distinct.models.assign(pass_mark=0.7))
    failed = {key(row): float(row["test_acc"] < 0.8) for row in distinct.models.to_dict("records")}
    for ax, regularizer in zip(drawn.axes, ("drop", "l1", "l2"), strict=True):
        expected = [statistics.fmean(each) for each in at_strengths(distinct, regularizer, failed).values()]
        np.testing.assert_allclose(ax.lines[0].get_ydata(), expected)
        assert [line.get_ydata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [0.5]
    assert drawn.axes[0].get_ylabel() == "share of runs below\n0.7 test accuracy"
    titles = [ax.get_title() for ax in drawn.axes]
    assert titles == ["no strength is too much", "too much from 0.01", "too much from 0.1"]


@pytest.mark.parametrize("value", ["score", "num_clusters"])
def test_each_method_has_its_curve_and_its_own_untrained_band_in_its_colour(distinct, value):
    drawn = module_figures.modules_vs_regularization(distinct, value)
    panels = np.array(drawn.axes).reshape(2, 3)
    for row, family, title in zip(panels, (UPSTREAM, DOWNSTREAM), ("upstream", "downstream"), strict=True):
        assert row[-1].get_legend().get_title().get_text() == title
        assert legend_of(row[-1]) == [method.replace("_", " ") for method in family]
        assert row[0].get_ylabel() == {"score": "modularity Q", "num_clusters": "number of clusters"}[value]
        for ax, regularizer in zip(row, ("drop", "l1", "l2"), strict=True):
            curves = error_bars(ax)
            expected_bands = []
            for method in family:
                q = network_means(distinct.modules, value, assoc=method)
                curve = curves[method.replace("_", " ")]
                assert to_rgb(curve[-1].get_color()) == to_rgb(style.COLORS[method])
                values = at_strengths(distinct, regularizer, q)
                assert_curve(curve, values)
                strengths = np.array(list(values))
                if regularizer == "drop":
                    assert np.abs(curve[0] - strengths).max() < 0.01
                else:
                    strengths[strengths == 0] = 1e-5 / 10**0.75
                    assert np.abs(np.log10(curve[0] / strengths)).max() < 0.06
                expected_bands.append((to_rgb(style.COLORS[method]), [q[n] for n in untrained_of(distinct)]))
            for band, (color, values) in zip(bands(ax), sorted(expected_bands), strict=True):
                assert_band(band, values, color)
            places = {curve[0][0] for curve in curves.values()}
            assert len(places) == len(family)  # side by side
    assert "Shaded in their colours: mean ± σ of untrained networks (n = 4)." in note_of(drawn)


@pytest.mark.parametrize(("regularizer", "at", "n"), [("drop", 0.0, "2–3"), ("l2", 1e-5, "3")])
def test_each_panel_by_layer_shows_its_method_each_line_its_layer_and_stars_the_original(distinct, regularizer, at, n):
    def but_one(table):
        return table[~(np.isclose(table["drop"], 0.3) & (table["run"] == 2))]

    distinct = distinct._replace(models=but_one(distinct.models), modules=but_one(distinct.modules))
    authors = distinct.modules.query("part == 'dummy' and run == 1000")
    drawn = module_figures.modules_by_layer(distinct, regularizer, authors=authors)
    assert labels_of(drawn) == [{grids.REGULARIZERS[regularizer].label}, {"modularity Q"}]
    assert note_of(drawn) == (
        f"Bars: 95% intervals over networks (n = {n} a point). Shaded in their colours: mean ± σ of untrained networks "
        "(n = 4). Hatched: over half of the runs fail to learn."
    )
    markers = [handle.get_marker() for handle in drawn.legends[0].legend_handles[:2]]
    assert markers == [curve.lines[0].get_marker() for curve in drawn.axes[0].containers] and len(set(markers)) == 2
    assert [ax.get_title() for ax in drawn.axes] == [method.replace("_", " ") for method in METHODS]
    assert legend_of(drawn.axes[0]) == ["layer 0", "layer 1", "original\nprogram"]
    for ax, method in zip(drawn.axes, METHODS, strict=True):
        curves = [c for c in ax.containers]
        assert len(curves) == 2 and (hatched_from(ax) is None) == (regularizer == "drop")
        stars = [line for line in ax.lines if line.get_marker() == "*"]
        for layer, (container, star) in enumerate(zip(curves, stars, strict=True)):
            q = network_means(distinct.modules, "score", assoc=method, layer=layer)
            x, y = np.array(container.lines[0].get_data(), dtype=float)
            expected = at_strengths(distinct, regularizer, q)
            np.testing.assert_allclose(x, list(expected))
            np.testing.assert_allclose(y, [statistics.fmean(each) for each in expected.values()])
            color = container.lines[0].get_color()
            null = [q[n] for n in untrained_of(distinct)]
            (band,) = [band for band in bands(ax) if np.allclose(band[0], color)]
            assert_band(band, null, color)
            assert star.get_ydata()[0] == q[untrained_of(distinct)[0]] and star.get_xdata()[0] == at
    pale, dark = (sum(to_rgb(c.lines[0].get_color())) for c in drawn.axes[0].containers)
    assert pale > dark  # darker with depth


def test_the_original_programs_values_are_shown_with_its_own_data_set_only(distinct):
    authors = distinct.modules.query("part == 'dummy' and run == 1000")
    place = "forward_jac", 1, "score"
    (value,) = module_figures.authors_values(authors, distinct, *place)
    assert value == authors.query("assoc == 'forward_jac' and layer == 1")["score"].item()
    for others in (authors.assign(dataset="cifar10"), authors.iloc[:0], None):
        assert len(module_figures.authors_values(others, distinct, *place)) == 0


def test_a_caption_counts_networks_at_each_strength_whatever_the_rows_of_the_table(distinct):
    fig = plt.figure()
    kept = distinct.modules[~(np.isclose(distinct.modules["drop"], 0.3) & (distinct.modules["run"] == 2))]
    for regularizer, n in ((None, "n = 2–3"), ("drop", "n = 2–3"), ("l1", "n = 3")):
        style.caption(fig, kept, regularizer, band="Band")
        assert note_of(fig) == (
            f"Bars: 95% intervals over networks ({n} a point). Band of untrained networks (n = 4). Hatched: over half "
            "of the runs fail to learn."
        )
    plt.close(fig)


def test_values_are_called_what_they_are():
    assert style.VALUES["z"] == "z of Q against\nshuffled matrices"
    assert style.VALUES["rotation_z"] == "z of Q against\nrotated matrices"
    assert style.VALUES["score_without_silent"] == "modularity Q without\nunits that never fire"
    for kind, words in (("mean", "(lesions to the mean)"), ("zero", "(lesions to zero)")):
        assert style.VALUES[f"{kind}_specialization"] == f"specialization, bits\n{words}"


def test_curves_against_depth_are_those_of_their_condition(distinct):
    drawn = module_figures.modules_vs_depth(distinct, "num_clusters")
    assert labels_of(drawn) == [{"hidden layer"}, {"number of clusters"}]
    expected = {
        "untrained (n = 4)": untrained_of(distinct),
        "L2 weight 1e-5 (n = 3)": points(distinct, "l2")[1e-5],
        "dropout 0.6 (n = 3)": points(distinct, "drop")[0.6],
        "L1 weight 0.001 (n = 3)": points(distinct, "l1")[1e-3],
        "L2 weight 0.01 (n = 3)": points(distinct, "l2")[1e-2],
    }
    assert legend_of(drawn.axes[0]) == list(expected)
    colors = [style.UNTRAINED, style.TRAINED, *(grids.REGULARIZERS[name].color for name in ("drop", "l1", "l2"))]
    for ax, method in zip(drawn.axes, METHODS, strict=True):
        assert ax.get_title() == method.replace("_", " ")
        layers = [network_means(distinct.modules, "num_clusters", assoc=method, layer=layer) for layer in (0, 1)]
        for (name, networks), color in zip(expected.items(), colors, strict=True):
            curve = error_bars(ax)[name]
            assert_curve(curve, {layer: [q[n] for n in networks] for layer, q in enumerate(layers)})
            assert to_rgb(curve[-1].get_color()) == to_rgb(color)


def test_boxes_points_and_bars_of_the_null_are_those_of_their_method(distinct):
    drawn = module_figures.null_distributions(distinct)
    names = [tick.get_text().replace("\n", " ") for tick in drawn.axes[1].get_xticklabels()]
    assert names == [method.replace("_", " ") for method in METHODS]
    assert [ax.get_ylabel() for ax in drawn.axes] == ["modularity Q", "number of clusters"]
    assert note_of(drawn) == (
        "Boxes: layers of untrained networks (n = 4). Points: layers of networks with L2 = 1e-5 (n = 3). Black bars: "
        "mean Q of shuffled matrices."
    )
    for ax, value in zip(drawn.axes, ("score", "num_clusters"), strict=True):
        for i, method in enumerate(METHODS):
            rows = [row for row in distinct.modules.to_dict("records") if row["assoc"] == method]
            null = [row for row in rows if row["part"] == "dummy"]
            base = [row for row in rows if row["part"] == "l2" and row["l2"] == 1e-5]
            lines = [line for line in ax.lines if len(line.get_xdata())]
            here = [line for line in lines if i - 0.5 < np.mean(line.get_xdata()) < i + 0.5]
            (dots,) = [
                line for line in here if line.get_marker() == style.MARKERS[method] and len(line.get_xdata()) == 6
            ]
            assert sorted(dots.get_ydata()) == sorted(row[value] for row in base)
            bars = [line for line in here if line.get_linestyle() != "None"]  # outliers are dots
            thick = [line for line in bars if line.get_linewidth() > 0.8 and len(line.get_xdata()) == 2]
            medians = [line for line in thick if line.get_color() == "black"]
            heights = [line.get_ydata()[0] for line in medians]
            assert statistics.median(row[value] for row in null) == pytest.approx(heights[0])
            if value == "score":
                expected = [statistics.fmean(row["null_mean"] for row in each) for each in (null, base)]
                assert heights[1:] == pytest.approx(expected)
                assert np.mean(medians[1].get_xdata()) < i < np.mean(medians[2].get_xdata())


def test_effects_stand_in_the_row_of_their_method_with_their_sign(distinct):
    table = findings.regularizer_effects(distinct, per_layer=False)
    drawn = effect_figures.effects(table)
    ticks = dict(zip((t.get_text() for t in drawn.axes[0].get_yticklabels()), drawn.axes[0].get_yticks(), strict=True))
    assert list(ticks) == [method.replace("_", " ") for method in METHODS]
    at = {"drop": "dropout up to 0.6", "l1": "L1 weight up to 0.001", "l2": "L2 weight up to 0.01"}
    assert labels_of(drawn)[0] == {"change of Q"}
    for ax, regularizer in zip(drawn.axes, at, strict=True):
        assert ax.get_title() == at[regularizer]
        rows = table[table["regularizer"] == regularizer].set_index("assoc")
        for container in ax.containers:
            line, _, (bars,) = container.lines
            (method,) = [m for m in METHODS if to_rgb(style.COLORS[m]) == to_rgb(line.get_color())]
            assert line.get_ydata()[0] == ticks[method.replace("_", " ")]
            assert line.get_xdata()[0] == rows.loc[method, "change"]
            low, high = sorted(bars.get_segments()[0][:, 0])
            np.testing.assert_allclose([low, high], rows.loc[method, ["change_low", "change_high"]].astype(float))
            (rho,) = [text.get_text() for text in ax.texts if text.xy[1] == line.get_ydata()[0]]
            assert rho == f"ρ = {rows.loc[method, 'rho']:.2f}".replace("-", "−")


def test_q_at_equal_accuracy_is_drawn_against_mean_accuracy_by_regularizer(distinct):
    drawn = effect_figures.modularity_at_accuracy(distinct)
    accuracies = {key(row): row["test_acc"] for row in distinct.models.to_dict("records")}
    assert legend_of(drawn.axes[0]) == ["dropout", "L1 weight", "L2 weight"]
    assert labels_of(drawn) == [{"mean test accuracy"}, {"modularity Q"}]
    shared = findings.at_equal_accuracy(distinct)["accuracy"].iloc[0]
    for ax, method in zip(drawn.axes, METHODS, strict=True):
        assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [shared]
        assert ax.get_title() == method.replace("_", " ") and ax.xaxis_inverted()
        q = network_means(distinct.modules, "score", assoc=method)
        for regularizer in ("drop", "l1", "l2"):
            curve = error_bars(ax)[grids.REGULARIZERS[regularizer].label]
            runs = points(distinct, regularizer)
            np.testing.assert_allclose(
                curve[0], [statistics.fmean(map(accuracies.get, each)) for each in runs.values()]
            )
            assert_curve(curve, {strength: [q[n] for n in each] for strength, each in runs.items()})
            assert to_rgb(curve[-1].get_color()) == to_rgb(grids.REGULARIZERS[regularizer].color)


def test_networks_are_drawn_by_q_and_accuracy_in_the_colour_of_their_grid(distinct):
    drawn = effect_figures.modularity_vs_accuracy(distinct, findings.accuracy_correlations(distinct))
    correlations = findings.accuracy_correlations(distinct).set_index("assoc")
    accuracies = {key(row): row["test_acc"] for row in distinct.models.to_dict("records")}
    assert legend_of(drawn.axes[0]) == ["dropout grid", "L1 weight grid", "L2 weight grid"]
    assert labels_of(drawn) == [{"modularity Q"}, {"test accuracy"}]
    for ax, method in zip(drawn.axes, METHODS, strict=True):
        q = network_means(distinct.modules, "score", assoc=method)
        row = correlations.loc[method]
        head, overall, matched = ax.get_title().split("\n")
        assert head == method.replace("_", " ")
        assert overall == f"ρ = {row['overall']:.2f}, matched {row['matched']:.2f}".replace("-", "−")
        assert matched == f"[{row['low']:.2f}, {row['high']:.2f}]".replace("-", "−")
        for line, part in zip(ax.lines, ("drop", "l1", "l2"), strict=True):
            runs = [n for runs in points(distinct, part).values() for n in runs if n[0] == part]
            assert sorted(zip(*line.get_data(), strict=True)) == sorted((q[n], accuracies[n]) for n in runs)
            assert to_rgb(line.get_color()) == to_rgb(grids.REGULARIZERS[part].color)


def shown(ax):
    return np.asarray(ax.images[0].get_array())


def by_cluster(row):
    """A matrix with the units of its clusters side by side, largest cluster first, by plain sorting."""
    labels = row.clusters.argmax(1)
    sizes = [int((labels == c).sum()) for c in range(row.clusters.shape[1])]
    ranks = sorted(range(len(sizes)), key=lambda c: (-sizes[c], c))
    units = sorted(range(len(labels)), key=lambda u: (ranks.index(labels[u]), u))
    return row.adj[np.ix_(units, units)], units


def test_matrices_are_shown_as_numbered_and_below_sorted_by_their_own_clusters(distinct):
    weakest = distinct.examples.query("part == 'l2' and layer == 0")
    rows = {row.assoc: row for row in weakest.itertuples()}
    panels = np.array(matrix_figures.sorted_matrices(weakest).axes).reshape(2, 2, 4)
    for (above, below), family in zip(panels, (UPSTREAM, DOWNSTREAM), strict=True):
        for numbered, grouped, method in zip(above, below, family, strict=True):
            assert numbered.get_title() == method.replace("_", " ")
            assert grouped.get_title() == f"Q = {rows[method].score:.3f}, 3 clusters"
            np.testing.assert_array_equal(shown(numbered), rows[method].adj)
            np.testing.assert_array_equal(shown(grouped), by_cluster(rows[method])[0])
            norm, cmap = grouped.images[0].norm, grouped.images[0].cmap
            top = np.percentile(rows[method].adj, 99)
            assert norm(top / 4) == pytest.approx(0.5) and norm(top) == norm(2 * top) == 1 and norm(0) == 0
            assert sum(cmap(1.0)[:3]) < sum(cmap(0.5)[:3]) < sum(cmap(0.0)[:3])  # darker is stronger
            across = sorted(line.get_ydata()[0] for line in grouped.lines if len(set(line.get_ydata())) == 1)
            down = sorted(line.get_xdata()[0] for line in grouped.lines if len(set(line.get_xdata())) == 1)
            assert across == down == [3.5, 7.5] and not numbered.lines  # twelve units in three clusters
        assert above[0].get_ylabel() == "units as numbered" and below[0].get_ylabel() == "units by cluster"


def test_rows_are_matrices_and_columns_the_clusters_that_order_them(distinct):
    weakest = distinct.examples.query("part == 'l2' and layer == 0")
    rows = {row.assoc: row for row in weakest.itertuples()}
    panels = np.array(matrix_figures.matrices_in_each_order(weakest).axes).reshape(4, 4)
    for line, a in zip(panels, matrix_figures.SHOWN, strict=True):
        assert line[0].get_ylabel() == f"{a.replace('_', ' ')}\nmatrix"
        for ax, b in zip(line, matrix_figures.SHOWN, strict=True):
            units = by_cluster(rows[b])[1]
            np.testing.assert_array_equal(shown(ax), rows[a].adj[np.ix_(units, units)])
            assert ax.xaxis.label.get_fontweight() == ("bold" if a == b else "normal")
    titles = [ax.get_title() for ax in panels[0]]
    assert titles == [f"by {b.replace('_', ' ')}\nclusters" for b in matrix_figures.SHOWN]


def test_columns_go_from_untrained_to_much_dropout_and_rows_are_methods(distinct):
    panels = np.array(matrix_figures.matrices_vs_dropout(distinct.examples).axes).reshape(4, 4)
    assert [ax.get_title() for ax in panels[0]] == ["untrained", "dropout 0", "dropout 0.1", "dropout 0.6"]
    chosen = [("dummy", 0.0), ("l2", 0.0), ("drop", 0.1), ("drop", 0.6)]
    for line, method in zip(panels, matrix_figures.SHOWN, strict=True):
        assert line[0].get_ylabel() == method.replace("_", " ")
        for ax, (part, drop) in zip(line, chosen, strict=True):
            t = distinct.examples
            rows = t[(t["part"] == part) & (t["drop"] == drop) & (t["assoc"] == method) & (t["layer"] == 0)]
            (row,) = rows.itertuples()
            np.testing.assert_array_equal(shown(ax), by_cluster(row)[0])
            assert ax.get_xlabel() == f"Q = {row.score:.3f}"


def test_agreement_stands_above_its_group_in_the_colour_of_its_condition(distinct):
    table = agreement.agreement(distinct)
    drawn = agreement_figures.agreement(table, table)
    names = ["untrained (n = 4)", "trained (n = 39)", "dropout (n = 18)", "L1 weight (n = 9)", "L2 weight (n = 12)"]
    assert legend_of(drawn.axes[0]) == [*names, "original program, MNIST (n = 1)"]
    colors = [style.UNTRAINED, style.TRAINED, *(grids.REGULARIZERS[name].color for name in ("drop", "l1", "l2"))]
    conditions = ("untrained", "trained", "drop", "l1", "l2")
    assert [ax.get_ylabel() for ax in drawn.axes] == [
        "element-centric similarity\n(dashes: expected by chance)",
        "element-centric similarity\nbeyond chance",
        "reduced mutual\ninformation (normalized)",
    ]
    for ax, measure in zip(drawn.axes, ("element_sim", "adjusted", "rmi_norm"), strict=True):
        groups = [tick.get_text().replace("\n", " ") for tick in ax.get_xticklabels()]
        assert groups == ["within upstream", "within downstream", "across"]
        curves = error_bars(ax)
        for name, condition, color in zip(names, conditions, colors, strict=True):
            rows = table[table["condition"] == condition].set_index("group").loc[groups]
            x, y, low, high, line = curves[name]
            np.testing.assert_allclose(y, rows[measure])
            np.testing.assert_allclose([low, high], rows[[f"{measure}_low", f"{measure}_high"]].to_numpy().T)
            assert np.round(x).tolist() == [0, 1, 2] and to_rgb(line.get_color()) == to_rgb(color)
            segments = [s for collection in ax.collections for s in collection.get_segments() if s[0][1] == s[1][1]]
            chance = {round((s[0][0] + s[1][0]) / 2, 9): s[0][1] for s in segments}
            if measure == "element_sim":
                np.testing.assert_allclose([chance[round(place, 9)] for place in x], rows["expected"])
        (stars,) = [line for line in ax.lines if line.get_marker() == "*"]
        trained = table[table["condition"] == "trained"].set_index("group").loc[groups]
        np.testing.assert_allclose(np.array(stars.get_ydata(), dtype=float), trained[measure])


def test_matrices_of_agreement_hold_means_in_order_and_the_difference_is_last_less_first(distinct):
    a, b = findings.untrained(distinct.align), findings.trained(distinct.align)
    drawn = agreement_figures.alignment_matrices({"a": a, "b": b}, "rmi_norm", difference=True)
    panels = [ax for ax in drawn.axes if ax.get_title()]
    assert [ax.get_title() for ax in panels] == ["a (n = 4)", "b (n = 45)", "difference"]
    first, last = (agreement.alignment_matrix(table, "rmi_norm").to_numpy() for table in (a, b))
    for ax, values in zip(panels, (first, last, last - first), strict=True):
        np.testing.assert_allclose(shown(ax), values)
        written = [text.get_text().replace("-.", "-0.") for text in ax.texts]
        np.testing.assert_allclose([float(text) for text in written], values.ravel(), atol=0.0051)
        across, down = ax.lines
        assert across.get_ydata()[0] == down.get_xdata()[0] == 3.5  # between the families
        image = ax.images[0]
        for text, value in zip(ax.texts, values.ravel(), strict=True):
            light = np.dot(image.cmap(image.norm(value))[:3], (0.3, 0.59, 0.11))
            assert text.get_color() == ("white" if light < 0.5 else "black")
    assert [ax.images[0].get_clim() for ax in panels] == [(0, 1), (0, 1), (-0.4, 0.4)]
    assert sum(panels[0].images[0].cmap(1.0)[:3]) > sum(panels[0].images[0].cmap(0.0)[:3])  # brighter is more alike
    red, _, blue, _ = panels[2].images[0].cmap(1.0)
    assert red > blue  # orange: the last table agrees more
    names = [tick.get_text() for tick in panels[0].get_yticklabels()]
    assert names == [method.replace("_", " ") for method in METHODS]
    bar = next(ax for ax in drawn.axes if not ax.get_title())
    assert bar.get_xlabel() == "reduced mutual information (normalized)"


def test_correlations_of_measures_stand_in_their_rows_and_columns(distinct):
    drawn = agreement_figures.measure_correlations(distinct.align)
    ax, names = drawn.axes[0], list(agreement_figures.MEASURES)
    np.testing.assert_allclose(shown(ax), agreement.measure_correlations(distinct.align, names))
    red, _, blue, _ = ax.images[0].cmap(1.0)
    assert ax.images[0].get_clim() == (-1, 1) and red > blue
    assert [tick.get_text() for tick in ax.get_yticklabels()] == list(agreement_figures.MEASURES.values())
    assert [tick.get_text().replace("\n", "_") for tick in ax.get_xticklabels()] == names


# ---- what is missing ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("methods", [METHODS[:5], METHODS[1:], METHODS[:1], METHODS[4:6]], ids=len)
def test_figures_show_the_methods_that_are_present(distinct, methods):
    align = distinct.align
    kept = distinct._replace(
        modules=distinct.modules[distinct.modules["assoc"].isin(methods)],
        align=align[align["assoc_a"].isin(methods) & align["assoc_b"].isin(methods)],
        examples=distinct.examples[distinct.examples["assoc"].isin(methods)],
    )
    names = [method.replace("_", " ") for method in methods]
    assert [ax.get_title() for ax in module_figures.modules_by_layer(kept, "l1").axes] == names
    assert [ax.get_title() for ax in module_figures.modules_vs_depth(kept).axes] == names
    effects = effect_figures.effects(findings.regularizer_effects(kept, False))
    assert [tick.get_text() for tick in effects.axes[0].get_yticklabels()] == names
    layer = kept.examples.query("part == 'l2' and layer == 0")
    assert len(matrix_figures.sorted_matrices(layer).axes) == 2 * len(methods)
    for draw in (matrix_figures.matrices_in_each_order, matrix_figures.matrices_vs_dropout):
        assert draw(layer).axes
    module_figures.modules_vs_regularization(kept)
    agreement_figures.agreement(agreement.agreement(kept))
    drawn = agreement_figures.alignment_matrices({"a": kept.align})
    assert [tick.get_text() for tick in drawn.axes[0].get_yticklabels()] == names


def test_what_cannot_be_drawn_says_why(distinct):
    nothing = type(distinct)(*(table.iloc[:0] for table in distinct))
    untrained = type(distinct)(*(findings.untrained(table) for table in distinct))
    drawn = [
        agreement_figures.alignment_matrices({}),
        agreement_figures.alignment_matrices({"a": nothing.align}, difference=True),
        agreement_figures.measure_correlations(nothing.align),
        effect_figures.effects(findings.regularizer_effects(untrained, False)),
        effect_figures.modularity_at_accuracy(untrained),
        training_figures.accuracy_vs_regularization(untrained.models),
        module_figures.modules_vs_regularization(untrained),
    ]
    assert all(len(fig.axes[0].texts) == 1 and fig.axes[0].texts[0].get_text().endswith(".") for fig in drawn)
