"""Evaluates trained or untrained networks and writes all results into their checkpoints.

    python eval.py --run-dir logs-demo-drop/*          whole runs
    python eval.py --ckpt-file weights/best.ckpt       single checkpoints

For a checkpoint: losses, accuracies and norms; the similarities of its hidden units, eight ways; the modules that each
similarity gives; and how far the modules agree. What is there already is not computed again. For a run: the first of
these for each of its checkpoints, then `best.ckpt` is linked to the one with the lowest val_loss, which gets the rest.
"""

import argparse
import functools
import itertools
import sys
import time
import zlib
from pathlib import Path

import torch
from torch.nn import functional as F
from tqdm import tqdm

import models
from associations import JAC_DIRECTIONS, METHODS, associations
from comparison import ALIGN_VERSION, align_modules
from models import norms
from modularity import DEFAULT_NULL_DRAWS, MODULES_VERSION, find_modules
from study import checkpoints, cli, datasets, grids, runs
from study.checkpoints import BASIC_METRICS
from study.cli import UserError
from study.files import FileError, locked

NORMS = ("l1_norm", "l2_norm", "nuc_norm", "sparsity")
BATCH_SIZE = 500
CONVOLUTIONAL_BATCH_SIZE = 50  # associations hold every layer's activations and derivatives for one batch


def main(args):
    """Evaluates everything the arguments name; a failure does not stop the others."""
    for given, known in ((args.metrics, BASIC_METRICS), (args.methods, METHODS)):
        unknown = [name for name in given if name not in known]
        if unknown:
            raise UserError(f"unknown metric {unknown[0]!r}: expected some of {', '.join(known)}")
    cli.device(args.device)
    jobs = [(evaluate_run, path) for path in args.run_dir] + [(evaluate, path) for path in args.ckpt_file]
    if not jobs:
        raise UserError("nothing to evaluate: give --run-dir or --ckpt-file")
    failures = 0
    for job, path in tqdm(jobs, disable=len(jobs) == 1 or not sys.stderr.isatty(), unit="run"):
        try:
            job(path, args)
        except UserError as error:
            if len(jobs) == 1:
                raise
            failures += 1
            tqdm.write(f"eval.py: {error}", file=sys.stderr)
    if failures:
        raise UserError(f"{failures} of {len(jobs)} could not be evaluated")


def evaluate_run(run_dir, args):
    """Evaluates one run: every checkpoint briefly, the best one (or the untrained network) fully."""
    if (run_dir / "dummy.ckpt").exists():
        return evaluate(run_dir / "dummy.ckpt", args)
    files = sorted(path for path in (run_dir / "weights").glob("*.ckpt") if not path.is_symlink())
    if not files:
        raise UserError(f"{run_dir}: no checkpoint in it")
    if (run_dir / "run.json").exists() and runs.state(run_dir)[0] != "done":
        raise UserError(f"{run_dir}: its training is not finished; run train.sh again, then evaluate")
    val_loss = {path: evaluate(path, args, basics_only=True)["val_loss"] for path in files}
    best = min((path for path in files if path.name != "last.ckpt"), key=val_loss.get, default=files[0])
    checkpoints.link_best(run_dir / "weights", best)
    return evaluate(best, args)


def evaluate(path, args, basics_only=False):
    """Computes what a checkpoint lacks, writes it back after each step, and returns the checkpoint."""
    started, done = time.time(), []
    if path.name == "best.ckpt" and not path.exists():
        path = checkpoints.repair_best(path.parent)
    steps = steps_of(args)[: 1 if basics_only else None]
    stored = checkpoints.read(path, mmap=True)
    if not any(missing(stored, args) for _, missing, _ in steps):
        return stored
    path = path.resolve()
    if path.parent.name == "weights" and runs.is_locked(path.parent.parent):
        raise UserError(f"{path}: its run is being trained; evaluate it when that has finished")
    with locked(path.parent):
        stored = checkpoints.read(path)
        for name, missing, add in steps:
            names = missing(stored, args)
            if names:
                add(stored, args, names)
                checkpoints.write(path, stored)
                done.append(f"{len(names)} {name}")
    tqdm.write(f"{path}: {', '.join(done) or 'complete'} in {time.time() - started:.1f} s")
    return stored


