"""From checkpoints to tables: one row a network, a matrix or a pair of matrices, for pandas and the notebook.

    python analysis.py CKPT          prints what is known about one network's modules
    python analysis.py CKPT --plot   also draws its association matrices, sorted by cluster, and what lesions of its
                                     modules do to each class, into figures/

`load_data_as_table` reads any networks and any metrics; report/experiments.py everything about one of the study's
experiments.
"""

import itertools
import math
import numbers
import re
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from associations import DOWNSTREAM, METHODS, PAIRS, UPSTREAM
from lesions import KINDS as LESION_KINDS
from lesions import STATISTICS as LESION_STATISTICS
from study import checkpoints, grids
from study.cli import Parser, UserError, named, one_line_errors

ACCURACIES = ("train_acc", "val_acc", "test_acc")
MODULE_FIELDS = (
    *("score", "num_clusters", "mc_score", "null_mean", "null_std", "z", "p", "rotation_z"),
    *("sizes", "dead", "score_without_silent", "version"),
)
ALIGN_MEASURES = ("score", "rmi", "rmi_norm", "vi", "vi_norm", "element_sim", "adj_spearman_r")
ALIGN_FIELDS = (
    *(*ALIGN_MEASURES, "element_sim_expected", "p", "null_mean", "null_std"),
    *("transfer_AaPb", "transfer_AbPa", "transfer_AaPb_norm", "transfer_AbPa_norm", "version"),
)
LESION_FIELDS = (
    *(f"{kind}_{name}" for kind in LESION_KINDS for name in LESION_STATISTICS),
    *(
        f"{kind}_{name}_{field}"
        for kind in LESION_KINDS
        for name in LESION_STATISTICS
        for field in ("null_mean", "null_std", "z", "p")
    ),
    "draws",
)
EFFECT_FIELDS = ("mean_effects", "zero_effects", "classes", "mean_specialization", "zero_specialization")  # for figures
OPTIONAL = ("rotation_z", "score_without_silent", "element_sim_expected", "lesions")
# not every evaluation has these fields, or this kind of result
METHODS_NAMED = {"modules": 1, "lesions": 1, "align": 2}  # by each kind of result
SWAPPED = {
    "transfer_AaPb": "transfer_AbPa",
    "transfer_AbPa": "transfer_AaPb",
    "transfer_AaPb_norm": "transfer_AbPa_norm",
    "transfer_AbPa_norm": "transfer_AaPb_norm",
}
LESIONS_SHOWN = {
    "mean_specialization": "bits",
    "mean_specialization_z": "bits z",
    "zero_specialization": "zero: bits",
    "zero_specialization_z": "zero: z",
}  # fields, and their headings in a summary
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
        metrics: names of four forms: a top-level key (test_acc), modules.<method>.<layer>.<field>,
            lesions.<method>.<layer>.<field>, or align.<a>:<b>.<layer>.<field>. Layers count from 0; `*` means all that
            a checkpoint has. Fields are those of the checkpoint; `dead` (number of units without weight in this
            matrix, which are in no cluster) and `sizes` (of clusters, largest first); and for any array field x, x_mean
            and x_std. A pair may be named in either order; transfer fields follow the order given.
        log_dir: the directory that holds the runs' directories.

    Returns:
        One row per (network, method, layer) with columns assoc, layer, and per (network, pair, layer) with assoc_a,
        assoc_b, layer; one per network if neither is asked for. Each has the spec's fields, the basic metrics and a
        column for each <field>. Numbers are floats, matrices arrays; what a checkpoint lacks is NaN.

    Missing and unreadable checkpoints are reported on stderr, in one message at the end. Tensors are mapped into
    memory and only those asked for are read: their checksums are not verified here (those of all other values are).

    Raises: UserError for a metric of another form, or a spec without a data set or with an unknown field.
    """
    specs = [_plain(spec) for spec in model_specs]
    return table_of([(spec, checkpoint_path(spec, Path(log_dir))) for spec in specs], metrics)


def load_checkpoints(paths, metrics) -> pd.DataFrame:
    """Like `load_data_as_table`, for files wherever they are; hyperparameters are read from the files themselves."""
    table = table_of([({"checkpoint": str(path)}, Path(path)) for path in paths], ["hyper_parameters", *metrics])
    recorded = [h if isinstance(h, dict) else {} for h in table.pop("hyper_parameters")]
    for i, name in enumerate(grids.NAMED):
        table.insert(i, name, [_value(_recorded(h, name)) for h in recorded])
    return tidy(table)


def module_metrics(fields=("score",), methods=METHODS, layers=(0, 1)) -> list[str]:
    """Names of metrics of modules, for `load_data_as_table`."""
    return [f"modules.{method}.{layer}.{field}" for method in methods for layer in layers for field in fields]


def lesion_metrics(fields=("mean_specialization",), methods=METHODS, layers=(0, 1)) -> list[str]:
    """Names of metrics of lesions, for `load_data_as_table`."""
    return [f"lesions.{method}.{layer}.{field}" for method in methods for layer in layers for field in fields]


def align_metrics(fields=("element_sim",), pairs=PAIRS, layers=(0, 1)) -> list[str]:
    """Names of metrics of alignments, for `load_data_as_table`."""
    return [f"align.{pair}.{layer}.{field}" for pair in pairs for layer in layers for field in fields]


def _plain(spec):
    """A spec with its numbers as Python's own, so that run=np.int64(1) or 1.0 names the same run as run=1."""
    known = (*grids.HYPERPARAMETERS, "checkpoint")
    if unknown := [name for name in spec if name not in known]:
        raise UserError(f"the model spec {spec} has the unknown field {unknown[0]!r}; fields are {', '.join(known)}")
    spec = dict(spec)
    for name in {*grids.REGULARIZERS, "run"} & set(spec):
        value = spec[name]
        if not isinstance(value, numbers.Real) or (name == "run" and not float(value).is_integer()):
            raise UserError(f"the model spec {spec} has {name} {value!r}, which is no number of that kind")
        spec[name] = int(value) if name == "run" else float(value)
    return spec


