"""From checkpoints to tables: one row a network, a matrix or a pair of matrices, for pandas and the notebook.

    python analysis.py CKPT          prints what is known about one network's modules
    python analysis.py CKPT --plot   also draws its association matrices, sorted by cluster, into figures/

`load_data_as_table` reads any networks and any metrics; report/experiments.py everything about one of the study's
experiments.
"""

import argparse
import itertools
import math
import os
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from associations import DOWNSTREAM, METHODS, PAIRS, UPSTREAM
from study import checkpoints, grids
from study.cli import UserError, one_line_errors
from study.files import FileError

ACCURACIES = ("train_acc", "val_acc", "test_acc")
MODULE_FIELDS = (
    *("score", "num_clusters", "mc_score", "null_mean", "null_std", "z", "p", "rotation_z"),
    *("sizes", "dead", "version"),
)
ALIGN_MEASURES = ("score", "rmi", "rmi_norm", "vi", "vi_norm", "element_sim", "adj_spearman_r")
ALIGN_FIELDS = (
    *ALIGN_MEASURES,
    "p",
    "null_mean",
    "null_std",
    "transfer_AaPb",
    "transfer_AbPa",
    "transfer_AaPb_norm",
    "transfer_AbPa_norm",
    "version",
)
SWAPPED = {
    "transfer_AaPb": "transfer_AbPa",
    "transfer_AbPa": "transfer_AaPb",
    "transfer_AaPb_norm": "transfer_AbPa_norm",
    "transfer_AbPa_norm": "transfer_AaPb_norm",
}
REPORTED = 5  # at most so many problems are spelt out


# ---- any networks, any metrics --------------------------------------------------------------------------------------


def generate_model_specs(grid: dict) -> list[dict]:
    """Every combination of hyperparameter values, as dicts; the last field varies fastest.

    Args: grid: {field: value or iterable of values}; strings and dicts count as values.

    >>> generate_model_specs({"dataset": "mnist", "drop": [0.1, 0.2]})
    [{'dataset': 'mnist', 'drop': 0.1}, {'dataset': 'mnist', 'drop': 0.2}]
    """
    values = [[v] if isinstance(v, (str, dict)) or not np.iterable(v) else list(v) for v in grid.values()]
    return [dict(zip(grid, combination, strict=True)) for combination in itertools.product(*values)]


def load_data_as_table(model_specs, metrics, log_dir=Path("logs/")) -> pd.DataFrame:
    """What the checkpoints of many networks hold, as a tidy table.

    Args:
        model_specs: dicts of hyperparameters that name runs (dataset, task, l2, l1, drop, run), and optionally
            `checkpoint`: "last" (default), "best", or a file name in the run's directory or its weights/. Further
            hyperparameters (seed, model_args…) must agree with those that the checkpoint records.
        metrics: names of three forms: a top-level key (test_acc), modules.<method>.<layer>.<field>, or
            align.<a>:<b>.<layer>.<field>. Layers count from 0. Fields are those of the checkpoint; `dead` (number
            of dead units) and `sizes` (of clusters, largest first); and for any array field x, x_mean and x_std. A pair
            may be named in either order; transfer fields follow the order given.
        log_dir: the directory that holds the runs' directories.

    Returns:
        One row per (network, method, layer) with columns assoc, layer, and per (network, pair, layer) with assoc_a,
        assoc_b, layer; one per network if neither is asked for. Each has the spec's fields, the basic metrics and a
        column for each <field>. Numbers are floats, matrices arrays; what a checkpoint lacks is NaN.

    Missing and unreadable checkpoints are reported on stderr, in one message at the end. Tensors are mapped into
    memory and only those asked for are read: their checksums are not verified here (those of all other values are).

    Raises: UserError for a metric of another form, or a spec without a data set.
    """
    return table_of([(spec, checkpoint_path(spec, Path(log_dir))) for spec in model_specs], metrics)


def load_checkpoints(paths, metrics) -> pd.DataFrame:
    """Like `load_data_as_table`, for files wherever they are; hyperparameters are read from the files themselves."""
    table = table_of([({"checkpoint": str(path)}, Path(path)) for path in paths], ["hyper_parameters", *metrics])
    recorded = [h if isinstance(h, dict) else {} for h in table.pop("hyper_parameters")]
    for i, name in enumerate(grids.NAMED):
        table.insert(i, name, [_value(h.get(name)) for h in recorded])
    return _tidy(table)


def module_metrics(fields=("score",), methods=METHODS, layers=(0, 1)) -> list[str]:
    """Names of metrics of modules, for `load_data_as_table`."""
    return [f"modules.{method}.{layer}.{field}" for method in methods for layer in layers for field in fields]


