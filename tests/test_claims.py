"""The study's claims are judged by the numbers, on tables in which every cell has its own value."""

import made_up
import numpy as np
import pandas as pd
import pytest

from modularity import SEARCHES
from report import claims, findings


@pytest.fixture(scope="module")
def distinct():
    return made_up.distinct()


def test_a_penalty_is_judged_by_dropouts_effect_at_the_same_accuracy(distinct):
    rows = {claim: (numbers, holds) for claim, numbers, holds in claims.claims(distinct)}
    at = {(r["regularizer"], r["assoc"]): r["change"] for r in findings.at_equal_accuracy(distinct).to_dict("records")}
    for name in ("l1", "l2"):
        smaller = [method for method in claims.PAPER_METHODS if at[name, method] < at["drop", method]]
        numbers, holds = rows[f"{name.upper()} has a modest effect"]
        assert holds.startswith(f"less than dropout at equal accuracy for {len(smaller)} of 8 methods")
        named = holds.partition(", not for ")[2].split(", ")
        assert set(named) - {""} == set(claims.PAPER_METHODS) - set(smaller)
        changes = [at[name, method] for method in claims.PAPER_METHODS]
        assert f"{min(changes):+.3f} to {max(changes):+.3f}, dropout" in numbers


def test_what_the_searches_move_is_the_largest_difference_to_the_default():
    default, plain, leiden = (search.title for search in SEARCHES.values())
    rows = pd.DataFrame(
        [
            ("drop, forward_jac", "+0.250 [+0.2, +0.3]", "+0.240 [+0.2, +0.3]", "+0.253 [+0.2, +0.3]"),
            ("agreement within upstream", "0.500 [0.4, 0.6]", "0.480 [0.4, 0.6]", "0.490 [0.4, 0.6]"),
            ("agreement across", "0.300 [0.2, 0.4]", "0.295 [0.2, 0.4]", ""),
            ("pairs across, p < 0.05", "59%", "57%", "60%"),
        ],
        columns=["claim", default, plain, leiden],
    )
    assert claims.search_effect(rows) == (
        "With the other searches changes of Q move by -0.010 to +0.003; agreement within a family move by -0.020 to "
        "-0.010; agreement across move by -0.005 to -0.005."
    )


def test_a_family_that_agrees_no_more_than_by_chance_is_not_said_to_agree(distinct):
    align = distinct.align.assign(element_sim=distinct.align["element_sim_expected"] - 0.01)
    rows = {claim: holds for claim, _, holds in claims.claims(distinct._replace(align=align))}
    assert rows["clusterings agree within upstream methods, and within downstream ones"] == "no"
    families = [align[name].astype(str).str.startswith("forward") for name in ("assoc_a", "assoc_b")]
    align = align.assign(element_sim=np.where(families[0] == families[1], 0.95, 0.96))
    rows = {claim: holds for claim, _, holds in claims.claims(distinct._replace(align=align))}
    assert rows["clusterings agree within upstream methods, and within downstream ones"] == "yes"
    assert rows["they agree little across the two families"].startswith("no; at 13 of 13 grid points")
