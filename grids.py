"""The study's grids of hyperparameters, and the names of runs on disk: the one place that defines them.

Imports neither torch nor any other heavy package, so that listing, skipping and counting hundreds of runs is instant.
"""
import argparse
import fcntl
import itertools
import json
import math
import shlex
import signal
import sys
from pathlib import Path
from typing import NamedTuple

PARTS = ("l2", "l1", "drop", "dummy")
L2_ALONE = 1e-5  # the L2 weight that the l1 and drop grids, and train.py's default, share
BASE_SEED = 286436723
NAMED = ("dataset", "task", "l2", "l1", "drop", "run")  # what a run's directory name shows
HYPERPARAMETERS = (*NAMED, "seed", "train_val_split", "batch_size", "model_args")


class Experiment(NamedTuple):
    """One row of the study's table: a model, the values of each regulariser, and how many runs each value gets."""

    dataset: str
    model_args: dict
    l2: list
    l1: list
    drop: list
    runs: int
    untrained: int
    pass_mark: float = 0.8  # test accuracy below which a network has not learnt the task


def logspace(low, high, n):
    """n log-spaced values from low to high, rounded to 6 significant digits so that they name directories cleanly."""
    ratio = math.log10(high / low) / (n - 1)
    return [float(f"{low * 10 ** (ratio * i):.6g}") for i in range(n)]


def linspace(step, high):
    """The values step, 2·step, …, high, rounded as in `logspace`."""
    return [float(f"{step * i:.6g}") for i in range(1, round(high / step) + 1)]


SMALL = {"l2": logspace(1e-5, 1e-1, 5), "l1": logspace(1e-5, 1e-2, 4), "runs": 3, "untrained": 100}
EXPERIMENTS = {
    "mnist-base": Experiment(
        "mnist", {}, logspace(1e-5, 1e-1, 9), logspace(1e-5, 1e-2, 7), linspace(0.05, 0.7), runs=9, untrained=100
    ),
    "mnist-wide": Experiment("mnist", {"channels": [256, 256]}, drop=linspace(0.1, 0.6), **SMALL),
    "mnist-deep": Experiment("mnist", {"channels": [64] * 5}, drop=linspace(0.1, 0.6), **SMALL),
    "cifar10": Experiment("cifar10", {}, drop=linspace(0.1, 0.5), **SMALL),
    "cifar10-small": Experiment(  # a demonstration for a CPU: about an hour with --max-epochs 20
        "cifar10", {"channels": [8, 16, 32, 32]}, l2=[1e-5], l1=[], drop=[0.3], runs=1, untrained=1, pass_mark=0.4
    ),
    "demo": Experiment("mnist5k", {}, l2=[1e-5, 1e-3, 1e-2], l1=[], drop=[0.2, 0.4, 0.6], runs=2, untrained=8),
}
FIRST_UNTRAINED_RUN = 1000


def uid(dataset, task="sup", l2=0.0, l1=0.0, drop=0.0, run=0):
    """The name of a run's directory: `{dataset}_{task}`, then `_{name}={value}` for each non-zero hyperparameter.

    Integers are written as they are, floats of 1e-5 or more (with a relative slack of 1e-6) with five decimals, smaller
    ones as 1.00e-06. The name is lossy: model_args, seed, split and batch size are not in it.

    >>> uid("mnist", l2=1e-5, drop=0.3, run=1)
    'mnist_sup_l2=0.00001_drop=0.30000_run=1'
    """
    values = {"l2": l2, "l1": l1, "drop": drop, "run": run}
    return f"{dataset}_{task}" + "".join(f"_{name}={_text(value)}" for name, value in values.items() if value != 0)


def _text(value):
    if isinstance(value, int):
        return str(value)
    return f"{value:.5f}" if value >= 1e-5 * (1 - 1e-6) else f"{value:.2e}"


def save_dir(experiment, part):
    """The directory that holds all runs of one part of an experiment."""
    return f"logs-{experiment}-{part}"


def parts(experiment):
    """The parts (l2, l1, drop, dummy) that an experiment has."""
    e = EXPERIMENTS[experiment]
    return [part for part in PARTS if (e.untrained if part == "dummy" else getattr(e, part))]


def specs(experiment, part):
    """All runs of one part of an experiment, as dicts of the hyperparameters that name them.

    The drop and l1 parts do not repeat their own zero point: it is the l2 = 1e-5 row of the l2 part.
    """
    e = EXPERIMENTS[experiment]
    zero = {"dataset": e.dataset, "task": "sup", "l2": 0.0, "l1": 0.0, "drop": 0.0}
    if part == "dummy":
        return [zero | {"run": FIRST_UNTRAINED_RUN + i} for i in range(e.untrained)]
    l2 = {} if part == "l2" else {"l2": L2_ALONE}
    return [zero | l2 | {part: value, "run": run} for value in getattr(e, part) for run in range(e.runs)]


def run_dirs(experiment, part):
    """The run directories of one part of an experiment, in the order of `specs`."""
    return [Path(save_dir(experiment, part)) / uid(**spec) for spec in specs(experiment, part)]


