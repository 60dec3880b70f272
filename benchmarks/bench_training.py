"""Seconds an epoch takes: train.py, a bare loop of the same arithmetic, a data loader with per-image transforms.

    python -m benchmarks.bench_training [--dataset mnist] [--model-args JSON] [--precision 32] [--epochs 6]

One process, one thread (the data loader's two workers come on top and are counted). CPU seconds, medians over epochs.
"""

import argparse
import itertools
import json
import resource
import statistics
import tempfile
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import models
import train
from models import LitWrapper
from study import datasets, grids
from study.options import json_object


class OneByOne(Dataset):
    """The images of a split one at a time, as PIL images through a transform: the textbook way."""

    def __init__(self, split):
        self.split, self.transform = split, transforms.ToTensor()

    def __len__(self):
        return len(self.split)

    def __getitem__(self, i):
        index = self.split.index[i]
        pixels = self.split.images[index].permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
        return self.transform(image), self.split.labels[index]


def cpu_seconds() -> float:
    """CPU seconds of this process and of its ended children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def bare_epochs(
    make_model: Callable[[], torch.nn.Module],
    train_batches: Callable[[int], Iterable],
    val_batches: Callable[[], Iterable],
    epochs: int,
    precision: str = "32",
) -> list[float]:
    """CPU seconds of each epoch of a plain loop: forward, loss, backward, Adam; then the validation loss."""
    model = make_model()
    layout = next((layout_of(p) for p in model.parameters() if p.ndim == 4), torch.contiguous_format)
    half = torch.autocast("cpu", torch.bfloat16, enabled=precision != "32")
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    times = []
    for epoch in range(epochs):
        started = cpu_seconds()
        for x, y in train_batches(epoch):
            optimizer.zero_grad()
            with half:
                loss = F.cross_entropy(model(x.contiguous(memory_format=layout))[1], y)
                loss = loss + grids.L2_ALONE * sum(p.square().sum() for p in model.parameters() if p.ndim > 1)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            for x, y in val_batches():
                F.cross_entropy(model(x.contiguous(memory_format=layout))[1], y, reduction="sum")
        times.append(cpu_seconds() - started)
    return times


def layout_of(p: torch.Tensor) -> torch.memory_format:
    last = p.is_contiguous(memory_format=torch.channels_last) and not p.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def our_epochs(words: list[str], epochs: int) -> list[float]:
    """CPU seconds of each epoch of train.py, checkpoints, logs and validation included; without start-up."""
    import pytorch_lightning as pl

    marks = []
    original = pl.LightningModule.on_train_epoch_end
    pl.LightningModule.on_train_epoch_end = lambda self: marks.append(cpu_seconds())
    try:
        with tempfile.TemporaryDirectory() as folder:
            words = [*words, "--drop", "0.3", "--save-dir", folder, "--max-epochs", str(epochs + 1)]
            train.main(train.parser().parse_args([*words, "--device", "cpu", "--no-progress"]))
    finally:
        pl.LightningModule.on_train_epoch_end = original
    return [b - a for a, b in itertools.pairwise(marks)]


def main(args: argparse.Namespace) -> None:
    """Prints a row a way of training."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    training, val, _ = datasets.splits(args.dataset, args.data_dir)

    def ours():  # the network as train.py trains it
        return LitWrapper(args.dataset, drop=0.3, model_args=args.model_args).model

    def plain():
        return models.build(args.dataset, 0.3, args.model_args)

    def batches(epoch):
        return training.batches(200, torch.Generator().manual_seed(epoch))

    def val_batches():
        return val.batches(200)

    words = ["--dataset", args.dataset, "--data-dir", args.data_dir, "--precision", args.precision]
    words += ["--model-args", json.dumps(args.model_args)]
    rows = {
        "train.py": our_epochs(words, args.epochs),
        "bare loop, the same": bare_epochs(ours, batches, val_batches, args.epochs, args.precision),
    }
    if args.precision != "32" or isinstance(plain(), models.Cifar10Fast):
        rows["bare loop, contiguous 32"] = bare_epochs(plain, batches, val_batches, args.epochs)
    if args.loader:
        options = {"batch_size": 200, "num_workers": 2}
        rows["data loader, 2 workers"] = bare_epochs(
            plain,
            lambda epoch: DataLoader(OneByOne(training), shuffle=True, **options),
            lambda: DataLoader(OneByOne(val), **options),
            max(1, args.epochs // 3),
        )
    images = f"{len(training)} training and {len(val)} validation images"
    print(f"{args.dataset}, {images}, batches of 200, one thread, precision {args.precision}")
    base = statistics.median(rows["train.py"])
    for name, times in rows.items():
        seconds = statistics.median(times)
        print(f"  {name:25} {seconds:7.2f} CPU-seconds an epoch (n = {len(times)})   {seconds / base:6.2f} × train.py")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist" if Path("data/mnist").exists() else "mnist5k")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--model-args", type=json_object, default={}, help="JSON, as for train.py")
    parser.add_argument("--precision", default=grids.PRECISIONS[0], choices=grids.PRECISIONS)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--no-loader", dest="loader", action="store_false", help="leave the data loader out")
    main(parser.parse_args())
