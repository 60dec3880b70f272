"""The study's claims judged: what the paper says, what these tables say, and whether it holds."""

import re

import numpy as np
import pandas as pd

from associations import PAPER_METHODS
from modularity import SEARCHES
from report import findings, summary
from report.agreement import GROUPS, RAW_METHODS, agreement
from report.text import markdown, with_interval


def claims_table(found) -> str:
    """The claims, the numbers, and whether they hold, in Markdown."""
    return markdown(pd.DataFrame(claims(found), columns=["the paper's claim", "ours", "holds"]))


def claims(found):
    """(claim, numbers, judgement) of each of the study's claims."""
    effects = findings.regularizer_effects(found, per_layer=False)
    effects = effects[effects["assoc"].isin(PAPER_METHODS)]
    equal = findings.at_equal_accuracy(found)
    drop = effects[effects["regularizer"] == "drop"]
    if len(drop):
        by = findings.judged_by(drop)
        clear = ((drop[by] > 0) & (drop[f"{by}_p"] < summary.SIGNIFICANT / len(drop))).sum()
        yield "dropout raises modularity strongly", numbers(drop), f"for {clear} of {len(drop)} methods"
    for name in ("l2", "l1"):
        if name in set(effects["regularizer"]):
            yield modest(name, effects[effects["regularizer"] == name], equal)
    rows, raw = (
        agreement(found, methods).set_index(["condition", "group"]) for methods in (PAPER_METHODS, RAW_METHODS)
    )
    within = " and ".join(similarity(rows, raw, group) for group in GROUPS[:2])
    above = all(rows.loc[("trained", group), "adjusted_low"] > 0 for group in GROUPS[:2])
    yield "clusterings agree within upstream methods, and within downstream ones", within, "yes" if above else "no"
    across = similarity(rows, raw, "across")
    exceptions, points = len(list(summary.exceptions(found, rows))), rows.loc[("trained", "across"), "points"]
    words = f"{is_less_across(rows)}; at {exceptions} of {points} grid points it fails"
    yield "they agree little across the two families", across, words


def is_less_across(rows):
    """Whether agreement beyond chance across the families is less than within either: yes, not clearly, or no."""
    within = rows.loc[[("trained", group) for group in GROUPS[:2]]].min(numeric_only=True)
    across = rows.loc[("trained", "across")]
    if across["adjusted"] >= within["adjusted"]:
        return "no"
    return "yes" if across["adjusted_high"] < within["adjusted_low"] else "not clearly"


def numbers(rows):
    """The changes of the raw methods, and the range of all rank correlations."""
    raw = [row for _, row in rows.iterrows() if row["assoc"] in RAW_METHODS]
    by = findings.judged_by(rows)
    changes = "; ".join(f"{row['assoc']} {with_interval(row, by, '+.3f')}" for row in raw)
    rho = f"{rows['rho'].min():.2f} to {rows['rho'].max():.2f} for all {len(rows)} methods"
    return f"{by} of Q (n = {rows['n'].max()}): {changes}; rank correlation {rho}"


def modest(name, rows, equal):
    """The claim that a penalty has a modest effect: at its grid's end, and at equal accuracy beside dropout's."""
    ours, dropout = (equal[equal["regularizer"] == part].set_index("assoc")["change"] for part in (name, "drop"))
    smaller = [
        method for method in PAPER_METHODS if method in ours.index and ours[method] < dropout.get(method, np.nan)
    ]
    others = [method for method in ours.index if method not in smaller]
    claim = f"{name.upper()} has a modest effect"
    text = (
        f"change of Q up to {rows['at'].max():.2g} (n = {rows['n'].max()}): {rows['change'].min():+.3f} to "
        f"{rows['change'].max():+.3f}"
    )
    if not len(ours):
        return claim, text, "not judged: its accuracy does not fall to where dropout's is compared"
    text += (
        f"; at {equal['accuracy'].iloc[0]:.1%} test accuracy {ours.min():+.3f} to {ours.max():+.3f}, dropout "
        f"{dropout.min():+.3f} to {dropout.max():+.3f}"
    )
    verdict = f"less than dropout at equal accuracy for {len(smaller)} of {len(ours)} methods"
    return claim, text, verdict + (f", not for {', '.join(others)}" if others else "")


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
            lines.append(f"{words} move by {kept.min(axis=None):+.3f} to {kept.max(axis=None):+.3f}")
    return f"With the other searches {'; '.join(lines)}." if lines else ""
