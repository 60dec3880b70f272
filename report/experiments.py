"""All results of one of the study's experiments, from its checkpoints or from saved tables.

python -m report.experiments EXPERIMENT   says in one line what there is
"""

import hashlib
import inspect
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

import analysis
from analysis import ALIGN_FIELDS, EFFECT_FIELDS, LESION_FIELDS, MODULE_FIELDS, OPTIONAL
from comparison import expected_similarity_of_sizes
from report import tables
from study import grids, runs
from study.checkpoints import BASIC_METRICS
from study.cli import Parser, UserError, one_line_errors
from study.files import FileError

RECORDED = ("epochs", "seconds", "torch", "commit", "processor", "capability")  # of each training, in its run.json
GRID_POINT = ("part", *grids.REGULARIZERS)  # what repetitions share
NETWORK = (*GRID_POINT, "run")  # what tells two networks of an experiment apart
SAVED_UNITS = 128  # matrices of more units are too large to be saved with the tables


class Results(NamedTuple):
    """All that is known about an experiment, as tidy tables.

    Attributes:
        models: a row per network: part (a regularizer, or dummy for untrained ones), hyperparameters, BASIC_METRICS,
            RECORDED, and pass_mark, the test accuracy below which a network has not learnt the task.
        modules: a row per (network, assoc, layer): also MODULE_FIELDS.
        align: a row per (network, assoc_a, assoc_b, layer): hyperparameters and ALIGN_FIELDS.
        examples: a row per (network, assoc, layer) of a few networks: also `adj`, `clusters` and, if these were
            lesioned, EFFECT_FIELDS.
        lesions: a row per (network, assoc, layer): also LESION_FIELDS; empty where no modules were lesioned.
    """

    models: pd.DataFrame
    modules: pd.DataFrame
    align: pd.DataFrame
    examples: pd.DataFrame
    lesions: pd.DataFrame = pd.DataFrame()


def load_experiment(name: str, logs=Path("."), parts=None) -> Results:
    """An experiment's results from its checkpoints: the best of each trained run, and the untrained networks.

    What was read is kept in each part's save directory, in a hidden file that is renewed once a checkpoint changes.

    Args:
        name: one of grids.EXPERIMENTS.
        logs: the directory that holds the experiment's save directories.
        parts: some of grids.PARTS; by default all whose save directory exists.

    Raises: UserError if there is no such experiment, none of its save directories, or no trained and evaluated network.
    """
    parts = parts or [part for part in _known_parts(name) if (Path(logs) / grids.save_dir(name, part)).is_dir()]
    if not parts:
        raise UserError(f"no {grids.save_dir(name, '*')} in {logs}: run ./train.sh {name} and ./eval.sh first")
    problems = []
    found = [_part_table(name, part, Path(logs), problems) for part in parts]
    analysis.report(problems)
    together = pd.concat(found, ignore_index=True)
    if "score" not in together or together.loc[together["part"] != "dummy", "score"].isna().all():
        raise UserError(f"no trained and evaluated network of {name}: run ./eval.sh {grids.save_dir(name, '*')}")
    models, modules, align, lesions = _split(together)
    models["pass_mark"] = grids.EXPERIMENTS[name].pass_mark
    return complete(Results(models, modules, align, _examples(name, Path(logs), parts), lesions))


def _known_parts(name):
    if name not in grids.EXPERIMENTS:
        raise UserError(f"unknown experiment {name!r}: expected one of {', '.join(grids.EXPERIMENTS)}")
    return grids.parts(name)


def complete(results: Results) -> Results:
    """Tables as they would be written today: defaults of regularizers that did not exist yet, all parts as categories,
    and the chance level of element-centric similarity wherever the sizes of the clusters are known."""
    filled = []
    for table in results:
        for name, regularizer in grids.REGULARIZERS.items() if len(table) else ():
            if name not in table:
                table = table.assign(**{name: regularizer.default})
        if "part" in table:
            table = table.assign(part=pd.Categorical(table["part"].astype(object), categories=grids.PARTS))
        filled.append(analysis.tidy(table))
    models, modules, align, examples, lesions = filled
    return Results(models, modules, with_chance_level(align, modules), examples, lesions)


