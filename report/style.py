"""How figures look here, and the parts that they share.

Every figure's function takes tables of `experiments.Results` or `findings` and returns a matplotlib figure at the size
that a paper prints. A method has the same colour in every figure; upstream methods (forward_…) are solid lines with
filled markers, downstream ones (backward_…) dashed lines with open markers. Error bars are 95% bootstrap intervals over
networks.
"""

import functools
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from associations import METHOD_TABLE, UPSTREAM
from report import findings

WIDTH = 7.2  # inches, across a page
COLORS = {method.name: method.color for method in METHOD_TABLE}
MARKERS = {method.name: method.marker for method in METHOD_TABLE}
SYMBOLS = {"drop": "dropout", "l1": "L1 weight", "l2": "L2 weight"}
VALUES = {
    "score": "modularity Q",
    "num_clusters": "number of clusters",
    "l1_norm": "L1 norm",
    "l2_norm": "L2 norm",
    "nuc_norm": "nuclear norm",
    "sparsity": "share of weights\nbelow 0.001",
    "z": "z of Q against\nshuffled matrices",
    "rotation_z": "z of Q against\nrotated matrices",
}
STYLE = {
    "font.size": 7,
    "axes.titlesize": 7.5,
    "axes.labelsize": 7.5,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "xtick.labelsize": 6.5,
    "ytick.labelsize": 6.5,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.1,
    "lines.markersize": 3.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.hinting": "none",  # hinted text has other widths at other resolutions, and the layout is found at one
    "figure.dpi": 95,
    "savefig.dpi": 200,
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "figures",
}
BAND = "0.55"


def figure(draw):
    """Makes a function draw in this project's style; the notebook shows what it returns, once."""

    @functools.wraps(draw)
    def styled(*args, **kwargs):
        with plt.rc_context(STYLE):
            drawn = draw(*args, **kwargs)
            drawn.draw_without_rendering()
            drawn.set_layout_engine("none")  # the layout is final: saving and showing need not find it again
            plt.close(drawn)
        return drawn

    return styled


def save(drawn, name, folder=Path("figures")):
    """Writes a figure as <folder>/<name>.svg and .png; returns both paths."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    paths = [Path(folder) / f"{name}.{kind}" for kind in ("svg", "png")]
    with plt.rc_context(STYLE):
        drawn.savefig(paths[0], metadata={"Date": None})
        drawn.savefig(paths[1], metadata={"Software": None})
    return paths


def keep(drawn, name, folder=Path("figures")):
    """Saves a figure and returns it, so that a notebook shows what it keeps."""
    save(drawn, name, folder)
    return drawn


def placeholder(text):
    """A figure that says why there is none."""
    fig, ax = plt.subplots(figsize=(WIDTH, 0.5))
    ax.axis("off")
    ax.text(0.5, 0.5, text, ha="center", va="center")
    return fig


def label(method):
    """A method's name in figures."""
    return str(method).replace("_", " ")


def signed(x):
    """A correlation to two places, with a true minus sign."""
    return f"{x:.2f}".replace("-", "−")


def number(x):
    """A strength in few characters.

    >>> number(1e-05), number(0.00316228)
    ('1e-5', '0.0032')
    """
    return f"{x:.2g}".replace("e-0", "e-")


def line_style(method):
    """Colour, line and marker of a method."""
    upstream = method in UPSTREAM
    return {
        "color": COLORS[method],
        "linestyle": "-" if upstream else "--",
        "marker": MARKERS[method],
        "markerfacecolor": COLORS[method] if upstream else "white",
    }


# ---- axes -----------------------------------------------------------------------------------------------------------


def strength_axis(ax, regularizer, strengths):
    """Labels the x axis of a regulariser; logarithmic for penalties, with a place for zero at its left end.

    Returns: the function that maps strengths to x.
    """
    ax.set_xlabel(SYMBOLS[regularizer])
    if regularizer == "drop":
        return np.asarray
    strengths = np.sort(np.unique(strengths))
    positive = strengths[strengths > 0]
    zero = positive[0] / (10**0.75)
    ax.set_xscale("log")
    if len(positive) < len(strengths):
        powers = 10.0 ** np.arange(np.ceil(np.log10(positive[0]) - 1e-9), np.log10(positive[-1]) + 1e-9)
        ax.set_xticks([zero, *powers], ["0", *(f"$10^{{{np.log10(p):.0f}}}$" for p in powers)])
        ax.minorticks_off()
    return lambda x: np.where(np.asarray(x) > 0, x, zero)


def beside(place, regularizer, shift):
    """The same places, moved sideways by a hair's breadth times `shift`, so that equal values stay visible."""
    if regularizer == "drop":
        return lambda x: place(x) + 0.004 * shift
    return lambda x: place(x) * 10 ** (0.03 * shift)


def untrained_band(ax, values):
    """Shades mean ± 1, 2 and 3 standard deviations of untrained networks."""
    values = values.dropna()
    if len(values):
        ax.axhline(values.mean(), color=BAND, linewidth=0.5, zorder=0)
    for sigmas in (3, 2, 1) if len(values) > 1 else ():
        spread = sigmas * values.std()
        ax.axhspan(values.mean() - spread, values.mean() + spread, color=BAND, alpha=0.18, linewidth=0, zorder=0)


def too_much_shade(ax, failures, regularizer, place):
    """Hatches the strengths at which over half of the runs fail to learn."""
    rows = failures[failures["regularizer"] == regularizer]
    if not rows["too_much"].any():
        return
    x = np.sort(place(rows["strength"]))
    first = place(rows.loc[rows["too_much"], "strength"]).min()
    before = x[x < first].max() if (x < first).any() else first
    left = np.sqrt(first * before) if regularizer != "drop" else (first + before) / 2
    ax.axvspan(
        left,
        x.max() * (1.5 if regularizer != "drop" else 1.03),
        facecolor="none",
        edgecolor="0.75",
        hatch="////",
        linewidth=0,
        zorder=0,
    )


def curve(ax, place, table, value, **style):
    """Means of a column at each strength, with their intervals. Returns the smallest and largest n."""
    means = findings.means_by(table.dropna(subset=value), ["strength"], value)
    bars = np.abs(means[["low", "high"]].to_numpy().T - means["mean"].to_numpy())
    ax.errorbar(place(means["strength"]), means["mean"], yerr=np.nan_to_num(bars), elinewidth=0.7, **style)


def count(table):
    """How many networks a curve has at each strength, in words."""
    sizes = table.drop_duplicates(["part", "l2", "l1", "drop", "run"]).groupby("strength").size()
    if not len(sizes):
        return "n = 0"
    return f"n = {sizes.min()}" if sizes.min() == sizes.max() else f"n = {sizes.min()}–{sizes.max()}"


def caption(fig, table, regularizer=None):
    """Says below a figure what its bars, bands and n are."""
    shown = [regularizer] if regularizer else findings.present_regularizers(table)
    n = ", ".join(dict.fromkeys(count(findings.along(table, name)) for name in shown))
    null = findings.untrained(table).drop_duplicates("run")
    note(
        fig,
        f"Bars: 95% bootstrap intervals over networks ({n} a point). Grey: mean ± 1, 2, 3 σ of untrained networks "
        f"(n = {len(null)}). Hatched: over half of the runs fail to learn.",
    )


def note(fig, text):
    """A line below a figure."""
    fig.supxlabel(text, fontsize=6, color="0.35")
