"""An experiment's findings as text.

python -m report.summary EXPERIMENT            five lines
python -m report.summary EXPERIMENT --tables   also the findings in words, and their tables, as Markdown
python -m report.summary EXPERIMENT --save     also writes the experiment's tables to results/, from which the
                                               notebook opens where the checkpoints are not at hand
python -m report.summary EXPERIMENT --add      as --save, but networks there whose checkpoints are not at hand stay, so
                                               that the tables gather what several machines trained and evaluated
"""

from pathlib import Path

import numpy as np
import pandas as pd

from associations import DOWNSTREAM, FAMILIES, PAPER_METHODS
from report import experiments, findings, lesion_text
from report.agreement import GROUPS, RAW_METHODS, agreeing_across, agreement, agreement_by_point
from report.intervals import mean_columns
from report.text import captioned, markdown, number, setting, value, with_interval
from study import grids
from study.cli import Parser, one_line_errors

UPSTREAM_EXAMPLE, DOWNSTREAM_EXAMPLE = "forward_jac", "backward_jac"
SIGNIFICANT = 0.05
TOO_FEW = "too few networks for intervals"
Z_CAPTION = "Means over n networks; the matrices without modules are randomly rotated ones, of the same spectrum."
EFFECTS_CAPTION = """Mean Q at the ends of each grid, n networks along it, those without regularization included; *gain*
is the strongest less untrained networks, *rho* the rank correlation of Q with strength."""
FAMILIES_CAPTION = """Medians over a family's methods of the change of Q along the grid, or of its trend where an end of
the grid has a single run; and for how many methods its 95% interval is above zero, and below."""
EQUAL_CAPTION = """Change of Q from the grid's weakest strength, interpolated between the two strengths around the
lowest test accuracy that all of them reach."""
SILENT_CAPTION = """Downstream methods, all units → without those that never fire, layer by layer. *dead* counts the
units whose activations do not vary over the test images, as those of units that never fire."""
AGREEMENT_CAPTION = """Means over pairs of methods and layers within each of n networks, over grid *points*.
*element_sim* is element-centric similarity, *expected* its chance level; *score* is the alignment score, *null* its
mean over shuffled clusterings, *excess* the difference; *rmi_norm* is normalized reduced mutual information;
*significant* is the share of pairs with p < 0.05; *range* holds the extremes of *adjusted* among grid points. Networks
without regularization count in the row l2. Pairs that chance alone makes identical have no *adjusted*."""


def main(args):
    """Prints, and saves if asked to."""
    found = experiments.open_results(args.experiment)
    print(*summary(args.experiment, found), sep="\n")
    if args.tables:
        print("", *verdicts(found), *training(found), *(f"\n{table}" for table in tables(found)), sep="\n")
    if args.save or args.add:
        experiments.save_results(found, args.folder, args.experiment, args.add)
        print(f"\nSaved to {args.folder}/{args.experiment}-*.parquet")


def tables(found):
    """All tables of the findings, in Markdown, with captions; those of lesions where modules were lesioned."""
    yield captioned("Q at each strength", "Means over n networks.", curves_table(found))
    yield captioned("z at each strength", Z_CAPTION, curves_table(found, "rotation_z", "{:.1f}"))
    yield captioned("What each regularizer does to Q", EFFECTS_CAPTION, effects_table(found, per_layer=False))
    yield captioned("What each regularizer does to Q, layer by layer", "As before.", effects_table(found))
    yield captioned("What each regularizer does to Q, by layer and family", FAMILIES_CAPTION, families_table(found))
    yield captioned("What each does where it costs the same accuracy", EQUAL_CAPTION, equal_accuracy_table(found))
    if has_silent(found):
        yield captioned("Q without the units that never fire", SILENT_CAPTION, silent_table(found))
    yield captioned("How far the clusterings of different methods agree", AGREEMENT_CAPTION, agreement_table(found))
    yield from lesion_text.tables(found)


def summary(name, found):
    """Five lines: networks, accuracy, Q of an upstream and of a downstream method, agreement."""
    evaluated = findings.evaluated(found.models)
    trained, untrained = (
        len(rows.drop_duplicates(list(experiments.NETWORK)))
        for rows in (findings.trained(evaluated), findings.untrained(evaluated))
    )
    networks = f"{name}: {trained} trained and {untrained} untrained networks on {found.models['dataset'].iloc[0]}"
    yield networks + left_out(found.models)
    effects = findings.regularizer_effects(found, per_layer=False)
    effects = effects[effects["regularizer"] == "drop"].set_index("assoc")
    if len(effects):
        ends = effects["at_weakest"].min(), effects["at"].max()
        accuracies = [f"{accuracy(found, dropout)} {dropout_in_words(dropout)}" for dropout in ends]
        yield f"test accuracy: {', '.join(accuracies)}"
        for example, kind in ((UPSTREAM_EXAMPLE, "upstream"), (DOWNSTREAM_EXAMPLE, "downstream")):
            if example in effects.index:
                yield modularity(effects.loc[example], kind)
    yield f"agreement of clusterings (beyond chance): {agreements(found)}"


