"""Evaluates trained or untrained networks and writes all results into their checkpoints.

    python eval.py --run-dir logs-demo-drop/*          whole runs
    python eval.py --ckpt-file weights/best.ckpt       single checkpoints

For a checkpoint: losses, accuracies and norms; the similarities of its hidden units, eight ways; the modules that each
similarity gives; how far the modules agree; and what lesions of them do to each class. What is there already, made with
the same options, is not computed again. For a run: the first of these for each of its checkpoints, then `best.ckpt` is
linked to the one with the lowest val_loss, which gets the rest.
"""

import argparse
import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from associations import JAC_DIRECTIONS, METHODS
from modularity import DEFAULT_ENTROPY, DEFAULT_NULL_DRAWS, SEARCHES
from study import checkpoints, cli, runs
from study.checkpoints import BASIC_METRICS, plain
from study.cli import UserError, named
from study.evaluation import steps_of
from study.files import FileError, locked

MOST = 1_000_000  # draws, images or directions


def main(args: argparse.Namespace) -> None:
    """Evaluates everything the arguments name; a failure does not stop the others.

    Raises: UserError at the end if there was one.
    """
    jobs = [(evaluate_run, path) for path in args.run_dir if len(args.run_dir) == 1 or is_run(path)]
    jobs += [(evaluate, path) for path in args.ckpt_file]
    if not jobs:
        raise UserError("nothing to evaluate: give --run-dir or --ckpt-file")
    failures = 0
    for job, path in tqdm(jobs, disable=len(jobs) == 1 or not sys.stderr.isatty(), unit="run"):
        try:
            job(path, args)
        except UserError as error:
            if len(jobs) == 1:
                raise
            failures += 1
            tqdm.write(f"eval.py: {error}", file=sys.stderr)
    if failures:
        raise UserError(f"{failures} of {len(jobs)} could not be evaluated")


def is_run(path: Path) -> bool:
    """Whether a path is for evaluation to judge; says so of what else a pattern such as logs/* finds, and passes it."""
    other = path.exists() and not any((path / name).exists() for name in ("weights", "dummy.ckpt", "run.json"))
    if other:
        tqdm.write(f"{path}: not a run; passed over")
    return not other


def evaluate_run(run_dir: Path, args: argparse.Namespace) -> dict:
    """Evaluates one run: every checkpoint briefly, the best one (or the untrained network) fully."""
    with named(run_dir):
        untrained = run_dir / "dummy.ckpt"
        trained = (path for path in (run_dir / "weights").glob("*.ckpt") if not path.is_symlink())
        files = [untrained] if untrained.exists() else sorted(trained)
        if not files:
            raise FileError("no checkpoint in it" if run_dir.exists() else "no such folder")
        record = runs.read_record(run_dir)  # there is none in folders of other programs
        if record is not None:
            if runs.state(run_dir)[0] != "done":
                raise FileError("its training is not finished; run train.sh again, then evaluate")
            check_belong(files, runs.Asked(run_dir, record["hyperparameters"], record["epochs"], record.get("data")))
        if files == [untrained]:
            return evaluate(untrained, args)
        metrics = list(dict.fromkeys([*args.metrics, "val_loss"]))
        args = argparse.Namespace(**vars(args) | {"metrics": metrics})
        val_loss = {path: plain(evaluate(path, args, basics_only=True)["val_loss"]) for path in files}
        candidates = [path for path in files if path.name != "last.ckpt"] or files
        best = min(candidates, key=lambda path: checkpoints.rank(val_loss[path]))
        checkpoints.link_best(run_dir / "weights", best)
        return evaluate(best, args)


def check_belong(files: list[Path], ask: runs.Asked) -> None:
    """Raises FileError if one of some checkpoints is not of the run that its directory is said to hold."""
    for path in files:
        stored = checkpoints.read(path, mmap=True)
        hyperparameters = stored.get("hyper_parameters", {}) | {"untrained": path.name == "dummy.ckpt"}
        held = {"hyperparameters": hyperparameters, "data": stored.get("data"), "epochs": stored.get("epoch", -1) + 1}
        if other := runs.differences(held, ask):
            raise FileError(f"{path} belongs to another run ({'; '.join(other)}); move it away")