def with_chance_level(align: pd.DataFrame, modules: pd.DataFrame) -> pd.DataFrame:
    """Alignments with `element_sim_expected` wherever it can be had: stored, or from the sizes of both clusterings."""
    if "element_sim_expected" not in align:
        align = align.assign(element_sim_expected=np.nan)
    lacking = align["element_sim_expected"].isna() & align["element_sim"].notna()
    if not lacking.any() or "sizes" not in modules:
        return align
    names = {"assoc": str, "assoc_a": str, "assoc_b": str, "part": str}
    known = modules[modules["score"].notna()].astype({"assoc": str, "part": str})
    keys = known[[*NETWORK, "assoc", "layer"]].itertuples(index=False, name=None)
    sizes = dict(zip(keys, map(_all_sizes, known["sizes"], known["dead"]), strict=True))
    rows = align.loc[lacking, [*NETWORK, "assoc_a", "assoc_b", "layer"]].astype(
        {k: names[k] for k in names if k in align}
    )
    levels, found = {}, []
    for *network, a, b, layer in rows.itertuples(index=False, name=None):
        pair = sizes.get((*network, a, layer)), sizes.get((*network, b, layer))
        if pair not in levels:
            levels[pair] = np.nan if None in pair else expected_similarity_of_sizes(*pair)
        found.append(levels[pair])
    expected = align["element_sim_expected"].copy()
    expected[lacking] = found
    return align.assign(element_sim_expected=expected)


def _all_sizes(sizes, dead):
    """Sizes of the clusters as a tuple, the units without weight being one more."""
    return (*map(int, sizes), *([int(dead)] if dead > 0 else []))


def _part_table(name, part, logs, problems):
    """Rows of all kinds for one part of an experiment, from its cache where that is up to date."""
    entries = list(checkpoints(name, part, logs))
    metrics = [
        *BASIC_METRICS,
        *analysis.module_metrics(MODULE_FIELDS, layers="*"),
        *analysis.align_metrics(ALIGN_FIELDS, layers="*"),
        *analysis.lesion_metrics(LESION_FIELDS, layers="*"),
    ]
    fingerprint = _fingerprint(entries, metrics)
    cache = logs / grids.save_dir(name, part) / f".table-{fingerprint}.parquet"
    table = _cached(cache, fingerprint)
    if table is None:
        lacking = []
        table = analysis.table_of(entries, metrics, lacking, OPTIONAL)
        table.attrs = {"made_from": fingerprint, "problems": lacking}
        _keep(table, cache)
    problems += table.attrs["problems"]
    table.attrs = {}
    return table


def _cached(path, fingerprint):
    """The table in a cache, if it is whole and made from just these checkpoints by just this code; else None."""
    try:
        table = tables.load_table(path)
    except UserError:
        return None
    return table if table.attrs.get("made_from") == fingerprint else None


def _keep(table, cache):
    """Writes a cache and removes older ones; where that is impossible the tables are made again next time."""
    try:
        tables.save_table(table, cache)
        for old in set(cache.parent.glob(".table-*")) - {cache}:
            old.unlink()
    except (FileError, OSError):
        return


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
    """A name for the present state of some checkpoints, what is read from them, and the code that derives it."""
    state = []
    for fields, path in entries:
        stat = path.stat() if path.exists() else None
        # the inode and its change time tell files apart that were copied with their times
        state.append((fields, str(path), stat and (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino, stat.st_size)))
    code = inspect.getsource(analysis) + inspect.getsource(tables)
    return hashlib.sha1(repr((state, metrics, code)).encode()).hexdigest()[:16]


def _split(table):
    """The rows about networks, methods, pairs, and methods again for lesions, each with the columns that they have."""
    hyper = [*dict.fromkeys((*GRID_POINT, *(name for name in grids.NAMED if name in table))), "checkpoint"]
    basics = [name for name in BASIC_METRICS if name in table]
    recorded = [name for name in RECORDED if name in table]
    fields = "assoc", "assoc_a", "assoc_b", *MODULE_FIELDS, *ALIGN_FIELDS, *LESION_FIELDS
    table = table.reindex(columns=list(dict.fromkeys([*table, *fields])))
    modules = table.loc[table["assoc"].notna(), [*hyper, *basics, "assoc", "layer", *MODULE_FIELDS]]
    align = table.loc[table["assoc_a"].notna(), [*hyper, "assoc_a", "assoc_b", "layer", *ALIGN_FIELDS]]
    models = table[[*hyper, *basics, *recorded]].drop_duplicates(list(NETWORK))
    lesions = table.loc[table["draws"].notna(), [*hyper, *basics, "assoc", "layer", *LESION_FIELDS]]
    kinds = models, *(kind.astype({"layer": int}) for kind in (modules, align, lesions))
    return [part.reset_index(drop=True) for part in kinds]


