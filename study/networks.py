"""The network that a checkpoint holds, and the data that it was trained on."""

import argparse
import functools

import torch
from torch import nn

import models
from study import datasets, grids
from study.checkpoints import plain
from study.datasets import Split
from study.files import FileError


def hyperparameters(stored: dict) -> dict:
    """The hyperparameters that say which network and which data a checkpoint is about; the seed is never None.

    Raises: FileError if one is missing or has a value that means nothing.
    """
    given = {name: plain(value) for name, value in stored.get("hyper_parameters", {}).items() if value is not None}
    needed = {"task": "sup", "drop": 0.0, "train_val_split": 0.9, "model_args": {}, "seed": None}
    h = needed | {name: given[name] for name in ("dataset", "run", *needed) if name in given}
    try:
        grids.check(h)
    except ValueError as error:
        raise FileError(f"not a checkpoint of this study: {error}") from None
    return h | {"seed": grids.BASE_SEED + h["run"] if h["seed"] is None else h["seed"]}


def network(stored: dict, device: torch.device) -> nn.Module:
    """The network in a checkpoint, in evaluation mode.

    Raises: FileError if the checkpoint is not one of this study, or its weights are not numbers.
    """
    h = hyperparameters(stored)
    weights = {name.removeprefix("model."): value for name, value in stored.get("state_dict", {}).items()}
    try:
        with torch.device("meta"):  # costs nothing, whatever sizes the file claims
            model = models.build(h["dataset"], h["drop"], h["model_args"]).eval()
        model.load_state_dict(weights, assign=True)
        model = model.float().to(device)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FileError(f"its weights do not fit its model: {' '.join(str(error).split())[:200]}") from None
    broken = [name for name, value in model.state_dict().items() if not value.isfinite().all()]
    if broken:
        raise FileError(f"its weights are not finite ({', '.join(broken)}): its training diverged")
    return model


def splits_of(stored: dict, args: argparse.Namespace) -> tuple[Split, Split, Split]:
    """Training, validation and test images of a checkpoint's network.

    Raises: FileError if these are not the data that it was trained on.
    """
    h = hyperparameters(stored)
    here, trained_on = datasets.fingerprint(h["dataset"], args.data_dir), stored.get("data")
    if trained_on not in (None, here):
        raise FileError(
            f"trained on other data ({trained_on!s:.8}) than {h['dataset']} in {args.data_dir} is now ({here[:8]}): "
            "give the --data-dir it was trained on"
        )
    datasets.model_args(h["dataset"], h["model_args"], args.data_dir)  # raises if the images are of another kind
    return _splits(h["dataset"], args.data_dir, h["seed"], h["train_val_split"], args.device, here)


@functools.lru_cache(maxsize=1)  # of the run at hand: on a GPU each is a copy of the data set
def _splits(dataset, data_dir, seed, train_val_split, device, fingerprint):
    return tuple(split.to(device) for split in datasets.splits(dataset, data_dir, seed, train_val_split))
