"""The study's grids of hyperparameters, and the names of runs on disk: the one place that defines them.

Imports neither torch nor any other heavy package, so that listing, skipping and counting hundreds of runs is instant.
"""

import math
from pathlib import Path
from typing import NamedTuple


class Regularizer(NamedTuple):
    """A hyperparameter whose values make a part of each grid, and how figures show it."""

    label: str
    default: float  # its value where a part does not vary it, and in files written before it existed
    scale: str  # of axes: "log" or "linear"
    color: str
    marker: str


REGULARIZERS = {  # in the order of run names
    "l2": Regularizer("L2 weight", 0.0, "log", "#009E73", "^"),
    "l1": Regularizer("L1 weight", 0.0, "log", "#D55E00", "D"),
    "drop": Regularizer("dropout", 0.0, "linear", "#0072B2", "s"),
}
PARTS = (*REGULARIZERS, "dummy")
L2_ALONE = 1e-5  # the L2 weight that the l1 and drop grids, and train.py's default, share
BASE_SEED = 286436723
NAMED = ("dataset", "task", *REGULARIZERS, "run")  # what a run's directory name shows
HYPERPARAMETERS = (*NAMED, "seed", "train_val_split", "batch_size", "model_args", "precision")
PRECISIONS = ("32", "bf16-mixed")  # of training; the first is the default, and that of runs that record none


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
    "cifar10-quarter": Experiment(  # a quarter of the width, for CPUs
        "cifar10",
        {"channels": [16, 32, 64, 64]},
        drop=linspace(0.1, 0.5),
        **SMALL | {"untrained": 20},
        pass_mark=0.5,
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