def left_out(models):
    """Which strengths are too much to count in any effect, and how many networks these are; empty for none."""
    rows = findings.failures(models).query("too_much and strength > 0")
    if not len(rows):
        return ""
    names = ", ".join(setting(row.regularizer, row.strength) for row in rows.itertuples())
    mark = models["pass_mark"].dropna().max()
    return f"; left out, most runs being below {mark:g} test accuracy: {names} (n = {rows['n'].sum()})"


def dropout_in_words(dropout):
    """With how much dropout.

    >>> dropout_in_words(0.0), dropout_in_words(0.2)
    ('without dropout', 'with dropout 0.2')
    """
    return f"with dropout {dropout:g}" if dropout else "without dropout"


def agreements(found):
    """Agreement in trained and untrained networks within each family and across, each with what is beyond chance."""
    rows = agreement(found).set_index(["condition", "group"])[["element_sim", "adjusted"]]
    texts = []
    for group in GROUPS:
        values = []
        for condition in ("trained", "untrained"):
            sim, adjusted = rows.loc[(condition, group)] if (condition, group) in rows.index else (np.nan, np.nan)
            values.append(f"{sim:.2f} ({adjusted:.2f})")
        texts.append(f"{values[0]}, untrained {values[1]}, {group}")
    return "; ".join(texts)


def training(found):
    """A line on how long the trainings took, where that was recorded."""
    rows = findings.trained(found.models)
    if "seconds" in rows and rows["seconds"].notna().any():
        columns = {name: rows[name].dropna() for name in ("epochs", "seconds")}
        numbers = [f"{x.median():.0f} {name} ({x.min():.0f}–{x.max():.0f})" for name, x in columns.items()]
        versions = ", ".join(sorted(rows["torch"].dropna().unique()))
        hours = rows["seconds"].sum() / 3600
        yield f"training: {' and '.join(numbers)}, medians and ranges; {hours:.1f} hours in all; torch {versions}"


def modularity(row, kind):
    """One row of `findings.regularizer_effects`, dropout's, in words."""
    return (
        f"modularity Q, {row.name} ({kind}): {row['untrained']:.3f} untrained, {row['weakest']:.3f} "
        f"{dropout_in_words(row['at_weakest'])}, {row['strongest']:.3f} {dropout_in_words(row['at'])}; "
        f"change {with_interval(row, 'change', '+.3f')}"
    )


def verdicts(found):
    """The findings in words that follow from the numbers: the headlines, and where they do not hold."""
    yield from headlines(found)
    opposed = findings.opposed_layers(findings.regularizer_effects(found))
    for (regularizer, method), rows in opposed.groupby(["regularizer", "assoc"], observed=True, sort=False):
        by = findings.judged_by(rows)
        layers = [f"{with_interval(row, by, '+.3f')} in layer {row['layer']}" for _, row in rows.iterrows()]
        yield f"{regularizer}, {method}: layers change in opposite directions, {' and '.join(layers)}."
    yield from exceptions(found, agreement(found).set_index(["condition", "group"]))
    yield from silent_verdict(found)
    yield from lesion_text.verdicts(found)


def headlines(found):
    """A line on what each regularizer does, and one on how methods agree in untrained and in trained networks."""
    effects = findings.regularizer_effects(found, per_layer=False)
    effects = effects[effects["assoc"].isin(PAPER_METHODS)]
    equal = findings.at_equal_accuracy(found)
    equal = equal[equal["assoc"].isin(PAPER_METHODS) & findings.costs_accuracy(found)]
    at = {regularizer: rows.set_index("assoc") for regularizer, rows in equal.groupby("regularizer")}
    for regularizer, rows in effects.groupby("regularizer", sort=False):
        beside = ""
        if regularizer != "drop" and {regularizer, "drop"} <= set(at):
            compared = beside_dropout(at[regularizer], at["drop"])
            beside = f" At {equal['accuracy'].iloc[0]:.1%} test accuracy it {compared}."
        yield effect_verdict(rows) + beside
    table = agreement(found).set_index(["condition", "group"])
    for condition in ("untrained", "trained"):
        if condition in table.index.unique(0):
            yield agreement_verdict(condition, table.loc[condition])


