"""What lesions cost, beside a plain loop over groups, and in state passes.

    python -m benchmarks.bench_lesions           # about 10 minutes on one core
    python -m benchmarks.bench_lesions --quick   # about a minute: the dense network alone, fewer draws

Random networks and random clusterings of about four clusters, eight a layer as there are methods, with eval.py's own
numbers of images and draws. A state pass is one image's way through the part of the network behind the layer; each
different group takes two of them an image, one for each kind of lesion, and the intact network one. The plain loop
lesions one group in one way at a time, runs the network on from the layer, and repeats what several clusterings share;
it is timed on the first groups, and its seconds are those times the number of all groups. CPU seconds on one thread.
"""

import argparse
import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn import functional as F

import lesions
from models import Cifar10Fast, MnistSupervised
from study.evaluation import CONVOLUTIONAL_LESIONS, DENSE_LESIONS, LesionSize

METHODS, CLUSTERS, CLASSES = 8, 4, 10
LOOPED = 20  # groups on which the plain loop is timed


def clusterings(units: int, seed: int) -> dict[str, torch.Tensor]:
    """One random clustering for each method."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLUSTERS, (METHODS, units), generator=generator)
    return {str(i): torch.eye(CLUSTERS)[each][:, each.unique()] for i, each in enumerate(labels)}


def groups_of(found: dict[str, torch.Tensor], draws: int) -> Iterator[torch.Tensor]:
    """Every group that the plain loop lesions: those of each clustering and of each of its draws, (units,) bool."""
    for clusters in found.values():
        for each in (clusters, *lesions.shuffled_clusterings(clusters, draws)):
            yield from each.T.bool()


@torch.no_grad()
def plain_loop(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, layer: int, groups) -> torch.Tensor:
    """Effects (groups, 2, classes): one group, one kind at a time."""
    hidden, logits = model(images)
    h, intact = hidden[layer], F.cross_entropy(logits, labels, reduction="none")
    effects = []
    for group in groups:
        for value in (h.mean(0), torch.zeros_like(h[0])):
            lesioned = h.clone()
            lesioned[:, group] = value[group]
            losses = F.cross_entropy(model.forward_from(layer, lesioned), labels, reduction="none") - intact
            effects.append(torch.stack([losses[labels == k].mean() for k in range(CLASSES)]))
    return torch.stack(effects).view(-1, 2, CLASSES)


def seconds(work) -> tuple[float, object]:
    """CPU seconds of a call, and its result."""
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def rows(model: nn.Module, shape: tuple[int, ...], size: LesionSize) -> Iterator[tuple[float, float, int]]:
    """Prints a line a layer; yields its seconds, those of the plain loop, and the state passes."""
    n = CLASSES * size.images
    images = torch.rand(n, *shape, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(CLASSES).repeat_interleave(size.images)
    with torch.no_grad():
        hidden = model(images[:2])[0]
    for layer, h in enumerate(hidden):
        found = clusterings(h.shape[1], layer)
        ours, results = seconds(
            lambda layer=layer, found=found: lesions.find_lesions(
                model, images, labels, found, layer=layer, draws=size.draws
            )
        )
        groups = list(groups_of(found, size.draws))
        different = len({bytes(group.numpy()) for group in groups})
        few = groups[:LOOPED]
        loop, effects = seconds(lambda layer=layer, few=few: plain_loop(model, images, labels, layer, few))
        plain, passes = loop / len(few) * len(groups), n * (2 * different + 1)
        first = effects[: found["0"].shape[1], 0]
        error = (results["0"]["mean_effects"] - first).abs().max() / first.abs().max()
        print(
            f"  layer {layer}: {ours:6.1f} s, plain loop {plain:7.1f} s ({plain / ours:5.1f} ×), {len(groups)} groups, "
            f"{different} different, {passes:,} state passes, relative difference {error:.0e}",
            flush=True,
        )
        yield ours, plain, passes


def table(title: str, model: nn.Module, shape: tuple[int, ...], size: LesionSize) -> None:
    """Prints the rows of one network, and their sums."""
    print(f"{title}: {METHODS} clusterings a layer, {size.images} images a class, {size.draws} draws, both kinds")
    ours, plain, passes = (sum(column) for column in zip(*rows(model.eval(), shape, size), strict=True))
    print(f"  in all : {ours:6.1f} s, plain loop {plain:7.1f} s ({plain / ours:5.1f} ×), {passes:,} state passes")


def main(args: argparse.Namespace) -> None:
    """Prints a table a network."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.manual_seed(0)
    dense = DENSE_LESIONS._replace(draws=20) if args.quick else DENSE_LESIONS
    table("MNIST's network", MnistSupervised(), (1, 28, 28), dense)
    if not args.quick:
        quarter = Cifar10Fast(channels=(16, 32, 64, 64))
        table("CIFAR-10's network at a quarter of its width", quarter, (3, 32, 32), CONVOLUTIONAL_LESIONS)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the dense network alone, with 20 draws")
    main(parser.parse_args())