def align_metrics(fields=("element_sim",), pairs=PAIRS, layers=(0, 1)) -> list[str]:
    """Names of metrics of alignments, for `load_data_as_table`."""
    return [f"align.{pair}.{layer}.{field}" for pair in pairs for layer in layers for field in fields]


def checkpoint_path(spec, log_dir):
    """The checkpoint file of a spec."""
    if "dataset" not in spec:
        raise UserError(f"the model spec {spec} names no dataset")
    name = spec.get("checkpoint", "last")
    run_dir = log_dir / grids.uid(**{field: spec[field] for field in grids.NAMED if field in spec})
    if name in ("last", "best"):
        return run_dir / "weights" / f"{name}.ckpt"
    return run_dir / name if (run_dir / name).exists() else run_dir / "weights" / name


def table_of(entries, metrics, problems=None):
    """The table of (fields, path) pairs; problems are collected in a list, or reported if none is given."""
    basic, rows_wanted = _parsed(metrics)
    collected, lacking, rows = [], {}, []
    for fields, path in tqdm(entries, desc="reading checkpoints", disable=None, leave=False):
        stored = {}
        try:
            stored = _agreeing(checkpoints.read(path, mmap=True), fields)
        except FileError as error:
            collected.append(str(error))
        except ValueError as error:
            collected.append(f"{path}: {error}")
        model = fields | {name: _value(stored.get(name)) for name in basic}
        rows += _rows(stored, model, rows_wanted, lacking)
        for name in basic if stored else ():
            lacking[name] = lacking.get(name, 0) + (name not in stored)
    collected += [f"{name}: not in {n} of {len(entries)} checkpoints" for name, n in lacking.items() if n]
    if problems is None:
        report(collected)
    else:
        problems += collected
    return _tidy(pd.DataFrame(rows))


def _parsed(metrics):
    """Names of basic metrics, and {("modules", (method,), layer) or ("align", (a, b), layer): [fields]}."""
    basic, rows = [], {}
    for metric in metrics:
        match = re.fullmatch(r"(modules|align)\.([^.]+)\.(\d+)\.(\w+)", metric)
        methods = tuple(match[2].split(":")) if match else ()
        if match and len(methods) == {"modules": 1, "align": 2}[match[1]]:
            rows.setdefault((match[1], methods, int(match[3])), []).append(match[4])
        elif re.fullmatch(r"\w+", metric):
            basic.append(metric)
        else:
            raise UserError(
                f"metric {metric!r}: expected a basic key such as test_acc, modules.<method>.<layer>.<field> or "
                "align.<a>:<b>.<layer>.<field>"
            )
    return basic, rows


def _agreeing(stored, fields):
    """The checkpoint itself, if the hyperparameters that it records are the spec's; else ValueError."""
    recorded = stored.get("hyper_parameters", {})
    for name in grids.HYPERPARAMETERS:
        if name in fields and name in recorded and not _same(fields[name], recorded[name]):
            raise ValueError(f"holds {name} {recorded[name]}, not {fields[name]}")
    return stored


def _same(a, b):
    numbers = isinstance(a, (int, float)) and isinstance(b, (int, float))
    return math.isclose(a, b, rel_tol=1e-5) if numbers else a == b


def _rows(stored, model, rows_wanted, lacking):
    """The rows of one network; counts in `lacking` what its checkpoint does not hold."""
    rows = []
    for (kind, methods, layer), fields in rows_wanted.items():
        layers = stored.get(kind, {}).get(":".join(sorted(methods)), [])
        entry = layers[layer] if layer < len(layers) else {}
        swap = SWAPPED if list(methods) != sorted(methods) else {}
        values = {field: _field(entry, swap.get(field, field)) for field in fields}
        for field, value in values.items():
            if stored and value is None:
                name = f"{kind}.{':'.join(methods)}.{layer}.{field}"
                lacking[name] = lacking.get(name, 0) + 1
        names = ("assoc",) if kind == "modules" else ("assoc_a", "assoc_b")
        values = {field: math.nan if value is None else value for field, value in values.items()}
        rows.append(model | dict(zip(names, methods, strict=True)) | {"layer": layer} | values)
    return rows if rows_wanted else [model]


def _field(entry, field):
    """One field of a modules or align dict, derived ones included; None if it is not there."""
    if field in entry:
        return _value(entry[field])
    array, _, statistic = field.rpartition("_")
    if statistic in ("mean", "std") and array in entry:
        return float(getattr(np, statistic)(entry[array].numpy()))
    if field in ("sizes", "dead") and "clusters" in entry:
        sizes = np.sort(entry["clusters"].sum(0).numpy())[::-1].astype(int)
        return sizes[sizes > 0] if field == "sizes" else float(len(entry["clusters"]) - sizes.sum())
    return None


