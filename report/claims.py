"""The study's claims judged: what the paper says, what these tables say, and whether it holds."""

import re

import numpy as np
import pandas as pd

from associations import PAPER_METHODS
from modularity import SEARCHES
from report import findings, sensitivity, summary
from report.agreement import GROUPS, RAW_METHODS, agreement, less_across
from report.text import markdown, value, with_interval


def claims_table(found) -> str:
    """The claims, the numbers, and whether they hold, in Markdown."""
    return markdown(pd.DataFrame(claims(found), columns=["the paper's claim", "ours", "holds"]))


def claims(found):
    """(claim, numbers, judgement) of each of the study's claims."""
    effects = findings.regularizer_effects(found, per_layer=False)
    effects = effects[effects["assoc"].isin(PAPER_METHODS)]
    equal = findings.at_equal_accuracy(found)
    equal = equal[equal["assoc"].isin(PAPER_METHODS)]
    lost = findings.costs_accuracy(found)
    drop = effects[effects["regularizer"] == "drop"]
    if len(drop):
        by = findings.judged_by(drop)
        up, _ = summary.risen_and_fallen(drop)
        clear = (up & (drop[f"{by}_p"] < summary.SIGNIFICANT / len(drop))).sum()
        holds = f"it rises for {up.sum()} of {len(drop)} methods ({clear} after Bonferroni's correction)"
        yield "dropout raises modularity strongly", numbers(drop), holds
    for name in ("l2", "l1"):
        if name in set(effects["regularizer"]):
            yield modest(name, effects[effects["regularizer"] == name], equal, lost)
    rows, raw = (
        agreement(found, methods).set_index(["condition", "group"]) for methods in (PAPER_METHODS, RAW_METHODS)
    )
    within = " and ".join(similarity(rows, raw, group) for group in GROUPS[:2])
    above = all(rows.loc[("trained", group), "adjusted_low"] > 0 for group in GROUPS[:2])
    words = f"{'yes' if above else 'no'}; beyond chance {beyond(rows, GROUPS[:2])}"
    yield "clusterings agree within upstream methods, and within downstream ones", within, words
    across = similarity(rows, raw, "across")
    exceptions, points = len(list(summary.exceptions(found, rows))), rows.loc[("trained", "across"), "points"]
    words = (
        f"less than within: {is_less_across(found)}; beyond chance {beyond(rows, ('across',))}; at {exceptions} of "
        f"{points} grid points as much as within a family on average"
    )
    yield "they agree little across the two families", across, words


def beyond(rows, groups):
    """Mean agreement beyond chance of some groups, in trained and in untrained networks."""
    texts = []
    for condition in ("trained", "untrained"):
        if all((condition, group) in rows.index for group in groups):
            values = " and ".join(f"{rows.loc[(condition, group), 'adjusted']:.2f}" for group in groups)
            texts.append(f"{values} {condition}")
    return ", ".join(texts)


def is_less_across(found):
    """Whether agreement beyond chance across the families is less than within either: yes, not clearly, or no."""
    rows = less_across(found)
    if not (rows["difference"] > 0).all():
        return "no"
    return "yes" if (rows["difference_low"] > 0).all() else "not clearly"


def numbers(rows):
    """The changes of the raw methods, and the range of all rank correlations."""
    raw = [row for _, row in rows.iterrows() if row["assoc"] in RAW_METHODS]
    by = findings.judged_by(rows)
    changes = "; ".join(f"{row['assoc']} {with_interval(row, by, '+.3f')}" for row in raw)
    rho = f"{value(rows['rho'].min(), '.2f')} to {value(rows['rho'].max(), '.2f')} for all {len(rows)} methods"
    return f"{by} of Q (n = {rows['n'].max()}): {changes}; rank correlation {rho}"


def modest(name, rows, equal, lost):
    """The claim that a penalty has a modest effect: at its grid's end, and at equal accuracy beside dropout's."""
    ours, dropout = (equal[equal["regularizer"] == part].set_index("assoc") for part in (name, "drop"))
    claim = f"{name.upper()} has a modest effect"
    text = f"change of Q up to {rows['at'].max():.2g} (n = {rows['n'].max()}): {summary.changes(rows)}"
    if not len(ours):
        return claim, text, "not judged: its accuracy does not fall to where dropout's is compared"
    if not lost:
        return claim, text, "not judged: the accuracy that all regularizers reach is no clear loss"
    text += f"; at {equal['accuracy'].iloc[0]:.1%} test accuracy {summary.changes(ours)}"
    text += f", dropout {summary.changes(dropout)}"
    if not summary.have_intervals(ours, dropout):
        return claim, text, f"not judged: {summary.TOO_FEW}"
    return claim, text, f"at equal accuracy it {summary.beside_dropout(ours, dropout)}"


def similarity(rows, raw, group):
    """One group's similarity in trained and untrained networks, beside chance, and of raw methods only."""
    texts = []
    for condition in ("trained", "untrained"):
        if (condition, group) not in rows.index:
            continue
        row = rows.loc[(condition, group)]
        texts.append(
            f"{with_interval(row, 'element_sim', '.2f')} {condition} (n = {row['n']}; {row['expected']:.2f} by chance; "
            f"raw methods only {raw.loc[(condition, group), 'element_sim']:.2f})"
        )
    return f"{group} {', '.join(texts)}"


def search_effect(rows):
    """How much of each kind of claim the searches change: largest differences to the default's column."""
    titles = [search.title for search in SEARCHES.values() if search.title in rows]
    values = rows.set_index("claim")[titles].map(
        lambda text: float(text.split()[0].rstrip("%")) if re.match(r"[+-]?\d", text) else np.nan
    )
    default, *others = titles
    moved = values[others].sub(values[default], axis=0)
    lines = []
    for words, kept in (
        ("changes of Q", moved[~moved.index.str.startswith(("agreement", "two", "pairs"))]),
        ("agreement within a family", moved[moved.index.str.startswith("agreement within")]),
        ("agreement across", moved[moved.index == "agreement across"]),
    ):
        if kept.notna().any(axis=None):
            lines.append(f"{words} by {kept.min(axis=None):+.3f} to {kept.max(axis=None):+.3f}")
    return f"The other searches move {'; '.join(lines)}." if lines else ""


def null_effect(found):
    """What z against each null says otherwise than Q: the effects whose interval is clear of zero, and not so for Q."""
    signs = {
        value: {name: _sign(x) for name, x in sensitivity.effects(found, value).items()}
        for value in ("score", *sensitivity.NULLS)
    }
    lines = []
    for null, title in sensitivity.NULLS.items():
        for sign, word in ((1, "rises"), (-1, "falls")):
            names = [name for name, own in signs[null].items() if own == sign != signs["score"].get(name)]
            if names:
                lines.append(f"{title} {word} where Q does not for {'; '.join(names)}")
    return f"By the 95% intervals, {'. '.join(lines)}." if lines else ""


def _sign(claim):
    """1 or −1 for a value whose interval is clear of zero; else 0."""
    return int(claim.low > 0) - int(claim.high < 0)