def steps_of(args):
    """What is to be computed: (name, function listing what a checkpoint lacks, function adding it) in order."""
    steps = [("basic metrics", missing_basics, add_basics)]
    if not args.skip_modularity:
        steps.append(("associations", missing_associations, add_associations))
        steps.append(("methods' modules", missing_modules, add_modules))
        if not args.skip_alignment:
            steps.append(("alignments", missing_alignments, add_alignments))
    return steps


def missing_basics(stored, args):
    return [name for name in args.metrics if name not in stored]


def add_basics(stored, args, missing):
    """Losses (mean cross-entropy alone) and accuracies of the three splits, and the norms of the weights."""
    model, splits = model_and_splits(stored, args)
    for name, split in zip(("train", "val", "test"), splits, strict=True):
        if f"{name}_loss" in missing or f"{name}_acc" in missing:
            stored[f"{name}_loss"], stored[f"{name}_acc"] = loss_and_accuracy(model, split)
    with torch.no_grad():
        stored.update({name: getattr(norms, name)(model).item() for name in NORMS if name in missing})


def missing_associations(stored, args):
    return [method for method in all_methods(args) if method not in stored.get("assoc", {})]


def add_associations(stored, args, missing):
    """The similarity of each pair of units of each layer, over the test set."""
    model, (_, _, test) = model_and_splits(stored, args)
    convolutional = isinstance(model, models.Cifar10Fast)
    try:
        found = associations(
            model,
            test.batches(CONVOLUTIONAL_BATCH_SIZE if convolutional else BATCH_SIZE),
            methods=sorted({method.removesuffix("_combined") for method in missing}),
            combined=args.modularity_combined,
            jac_directions=args.jac_directions,
            seed=args.seed,
            progress=args.progress and sys.stderr.isatty(),
        )
    except (ValueError, RuntimeError) as error:
        raise UserError(f"associations: {error}") from None
    for key, new in {"assoc": found.assoc, "assoc_sign": found.sign, "assoc_stderr": found.stderr}.items():
        stored[key] = stored.get(key, {}) | new


def missing_modules(stored, args):
    modules = stored.get("modules", {})
    return [method for method in all_methods(args) if not is_current(modules.get(method), MODULES_VERSION, args)]


def add_modules(stored, args, missing):
    """The modules of each association matrix, layer by layer (one "layer" for a combined matrix)."""
    stored.setdefault("modules", {})
    for method in missing:
        matrices = in_layers(stored["assoc"][method])
        base = method.replace("_norm", "")
        signs = in_layers(stored.get("assoc_sign", {}).get(base, [None] * len(matrices)))
        stored["modules"][method] = [
            find_modules(
                matrix,
                sign=sign,
                seed=stream(args.seed, method, layer),
                target_entropy=args.target_entropy,
                null_draws=args.null_draws,
            )
            | {"target_entropy": args.target_entropy}
            for layer, (matrix, sign) in enumerate(zip(matrices, signs, strict=True))
        ]
    # What was said of the clusterings just replaced no longer holds.
    align = stored.get("align", {})
    stored["align"] = {pair: value for pair, value in align.items() if not set(pair.split(":")) & set(missing)}


def missing_alignments(stored, args):
    pairs = []
    for combined in (False, True):
        methods = sorted(m for m in all_methods(args) if m.endswith("_combined") == combined)
        pairs += [f"{a}:{b}" for a, b in itertools.combinations_with_replacement(methods, 2)]
    return [pair for pair in pairs if not is_current(stored.get("align", {}).get(pair), ALIGN_VERSION, args)]


def add_alignments(stored, args, missing):
    """How far the modules of each pair of methods agree, layer by layer."""
    for pair in missing:
        modules_a, modules_b = (stored["modules"][method] for method in pair.split(":"))
        stored["align"][pair] = [
            align_modules(a, b, seed=stream(args.seed, pair, layer)) | {"target_entropy": args.target_entropy}
            for layer, (a, b) in enumerate(zip(modules_a, modules_b, strict=True))
        ]


