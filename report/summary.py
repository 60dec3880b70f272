"""An experiment's findings as text.

python -m report.summary EXPERIMENT            five lines
python -m report.summary EXPERIMENT --tables   also Q and its z at each strength and both findings, as Markdown
python -m report.summary EXPERIMENT --save     also writes the experiment's tables to results/, from which the
                                               notebook opens where the checkpoints are not at hand
"""

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from report import experiments, findings
from study import grids
from study.cli import one_line_errors

UPSTREAM_EXAMPLE, DOWNSTREAM_EXAMPLE = "forward_jac", "backward_jac"


def main(args):
    """Prints, and saves if asked to."""
    found = experiments.open_results(args.experiment)
    print(*summary(args.experiment, found), sep="\n")
    if args.tables:
        tables = [curves_table(found), curves_table(found, "rotation_z", "{:.1f}")]
        tables += [effects_table(found, per_layer=False), effects_table(found), agreement_table(found)]
        print("", *training(found), *(f"\n{table}" for table in tables), sep="\n")
    if args.save:
        experiments.save_results(found, args.folder, args.experiment)
        print(f"\nSaved to {args.folder}/{args.experiment}-*.parquet")


def summary(name, found):
    """Five lines: networks, accuracy, Q of an upstream and of a downstream method, agreement."""
    counts = [
        len(rows.drop_duplicates(list(grids.NAMED)))
        for rows in map(found.models.dropna(subset="test_acc").pipe, (findings.trained, findings.untrained))
    ]
    yield f"{name}: {counts[0]} trained and {counts[1]} untrained networks on {found.models['dataset'].iloc[0]}"
    effects = findings.regularizer_effects(found, per_layer=False)
    effects = effects[effects["regularizer"] == "drop"].set_index("assoc")
    if len(effects):
        most = effects["at"].max()
        yield f"test accuracy: {accuracy(found, 0.0)} without dropout, {accuracy(found, most)} with dropout {most:g}"
        yield modularity(effects.loc[UPSTREAM_EXAMPLE], "upstream")
        yield modularity(effects.loc[DOWNSTREAM_EXAMPLE], "downstream")
    means = findings.agreement(found).set_index(["condition", "group"])["element_sim"]
    texts = [
        f"{means.get(('trained', group), np.nan):.2f} ({means.get(('untrained', group), np.nan):.2f} untrained) {group}"
        for group in findings.GROUPS
    ]
    yield "agreement of clusterings: " + ", ".join(texts)


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
        f"modularity Q, {row.name} ({kind}): {row['untrained']:.3f} untrained, {row['weakest']:.3f} without dropout, "
        f"{row['strongest']:.3f} with it; change {interval(row, 'change', '+.3f')}"
    )


def verdicts(found):
    """The findings in words that follow from the numbers: one sentence a regulariser, then one on agreement."""
    effects = findings.regularizer_effects(found, per_layer=False)
    for regularizer, rows in effects.groupby("regularizer", sort=False):
        up, down = rows[rows["change_low"] > 0], rows[rows["change_high"] < 0]
        yield (
            f"{regularizer}, {rows['n'].max()} networks up to {rows['at'].max():.2g}: Q rises for {len(up)} of "
            f"{len(rows)} methods and falls for {len(down)} (95% interval of the change clear of zero); median change "
            f"{rows['change'].median():+.3f}, largest {rows['change'].max():+.3f} "
            f"({rows.loc[rows['change'].idxmax(), 'assoc']})."
        )
    table = findings.agreement(found).set_index(["condition", "group"])
    for condition in ("untrained", "trained"):
        if condition in table.index:
            texts = [
                f"{interval(table.loc[(condition, group)], 'element_sim', '.2f')} {group}" for group in findings.GROUPS
            ]
            yield (
                f"Agreement in {condition} networks (element-centric similarity): {', '.join(texts)}; "
                f"{table.loc[(condition, 'across'), 'significant']:.0%} of the pairs across "
                "agree more than shuffled ones (p < 0.05)."
            )


def accuracy(found, dropout):
    """Mean test accuracy at one value of dropout, with its interval and n."""
    models = findings.along(found.models, "drop")
    row = findings.mean_and_interval(models.loc[models["strength"] == dropout, "test_acc"])
    row = row.rename({"mean": "test_acc", "low": "test_acc_low", "high": "test_acc_high"})
    return f"{interval(row, 'test_acc')} (n = {row['n']:.0f})"


def interval(row, name, form=".3f"):
    """A value with its 95% interval, in text; the value alone where a single network gives no interval."""
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return f"{row[name]:{form}}" + ("" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]")


def curves_table(found, value="score", form="{:.3f}"):
    """Mean test accuracy and mean Q, or its z, of each method (means over layers) at each strength, in Markdown."""
    networks = findings.per_network(found.modules, [value])
    curves = {"untrained": [table.assign(strength=0.0) for table in map(findings.untrained, (found.models, networks))]}
    for regularizer in findings.present_regularizers(found.models):
        curves[regularizer] = [findings.along(table, regularizer) for table in (found.models, networks)]
    rows = []
    for name, (models, values) in curves.items():
        accuracy = models.groupby("strength")["test_acc"]
        means = values.pivot_table(value, "strength", "assoc", observed=True)
        rows.append(
            pd.DataFrame({"regularizer": name, "strength": means.index.map("{:.2g}".format)}, index=means.index)
            .assign(n=accuracy.count(), test_acc=accuracy.mean().map("{:.3f}".format))
            .join(means.map(form.format))
        )
    return markdown(pd.concat(rows))


def effects_table(found, per_layer=True):
    """Finding 1, as a Markdown table."""
    rows = findings.regularizer_effects(found, per_layer)
    keys = ["regularizer", "assoc", *(["layer"] if per_layer else [])]
    table = rows[keys].assign(
        n=rows["n"],
        untrained=rows["untrained"].map("{:.3f}".format),
        weakest=rows["weakest"].map("{:.3f}".format),
        strongest=[f"{q:.3f} at {at:.2g}" for q, at in zip(rows["strongest"], rows["at"], strict=True)],
    )
    for name in ("change", "gain", "rho"):
        table[name] = [interval(row, name, "+.3f" if name != "rho" else "+.2f") for _, row in rows.iterrows()]
    return markdown(table)


def agreement_table(found):
    """Finding 2, as a Markdown table."""
    rows = findings.agreement(found)
    table = rows[["condition", "group", "n"]].copy()
    for name in ("element_sim", "score", "rmi_norm", "excess"):
        table[name] = [interval(row, name, ".2f") for _, row in rows.iterrows()]
    return markdown(
        table.assign(null=rows["null"].map("{:.2f}".format), significant=rows["significant"].map("{:.0%}".format))
    )


def markdown(table: pd.DataFrame) -> str:
    """A table in Markdown.

    >>> print(markdown(pd.DataFrame({"a": [1, 2]})))
    | a |
    | --- |
    | 1 |
    | 2 |
    """
    lines = [table.columns, ["---"] * len(table.columns), *table.astype(str).to_numpy()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", help=", ".join(grids.EXPERIMENTS))
    parser.add_argument("--tables", action="store_true", help="print Q at each strength and both findings")
    parser.add_argument("--save", action="store_true", help="write the experiment's tables")
    parser.add_argument("--folder", type=Path, default=Path("results"), help="where to write them (default: results)")
    with one_line_errors("summary.py"):
        main(parser.parse_args())
