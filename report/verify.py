"""Do results/ repeat here? Trains two of an experiment's networks again, evaluates them, and compares.

    python -m report.verify [EXPERIMENT] [--data-dir data]

On the processor and instruction set that made the tables (their columns `processor` and `capability`) every value must
be the same to the bit. Elsewhere rounding differs, even between makers with the same instruction set, and training
amplifies it: the new network must then lie where a further repetition would, within the prediction interval of the
other repetitions of its grid point. Exits 1 where this does not hold.
"""

import argparse
import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.stats

import analysis
from associations import METHODS
from report import experiments
from study import grids, jobs
from study.checkpoints import BASIC_METRICS
from study.cli import UserError, one_line_errors
from study.provenance import provenance

ROOT = Path(__file__).resolve().parent.parent
CHANCE = 1e-4  # that a further repetition falls outside the prediction interval of one value
OPTIONS = ("--device", "cpu")
MACHINE = ("processor", "capability")  # what decides the last digits


def main(args: argparse.Namespace) -> None:
    """Prints one line a network, and exits 1 if one does not repeat."""
    saved = experiments.load_results(args.folder, args.experiment)
    here, good = tuple(provenance()[name] for name in MACHINE), True
    for part, spec in chosen(args.experiment):
        old = values_of(saved, part, spec)
        with tempfile.TemporaryDirectory() as folder:
            new = again(args.experiment, part, spec, Path(folder), args.data_dir)
        made_on = {tuple(row) for row in saved.models.reindex(columns=MACHINE).dropna().to_numpy()}
        fine, text = verdict(old.loc[spec["run"]], old.drop(index=spec["run"]), new, made_on == {here})
        there = ", ".join(sorted(map(" ".join, made_on))) or "not recorded"
        print(f"{grids.uid(**spec)}: {text} (here {' '.join(here)}; the tables: {there})")
        good &= fine
    sys.exit(not good)


def chosen(experiment: str) -> list[tuple[str, dict]]:
    """The first repetitions with the least L2 and with half the strongest dropout: (part, spec) each."""
    if experiment not in grids.EXPERIMENTS:
        raise UserError(f"unknown experiment {experiment!r}: expected one of {', '.join(grids.EXPERIMENTS)}")
    l2, drop = (grids.specs(experiment, part) for part in ("l2", "drop"))
    return [("l2", l2[0]), ("drop", next(spec for spec in drop if spec["drop"] >= drop[-1]["drop"] / 2))]


def values_of(results: experiments.Results, part: str, spec: dict) -> pd.DataFrame:
    """What is compared of each repetition of a grid point: a row a run."""

    def rows(table):
        same = [np.isclose(table[name], spec[name]) for name in grids.REGULARIZERS]
        return table[np.all([table["part"] == part, *same], axis=0)]

    modules = rows(results.modules)
    names = "Q " + modules["assoc"].astype(str) + " " + modules["layer"].astype(str)
    q = modules.assign(name=names).pivot(index="run", columns="name", values="score")
    models = rows(results.models).set_index("run")
    return models[["epochs", *BASIC_METRICS]].join(q).astype(float)


def again(experiment: str, part: str, spec: dict, folder: Path, data_dir: str) -> pd.Series:
    """The same values of one network, trained and evaluated now."""
    words = shlex.split(jobs.command(experiment, part, [spec], [*OPTIONS, "--data-dir", str(data_dir)]))
    words[words.index("--save-dir") + 1] = str(folder)
    run_dir = folder / grids.uid(**spec)
    evaluation = ["eval.py", "--run-dir", str(run_dir), "--data-dir", str(data_dir), "--null-draws", "0", *OPTIONS]
    for command in (words[1:], [*evaluation, "--skip-alignment"]):
        done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        if done.returncode:
            raise UserError(f"{shlex.join(command)}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    best = run_dir / "weights" / "best.ckpt"
    layers = range(analysis.checkpoint_layers(best))
    metrics = [*BASIC_METRICS, *analysis.module_metrics(methods=METHODS, layers=layers)]
    table = analysis.load_checkpoints([best], metrics)
    q = {f"Q {row.assoc} {row.layer}": row.score for row in table.itertuples()}
    epochs = json.loads((run_dir / "run.json").read_text())["epochs"]
    return pd.Series({"epochs": epochs} | {name: table[name].iloc[0] for name in BASIC_METRICS} | q, dtype=float)


def verdict(old: pd.Series, others: pd.DataFrame, new: pd.Series, same_machine: bool) -> tuple[bool, str]:
    """Whether a network repeats as it should, and in words how.

    Args:
        old, new: its values as saved and as computed again.
        others: those of the other repetitions, a row each.
        same_machine: whether both were made on the same processor and instruction set, so that they must be identical.
    """
    names = old.dropna().index
    old, new, others = old[names], new.reindex(names), others[names]
    identical = int((old == new).sum())
    if identical == len(names):
        return True, f"all {len(names)} values identical"
    n = others.count()
    reach = scipy.stats.t.ppf(1 - CHANCE / 2, n - 1) * others.std() * np.sqrt(1 + 1 / n)
    far = (new - others.mean()).abs() > np.maximum(reach, 1e-12)
    beyond = [name for name in names if far[name] or np.isnan(new[name])]
    text = f"{identical} of {len(names)} values identical, "
    text += f"{len(beyond)} beyond the spread of {int(n.min())} repetitions"
    if beyond:
        text += f" ({', '.join(beyond[:5])})"
    return not beyond and not same_machine, text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiment", nargs="?", default="mnist-base", help=", ".join(grids.EXPERIMENTS))
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--folder", type=Path, default=ROOT / "results", help="where the tables are")
    with one_line_errors("verify"):
        main(parser.parse_args())
