"""Numbers and tables as text, for summaries, figures and Markdown."""

import numpy as np
import pandas as pd

from study import grids

LONG = 30  # rows of a table that are shown without unfolding it


def value(x: float, form: str = ".3f") -> str:
    """A number, or a dash where there is none.

    >>> value(0.5, ".1f"), value(np.nan)
    ('0.5', '–')
    """
    return "–" if np.isnan(x) else f"{x:{form}}"


def with_interval(row, name: str, form: str = ".3f") -> str:
    """A value of a table's row with its 95% interval; the value alone where a single network gives no interval.

    >>> with_interval({"q": 0.5, "q_low": 0.25, "q_high": 0.75}, "q", "+.2f")
    '+0.50 [+0.25, +0.75]'
    """
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return value(row[name], form) + ("" if np.isnan(low) else f" [{low:{form}}, {high:{form}}]")


def signed(x: float) -> str:
    """A correlation to two places, with a true minus sign; a dash where there is none.

    >>> signed(-0.5), signed(np.nan)
    ('−0.50', '–')
    """
    return value(x, ".2f").replace("-", "−")


def number(x: float) -> str:
    """A strength in few characters.

    >>> number(1e-05), number(0.00316228)
    ('1e-5', '0.0032')
    """
    return f"{x:.2g}".replace("e-0", "e-")


def setting(regularizer: str, strength: float) -> str:
    """A regularizer and its strength, in words.

    >>> setting("drop", 0.7), setting("l2", 1e-5)
    ('dropout 0.7', 'L2 weight 1e-5')
    """
    return f"{grids.REGULARIZERS[regularizer].label} {number(strength)}"


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


def captioned(title: str, caption: str, table: str) -> str:
    """A Markdown table below its title and what it shows; folded where it is long.

    >>> print(captioned("Counts", "Of units.", markdown(pd.DataFrame({"a": [1]}))))
    #### Counts
    <BLANKLINE>
    Of units.
    <BLANKLINE>
    | a |
    | --- |
    | 1 |
    """
    rows = table.count("\n") - 1
    if rows > LONG:
        table = f"<details><summary>{rows} rows</summary>\n\n{table}\n\n</details>"
    return f"#### {title}\n\n{caption}\n\n{table}"