def effect_verdict(rows):
    """What a regularizer does to Q, from its rows of `findings.regularizer_effects`, a method each.

    Q rises or falls for a method where the 95% interval of its change, or trend, is clear of zero.
    """
    by = findings.judged_by(rows)
    clear = rows[f"{by}_p"] < SIGNIFICANT / len(rows)
    up, down = risen_and_fallen(rows, by)
    far = rows["farthest"] - rows["weakest"]
    largest = rows.loc[far.abs().idxmax()]
    start = (
        f"{largest['regularizer']}, {rows['n'].max()} networks from {number(rows['at_weakest'].min())} to "
        f"{number(rows['at'].max())}: "
    )
    end = (
        f"median {by} {rows[by].median():+.3f}, largest change along the grid {far[largest.name]:+.3f} "
        f"({largest['assoc']}, at {number(largest['farthest_at'])})."
    )
    if rows[f"{by}_p"].isna().all():
        return f"{start}too few for intervals; {end}"
    trends = " and ".join(str(which.sum()) for which in risen_and_fallen(rows, "trend"))
    trend = f"{trends} by the trend" if by == "change" else "by the trend, an end of the grid having a single run"
    return (
        f"{start}Q rises for {up.sum()} of {len(rows)} methods and falls for {down.sum()} "
        f"({(up & clear).sum()} and {(down & clear).sum()} after Bonferroni's correction; {trend}); {end}"
    )


def beside_dropout(ours, dropout):
    """For which methods a penalty raises Q less than dropout at equal accuracy: those whose intervals are apart. Where
    there are no intervals, how much each changes it."""
    dropout = dropout.reindex(ours.index)
    if not have_intervals(ours, dropout):
        return f"changes Q by {changes(ours)}, dropout by {changes(dropout)}: {TOO_FEW}"
    less, more = ours["change_high"] < dropout["change_low"], ours["change_low"] > dropout["change_high"]
    verdict = f"raises Q less than dropout for {less.sum()} of {len(ours)} methods, more for {more.sum()}"
    unclear = [method for method in PAPER_METHODS if method in ours.index[~(less | more)]]
    return verdict + (f"; intervals overlap for {', '.join(unclear)}" if unclear else "")


def have_intervals(*tables):
    """Whether each of some tables of changes has any interval: else its strengths have single runs."""
    return not any(rows["change_p"].isna().all() for rows in tables)


def changes(rows):
    """The range of the changes of some methods' Q."""
    return f"{rows['change'].min():+.3f} to {rows['change'].max():+.3f}"


def risen_and_fallen(rows, by=None):
    """For which rows of `findings.regularizer_effects`, of one regularizer, Q rises, and for which it falls."""
    by = by or findings.judged_by(rows)
    return rows[f"{by}_low"] > 0, rows[f"{by}_high"] < 0


def agreement_verdict(condition, rows):
    """How the methods agree in untrained or in trained networks, from those rows of `agreement`, a group each."""
    texts = [
        f"{with_interval(row, 'element_sim', '.2f')} {group} (chance {row['expected']:.2f}"
        + (
            f"; beyond it {row['adjusted']:.2f}, {row['lowest']:.2f} at {row['lowest_at']} to {row['highest']:.2f} at "
            f"{row['highest_at']})"
            if row["points"] > 1
            else f"; beyond it {row['adjusted']:.2f})"
        )
        for group, row in rows.iterrows()
        if group in GROUPS
    ]
    points = "1 grid point" if rows["points"].max() == 1 else f"{rows['points'].max()} grid points"
    across = f"{rows.loc['across', 'significant']:.0%}" if "across" in rows.index else "none"
    return (
        f"Agreement in {condition} networks, n = {rows['n'].max()} at {points}: {', '.join(texts)}; "
        f"{across} of the pairs across agree more than shuffled ones (p < 0.05; 5% would by chance)."
    )


