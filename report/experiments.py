"""All results of one of the study's experiments, from its checkpoints or from saved tables."""

import hashlib
import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import analysis
from analysis import ALIGN_FIELDS, MODULE_FIELDS
from associations import METHODS
from study import grids, runs
from study.checkpoints import BASIC_METRICS
from study.cli import UserError
from study.files import FileError

RECORDED = ("epochs", "seconds", "torch", "commit", "processor", "capability")  # of each training, in its run.json
SAVED_UNITS = 128  # matrices of more units are too large to be saved with the tables


class Results(NamedTuple):
    """All that is known about an experiment, as tidy analysis.

    Attributes:
        models: a row per network: part (l2, l1, drop, or dummy for untrained ones), hyperparameters, BASIC_METRICS,
            RECORDED, and pass_mark, the test accuracy below which a network has not learnt the task.
        modules: a row per (network, assoc, layer): also MODULE_FIELDS.
        align: a row per (network, assoc_a, assoc_b, layer): hyperparameters and ALIGN_FIELDS.
        examples: a row per (network, assoc, layer) of a few networks: also `adj` and `clusters`; only where asked for.
    """

    models: pd.DataFrame
    modules: pd.DataFrame
    align: pd.DataFrame
    examples: pd.DataFrame


def load_experiment(name: str, logs=Path("."), parts=None) -> Results:
    """An experiment's results from its checkpoints: the best of each trained run, and the untrained networks.

    What was read is kept in each part's save directory, in a hidden file that is renewed once a checkpoint changes.

    Args:
        name: one of grids.EXPERIMENTS.
        logs: the directory that holds the experiment's save directories.
        parts: some of l2, l1, drop, dummy; by default all whose save directory exists.

    Raises: UserError if there is no such experiment, none of its save directories, or no trained and evaluated network.
    """
    parts = parts or [part for part in _known_parts(name) if (Path(logs) / grids.save_dir(name, part)).is_dir()]
    if not parts:
        raise UserError(f"no {grids.save_dir(name, '*')} in {logs}: run ./train.sh {name} and ./eval.sh first")
    problems = []
    found = [_part_table(name, part, Path(logs), problems) for part in parts]
    analysis.report(problems)
    together = pd.concat(found, ignore_index=True)
    if together.loc[together["part"] != "dummy", "score"].isna().all():
        raise UserError(f"no trained and evaluated network of {name}: run ./eval.sh {grids.save_dir(name, '*')}")
    together["part"] = pd.Categorical(together["part"], categories=grids.PARTS)
    models, modules, align = _split(together)
    models["pass_mark"] = grids.EXPERIMENTS[name].pass_mark
    return Results(models, modules, align, _examples(name, Path(logs), parts))


def _known_parts(name):
    if name not in grids.EXPERIMENTS:
        raise UserError(f"unknown experiment {name!r}: expected one of {', '.join(grids.EXPERIMENTS)}")
    return grids.parts(name)


def num_layers(name: str) -> int:
    """Number of analysed layers of an experiment's networks."""
    experiment = grids.EXPERIMENTS[name]
    return 6 if experiment.dataset == "cifar10" else len(experiment.model_args.get("channels", (64, 64)))


def _part_table(name, part, logs, problems):
    """Rows of all three kinds for one part of an experiment, from its cache where that is up to date."""
    entries = list(checkpoints(name, part, logs))
    layers = range(num_layers(name))
    metrics = [
        *BASIC_METRICS,
        *analysis.module_metrics(MODULE_FIELDS, layers=layers),
        *analysis.align_metrics(ALIGN_FIELDS, layers=layers),
    ]
    cache = logs / grids.save_dir(name, part) / f".table-{_fingerprint(entries, metrics)}.parquet"
    if cache.exists():
        return analysis.load_table(cache)
    lacking = []
    table = analysis.table_of(entries, metrics, lacking)
    if not lacking and os.access(
        cache.parent, os.W_OK
    ):  # an incomplete table would be renewed and reported again anyway
        for old in cache.parent.glob(".table-*"):
            old.unlink()
        analysis.save_table(table, cache)
    problems += lacking
    return table


def checkpoints(name, part, logs=Path(".")):
    """(fields, path) of each network of one part of an experiment, whether its file exists or not."""
    file = "dummy.ckpt" if part == "dummy" else "best"
    for spec in (spec | {"checkpoint": file} for spec in grids.specs(name, part)):
        path = analysis.checkpoint_path(spec, logs / grids.save_dir(name, part))
        yield {"part": part} | spec | _recorded(path.parent if part == "dummy" else path.parent.parent), path


def _recorded(run_dir):
    """What run.json says of a training, as far as there is one."""
    try:
        record = runs.read_record(run_dir) or {}
    except FileError:
        return {}
    return {name: (record | record.get("versions", {})).get(name) for name in RECORDED}