def checkpoint_path(spec, log_dir):
    """The checkpoint file of a spec."""
    if "dataset" not in spec:
        raise UserError(f"the model spec {spec} names no dataset")
    name = spec.get("checkpoint", "last")
    run_dir = log_dir / grids.uid(**{field: spec[field] for field in grids.NAMED if field in spec})
    if name in ("last", "best"):
        return run_dir / "weights" / f"{name}.ckpt"
    return run_dir / name if (run_dir / name).exists() else run_dir / "weights" / name


def table_of(entries, metrics, problems=None, optional=()):
    """The table of (fields, path) pairs; problems are collected in a list, or reported if none is given.

    Where every layer is asked for, a network that has none still has a row, without a method.

    Args: optional: fields, and kinds of results, whose absence is no problem.
    """
    basic, rows_wanted = _parsed(metrics)
    collected, lacking, rows = [], {}, []
    for fields, path in tqdm(entries, desc="reading checkpoints", disable=None, leave=False):
        try:
            with named(path):
                stored = _checked(checkpoints.read(path, mmap=True), fields)
                found, absent = _rows(stored, fields, basic, rows_wanted)
        except UserError as error:
            collected.append(str(error))
            stored, (found, absent) = {}, _rows({}, fields, basic, rows_wanted)
        rows += found
        for kind, name in absent if stored else ():
            if not {name.partition(".")[0], name.rpartition(".")[2]} & set(optional):
                lacking.setdefault(kind, {}).setdefault(name, []).append(path)
    collected += [_in_words(kind, names, len(entries)) for kind, names in lacking.items()]
    if problems is None:
        report(collected)
    else:
        problems += collected
    return tidy(pd.DataFrame(rows))


def _in_words(kind, names, of):
    """One line about the checkpoints that lack entries of one kind, such as modules.*.*.z."""
    several = f" ({len(names)} entries)" if len(names) > 1 else ""
    lacking = set().union(*names.values())
    return f"{kind if several else next(iter(names))}{several}: not in {len(lacking)} of {of} checkpoints"


def _parsed(metrics):
    """Names of basic metrics, and {((method,) or (a, b), layer): {field: kind of result}}."""
    basic, rows = [], {}
    for metric in metrics:
        match = re.fullmatch(rf"({'|'.join(METHODS_NAMED)})\.([^.]+)\.(\d+|\*)\.(\w+)", metric)
        methods = tuple(match[2].split(":")) if match else ()
        if match and len(methods) == METHODS_NAMED[match[1]]:
            other = rows.setdefault((methods, match[3]), {}).setdefault(match[4], match[1])
            if other != match[1]:
                raise UserError(f"metric {metric!r}: {other} have a field of that name, too; make a table for each")
        elif re.fullmatch(r"\w+", metric):
            basic.append(metric)
        else:
            raise UserError(
                f"metric {metric!r}: expected a basic key such as test_acc, modules.<method>.<layer>.<field>, "
                "lesions.<method>.<layer>.<field> or align.<a>:<b>.<layer>.<field>"
            )
    return basic, rows