def silent_verdict(found):
    """What the units that never fire change in the downstream methods' Q, and in what regularizers do to it."""
    if not has_silent(found):
        return
    rows = findings.without_silent(found)
    change = rows["score_without_silent"] - rows["score"]
    if not change.any():
        yield "Without the units that never fire, if there are any, the downstream methods' Q is the same."
        return
    ends = [silent_change(rows.loc[at], change[at]) for at in (change.idxmin(), change.idxmax())]
    raw = change[rows["assoc"].isin(RAW_METHODS)].abs().max()
    downstream = found._replace(modules=found.modules[found.modules["assoc"].isin(DOWNSTREAM)])
    all_units, without = (
        findings.regularizer_effects(downstream, per_layer=False, value=column)
        for column in ("score", "score_without_silent")
    )
    texts = []
    for regularizer, effects in without.groupby("regularizer", sort=False):
        then, now = (
            tuple(which.sum() for which in risen_and_fallen(each))
            for each in (all_units[all_units["regularizer"] == regularizer], effects)
        )
        if then != now:
            texts.append(f"{regularizer} makes it rise for {now[0]} and fall for {now[1]}, not {then[0]} and {then[1]}")
    effects = f"of {rows['assoc'].nunique()} methods, {', '.join(texts)}" if texts else "each regularizer does the same"
    yield (
        f"Without the units that never fire, downstream Q moves by {' to '.join(ends)}, that of raw methods by at most "
        f"{value(raw)}; {effects}."
    )


def silent_change(row, change):
    """A change of Q, with the row of `findings.without_silent` that it is of."""
    where = "untrained" if row["regularizer"] == "untrained" else setting(row["regularizer"], row["strength"])
    return f"{change:+.3f} ({row['assoc']}, layer {row['layer']}, {where}: {value(row['dead'], '.1f')} dead units)"


def exceptions(found, table):
    """Where the second finding fails: the grid points at which families agree as well as methods within one do."""
    if "trained" not in table.index.unique(0):
        return
    within = [table["adjusted"].get(("trained", group), np.nan) for group in GROUPS[:2]]
    points = agreement_by_point(found)
    for _, row in agreeing_across(points, min(within)).iterrows():
        there = points[(points["part"] == row["part"]) & (points["strength"] == row["strength"])].set_index("group")
        own = " and ".join(f"{there['adjusted'].get(group, np.nan):.2f} {group}" for group in GROUPS[:2])
        yield (
            f"But at {setting(row['part'], row['strength'])} agreement across is "
            f"{with_interval(row, 'element_sim', '.2f')} (n = {row['n']}), {row['adjusted']:.2f} beyond chance, as "
            f"much as within a family on average; there it is {own}."
        )


def accuracy(found, dropout):
    """Mean test accuracy at one value of dropout, with its interval, cut to [0, 1], and n."""
    models = findings.along(found.models, "drop")
    row = mean_columns("test_acc", models.loc[np.isclose(models["strength"], dropout), "test_acc"])
    row |= {end: np.clip(row[end], 0, 1) for end in ("test_acc_low", "test_acc_high")}
    return f"{with_interval(row, 'test_acc')} (n = {row['n']})"


def has_silent(found):
    """Whether Q was also taken without the units that never fire."""
    return "score_without_silent" in found.modules and found.modules["score_without_silent"].notna().any()


def curves_table(found, value="score", form="{:.3f}"):
    """Mean test accuracy and mean Q, or its z, of each method (means over layers) at each strength, in Markdown.

    Of the networks that were evaluated.
    """
    tables = findings.evaluated(found.models), findings.per_network(found.modules, [value])
    curves = {}
    if len(findings.untrained(tables[0])):
        curves["untrained"] = [findings.untrained(table).assign(strength=0.0) for table in tables]
    for regularizer in findings.present_regularizers(tables[0]):
        curves[regularizer] = [findings.along(table, regularizer) for table in tables]
    rows = []
    for name, (models, values) in curves.items():
        accuracy = models.groupby("strength")["test_acc"].mean()
        means = values.pivot_table(value, "strength", "assoc", observed=True)
        counts = values.groupby(["strength", "assoc"], observed=True)[value].count().groupby("strength")
        first = pd.DataFrame({"regularizer": name, "strength": accuracy.index.map(number)}, index=accuracy.index)
        n = pd.DataFrame({"low": counts.min(), "high": counts.max()}).reindex(accuracy.index).fillna(0).astype(int)
        first["n"] = [f"{low}–{high}" if low < high else str(high) for low, high in n.to_numpy()]
        first["test_acc"] = accuracy.map("{:.3f}".format)
        rows.append(first.join(means.map(form.format, na_action="ignore")))
    return markdown(pd.concat(rows).fillna("–"))