def _examples(name, logs, parts):
    """Matrices and clusters of a few runs: an untrained network, a hardly regularised one, four values of dropout."""
    chosen = []
    for part in ("dummy", "l2", "drop"):
        specs = [entry for entry in checkpoints(name, part, logs) if entry[0]["run"] in (0, grids.FIRST_UNTRAINED_RUN)]
        keep = range(1) if part != "drop" else np.unique(np.linspace(0, len(specs) - 1, 4).round().astype(int))
        chosen += [specs[i] for i in keep if specs and part in parts]
    metrics = analysis.module_metrics(("score", "adj", "clusters"), layers="*")
    table = analysis.table_of(chosen, [*metrics, *analysis.lesion_metrics(EFFECT_FIELDS, layers="*")], [])
    return table[table["score"].notna()].reset_index(drop=True) if "score" in table else table.iloc[:0]


def save_results(results: Results, folder, name: str, add: bool = False) -> None:
    """Writes an experiment's tables to <folder>/<name>-{models,modules,align,examples,lesions}.parquet.

    There is no table of lesions where there were none. Networks that were not evaluated, and example matrices of more
    than SAVED_UNITS units, are left out. With `add`, networks that are only in the tables saved before stay in them.

    Raises: UserError if tables to be added to are missing, damaged, or of another version of the evaluation.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    models, modules, align, examples, lesions = results
    small = [len(matrix) <= SAVED_UNITS for matrix in examples["adj"]] if len(examples) else slice(None)
    evaluated = [(models, "test_acc"), (modules, "version"), (align, "version")]
    kept = Results(*(table[table[evidence].notna()] for table, evidence in evaluated), examples[small], lesions)
    if add:
        kept = gathered(kept, load_results(folder, name), f"{folder}/{name}-*.parquet")
    for kind, table in kept._asdict().items():
        path = Path(folder) / f"{name}-{kind}.parquet"
        if kind != "lesions" or len(table):
            tables.save_table(table, path)
        else:
            path.unlink(missing_ok=True)  # of an earlier evaluation


def gathered(new: Results, old: Results, source: str) -> Results:
    """New results, and old ones of networks that have no new ones; all by the same version of the evaluation."""
    replaced, tables = _networks(new.models), []
    for kind, fresh, kept in zip(Results._fields, new, old, strict=True):
        if len(fresh) and len(kept) and set(fresh.get("version", ())) != set(kept.get("version", ())):
            raise UserError(f"{source}: {kind} by another version of the evaluation: save without adding")
        if len(kept):
            kept = kept[~_networks(kept).isin(replaced)]
        tables.append(pd.concat([table for table in (fresh, kept) if len(table)] or [fresh], ignore_index=True))
    return complete(Results(*tables))


def _networks(table):
    """Which network each row is about."""
    return pd.MultiIndex.from_frame(table[list(NETWORK)].astype({"part": str}))


def load_results(folder, name: str) -> Results:
    """Reads tables that `save_results` wrote."""
    paths = {kind: Path(folder) / f"{name}-{kind}.parquet" for kind in Results._fields}
    if not paths["lesions"].exists():  # saved before there were any
        del paths["lesions"]
    return complete(Results(**{kind: tables.load_table(path) for kind, path in paths.items()}))


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


def main(args):
    """Prints how many networks there are."""
    found = open_results(args.experiment)
    evaluated = found.models["test_acc"].notna().sum()
    print(f"{args.experiment}: {len(found.models)} networks, {evaluated} of them evaluated")


if __name__ == "__main__":
    parser = Parser(description=__doc__)
    parser.add_argument("experiment", help=", ".join(grids.EXPERIMENTS))
    with one_line_errors("report"):
        main(parser.parse_args())
