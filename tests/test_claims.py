"""The study's claims are judged by the numbers, on tables in which every cell has its own value."""

import made_up
import numpy as np
import pandas as pd
import pytest
from test_findings import cells, with_known_effects

from associations import METHODS
from modularity import SEARCHES
from report import agreement, claims, findings, summary
from report.sensitivity import NULLS


@pytest.fixture(scope="module")
def distinct():
    return made_up.distinct()


RAW = ("forward_cov", "forward_jac", "backward_jac", "backward_hess")


def test_every_cell_is_that_finding(distinct):
    """Effects, agreements and what holds at equal accuracy have tests of their own: here they are where they belong."""
    drop, l2, l1, within, across = cells(claims.claims_table(distinct))
    effects = findings.regularizer_effects(distinct, per_layer=False)
    at = {name: rows.set_index("assoc") for name, rows in effects.groupby("regularizer")}
    change = [
        f"{m} {row.change:+.3f} [{row.change_low:+.3f}, {row.change_high:+.3f}]" for m, row in at["drop"].iterrows()
    ]
    raw = "; ".join(text for text in change if text.split()[0] in RAW)
    rho = at["drop"]["rho"]
    up, clear = (
        sum(row.change > 0 and row.change_p < 0.05 / share for _, row in at["drop"].iterrows()) for share in (1, 8)
    )
    assert drop == {
        "the paper's claim": "dropout raises modularity strongly",
        "ours": f"change of Q (n = 21): {raw}; rank correlation {min(rho):.2f} to {max(rho):.2f} for all 8 methods",
        "holds": f"it rises for {up} of 8 methods ({clear} after Bonferroni's correction)",
    }
    equal = findings.at_equal_accuracy(distinct)
    dropout = equal.loc[equal["regularizer"] == "drop", "change"]
    for name, row in (("l2", l2), ("l1", l1)):
        own, changes = equal.loc[equal["regularizer"] == name, "change"], at[name]["change"]
        assert row["the paper's claim"] == f"{name.upper()} has a modest effect"
        assert row["ours"] == (
            f"change of Q up to {at[name]['at'].max():.2g} (n = {at[name]['n'].max()}): {min(changes):+.3f} to "
            f"{max(changes):+.3f}; at {equal['accuracy'].max():.1%} test accuracy {min(own):+.3f} to {max(own):+.3f}, "
            f"dropout {min(dropout):+.3f} to {max(dropout):+.3f}"
        )
    agreed = agreement.agreement(distinct).set_index(["condition", "group"])
    of_raw = agreement.agreement(distinct, RAW).set_index(["condition", "group"])["element_sim"]

    def similarity(group):
        texts = []
        for condition in ("trained", "untrained"):
            row = agreed.loc[condition, group]
            texts.append(
                f"{row['element_sim']:.2f} [{row['element_sim_low']:.2f}, {row['element_sim_high']:.2f}] {condition} "
                f"(n = {row['n']}; {row['expected']:.2f} by chance; raw methods only {of_raw[condition, group]:.2f})"
            )
        return f"{group} {texts[0]}, {texts[1]}"

    assert within["ours"] == f"{similarity('within upstream')} and {similarity('within downstream')}"
    assert across["ours"] == similarity("across")
    by_point = agreement.agreement_by_point(distinct).set_index("group").loc["across", "adjusted"]
    least = min(agreed.loc["trained", f"within {family}"]["adjusted"] for family in ("upstream", "downstream"))
    fails = sum(value >= least for value in by_point)
    assert 0 < fails < len(by_point)

    def beyond(condition, *groups):
        return f"{' and '.join(f'{agreed.loc[condition, group].adjusted:.2f}' for group in groups)} {condition}"

    families = "within upstream", "within downstream"
    assert within["holds"].endswith(f"; beyond chance {beyond('trained', *families)}, {beyond('untrained', *families)}")
    assert across["holds"] == (
        f"less than within: no; beyond chance {beyond('trained', 'across')}, {beyond('untrained', 'across')}; at "
        f"{fails} of {len(by_point)} grid points as much as within a family on average"
    )


def test_dropout_raises_modularity_of_the_methods_that_are_clear_after_bonferronis_correction(distinct):
    found = with_known_effects(distinct)
    drop = findings.regularizer_effects(found, per_layer=False).query("regularizer == 'drop' and change > 0")
    clear, nearly = ((drop["change_p"] < 0.05 / share).sum() for share in (8, 1))
    assert 0 < clear < nearly
    assert (
        next(claims.claims(found))[2] == f"it rises for {nearly} of 8 methods ({clear} after Bonferroni's correction)"
    )


