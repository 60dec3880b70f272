"""The third finding in words and tables: do the modules of a layer serve different classes, and which modules do?"""

from collections.abc import Iterator

import pandas as pd

from associations import FAMILIES, PAPER_METHODS
from report import findings
from report.experiments import Results
from report.lesion_findings import (
    KINDS,
    agreement_correlations,
    by_condition,
    family_differences,
    modularity_correlations,
    specialization_effects,
    z_of,
)
from report.text import captioned, markdown, number, setting, with_interval

SPECIALIZATION_CAPTION = """Mean z of specialization among shuffled clusterings of the same sizes, in untrained
networks, in all trained ones and in each regularizer's grid; its change between the ends of each grid, n networks along
it. A network whose shuffled clusterings do not differ (a single module, or lesions without effect) has no z."""
FAMILY_CAPTION = "Mean z of specialization over each family's methods, and of its difference within n networks."
CORRELATION_CAPTION = """Rank correlations over n trained networks with Q, and with the agreement of upstream and
downstream clusterings (beyond chance): of the networks as they are, and *matched*, less the means of the same
regularization."""


def verdicts(found: Results) -> Iterator[str]:
    """The finding in sentences that follow from the numbers; none where nothing was lesioned."""
    for kind, title in KINDS.items() if len(found.lesions) else ():
        differences = family_differences(found, kind)
        for layer, rows in differences[differences["condition"].isin(("trained", "untrained"))].groupby("layer"):
            texts = [family_verdict(row) for _, row in rows.iloc[::-1].iterrows()]
            texts += range_verdict(differences[differences["layer"] == layer].dropna(subset="strength"))
            yield f"z of specialization, {title}, layer {layer}: {'; '.join(texts)}."
        effects = specialization_effects(found, kind)
        for _, rows in effects[effects["assoc"].isin(PAPER_METHODS)].groupby("regularizer", sort=False):
            yield f"z of specialization, {title}, {effect_verdict(rows)}."
        for what, rows in (
            ("Q", modularity_correlations(found, kind)),
            ("agreement across families", agreement_correlations(found, kind)),
        ):
            if rows["matched"].notna().any():  # single runs leave nothing at matched regularization
                yield f"z of specialization, {title}, and {what}: {correlation_verdict(rows)}."


def family_verdict(row):
    """Both families' means in trained or in untrained networks, and their difference within each network."""
    means = ", ".join(f"{family} {row[family]:.2f}" for family in FAMILIES)
    difference = with_interval(row, "difference", "+.2f")
    return f"{row['condition']} {means}, difference within networks {difference} (n = {row['n']})"


def range_verdict(points):
    """Between which grid points the differences of the two families lie, in a list; empty for a single one."""
    ends = [points.loc[points["difference"].idxmin()], points.loc[points["difference"].idxmax()]] if len(points) else []
    texts = [f"{row['difference']:+.2f} at {setting(row['condition'], row['strength'])}" for row in ends]
    return [f"at single grid points the difference is {' to '.join(texts)}"] if len(points) > 1 else []


def effect_verdict(rows):
    """What a regularizer does to specialization, layer by layer, from its rows of `specialization_effects`."""
    texts, by = [], findings.judged_by(rows)
    few = rows[f"{by}_p"].isna().all()
    for layer, each in rows.groupby("layer"):
        up, down = (each[f"{by}_low"] > 0).sum(), (each[f"{by}_high"] < 0).sum()
        clear = "" if few else f"{up} up and {down} down of {len(each)} methods "
        texts.append(f"{clear}in layer {layer}, median change {each['change'].median():+.2f}")
    first = rows.iloc[0]
    ends = f"{setting(first['regularizer'], rows['at_weakest'].min())} to {number(rows['at'].max())}"
    judged = f"95% interval of the {by} clear of zero; by chance {len(each) / 40:.1f} up and as many down"
    return f"{ends} ({'too few for intervals' if few else judged}): {'; '.join(texts)}"


def correlation_verdict(rows):
    """How many of some correlations at matched regularization are clear of zero, and between what they lie."""
    up, down = (rows["low"] > 0).sum(), (rows["high"] < 0).sum()
    return (
        f"rank correlation at matched regularization {rows['matched'].min():+.2f} to {rows['matched'].max():+.2f}, "
        f"positive in {up} and negative in {down} of {len(rows)} cases (95% interval clear of zero; by chance "
        f"{len(rows) / 40:.1f} of each)"
    )


# ---- tables ---------------------------------------------------------------------------------------------------------


def tables(found: Results) -> Iterator[str]:
    """All tables of the finding, in Markdown; none where nothing was lesioned."""
    if len(found.lesions):
        yield captioned("How specialized the modules are", SPECIALIZATION_CAPTION, specialization_table(found))
        yield captioned("Upstream and downstream modules, network by network", FAMILY_CAPTION, family_table(found))
        yield captioned("What specialization goes with", CORRELATION_CAPTION, correlation_table(found))


def specialization_table(found: Results) -> str:
    """Mean z of specialization in each condition, how trained networks differ from untrained ones, and what each
    regularizer changes from its weakest to its strongest usable value: a row per kind of lesion, layer and method."""
    rows = {}
    for kind, title in KINDS.items():
        for _, row in by_condition(found, z_of(kind)).iterrows():
            cells = rows.setdefault((title, row["layer"], row["assoc"]), {})
            cells[row["condition"]] = f"{with_interval(row, z_of(kind), '.2f')}, n = {row['n']}"
            if row["condition"] == "trained":
                cells["trained − untrained"] = with_interval(row, "gain", "+.2f")
        for _, row in specialization_effects(found, kind).iterrows():
            ends = f"{setting(row['regularizer'], row['at_weakest'])} to {number(row['at'])}"
            rows[title, row["layer"], row["assoc"]][ends] = f"{with_interval(row, 'change', '+.2f')}, n = {row['n']}"
    keys = [dict(zip(("z, by", "layer", "method"), key, strict=True)) for key in rows]
    return markdown(pd.DataFrame([key | cells for key, cells in zip(keys, rows.values(), strict=True)]).fillna(""))


def family_table(found: Results) -> str:
    """Mean z of specialization of both families and their difference within networks: a row per kind of lesion,
    condition or grid point, and layer."""
    lines = []
    for kind, title in KINDS.items():
        for _, row in family_differences(found, kind).iterrows():
            at = row["condition"] if pd.isna(row["strength"]) else setting(row["condition"], row["strength"])
            means = {family: f"{row[family]:.2f}" for family in FAMILIES}
            difference = {"difference": with_interval(row, "difference", "+.2f"), "n": row["n"]}
            lines.append({"z, by": title, "networks": at, "layer": row["layer"]} | means | difference)
    return markdown(pd.DataFrame(lines))


def correlation_table(found: Results) -> str:
    """Rank correlations of the z of specialization with Q, and with the agreement of the two families' clusterings."""
    lines = []
    for kind, title in KINDS.items():
        correlated = {"Q": modularity_correlations(found, kind), "agreement": agreement_correlations(found, kind)}
        for other, table in correlated.items():
            for _, row in table.rename(columns={"low": "matched_low", "high": "matched_high"}).iterrows():
                of = row["assoc"] if other == "Q" else row["family"]
                line = {"z, by": title, "with": other, "of": of, "layer": row["layer"], "n": row["n"]}
                values = {"overall": f"{row['overall']:+.2f}", "matched": with_interval(row, "matched", "+.2f")}
                lines.append(line | values)
    return markdown(pd.DataFrame(lines))