def effects_table(found, per_layer=True, value="score"):
    """Finding 1, as a Markdown table."""
    rows = findings.regularizer_effects(found, per_layer, value)
    keys = ["regularizer", "assoc", *(["layer"] if per_layer else [])]
    table = rows[[*keys, "n"]].copy()
    table["untrained"] = rows["untrained"].map("{:.3f}".format)
    for name, at in (("weakest", "at_weakest"), ("strongest", "at")):
        table[name] = [f"{q:.3f} at {number(x)}" for q, x in zip(rows[name], rows[at], strict=True)]
    for name in ("change", "trend", "gain"):
        table[name] = [with_interval(row, name, "+.3f") for _, row in rows.iterrows()]
    table["rho"] = rows["rho"].map("{:+.2f}".format, na_action="ignore").fillna("–")
    return markdown(table)


def families_table(found):
    """What each regularizer does to Q in each layer, for upstream and for downstream methods, as a Markdown table."""
    effects = findings.regularizer_effects(found)
    effects = effects[effects["assoc"].isin(PAPER_METHODS)]
    rows = []
    for regularizer, each in effects.groupby("regularizer", sort=False):
        by = findings.judged_by(each)
        few = each[f"{by}_p"].isna().all()
        for layer, here in each.groupby("layer"):
            row = {"regularizer": regularizer, "layer": layer, "of": by}
            for family, methods in FAMILIES.items():
                own = here[here["assoc"].isin(methods)]
                up, down = (which.sum() for which in risen_and_fallen(own, by))
                counts = "too few for intervals" if few else f"{up} up, {down} down of {len(own)}"
                row[family] = f"{value(own[by].median(), '+.3f')} ({counts})"
            rows.append(row)
    return markdown(pd.DataFrame(rows, columns=["regularizer", "layer", "of", *FAMILIES]))


def equal_accuracy_table(found):
    """What each regularizer does to Q at the lowest accuracy that all of them reach, as a Markdown table; a sentence
    where that accuracy is no clear loss."""
    if not findings.costs_accuracy(found):
        return "Not compared: the lowest accuracy that all of them reach is no clear loss."
    rows = findings.at_equal_accuracy(found)
    table = rows[["assoc"]].astype(str).drop_duplicates().set_index("assoc")
    for regularizer, each in rows.groupby("regularizer", sort=False):
        title = f"{setting(regularizer, each['strength'].iloc[0])} (accuracy {each['accuracy'].iloc[0]:.3f})"
        cells = {str(row["assoc"]): with_interval(row, "change", "+.3f") for _, row in each.iterrows()}
        table[title] = pd.Series(cells)
    return markdown(table.fillna("").reset_index())


def silent_table(found):
    """Q of the downstream methods with → without the units that never fire, at each strength, in Markdown."""
    rows = []
    by = ["regularizer", "strength", "layer"]
    for (regularizer, strength, layer), each in findings.without_silent(found).groupby(by, sort=False):
        row = {"regularizer": regularizer, "strength": number(strength), "layer": layer, "n": each["n"].max()}
        row |= {"dead": value(each["dead"].mean(), ".1f")}
        rows.append(row | {r.assoc: f"{r.score:.3f} → {r.score_without_silent:.3f}" for r in each.itertuples()})
    return markdown(pd.DataFrame(rows).fillna("–"))


def agreement_table(found):
    """Finding 2, as a Markdown table: all methods, and raw ones only."""
    rows = pd.concat([agreement(found), agreement(found, RAW_METHODS).assign(raw=", raw only")])
    table = rows[["condition"]].copy()
    table["pairs"] = rows["group"].astype(str) + rows["raw"].fillna("")
    table[["n", "points"]] = rows[["n", "points"]]
    for name in ("element_sim", "adjusted", "score", "rmi_norm", "excess"):
        table[name] = [with_interval(row, name, ".2f") for _, row in rows.iterrows()]
    for name in ("expected", "null"):
        table[name] = rows[name].map("{:.2f}".format)
    table["significant"] = rows["significant"].map("{:.0%}".format)
    table["range"] = [
        f"{row.lowest:.2f} ({row.lowest_at}) … {row.highest:.2f} ({row.highest_at})" if row.points > 1 else "–"
        for row in rows.itertuples()
    ]
    return markdown(table)


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("experiment", help=", ".join(grids.EXPERIMENTS))
    parser.add_argument("--tables", action="store_true", help="print the findings and their tables")
    parser.add_argument("--save", action="store_true", help="write the experiment's tables")
    parser.add_argument("--add", action="store_true", help="the same, keeping other networks that are there")
    parser.add_argument("--folder", type=Path, default=Path("results"), help="where to write them (default: results)")
    with one_line_errors("summary.py"):
        main(parser.parse_args())