def command(experiment, part, runs, options=()):
    """The self-contained command line that trains some repetitions of one grid point, or makes the untrained networks.

    Args:
        runs: specs of consecutive repetitions; train.py skips those between the first and the last that are done.
        options: further words for train.py.
    """
    e = EXPERIMENTS[experiment]
    words = ["python", "train.py", "--dataset", e.dataset, "--task", "sup"]
    words += [word for name in ("l2", "l1", "drop") for word in (f"--{name}", f"{runs[0][name]:g}")]
    first, last = runs[0]["run"], runs[-1]["run"]
    if part == "dummy":
        first, last = FIRST_UNTRAINED_RUN, FIRST_UNTRAINED_RUN + e.untrained - 1
    words += ["--run", f"{first}-{last}" if last > first else str(first), "--save-dir", save_dir(experiment, part)]
    if e.model_args:
        words += ["--model-args", json.dumps(e.model_args)]
    words += options
    if part == "dummy":
        words += ["--max-epochs", "0"]
    return shlex.join(words)


def commands(experiment, chosen_parts, unfinished_only=False, options=(), batch=1):
    """The command lines of the chosen parts, one for `batch` repetitions of a grid point.

    One line makes all untrained networks. The first repetitions of every grid point come before any further ones, so
    that a grid cut short has no holes.
    """
    runs = [(part, spec) for part in chosen_parts for spec in specs(experiment, part)]
    if unfinished_only:
        runs = [(p, spec) for p, spec in runs if state(Path(save_dir(experiment, p)) / uid(**spec))[0] != "done"]
    runs.sort(key=lambda run: run[1]["run"] // batch)
    jobs = itertools.groupby(runs, key=lambda run: (run[0], run[1] | {"run": run[1]["run"] // batch}))
    lines = (command(experiment, part, [spec for _, spec in job], options) for (part, _), job in jobs)
    return list(dict.fromkeys(lines))


def state(run_dir):
    """What is on disk for one run: ("done" | "running" | "failed" | "left", the last error line or "").

    A run is done when its `run.json` says so, which train.py writes last; running while some process holds its lock;
    failed when it was started and is neither.
    """
    run_dir = Path(run_dir)
    try:
        record = json.loads((run_dir / "run.json").read_text())
    except FileNotFoundError:
        return "left", ""
    except (OSError, ValueError) as error:
        return "failed", f"run.json cannot be read: {error}"
    if record.get("finished"):
        return "done", ""
    if is_locked(run_dir):
        return "running", ""
    return "failed", record.get("error") or "interrupted; the same command goes on where it stopped"


def is_locked(run_dir):
    """Whether some process holds the lock of a run directory."""
    try:
        with open(Path(run_dir) / ".lock", "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def progress(experiment, chosen_parts):
    """The lines of a status report: one a part, then one a failed run with its last error line, then the time left."""
    lines, failed, everything = [], [], []
    for part in chosen_parts:
        states = {run_dir: state(run_dir) for run_dir in run_dirs(experiment, part)}
        lines.append(f"{save_dir(experiment, part)}: {_counts(s for s, _ in states.values())}")
        failed += [f"failed: {run_dir}: {error}" for run_dir, (s, error) in states.items() if s == "failed"]
        everything += [(run_dir, s) for run_dir, (s, _) in states.items()]
    return [*lines, *failed, f"in all: {_counts(s for _, s in everything)}{_time_left(everything)}"]


def _counts(states):
    states = list(states)
    return ", ".join(f"{states.count(name)} {name}" for name in ("done", "running", "failed", "left"))


def _time_left(runs):
    """What the runs that are not done will take, if they take as long as those that are, as many at a time as now."""
    records = [json.loads((run_dir / "run.json").read_text()) for run_dir, s in runs if s == "done"]
    seconds = [record["seconds"] for record in records if "seconds" in record]
    states = [s for _, s in runs]
    todo, running = len(states) - states.count("done"), states.count("running")
    if not (todo and seconds):
        return ""
    minutes = sum(seconds) / len(seconds) * todo / max(running, 1) / 60
    return f"; about {minutes:.0f} min left, {running or 'if one'} at a time"


def evaluations(folders, batch=1, options=""):
    """The command lines that evaluate all runs in some folders, `batch` runs a line. A folder may itself be a run."""
    runs = []
    for folder in map(Path, folders):
        candidates = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
        found = [path for path in candidates if (path / "weights").is_dir() or (path / "dummy.ckpt").exists()]
        if not found:
            sys.exit(f"{folder}: no runs in it; train some with ./train.sh, or check the name")
        runs += found
    groups = [runs[i : i + batch] for i in range(0, len(runs), batch)]
    lines = [shlex.join(["python", "eval.py", "--run-dir", *map(str, group)]) for group in groups]
    return [f"{line} {options}".rstrip() for line in lines]


def main(args):
    """Prints what train.sh and eval.sh ask for."""
    if args.what == "evaluations":
        print(*evaluations(args.names, args.batch, args.options), sep="\n")
        return
    experiment, *chosen = args.names
    if experiment not in EXPERIMENTS:
        sys.exit(f"unknown experiment {experiment!r}: expected one of {', '.join(EXPERIMENTS)}")
    known = parts(experiment)
    unknown = [part for part in chosen if part not in known]
    if unknown:
        sys.exit(f"{experiment} has no part {unknown[0]!r}: expected some of {', '.join(known)}")
    chosen = chosen or known
    if args.what == "status":
        print(*progress(experiment, chosen), sep="\n")
    elif args.what == "dirs":
        print(*(save_dir(experiment, part) for part in chosen), sep="\n")
    else:
        lines = commands(experiment, chosen, args.what == "todo", shlex.split(args.options), args.batch)
        print(*lines, sep="\n", end="\n" if lines else "")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["list", "todo", "status", "dirs", "evaluations"])
    parser.add_argument("names", nargs="+", help="an experiment and some of its parts; for evaluations, directories")
    parser.add_argument("--batch", type=int, default=1, help="runs a command")
    parser.add_argument("--options", default="", help="appended to each command")
    main(parser.parse_args())
