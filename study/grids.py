"""The study's grids of hyperparameters, and the names of runs on disk: the one place that defines them.

Imports neither torch nor any other heavy package, so that listing, skipping and counting hundreds of runs is instant.
"""

import math
import numbers
from pathlib import Path
from typing import NamedTuple


class Regularizer(NamedTuple):
    """A hyperparameter whose values make a part of each grid, and how figures show it. Its least value is 0."""

    label: str
    default: float  # its value where a part does not vary it, and in files written before it existed
    scale: str  # of axes: "log" or "linear"
    color: str
    marker: str
    below: float = math.inf  # what its values must not reach


REGULARIZERS = {  # in the order of run names
    "l2": Regularizer("L2 weight", 0.0, "log", "#009E73", "^"),
    "l1": Regularizer("L1 weight", 0.0, "log", "#D55E00", "D"),
    "drop": Regularizer("dropout", 0.0, "linear", "#0072B2", "s", below=1.0),
}
PARTS = (*REGULARIZERS, "dummy")
L2_ALONE = 1e-5  # the L2 weight that the other regularizers' grids, and train.py's default, share
BASE_SEED = 286436723
NAMED = ("dataset", "task", *REGULARIZERS, "run")  # what a run's directory name shows
HYPERPARAMETERS = (*NAMED, "seed", "train_val_split", "batch_size", "model_args", "precision")
PRECISIONS = ("32", "bf16-mixed")  # of training; the first is the default, and that of runs that record none
DEFAULTS = {  # of hyperparameters that files written before these existed do not hold
    **{name: regularizer.default for name, regularizer in REGULARIZERS.items()},
    "precision": PRECISIONS[0],
}


class Experiment(NamedTuple):
    """One row of the study's table: a model, the values of each regularizer, and how many runs each value gets."""

    dataset: str
    model_args: dict
    values: dict[str, list[float]]  # of each regularizer that makes a part
    runs: int
    untrained: int
    pass_mark: float = 0.8  # test accuracy below which a network has not learnt the task


def logspace(low: float, high: float, n: int) -> list[float]:
    """n log-spaced values from low to high, rounded to 6 significant digits so that they name directories cleanly."""
    ratio = math.log10(high / low) / (n - 1)
    return [float(f"{low * 10 ** (ratio * i):.6g}") for i in range(n)]


def linspace(step: float, high: float) -> list[float]:
    """The values step, 2·step, …, high, rounded as in `logspace`."""
    return [float(f"{step * i:.6g}") for i in range(1, round(high / step) + 1)]


SPARSE = {"l2": logspace(1e-5, 1e-1, 5), "l1": logspace(1e-5, 1e-2, 4)}
EXPERIMENTS = {
    "mnist-base": Experiment(
        dataset="mnist",
        model_args={},
        values={"l2": logspace(1e-5, 1e-1, 9), "l1": logspace(1e-5, 1e-2, 7), "drop": linspace(0.05, 0.7)},
        runs=9,
        untrained=100,
    ),
    "mnist-wide": Experiment(
        dataset="mnist",
        model_args={"channels": [256, 256]},
        values=SPARSE | {"drop": linspace(0.1, 0.6)},
        runs=3,
        untrained=100,
    ),
    "mnist-deep": Experiment(
        dataset="mnist",
        model_args={"channels": [64] * 5},
        values=SPARSE | {"drop": linspace(0.1, 0.6)},
        runs=3,
        untrained=100,
    ),
    "cifar10": Experiment(
        dataset="cifar10",
        model_args={},
        values=SPARSE | {"drop": linspace(0.1, 0.5)},
        runs=3,
        untrained=100,
    ),
    "cifar10-quarter": Experiment(  # a quarter of the width, for CPUs
        dataset="cifar10",
        model_args={"channels": [16, 32, 64, 64]},
        values=SPARSE | {"drop": linspace(0.1, 0.5)},
        runs=3,
        untrained=20,
        pass_mark=0.5,
    ),
    "demo": Experiment(
        dataset="mnist5k",
        model_args={},
        values={"l2": [1e-5, 1e-3, 1e-2], "drop": [0.2, 0.4, 0.6]},
        runs=2,
        untrained=8,
    ),
}
FIRST_UNTRAINED_RUN = 1000


