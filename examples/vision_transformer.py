"""A vision transformer, from training to modules: which units of its MLPs and of its residual stream belong together?

    python -m examples.vision_transformer

Trains torchvision's VisionTransformer, made small, on 4,000 digits (mnist5k), measures the units of one block by all
four methods, clusters them, prints Q and draws the matrices, as numbered and by cluster, into figures/. A transformer's
units lie in the last dimension of its layers' outputs, and its places are locations: `unit_dim=-1`. It is smooth, so
that its Hessian is estimated from random directions, as `forward_jac` is; the column `error` tells how well.

On one core training takes a minute (93% of the test digits), measuring and clustering three.
"""

import argparse
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from associations import BASE_METHODS, Associations, associations
from modularity import find_modules
from report.matrix_figures import sorted_matrices
from report.style import save
from study.datasets import Split, splits

LAYERS = {  # of the second block of four
    "mlp": "encoder.layers.encoder_layer_1.mlp.1",  # after the GELU: 128 units at 17 places
    "residual": "encoder.layers.encoder_layer_1",  # what the block leaves in the residual stream: 64 units at 17 places
}


def small_transformer(seed: int = 0) -> VisionTransformer:
    """A vision transformer for grey images of 28 × 28 pixels: 16 patches and a class token, 135,000 weights."""
    torch.manual_seed(seed)
    model = VisionTransformer(
        image_size=28,
        patch_size=7,
        num_layers=4,
        num_heads=4,
        hidden_dim=64,
        mlp_dim=128,
        num_classes=10,
    )
    model.conv_proj = nn.Conv2d(1, 64, kernel_size=7, stride=7)  # one channel instead of three
    return model


def train(model: nn.Module, split: Split, epochs: int, seed: int = 0) -> None:
    """Trains by AdamW, its rate rising and falling once; leaves the model in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.05)
    steps = epochs * -(-len(split) // 100)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps)
    model.train()
    for _ in range(epochs):
        for x, y in split.batches(100, generator):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
            schedule.step()
    model.eval()


def accuracy(model: nn.Module, split: Split) -> float:
    """Fraction of the images that are recognized."""
    with torch.no_grad():
        right = sum(int((model(x).argmax(1) == y).sum()) for x, y in split.batches(500))
    return right / len(split)


def modules_of(found: Associations, layer: int, null_draws: int) -> pd.DataFrame:
    """The modules of one layer, one row a method, and the relative error of the matrix that they are those of."""
    rows = []
    for method in BASE_METHODS:
        modules = find_modules(found.assoc[method][layer], seed=0, null_draws=null_draws)
        error = found.stderr[method][layer].norm() / found.assoc[method][layer].norm() if method in found.stderr else 0
        rows.append(
            {
                "assoc": method,
                "score": modules["score"],
                "z": modules["z"],
                "error": float(error),
                "adj": modules["adj"].numpy(),
                "clusters": modules["clusters"].numpy(),
            }
        )
    return pd.DataFrame(rows)


def main(epochs: int, images: int, hess_directions: int, null_draws: int, folder: Path, data_dir: Path) -> None:
    """Trains, measures, clusters, prints and draws."""
    training, _, test = splits("mnist5k", data_dir)
    model = small_transformer()
    train(model, training, epochs)
    print(f"test accuracy {accuracy(model, test):.3f}")
    measured = Split(test.images, test.labels, test.index[:images])
    found = associations(
        model,
        measured.batches(50),
        layers=list(LAYERS.values()),
        unit_dim=-1,
        methods=BASE_METHODS,
        hess_directions=hess_directions,
        progress=True,
    )
    for number, (name, layer) in enumerate(LAYERS.items()):
        table = modules_of(found, number, null_draws)
        print(f"\n{name}: {layer}")
        print(table[["assoc", "score", "z", "error"]].round(3).to_string(index=False))
        svg, _ = save(sorted_matrices(table), f"vision-transformer-{name}", folder)
        print(f"drawn in {svg}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--images", type=int, default=500, help="test images to measure on (default 500)")
    parser.add_argument("--hess-directions", type=int, default=256, help="random directions an image (default 256)")
    parser.add_argument("--null-draws", type=int, default=10, help="shuffled matrices for z (default 10)")
    parser.add_argument("--folder", type=Path, default=Path("figures"), help="where the figures go (default figures)")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="where the data is kept (default data)")
    main(**vars(parser.parse_args()))
