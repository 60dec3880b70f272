"""Every figure can be drawn, shows the numbers of its table, and can be read."""

import itertools

import made_up
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from associations import DOWNSTREAM, METHODS, UPSTREAM
from report import (
    agreement,
    agreement_figures,
    effect_figures,
    findings,
    intervals,
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
                    tick.get_window_extent() for tick in axis.get_ticklabels() if tick.get_visible() and tick.get_text()
                ]
                inside = [box for box in boxes if box.width > 0]
                for a, b in itertools.pairwise(inside):
                    assert not a.shrunk(0.9, 0.9).overlaps(b.shrunk(0.9, 0.9)), (
                        f"{name}: {axis.axis_name} ticks overlap"
                    )
        width, height = drawn.get_size_inches()
        with plt.rc_context(style.STYLE):
            for dpi in (72, 200):  # those of the SVG and PNG files
                drawn.set_dpi(dpi)
                box = drawn.get_tightbbox()
                assert min(box.x0, box.y0, width - box.x1, height - box.y1) > 0, f"{name} is cut"


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


def test_an_accuracy_of_one_is_in_the_figure():
    models = made_up.results("demo").models.assign(train_acc=1.0)
    panel = training_figures.accuracy_vs_regularization(models).axes[0]
    top = panel.get_ylim()[1]
    assert all(np.max(line.get_ydata()) < top for line in panel.lines)


def test_lines_go_through_the_means_of_the_table(found):
    drawn = module_figures.modules_by_layer(found, "drop")
    panel = drawn.axes[METHODS.index("forward_jac")]
    rows = findings.along(found.modules, "drop").query("assoc == 'forward_jac' and layer == 1")
    means = rows.groupby("strength")["score"].mean()
    lines = [line for line in panel.lines if len(line.get_xdata()) == len(means)]
    assert any(np.allclose(line.get_ydata(), means) and np.allclose(line.get_xdata(), means.index) for line in lines)


def test_bars_are_bootstrap_intervals(found):
    rows = findings.along(found.modules, "drop").query("assoc == 'forward_jac' and layer == 0")
    fig, ax = plt.subplots()
    style.curve(ax, np.asarray, rows, "score")
    bars = np.array([segment[:, 1] for segment in ax.collections[0].get_segments()])
    means = intervals.means_by(rows, ["strength"], "score")
    np.testing.assert_allclose(bars, means[["low", "high"]])
    plt.close(fig)


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
    saved = [
        [
            path.read_bytes()
            for path in style.save(training_figures.failures_vs_regularization(found.models), "f", tmp_path / str(i))
        ]
        for i in range(2)
    ]
    assert saved[0] == saved[1] and sorted(p.suffix for p in (tmp_path / "0").iterdir()) == [".png", ".svg"]
    assert not plt.get_fignums()


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