def _fingerprint(entries, metrics):
    """A name for the present state of some checkpoints and for what is read from them."""
    stats = [(fields, str(path), path.stat() if path.exists() else None) for fields, path in entries]
    state = [(fields, path, stat and (stat.st_mtime_ns, stat.st_size)) for fields, path, stat in stats]
    return hashlib.sha1(repr((state, metrics)).encode()).hexdigest()[:16]


def _split(table):
    """The rows about networks, methods and pairs, each with the columns that they have."""
    hyper = ["part", *(name for name in grids.NAMED if name in table), "checkpoint"]
    basics = [name for name in BASIC_METRICS if name in table]
    modules = table.loc[table["assoc"].notna(), [*hyper, *basics, "assoc", "layer", *MODULE_FIELDS]]
    align = table.loc[table["assoc_a"].notna(), [*hyper, "assoc_a", "assoc_b", "layer", *ALIGN_FIELDS]]
    first = (table["assoc"] == METHODS[0]) & (table["layer"] == 0)
    recorded = [name for name in RECORDED if name in table]
    kinds = table.loc[first, [*hyper, *basics, *recorded]], modules, align
    return [part.reset_index(drop=True) for part in kinds]


def _examples(name, logs, parts):
    """Matrices and clusters of a few runs: an untrained network, a hardly regularised one, four values of dropout."""
    chosen = []
    for part in ("dummy", "l2", "drop"):
        specs = [entry for entry in checkpoints(name, part, logs) if entry[0]["run"] in (0, grids.FIRST_UNTRAINED_RUN)]
        keep = range(1) if part != "drop" else np.unique(np.linspace(0, len(specs) - 1, 4).round().astype(int))
        chosen += [specs[i] for i in keep if specs and part in parts]
    table = analysis.table_of(
        chosen, analysis.module_metrics(("score", "adj", "clusters"), layers=range(num_layers(name))), []
    )
    return table[table["score"].notna()].reset_index(drop=True) if len(table) else table


def of_checkpoints(paths) -> Results:
    """The results of any evaluated checkpoints, hyperparameters as recorded in them; all in part l2, as learnt."""
    paths = [Path(path) for path in paths]
    layers = range(max(analysis.checkpoint_layers(path) for path in paths))
    metrics = [
        *analysis.module_metrics(MODULE_FIELDS, layers=layers),
        *analysis.align_metrics(ALIGN_FIELDS, layers=layers),
    ]
    table = analysis.load_checkpoints(paths, [*BASIC_METRICS, *metrics]).assign(part="l2", checkpoint="best")
    matrices = analysis.load_checkpoints(paths, analysis.module_metrics(("score", "adj", "clusters"), layers=layers))
    models, modules, align = _split(table)
    return Results(models.assign(pass_mark=0.0), modules, align, matrices.assign(part="l2", checkpoint="best"))


def save_results(results: Results, folder, name: str) -> None:
    """Writes an experiment's tables to <folder>/<name>-{models,modules,align,examples}.parquet.

    Networks that were not evaluated, and example matrices of more than SAVED_UNITS units, are left out.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    models, modules, align, examples = results
    small = [len(matrix) <= SAVED_UNITS for matrix in examples["adj"]] if len(examples) else slice(None)
    evaluated = [(models, "test_acc"), (modules, "version"), (align, "version")]
    kept = Results(*(table[table[evidence].notna()] for table, evidence in evaluated), examples[small])
    for kind, table in kept._asdict().items():
        analysis.save_table(table, Path(folder) / f"{name}-{kind}.parquet")


def load_results(folder, name: str) -> Results:
    """Reads tables that `save_results` wrote."""
    return Results(*(analysis.load_table(Path(folder) / f"{name}-{kind}.parquet") for kind in Results._fields))


def open_results(name: str, logs=Path("."), folder=Path("results")) -> Results:
    """An experiment's results from its checkpoints if they are there, else from the saved tables.

    Raises: UserError if there is neither.
    """
    if any((Path(logs) / grids.save_dir(name, part)).is_dir() for part in _known_parts(name)):
        return load_experiment(name, logs)
    if (Path(folder) / f"{name}-models.parquet").exists():
        return load_results(folder, name)
    raise UserError(
        f"neither {grids.save_dir(name, '*')} nor {name}-*.parquet in {Path(folder).name}/: run ./train.sh {name}, "
        f"then ./eval.sh {grids.save_dir(name, '*')}"
    )


def original_program(folder=Path("results")) -> Results:
    """The tables of a network that the study's original program trained and evaluated: MNIST, L2 = 1e-5, run 0."""
    return load_results(folder, "original-program")