@pytest.mark.parametrize(
    ("within", "across", "spread", "own", "agree", "little"),
    [
        (0.5, 0.1, 0.05, 0.0, "yes", "yes"),
        (0.5, 0.45, 0.3, 0.0, "yes", "yes"),  # their intervals overlap, the difference within networks is clear
        (0.5, 0.45, 0.0, 0.3, "yes", "not clearly"),
        (0.05, 0.0, 0.5, 0.5, "no", "not clearly"),  # that within a family reaches below zero
        (0.4, 0.5, 0.0, 0.0, "yes", "no"),
    ],
)
def test_agreement_is_judged_by_the_ends_of_its_intervals(distinct, within, across, spread, own, agree, little):
    """Of both kinds the runs of a network are up or down together by `spread`, those within a family by `own`."""
    align = distinct.align.assign(element_sim_expected=0.2)
    families = [align[name].astype(str).str.startswith("forward") for name in ("assoc_a", "assoc_b")]
    same, run = families[0] == families[1], align["run"] % 1000 - 1
    beyond = np.where(same, within + own * run, across) + spread * run
    found = distinct._replace(align=align.assign(element_sim=0.2 + 0.8 * beyond))
    *_, (_, _, holds_within), (_, _, holds_across) = claims.claims(found)
    assert holds_within.startswith(f"{agree}; ") and holds_across.startswith(f"less than within: {little}; ")


def test_a_penalty_is_judged_by_dropouts_effect_at_the_same_accuracy(distinct):
    modules, random = distinct.modules.copy(), np.random.default_rng(0)
    modules["score"] = 0.3 + 0.01 * random.normal(size=len(modules))
    strong = modules["part"].eq("drop") & modules["drop"].gt(0.3)
    modules.loc[strong & modules["assoc"].isin(METHODS[:3]), "score"] += 0.5
    modules.loc[strong & modules["assoc"].eq(METHODS[3]), "score"] -= 0.5
    found = distinct._replace(modules=modules)
    rows = {claim: (numbers, holds) for claim, numbers, holds in claims.claims(found)}
    equal = findings.at_equal_accuracy(found)
    at = {(r["regularizer"], r["assoc"]): r for r in equal.to_dict("records")}
    for name in ("l1", "l2"):
        pairs = {method: (at[name, method], at["drop", method]) for method in METHODS}
        less = [m for m, (own, dropout) in pairs.items() if own["change_high"] < dropout["change_low"]]
        more = [m for m, (own, dropout) in pairs.items() if own["change_low"] > dropout["change_high"]]
        assert less == list(METHODS[:3]) and more == [METHODS[3]]
        numbers, holds = rows[f"{name.upper()} has a modest effect"]
        compared = (
            f"raises Q less than dropout for 3 of 8 methods, more for 1; intervals overlap for {', '.join(METHODS[4:])}"
        )
        assert holds == f"at equal accuracy it {compared}"
        changes = [own["change"] for own, _ in pairs.values()]
        assert f"{min(changes):+.3f} to {max(changes):+.3f}, dropout" in numbers
        (line,) = [line for line in summary.headlines(found) if line.startswith(f"{name}, ")]
        assert line.endswith(f" At {equal['accuracy'].iloc[0]:.1%} test accuracy it {compared}.")


@pytest.mark.parametrize("parts", [("drop", "l1", "l2"), ("drop",)])
def test_single_networks_are_compared_at_equal_accuracy_but_not_counted(distinct, parts):
    def first_runs(table):
        return table[~table["part"].isin(parts) | (table["run"] % 1000 == distinct.models["run"].min())]

    found = distinct._replace(models=first_runs(distinct.models), modules=first_runs(distinct.modules))
    equal = findings.at_equal_accuracy(found)
    assert findings.costs_accuracy(found) and equal.loc[equal["regularizer"] == "drop", "change_p"].isna().all()
    changes = {name: f"{rows.min():+.3f} to {rows.max():+.3f}" for name, rows in equal.groupby("regularizer")["change"]}
    rows = {claim: (numbers, holds) for claim, numbers, holds in claims.claims(found)}
    for name in ("l1", "l2"):
        numbers, holds = rows[f"{name.upper()} has a modest effect"]
        assert holds == "not judged: too few networks for intervals"
        assert numbers.endswith(f" test accuracy {changes[name]}, dropout {changes['drop']}")
        compared = f"changes Q by {changes[name]}, dropout by {changes['drop']}: too few networks for intervals"
        (line,) = [line for line in summary.headlines(found) if line.startswith(f"{name}, ")]
        assert line.endswith(f" At {equal['accuracy'].iloc[0]:.1%} test accuracy it {compared}.")
    alike = found.models.assign(test_acc=0.9)
    modules = found.modules.assign(test_acc=0.9)
    assert not findings.costs_accuracy(found._replace(models=alike, modules=modules))