def _checked(stored, fields):
    """The checkpoint itself, if it has the form and records the hyperparameters that are expected; else UserError."""
    for kind in METHODS_NAMED:
        layers = [] if stored.get(kind) is None else list(getattr(stored[kind], "values", lambda: [None])())
        if not all(isinstance(each, list) and all(isinstance(layer, dict) for layer in each) for each in layers):
            raise UserError(f"its {kind} are not those of an evaluated checkpoint; evaluate it again")
    recorded = stored.get("hyper_parameters")
    for name in grids.HYPERPARAMETERS if isinstance(recorded, dict) and recorded else ():
        value = _recorded(recorded, name)
        if name in fields and value is not None and not _same(fields[name], value):
            raise UserError(f"holds {name} {value}, not {fields[name]}")
    return stored


def _recorded(hyperparameters, name):
    """A recorded hyperparameter; the default of a regularizer that did not exist yet; else None."""
    default = grids.REGULARIZERS[name].default if hyperparameters and name in grids.REGULARIZERS else None
    return hyperparameters.get(name, default)


def _same(a, b):
    both = isinstance(a, numbers.Real) and isinstance(b, numbers.Real)
    return math.isclose(a, b, rel_tol=1e-5) if both else a == b


def _rows(stored, fields, basic, rows_wanted):
    """The rows of one network, and (kind, name) of each entry that its checkpoint does not hold."""
    model = fields | {name: _value(stored.get(name)) for name in basic}
    rows, absent = [], [(name, name) for name in basic if name not in stored]
    for (methods, wanted), kinds in rows_wanted.items():
        name, in_order = ":".join(methods), ":".join(sorted(methods))
        layers = {kind: (stored.get(kind) or {}).get(in_order, []) for kind in kinds.values()}
        columns = ("assoc",) if len(methods) == 1 else ("assoc_a", "assoc_b")
        swap = SWAPPED if name != in_order else {}
        if wanted == "*":
            absent += [(f"{kind}.*", f"{kind}.{name}") for kind, found in layers.items() if not found]
        for layer in range(max(map(len, layers.values()))) if wanted == "*" else [int(wanted)]:
            entries = {kind: found[layer] if layer < len(found) else {} for kind, found in layers.items()}
            values = {field: _field(entries[kind], swap.get(field, field)) for field, kind in kinds.items()}
            absent += [
                (f"{kinds[field]}.*.*.{field}", f"{kinds[field]}.{name}.{layer}.{field}")
                for field, value in values.items()
                if value is None and (wanted != "*" or layers[kinds[field]])
            ]
            values = {field: math.nan if value is None else value for field, value in values.items()}
            rows.append(model | dict(zip(columns, methods, strict=True)) | {"layer": layer} | values)
    return rows or [model], absent


def _field(entry, field):
    """One field of a modules, lesions or align dict, derived ones included; None if it is not there."""
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


def tidy(table):
    """Method names as ordered categoricals, layers and runs as integers."""
    for name in ("assoc", "assoc_a", "assoc_b"):
        if name in table:
            others = sorted(set(table[name].dropna()) - set(METHODS))
            table[name] = pd.Categorical(table[name], categories=[*METHODS, *others], ordered=True)
    for name in ("layer", "run"):
        if name in table and table[name].notna().all():
            table[name] = table[name].astype(int)
    return table


# ---- one checkpoint at a glance -------------------------------------------------------------------------------------


def evaluated_methods(path) -> dict[str, int]:
    """The methods, combined ones included, whose modules a checkpoint holds, and of how many layers.

    Raises: UserError if the file cannot be read or has no modules.
    """
    with named(path):
        modules = _checked(checkpoints.read(path, mmap=True), {}).get("modules") or {}
    if not any(modules.values()):
        raise UserError(f"{path}: not evaluated; run python eval.py --ckpt-file {path}")
    return {
        method: len(modules[method]) for method in (*METHODS, *sorted(set(modules) - set(METHODS))) if method in modules
    }