def _value(x):
    """A float for a number however it is wrapped, a copied array for a tensor, NaN for None, else the thing itself."""
    if x is None:
        return math.nan
    if isinstance(x, tuple) and len(x) == 1:
        return _value(x[0])
    if isinstance(x, torch.Tensor):
        return x.item() if x.ndim == 0 else x.numpy().copy()
    return float(x) if isinstance(x, (int, float, np.number)) else x


def report(problems):
    """One message on stderr about all checkpoints that are missing or broken and all entries that they lack."""
    if problems:
        rest = [f"… and {len(problems) - REPORTED} more"] * (len(problems) > REPORTED)
        print("\n  ".join(["analysis: NaN in the table, for want of:", *problems[:REPORTED], *rest]), file=sys.stderr)


def _tidy(table):
    """Method names as ordered categoricals, layers and runs as integers."""
    for name in ("assoc", "assoc_a", "assoc_b"):
        if name in table:
            others = sorted(set(table[name].dropna()) - set(METHODS))
            table[name] = pd.Categorical(table[name], categories=[*METHODS, *others], ordered=True)
    for name in ("layer", "run"):
        if name in table and table[name].notna().all():
            table[name] = table[name].astype(int)
    return table


# ---- tables on disk -------------------------------------------------------------------------------------------------


def save_table(table: pd.DataFrame, path) -> None:
    """Writes a table to a Parquet file, whole or not at all; matrices are stored in half precision, relative to their
    largest entry (for figures), clusters as they are."""
    table = table.copy()
    for name in ("adj", "clusters"):
        if name in table:
            table[name] = [_flat(matrix, name == "adj") for matrix in table[name]]
    scratch = Path(path).with_name(f"{Path(path).name}.{os.getpid()}.tmp")
    table.to_parquet(scratch, index=False, compression="zstd")
    scratch.replace(path)


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
    return table


def checkpoint_layers(path) -> int:
    """Number of layers whose modules a checkpoint holds.

    Raises: UserError if the file cannot be read or has no modules.
    """
    layers = max((len(modules) for modules in checkpoints.read(path, mmap=True).get("modules", {}).values()), default=0)
    if not layers:
        raise UserError(f"{path}: not evaluated; run python eval.py --ckpt-file {path}")
    return layers


# ---- one checkpoint at a glance --------------------------------------------------------------------------------------


def checkpoint_summary(path) -> pd.DataFrame:
    """What one checkpoint says about its modules: a row per method and layer.

    Returns: columns method, layer, Q, z and p (against shuffled matrices), clusters (effective number), and agreement:
        mean element-centric similarity to the clusterings of the other upstream, and of the other downstream methods.
    Raises: UserError if the file cannot be read or has no modules.
    """
    layers = range(checkpoint_layers(path))
    entry = [({}, Path(path))]
    modules = table_of(entry, module_metrics(("score", "z", "p", "num_clusters"), layers=layers), [])
    align = table_of(entry, align_metrics(layers=layers), [])
    for name, family in (("with upstream", UPSTREAM), ("with downstream", DOWNSTREAM)):
        modules[name] = [
            _agreement(align, assoc, layer, family)
            for assoc, layer in zip(modules["assoc"], modules["layer"], strict=True)
        ]
    return modules.rename(columns={"assoc": "method", "score": "Q", "num_clusters": "clusters"})


def _agreement(align, assoc, layer, family):
    """Mean element_sim between one method and the others of a family, in one layer."""
    a, b = align["assoc_a"], align["assoc_b"]
    others = (a == assoc) & (b != assoc) & b.isin(family) | (b == assoc) & (a != assoc) & a.isin(family)
    return align.loc[others & (align["layer"] == layer), "element_sim"].mean()


def main(args):
    """Prints the summary of each checkpoint, and draws its matrices if asked to."""
    for path in args.checkpoint:
        print(path, checkpoint_summary(path).to_string(index=False, float_format="{:.3f}".format, na_rep="-"), sep="\n")
        if args.plot:
            from report import matrix_figures, style  # matplotlib, only where something is drawn

            examples = load_checkpoints([path], module_metrics(("score", "adj", "clusters"), layers=(args.layer,)))
            print(
                *style.save(
                    matrix_figures.sorted_matrices(examples), f"matrices-{path.parent.parent.name}-{path.stem}"
                ),
                sep="\n",
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="+", type=Path, help="evaluated checkpoints")
    parser.add_argument("--plot", action="store_true", help="draw the association matrices of one layer into figures/")
    parser.add_argument("--layer", type=int, default=0, help="the layer to draw, from 0 (default)")
    with one_line_errors("analysis.py"):
        main(parser.parse_args())