def evaluate(path: Path, args: argparse.Namespace, basics_only: bool = False) -> dict:
    """Computes what a checkpoint lacks, writes it back after each step, and returns the checkpoint."""
    with named(path):
        started, done = time.time(), []
        if path.name == "best.ckpt" and not path.exists():
            path = checkpoints.repair_best(path.parent)
        steps = steps_of(args)[: 1 if basics_only else None]
        stored = checkpoints.read(path, mmap=True)
        if not any(missing(stored, args) for _, missing, _ in steps):
            if not basics_only:
                tqdm.write(f"{path}: complete; nothing to do")
            return stored
        path = path.resolve()
        if path.parent.name == "weights" and runs.is_locked(path.parent.parent):
            raise FileError(f"{path}: its run is being trained; evaluate it when that has finished")
        with locked(path.parent):
            stored = checkpoints.read(path)
            for name, missing, add in steps:
                names = missing(stored, args)
                if names:
                    add(stored, args, names)
                    checkpoints.write(path, stored)
                    done.append(f"{len(names)} {name}")
        tqdm.write(f"{path}: {', '.join(done) or 'complete'} in {time.time() - started:.1f} s")
        return stored


# ---- options --------------------------------------------------------------------------------------------------------


def names(known: tuple[str, ...]) -> Callable[[str], list[str]]:
    """The type of an option that takes some of the known names, with commas between them."""

    def parse(text: str) -> list[str]:
        given = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        unknown = [name for name in given if name not in known]
        if unknown or not given:
            raise argparse.ArgumentTypeError(f"unknown {unknown[0]!r}" if unknown else "no name")
        return given

    return parse


def number(text: str, low: int = 0, high: int = MOST) -> int:
    """A whole number from `low` to `high`."""
    if not text.isdecimal() or not low <= int(text) <= high:
        raise argparse.ArgumentTypeError(f"expected a whole number from {low} to {high}, not {text!r}")
    return int(text)


def seed(text: str) -> int:
    return number(text, high=2**62 - 1)


def positive(text: str) -> int:
    return number(text, 1)


def directions(text: str) -> int:
    if number(text, 2) % 2:
        raise argparse.ArgumentTypeError(f"expected an even number, not {text}")
    return int(text)


def entropy(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"expected a positive number, not {text}")
    return float(text)


def parser() -> cli.Parser:
    p = cli.Parser(prog="eval.py", description=__doc__)
    p.add_argument("--run-dir", type=Path, nargs="+", default=[], help="run directories, evaluated whole")
    p.add_argument("--ckpt-file", type=Path, nargs="+", default=[], help="checkpoints, each evaluated fully")
    p.add_argument("--data-dir", default="data")
    p.add_argument("--device", type=cli.device, default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument(
        "--metrics", type=names(BASIC_METRICS), default=list(BASIC_METRICS), help="basic metrics, comma-separated"
    )
    p.add_argument("--skip-modularity", action="store_true", help="basic metrics only")
    p.add_argument(
        "--modularity-metrics", dest="methods", type=names(METHODS), default=list(METHODS), help="association methods"
    )
    p.add_argument("--modularity-combined", action="store_true", help="also one matrix over all (dense) layers")
    p.add_argument("--search", choices=SEARCHES, default="refined", help="for the clusters with the highest Q")
    p.add_argument("--skip-alignment", action="store_true", help="do not compare the methods' modules")
    p.add_argument(
        "--target-entropy", type=entropy, default=DEFAULT_ENTROPY, help="of the Monte Carlo chain's choices, in nats"
    )
    p.add_argument("--null-draws", type=number, default=DEFAULT_NULL_DRAWS, help="matrices drawn from each null of Q")
    p.add_argument("--jac-directions", type=directions, default=JAC_DIRECTIONS, help="an image, for convolutions")
    p.add_argument("--skip-lesions", action="store_true", help="do not lesion the modules")
    p.add_argument(
        "--lesion-images",
        type=positive,
        help="of each class, from the test split (default: 200, with convolutions 10)",
    )
    p.add_argument(
        "--lesion-draws", type=number, help="shuffled clusterings in the null (default: 100, with convolutions 10)"
    )
    p.add_argument("--seed", type=seed, default=0, help="of everything random in the evaluation")
    p.add_argument("--no-progress", dest="progress", action="store_false")
    return p


if __name__ == "__main__":
    cli.stop_on_sigterm()
    with cli.one_line_errors("eval.py"):
        main(parser().parse_args())