def test_where_no_accuracy_is_lost_nothing_is_compared(distinct):
    """Made-up networks of nearly equal accuracy: the lowest that all regularizers reach is noise."""
    found = made_up.results("mnist-wide", runs=3)
    assert findings.costs_accuracy(distinct) and not findings.costs_accuracy(found)
    rows = {claim: holds for claim, _, holds in claims.claims(found)}
    for name in ("L1", "L2"):
        assert rows[f"{name} has a modest effect"] == (
            "not judged: the accuracy that all regularizers reach is no clear loss"
        )
    assert summary.equal_accuracy_table(found).startswith("Not compared: ")
    assert not [line for line in summary.headlines(found) if "test accuracy" in line]


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
        "The other searches move changes of Q by -0.010 to +0.003; agreement within a family by -0.020 to -0.010; "
        "agreement across by -0.005 to -0.005."
    )


def test_where_a_null_says_otherwise_than_q_it_is_said(distinct):
    modules, random = distinct.modules.copy(), np.random.default_rng(0)
    for name in ("score", *NULLS):
        modules[name] = 0.01 * random.normal(size=len(modules))
    ends = [modules["part"].eq(part) & np.isclose(modules[part], at) for part, at in (("drop", 0.6), ("l1", 1e-3))]
    jac, cov = (modules["assoc"].eq(method) for method in ("forward_jac", "backward_jac"))
    modules.loc[ends[0] & jac, ["score", *NULLS]] += 1.0  # all rise
    modules.loc[ends[0] & cov, "score"] += 1.0  # only Q does
    modules.loc[ends[1] & cov, ["z", "rotation_z"]] += [-1.0, 1.0]
    modules.loc[ends[1] & jac, ["score", "z"]] += [1.0, -1.0]
    found = distinct._replace(modules=modules)
    shuffled, rotated = NULLS.values()
    assert claims.null_effect(found) == (
        f"By the 95% intervals, {shuffled} falls where Q does not for l1, forward_jac; l1, backward_jac. {rotated} "
        "rises where Q does not for l1, backward_jac."
    )
    same = modules.assign(**{null: modules["score"] for null in NULLS})
    assert claims.null_effect(found._replace(modules=same)) == ""


def test_a_family_that_agrees_no_more_than_by_chance_is_not_said_to_agree(distinct):
    align = distinct.align.assign(element_sim=distinct.align["element_sim_expected"] - 0.01)
    rows = {claim: holds for claim, _, holds in claims.claims(distinct._replace(align=align))}
    assert rows["clusterings agree within upstream methods, and within downstream ones"].startswith("no; ")
    families = [align[name].astype(str).str.startswith("forward") for name in ("assoc_a", "assoc_b")]
    align = align.assign(element_sim=np.where(families[0] == families[1], 0.95, 0.96))
    rows = {claim: holds for claim, _, holds in claims.claims(distinct._replace(align=align))}
    assert rows["clusterings agree within upstream methods, and within downstream ones"].startswith("yes; ")
    across = rows["they agree little across the two families"]
    assert across.startswith("less than within: no; ") and "; at 13 of 13 grid points as much as" in across


def test_claims_on_a_part_of_the_grid_are_judged_by_what_is_there():
    """Single runs by the trend; a regularizer that was not varied, and untrained networks, are not spoken of."""
    single = made_up.results(runs=1)
    only_drop = [
        table[table["part"].eq("drop") | np.isclose(table["l2"], 1e-5) & table["part"].eq("l2")] for table in single[:3]
    ]
    found = single._replace(**dict(zip(("models", "modules", "align"), only_drop, strict=True)))
    rows = {claim: (numbers, holds) for claim, numbers, holds in claims.claims(found)}
    assert len(rows) == 3
    numbers, holds = rows["dropout raises modularity strongly"]
    row = findings.regularizer_effects(found, per_layer=False).set_index("assoc").loc["forward_jac"]
    assert numbers.startswith("trend of Q (n = 14): forward_cov +0.1")
    assert f"forward_jac {row['trend']:+.3f} [{row['trend_low']:+.3f}, {row['trend_high']:+.3f}]" in numbers
    assert holds == "it rises for 4 of 8 methods (4 after Bonferroni's correction)"
    assert "untrained" not in rows["they agree little across the two families"][0]


def test_a_penalty_that_costs_no_accuracy_is_not_judged(distinct):
    modules = distinct.modules
    rising = modules["test_acc"].where(modules["part"] != "l2", 0.9 + modules["l2"])
    found = distinct._replace(modules=modules.assign(test_acc=rising))
    rows = {claim: (numbers, holds) for claim, numbers, holds in claims.claims(found)}
    numbers, holds = rows["L2 has a modest effect"]
    assert (
        holds == "not judged: its accuracy does not fall to where dropout's is compared"
        and "test accuracy" not in numbers
    )
