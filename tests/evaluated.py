"""A made-up data set and networks on it, so small that evaluating them takes milliseconds."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import eval as evaluation
import models
from study import checkpoints, datasets, grids

SHAPE, CLASSES, CHANNELS = (1, 6, 5), 3, [9, 6]
MODEL_ARGS = {"channels": CHANNELS, "input_shape": list(SHAPE), "num_classes": CLASSES}
COLOURED = (3, 32, 32)
METHODS = ("backward_jac", "forward_cov")  # two are enough for most tests


def write_images(folder, shape, train, test, seed=0):
    """An image-folder tree of noise, with `train` and `test` images a class; returns the data directory."""
    random = np.random.default_rng(seed)
    channels, height, width = shape
    for part, n in (("train", train), ("test", test)):
        for label in range(CLASSES):
            place = folder / part / str(label)
            place.mkdir(parents=True, exist_ok=True)
            for i in range(n):
                pixels = random.integers(0, 256, (height, width, channels), dtype=np.uint8)
                Image.fromarray(pixels[..., 0] if channels == 1 else pixels).save(place / f"{i}.png")
    return folder.parent


def hyperparameters(**changed):
    """As train.py records them."""
    h = {"dataset": "tiny", "task": "sup", "l2": 1e-5, "l1": 0.0, "drop": 0.1, "run": 0, "seed": grids.BASE_SEED}
    h |= {"train_val_split": 0.8, "batch_size": 20, "model_args": MODEL_ARGS, "precision": "32"}
    return h | changed


def write_network(path, data=None, weights=0, silent=(), trained_val_loss=None, **changed):
    """Writes an unevaluated checkpoint: random weights, some units of the first layer silenced; returns its path.

    Args:
        data: the data directory, whose fingerprint it gets.
        weights: their seed.
        silent: numbers of units of the first layer that never fire.
        trained_val_loss: as its training says it was.
        changed: hyperparameters.
    """
    h = hyperparameters(**changed)
    torch.manual_seed(weights)
    model = models.build(h["dataset"], h["drop"], h["model_args"])
    if hasattr(model, "fc_layers"):
        with torch.no_grad():
            for layer in model.fc_layers:
                layer.weight.normal_(0, 2 / layer.in_features**0.5)
            model.fc_layers[0].bias[list(silent)] = -100.0
    stored = {
        "hyper_parameters": h,
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
    }
    if data is not None:
        stored["data"] = datasets.fingerprint(h["dataset"], data)
    if trained_val_loss is not None:
        others = {"logs/weights/epoch=1-step=8.ckpt": torch.tensor(7.0)}
        best = {"monitor": "val_loss", "current_score": torch.tensor(8.0)}
        best["best_k_models"] = others | {"logs/weights/epoch=2-step=12.ckpt": torch.tensor(trained_val_loss)}
        callbacks = {"EarlyStopping": {"wait_count": 0}, "latest": {"monitor": None}, "best": best}
        stored |= {"epoch": 2, "global_step": 12, "callbacks": callbacks}
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoints.write(path, stored)
    return path


def write_run(run_dir, names=("epoch=0-step=9", "epoch=1-step=18", "last"), finished=True, **options):
    """A run directory with a network of its own weights in each file; returns it."""
    for i, name in enumerate(names):
        write_network(run_dir / "weights" / f"{name}.ckpt", weights=i, **options)
    h = checkpoints.read(run_dir / "weights" / f"{names[0]}.ckpt")["hyper_parameters"] | {"untrained": False}
    record = {"hyperparameters": h, "finished": finished, "epochs": len(names), "early_stopped": True}
    (run_dir / "run.json").write_text(json.dumps(record))
    return run_dir


def arguments(*words):
    """eval.py's arguments, as few methods and draws as possible unless the words say otherwise."""
    words = ["--device", "cpu", "--no-progress", *map(str, words)]
    few_of = {"--modularity-metrics": ",".join(METHODS), "--null-draws": "2", "--lesion-draws": "2"}
    for option, few in few_of.items():
        words += [] if option in words else [option, few]
    return evaluation.parser().parse_args(words)


def evaluate(path, data, *words):
    """A checkpoint after eval.py has evaluated it."""
    evaluation.main(arguments("--ckpt-file", path, "--data-dir", data, *words))
    return checkpoints.read(Path(path))


def network_of(stored):
    """The network in a checkpoint, in float64."""
    h = stored["hyper_parameters"]
    model = models.build(h["dataset"], h["drop"], h["model_args"]).eval()
    model.load_state_dict({name.removeprefix("model."): value for name, value in stored["state_dict"].items()})
    return model.double()


def images_of(data, name="tiny", seed=grids.BASE_SEED, train_val_split=0.8):
    """The images (n, C, H, W), float64 in [0, 1], and labels of the splits train, val and test, by plain means."""
    train_images, train_labels, test_images, test_labels = datasets.load(name, data)
    n_train = round(train_val_split * len(train_images))
    sizes = [n_train, len(train_images) - n_train]
    train, val = torch.utils.data.random_split(range(sum(sizes)), sizes, torch.Generator().manual_seed(seed))
    parts = {"train": (train_images, train_labels, train.indices), "val": (train_images, train_labels, val.indices)}
    parts["test"] = (test_images, test_labels, list(range(len(test_images))))
    return {part: (images[index].double() / 255, labels[index]) for part, (images, labels, index) in parts.items()}