def uid(dataset: str, task: str = "sup", run: int = 0, **regularizers: float) -> str:
    """The name of a run's directory: `{dataset}_{task}`, then `_{name}={value}` for each non-zero hyperparameter.

    The order is that of REGULARIZERS, then run. Integers are written as they are, floats of 1e-5 or more (with a
    relative slack of 1e-6) with five decimals, smaller ones as 1.00e-06. The name is lossy: model_args, seed, split and
    batch size are not in it.

    >>> uid("mnist", l2=1e-5, drop=0.3, run=1)
    'mnist_sup_l2=0.00001_drop=0.30000_run=1'

    Raises: TypeError for a regularizer that is none, ValueError for a run that is no whole number.
    """
    unknown = regularizers.keys() - REGULARIZERS.keys()
    if unknown:
        raise TypeError(f"{min(unknown)} is no regularizer: expected some of {', '.join(REGULARIZERS)}")
    if run != int(run):
        raise ValueError(f"run is {run}: expected a whole number")
    values = {name: regularizers.get(name, r.default) for name, r in REGULARIZERS.items()} | {"run": int(run)}
    return f"{dataset}_{task}" + "".join(f"_{name}={_text(value)}" for name, value in values.items() if value != 0)


def _text(value):
    if isinstance(value, numbers.Integral):
        return str(int(value))
    return f"{value:.5f}" if value >= 1e-5 * (1 - 1e-6) else f"{value:.2e}"


def check(hyperparameters: dict) -> None:
    """Raises ValueError where a hyperparameter has a value that means nothing, in words that begin with its name."""
    h = DEFAULTS | hyperparameters

    def require(fine, name, expected):
        if not fine:
            raise ValueError(f"{name} is {h.get(name)!r}: expected {expected}")

    for name, regularizer in REGULARIZERS.items():
        limit = regularizer.below
        expected = "a number from 0" + (f" to below {limit:g}" if limit < math.inf else "")
        require(_is_number(h[name]) and 0 <= h[name] < limit, name, expected)
    for name in ("dataset", "task"):
        require(isinstance(h.get(name), str), name, "a name")
    require(_is_whole(h.get("run")) and h["run"] >= 0, "run", "a whole number from 0")
    seed, batch_size, split = h.get("seed") or 0, h.get("batch_size", 1), h.get("train_val_split", 0.5)
    require(_is_whole(seed) and 0 <= seed < 2**62, "seed", "a whole number from 0 to below 2⁶²")
    require(_is_whole(batch_size) and 1 <= batch_size < 2**62, "batch_size", "a whole number from 1 to below 2⁶²")
    require(_is_number(split) and 0 < split < 1, "train_val_split", "a number between 0 and 1")
    require(isinstance(h.get("model_args", {}), dict), "model_args", "names and values")
    require(h["precision"] in PRECISIONS, "precision", " or ".join(PRECISIONS))


def _is_number(value):
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_whole(value):
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def save_dir(experiment: str, part: str) -> str:
    """The directory that holds all runs of one part of an experiment."""
    return f"logs-{experiment}-{part}"


def parts(experiment: str) -> list[str]:
    """The parts (l2, l1, drop, dummy) that an experiment has."""
    e = EXPERIMENTS[experiment]
    return [part for part in PARTS if (e.untrained if part == "dummy" else e.values.get(part))]


def specs(experiment: str, part: str) -> list[dict]:
    """All runs of one part of an experiment, as dicts of the hyperparameters that name them.

    The drop and l1 parts do not repeat their own zero point: it is the l2 = 1e-5 row of the l2 part.
    """
    e = EXPERIMENTS[experiment]
    fixed = {"dataset": e.dataset, "task": "sup"} | {name: r.default for name, r in REGULARIZERS.items()}
    if part == "dummy":
        return [fixed | {"run": FIRST_UNTRAINED_RUN + i} for i in range(e.untrained)]
    fixed |= {"l2": L2_ALONE}
    return [fixed | {part: value, "run": run} for value in e.values.get(part, ()) for run in range(e.runs)]


def run_dirs(experiment: str, part: str) -> list[Path]:
    """The run directories of one part of an experiment, in the order of `specs`."""
    return [Path(save_dir(experiment, part)) / uid(**spec) for spec in specs(experiment, part)]