def all_methods(args):
    """The association methods asked for, followed by their combined forms if these are."""
    return [*args.methods, *(f"{method}_combined" for method in args.methods if args.modularity_combined)]


def in_layers(value):
    """A list over layers, of length one for a combined matrix."""
    return value if isinstance(value, list) else [value]


def is_current(layers, version, args):
    """Whether the results of all layers are there, of this version and made with this target entropy."""
    return bool(layers) and all(
        m.get("version", 0) >= version and m.get("target_entropy") == args.target_entropy for m in layers
    )


def stream(seed, name, layer):
    """A seed of its own for each matrix, the same in every run of the program."""
    return zlib.crc32(f"{seed} {name} {layer}".encode())


@functools.lru_cache(maxsize=64)
def splits_of(dataset, data_dir, seed, train_val_split, device):
    return tuple(split.to(device) for split in datasets.splits(dataset, data_dir, seed, train_val_split))


def model_and_splits(stored, args):
    """The network in a checkpoint, in evaluation mode, and the three splits of its data.

    Raises: UserError if the checkpoint is not one of this study.
    """
    device = cli.device(args.device)
    try:
        h = stored["hyper_parameters"]
        model = models.build(h["dataset"], h["drop"], h["model_args"]).eval().to(device)
        model.load_state_dict({name.removeprefix("model."): value for name, value in stored["state_dict"].items()})
    except KeyError as error:
        raise FileError(f"not a checkpoint of this study: it lacks {error}") from None
    except (TypeError, ValueError, RuntimeError) as error:
        raise FileError(f"its weights do not fit its model: {' '.join(str(error).split())[:200]}") from None
    datasets.model_args(h["dataset"], h["model_args"], args.data_dir)  # raises if the images are of another kind
    seed = h.get("seed") or grids.BASE_SEED + h["run"]
    return model, splits_of(h["dataset"], args.data_dir, seed, h.get("train_val_split", 0.9), device)


@torch.inference_mode()
def loss_and_accuracy(model, split):
    """Mean cross-entropy and fraction correct over a split, unflipped."""
    loss = torch.zeros((), dtype=torch.float64, device=split.labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    for x, y in split.batches(BATCH_SIZE):
        logits = model(x)[1]
        loss += F.cross_entropy(logits, y, reduction="sum")
        correct += (logits.argmax(1) == y).sum()
    return loss.item() / len(split), correct.item() / len(split)


def names(text):
    return [name.strip() for name in text.split(",") if name.strip()]


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run-dir", type=Path, nargs="+", default=[], help="run directories, evaluated whole")
    p.add_argument("--ckpt-file", type=Path, nargs="+", default=[], help="checkpoints, each evaluated fully")
    p.add_argument("--data-dir", default="data")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--metrics", type=names, default=BASIC_METRICS, help="basic metrics, comma-separated")
    p.add_argument("--skip-modularity", action="store_true", help="basic metrics only")
    p.add_argument("--modularity-metrics", dest="methods", type=names, default=METHODS, help="association methods")
    p.add_argument("--modularity-combined", action="store_true", help="also one matrix over all (dense) layers")
    p.add_argument("--skip-alignment", action="store_true", help="do not compare the methods' modules")
    p.add_argument("--target-entropy", type=float, default=0.15, help="of the Monte Carlo chain's choices, in nats")
    p.add_argument("--null-draws", type=int, default=DEFAULT_NULL_DRAWS, help="matrices drawn from each null of Q")
    p.add_argument("--jac-directions", type=int, default=JAC_DIRECTIONS, help="an image, for convolutions")
    p.add_argument("--seed", type=int, default=0, help="of everything random in the evaluation")
    p.add_argument("--no-progress", dest="progress", action="store_false")
    return p


if __name__ == "__main__":
    cli.stop_on_sigterm()
    with cli.one_line_errors("eval.py"):
        main(parser().parse_args())
