"""Seconds an epoch takes: train.py, a bare loop of the same arithmetic, a data loader with per-image transforms.

    python -m benchmarks.bench_training [--dataset mnist] [--data-dir data] [--epochs 3]

One process, one thread (the data loader's two workers come on top and are counted). CPU seconds, medians over epochs.
"""

import argparse
import itertools
import resource
import statistics
import tempfile
import warnings
from pathlib import Path

import torch
from PIL import Image
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

import models
import train
from study import datasets, grids


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


def cpu_seconds():
    """CPU seconds of this process and of its ended children."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def bare_epochs(dataset, train_batches, val_batches, epochs):
    """CPU seconds of each epoch of a plain loop: forward, loss, backward, Adam; then the validation loss."""
    model = models.build(dataset, drop=0.3)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    times = []
    for epoch in range(epochs):
        started = cpu_seconds()
        for x, y in train_batches(epoch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x)[1], y)
            loss = loss + grids.L2_ALONE * sum(p.square().sum() for p in model.parameters() if p.ndim > 1)
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            sum(F.cross_entropy(model(x)[1], y, reduction="sum") for x, y in val_batches())
        times.append(cpu_seconds() - started)
    return times


def our_epochs(dataset, data_dir, epochs):
    """CPU seconds of each epoch of train.py, checkpoints, logs and validation included; without start-up."""
    import pytorch_lightning as pl

    marks = []
    original = pl.LightningModule.on_train_epoch_end
    pl.LightningModule.on_train_epoch_end = lambda self: marks.append(cpu_seconds())
    try:
        with tempfile.TemporaryDirectory() as folder:
            words = ["--dataset", dataset, "--drop", "0.3", "--data-dir", data_dir, "--save-dir", folder]
            words += ["--device", "cpu", "--no-progress", "--max-epochs", str(epochs + 1)]
            train.main(train.parser().parse_args(words))
    finally:
        pl.LightningModule.on_train_epoch_end = original
    return [b - a for a, b in itertools.pairwise(marks)]


def main(args):
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    training, val, _ = datasets.splits(args.dataset, args.data_dir)
    ours = our_epochs(args.dataset, args.data_dir, args.epochs)
    bare = bare_epochs(
        args.dataset,
        lambda epoch: training.batches(200, torch.Generator().manual_seed(epoch)),
        lambda: val.batches(200),
        args.epochs,
    )
    options = {"batch_size": 200, "num_workers": 2}
    textbook = bare_epochs(
        args.dataset,
        lambda epoch: DataLoader(OneByOne(training), shuffle=True, **options),
        lambda: DataLoader(OneByOne(val), **options),
        max(1, args.epochs // 3),
    )
    print(f"{args.dataset}, {len(training)} training and {len(val)} validation images, batches of 200, one thread")
    base = statistics.median(ours)
    for name, times in (("train.py", ours), ("bare PyTorch loop", bare), ("data loader, 2 workers", textbook)):
        seconds = statistics.median(times)
        print(f"  {name:24} {seconds:7.2f} CPU-seconds an epoch (n = {len(times)})   {seconds / base:6.2f} × train.py")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="mnist" if Path("data/mnist").exists() else "mnist5k")
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--epochs", type=int, default=6)
    main(parser.parse_args())
