"""Tables on disk, as Parquet files: replaced whole or not at all, matrices in half precision."""

import io
import math
from pathlib import Path

import numpy as np
import pandas as pd

from study.cli import UserError
from study.files import write_bytes

EFFECTS = {"mean_effects", "zero_effects", "classes"}  # arrays of lesions, (clusters, classes) and (classes,)


def save_table(table: pd.DataFrame, path) -> None:
    """Writes a table with its `attrs`; matrices are stored relative to their largest entry (for figures), clusters as
    they are.

    Raises: FileError if it cannot be written; the old file, if any, is then intact.
    """
    table = table.copy()
    for name in ("adj", "clusters"):
        if name in table:
            table[name] = [_flat(matrix, name == "adj") for matrix in table[name]]
    for name in EFFECTS & set(table):
        table[name] = [x.ravel() if isinstance(x, np.ndarray) else None for x in table[name]]
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd")
    write_bytes(Path(path), buffer.getvalue())


def _flat(matrix, relative):
    """A matrix's entries in row-major order: float16 relative to the largest, or small integers."""
    return (matrix / (matrix.max() or 1)).astype(np.float16).ravel() if relative else matrix.astype(np.int8).ravel()


def load_table(path) -> pd.DataFrame:
    """Reads a table that `save_table` wrote.

    Raises: UserError if it is missing or cannot be read.
    """
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no such table, or a damaged one ({str(error).splitlines()[0]})") from None
    if "adj" in table:
        sides = [math.isqrt(len(flat)) for flat in table["adj"]]
        for name in ("adj", "clusters"):
            table[name] = [flat.reshape(n, -1).astype(np.float32) for flat, n in zip(table[name], sides, strict=True)]
    for name in EFFECTS & set(table) - {"classes"}:
        table[name] = [
            x.reshape(-1, len(classes)) if isinstance(x, np.ndarray) else np.nan
            for x, classes in zip(table[name], table["classes"], strict=True)
        ]
    return table
