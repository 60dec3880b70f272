"""How much of a network's modularity comes from how sparse its weights are, and how much from where they are?

    python -m examples.shuffled_weights CHECKPOINT [CHECKPOINT ...]

A control for what a penalty does to Q: the weights of every layer but the first (its inputs are pixels, which have
places) are shuffled, those of a convolution kernel by kernel. *inputs* shuffles for each unit by itself which of its
weights reads which unit below, so that each unit keeps its weights; *all* shuffles all pairs of units of a layer, so
that only the layer keeps them. Batch statistics are taken anew from training images. Prints Q of each layer, means over
the methods of a family, trained and shuffled, for shuffled ones with the standard deviation over shuffles. What is left
of Q is explained by the sizes of the weights; what is lost was in their arrangement.

On one core a convolutional network of `cifar10-quarter` takes a minute a shuffle, a dense one a second or two.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

from associations import FAMILIES, PAPER_METHODS, associations
from modularity import find_modules
from study import checkpoints
from study.cli import Parser, UserError, named, one_line_errors
from study.datasets import Split
from study.evaluation import batches, stream
from study.networks import network, splits_of

KINDS = ("inputs", "all")


@torch.no_grad()
def shuffle_weights(model: nn.Module, kind: str, generator: torch.Generator) -> None:
    """Shuffles the weights of every layer but the first, in place.

    Args: kind: "inputs" or "all" of KINDS; of weights (outputs, inputs, …) the last dimensions stay together.
    """
    _, *later = (p for p in model.parameters() if p.ndim > 1)
    for p in later:
        outputs, inputs = p.shape[:2]
        if kind == "all":
            order = torch.randperm(outputs * inputs, generator=generator)
        else:
            each = [torch.randperm(inputs, generator=generator) + i * inputs for i in range(outputs)]
            order = torch.cat(each)
        p.copy_(p.flatten(0, 1)[order].view(p.shape))


@torch.no_grad()
def renew_batch_statistics(model: nn.Module, split: Split) -> None:
    """Sets the running means and variances of batch normalization to their averages over the batches of a split."""
    layers = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the plain average
        layer.train()
    if layers:
        for x, _ in batches(model, split):
            model(x)
    for layer in layers:
        layer.eval()


def modularity_by_layer(model: nn.Module, split: Split) -> pd.Series:
    """Q of every layer, means over the methods of each family: a series by (layer, family)."""
    found = associations(model, batches(model, split), methods=PAPER_METHODS, seed=0)
    scores = {
        (layer, family, method): find_modules(matrix, seed=stream(0, method, layer), null_draws=0)["score"]
        for family, methods in FAMILIES.items()
        for method in methods
        for layer, matrix in enumerate(found.assoc[method])
    }
    return pd.Series(scores).rename_axis(["layer", "family", "method"]).groupby(["layer", "family"], sort=False).mean()


def compare(path: Path, images: int, shuffles: int, data_dir: Path) -> pd.DataFrame:
    """Q of a checkpoint's network, trained and shuffled: a row per layer and family; *_sd over shuffles."""
    stored = checkpoints.read(path)
    training, _, test = splits_of(stored, argparse.Namespace(data_dir=data_dir, device=torch.device("cpu")))
    training, test = (Split(split.images, split.labels, split.index[:images]) for split in (training, test))
    table = pd.DataFrame({"trained": modularity_by_layer(network(stored, "cpu"), test)})
    todo = [(kind, seed) for kind in KINDS for seed in range(shuffles)]
    found = {}
    for kind, seed in tqdm(todo, desc=path.name, leave=False, disable=None):
        model = network(stored, "cpu")
        shuffle_weights(model, kind, torch.Generator().manual_seed(seed))
        renew_batch_statistics(model, training)
        found[kind, seed] = modularity_by_layer(model, test)
    for kind in KINDS:
        q = pd.DataFrame({seed: found[kind, seed] for seed in range(shuffles)})
        table[kind], table[f"{kind}_sd"] = q.mean(axis=1), q.std(axis=1)
    return table.sort_index(level="layer", sort_remaining=False)


def main(args: argparse.Namespace) -> None:
    """Prints a table for each checkpoint."""
    if min(args.images, args.shuffles) < 1:
        raise UserError("--images and --shuffles must be 1 or more")
    for path in args.checkpoint:
        with named(path):
            table = compare(path, args.images, args.shuffles, args.data_dir)
            print(path, table.reset_index().to_string(index=False, float_format="{:.3f}".format, na_rep="-"), sep="\n")


if __name__ == "__main__":
    parser = Parser(prog="shuffled_weights", description=__doc__)
    parser.add_argument("checkpoint", nargs="+", type=Path, help="checkpoints of this study")
    parser.add_argument("--images", type=int, default=1000, help="test images, and training images (default 1000)")
    parser.add_argument("--shuffles", type=int, default=2, help="shuffles of each kind (default 2)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where the data is kept (default data)")
    with one_line_errors("shuffled_weights"):
        main(parser.parse_args())