def checkpoint_layers(path) -> int:
    """Number of layers whose modules a checkpoint holds.

    Raises: UserError if the file cannot be read or has no modules.
    """
    return max(evaluated_methods(path).values())


def checkpoint_summary(path) -> pd.DataFrame:
    """What one checkpoint says about its modules: a row per method and layer; `all` layers of combined matrices.

    Returns: columns method, layer, Q, z and p (against shuffled matrices), clusters (effective number), and agreement:
        mean element-centric similarity to the clusterings of the other upstream, and of the other downstream methods,
        a method's own _norm form apart. Where the modules were lesioned also bits and bits z, their specialization by
        lesions to the mean, and "zero: bits" and "zero: z", by lesions to zero.
    Raises: UserError if the file cannot be read or has no modules.
    """
    entry = [({}, Path(path))]
    fields = ("score", "z", "p", "num_clusters")
    modules = table_of(entry, module_metrics(fields, evaluated_methods(path), layers="*"), [])
    align = table_of(entry, align_metrics(layers="*"), [])
    for name, family in (("with upstream", UPSTREAM), ("with downstream", DOWNSTREAM)):
        modules[name] = [
            _agreement(align, assoc, layer, family)
            for assoc, layer in zip(modules["assoc"], modules["layer"], strict=True)
        ]
    lesions = table_of(entry, lesion_metrics(LESIONS_SHOWN, layers="*"), [])
    if "assoc" in lesions:
        shown = lesions[["assoc", "layer", *LESIONS_SHOWN]].rename(columns=LESIONS_SHOWN).astype({"assoc": str})
        modules = modules.astype({"assoc": str}).merge(shown, how="left", on=["assoc", "layer"])
    modules["layer"] = (
        modules["layer"].astype(object).mask(modules["assoc"].astype(str).str.endswith("_combined"), "all")
    )
    return modules.rename(columns={"assoc": "method", "score": "Q", "num_clusters": "clusters"})


def _agreement(align, assoc, layer, family):
    """Mean element_sim between one method and the others of a family, but for its own other form, in one layer."""
    own = assoc.removesuffix("_norm")
    others = [method for method in family if method.removesuffix("_norm") != own]
    if "assoc_a" not in align:
        return math.nan
    a, b = align["assoc_a"], align["assoc_b"]
    rows = (a == assoc) & b.isin(others) | (b == assoc) & a.isin(others)
    return align.loc[rows & (align["layer"] == layer), "element_sim"].mean()


def figure_name(path, layer, kind="matrices") -> str:
    """The name of a figure of one layer of one checkpoint: its kind, its run, its file and the layer."""
    folder = Path(path).absolute().parent
    run = folder.parent.name if folder.name == "weights" else folder.name
    return f"{kind}-{run}-{Path(path).stem}-layer-{layer}"


def main(args):
    """Prints the summary of each checkpoint, and draws its matrices if asked to."""
    for path in args.checkpoint:
        with named(path):
            layers = checkpoint_layers(path)
            if not 0 <= args.layer < layers:
                raise UserError(f"{path}: there is no layer {args.layer}; its layers are 0 to {layers - 1}")
            summary = checkpoint_summary(path)
            print(path, summary.to_string(index=False, float_format="{:.3f}".format, na_rep="-"), sep="\n")
            if args.plot:
                draw(path, args.layer)


def draw(path, layer):
    """Draws the association matrices of one layer, and what lesions of its modules do, and prints the files' names."""
    from report import lesion_figures, matrix_figures, style  # matplotlib, only where something is drawn

    examples = load_checkpoints([path], module_metrics(("score", "adj", "clusters"), layers=(layer,)))
    print(*style.save(matrix_figures.sorted_matrices(examples), figure_name(path, layer)), sep="\n")
    lesions = load_checkpoints([path], lesion_metrics(EFFECT_FIELDS, layers=(layer,)))
    if lesions["mean_effects"].notna().any():
        drawn = lesion_figures.effects_of_methods(lesions)
        print(*style.save(drawn, figure_name(path, layer, "lesions")), sep="\n")


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("checkpoint", nargs="+", type=Path, help="evaluated checkpoints")
    parser.add_argument("--plot", action="store_true", help="draw matrices and lesions of one layer into figures/")
    parser.add_argument("--layer", type=int, default=0, help="the layer to draw, from 0 (default)")
    with one_line_errors("analysis.py"):
        main(parser.parse_args())
