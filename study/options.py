"""The options of train.py. The job list reads them too, to know what a command asks for: imports no torch."""

import argparse
import json

from study import grids
from study.cli import Parser

MOST_RUNS = 100_000  # of one command


def parser(description: str = "", datasets: str = "name of a data set") -> Parser:
    """The parser of train.py's words. What values hyperparameters may have, `grids.check` says.

    Args:
        description: of train.py, for --help.
        datasets: likewise, which there are; whoever asks imports torch (see `datasets.choices`).
    """
    p = Parser(prog="train.py", description=description)
    p.add_argument("--dataset", required=True, help=datasets)
    p.add_argument("--task", default="sup", choices=["sup"], help="sup: supervised classification")
    for name, regularizer in grids.REGULARIZERS.items():
        default = grids.L2_ALONE if name == "l2" else regularizer.default
        p.add_argument(f"--{name}", type=float, default=default, help=f"{regularizer.label} (default {default:g})")
    p.add_argument("--run", type=run_range, default=range(1), help="number of the repetition, or a range 1000-1099")
    p.add_argument("--seed", type=int, help=f"default: {grids.BASE_SEED} + run")
    p.add_argument("--save-dir", default="logs", help="where the run's directory is made (default logs)")
    p.add_argument("--data-dir", default="data", help="where the data is or will be put (default data)")
    p.add_argument("--max-epochs", type=epochs, default=500, help="0 writes the untrained network as dummy.ckpt")
    p.add_argument("--batch-size", type=int, default=200)
    precisions = grids.PRECISIONS
    p.add_argument("--precision", default=precisions[0], choices=precisions, help="of training (default 32)")
    p.add_argument("--train-val-split", type=float, default=0.9, help="fraction of training images trained on")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--model-args", type=json_object, default={}, help="""JSON, as '{"channels": [256, 256]}'""")
    p.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")
    return p


def epochs(text: str) -> int:
    """A number of epochs."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number from 0, not {text!r}")
    return int(text)


def run_range(text: str) -> range:
    """The runs that "3" or "1000-1099" names."""
    first, dash, last = text.partition("-")
    if not first.isdecimal() or (dash and not last.isdecimal()) or int(last or first) < int(first):
        raise argparse.ArgumentTypeError(f"expected a number such as 3 or a range such as 1000-1099, not {text!r}")
    if int(last or first) - int(first) >= MOST_RUNS:
        raise argparse.ArgumentTypeError(f"{text} are more than {MOST_RUNS} runs")
    return range(int(first), int(last or first) + 1)


def json_object(text: str) -> dict:
    """The dict that some JSON stands for."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"""expected JSON such as '{{"channels": [256, 256]}}', not {text!r}""")
    return value
