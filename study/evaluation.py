"""What evaluation adds to a checkpoint, step by step, and when it has to be made again.

Each result is kept with what it was made with: the version of the code, and every option that decides it. It is stale
where these are not the ones asked for now, and is then made again; what rests on it is removed in the same write.
"""

import argparse
import itertools
import math
import sys
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from associations import ASSOC_VERSION, DOWNSTREAM, associations
from comparison import ALIGN_VERSION, align_modules
from lesions import LESIONS_VERSION, find_lesions, first_of_each_class
from models import norms
from modularity import DEFAULT_STEPS, MODULES_VERSION, find_modules
from study import checkpoints, grids
from study.checkpoints import plain
from study.datasets import Split
from study.files import FileError
from study.networks import network, splits_of

NORMS = ("l1_norm", "l2_norm", "nuc_norm", "sparsity")
BATCH_SIZE = 500
CONVOLUTIONAL_BATCH_SIZE = 50  # associations hold every layer's activations and derivatives for one batch
LOSS_TOLERANCE = 0.01  # relative, between val_loss in training and in evaluation: rounding differs, on a GPU by 0.001
COMBINED = "_combined"


class LesionSize(NamedTuple):
    """Test images of each class, and draws of the null."""

    images: int
    draws: int


DENSE_LESIONS = LesionSize(images=200, draws=100)
CONVOLUTIONAL_LESIONS = LesionSize(images=10, draws=10)  # each lesion runs all that is behind the layer: minutes


Step = tuple[
    str, Callable[[dict, argparse.Namespace], list[str]], Callable[[dict, argparse.Namespace, list[str]], None]
]


def steps_of(args: argparse.Namespace) -> list[Step]:
    """What is to be computed: (name, function listing what a checkpoint lacks, function adding it) in order."""
    steps = [("basic metrics", missing_basics, add_basics)]
    if not args.skip_modularity:
        steps.append(("associations", missing_associations, add_associations))
        steps.append(("list of silent units", missing_silent, add_silent))
        steps.append(("methods' modules", missing_modules, add_modules))
        if not args.skip_alignment:
            steps.append(("alignments", missing_alignments, add_alignments))
        if not args.skip_lesions:
            steps.append(("methods' lesions", missing_lesions, add_lesions))
    return steps


def stream(seed: int, name: str, layer: int) -> int:
    """A seed of its own for each matrix or pair of matrices, the same in every run of the program."""
    return zlib.crc32(f"{seed} {name} {layer}".encode())


def is_current(results: list[dict], wanted: list[dict], version: int) -> bool:
    """Whether there is a result for every layer, of this version or a later one, made with what is wanted of it."""
    if not wanted or len(results) != len(wanted):
        return False
    return all(
        plain(result.get("version", 0)) >= version and all(plain(result.get(key)) == x for key, x in made_with.items())
        for result, made_with in zip(results, wanted, strict=True)
    )


# ---- losses, accuracies, norms --------------------------------------------------------------------------------------


def missing_basics(stored: dict, args: argparse.Namespace) -> list[str]:
    return [name for name in args.metrics if stored.get(name) is None]


def add_basics(stored: dict, args: argparse.Namespace, missing: list[str]) -> None:
    """Losses (mean cross-entropy alone) and accuracies of the three splits, and the norms of the weights."""
    model = network(stored, args.device)
    for i, name in enumerate(("train", "val", "test")):
        if f"{name}_loss" in missing or f"{name}_acc" in missing:
            loss, accuracy = loss_and_accuracy(model, splits_of(stored, args)[i])
            if name == "val":
                check_val_loss(stored, loss)
            stored[f"{name}_loss"], stored[f"{name}_acc"] = loss, accuracy
    with torch.no_grad():
        stored.update({name: getattr(norms, name)(model).item() for name in NORMS if name in missing})


def check_val_loss(stored: dict, loss: float) -> None:
    """Raises FileError where the validation images, or the network, are evidently not those of its training."""
    seen = checkpoints.trained_val_loss(stored)
    foreign = set(stored["hyper_parameters"]) - set(grids.HYPERPARAMETERS)  # its program may have split otherwise
    if not foreign and abs(loss - seen) > LOSS_TOLERANCE * max(seen, loss):
        raise FileError(
            f"its val_loss is {loss:.6g} here, and was {seen:.6g} in training: "
            "not the images that it was trained with; give their --data-dir"
        )


def is_convolutional(weights: dict[str, torch.Tensor]) -> bool:
    """Whether a network of these weights has convolutions."""
    return any(weight.ndim == 4 for weight in weights.values())


def batches(model: nn.Module, split: Split) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The images and labels of a split in the size and layout that the network is fastest with."""
    if not is_convolutional(model.state_dict()):
        yield from split.batches(BATCH_SIZE)
        return
    for x, y in split.batches(CONVOLUTIONAL_BATCH_SIZE):
        yield x.contiguous(memory_format=torch.channels_last), y


@torch.inference_mode()
def loss_and_accuracy(model: nn.Module, split: Split) -> tuple[float, float]:
    """Mean cross-entropy and fraction correct over a split, unflipped."""
    loss = torch.zeros((), dtype=torch.float64, device=split.labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    for x, y in batches(model, split):
        logits = model(x)[1]
        loss += F.cross_entropy(logits, y, reduction="sum")
        correct += (logits.argmax(1) == y).sum()
    return loss.item() / len(split), correct.item() / len(split)


# ---- associations ---------------------------------------------------------------------------------------------------


def all_methods(args: argparse.Namespace) -> list[str]:
    """The association methods asked for, followed by their combined forms if these are."""
    return [*args.methods, *(f"{method}{COMBINED}" for method in args.methods if args.modularity_combined)]


def base(method: str) -> str:
    """The method without normalization, whose signs it shares.

    >>> base("forward_jac_norm_combined")
    'forward_jac_combined'
    """
    return method.replace("_norm", "")


def in_layers(value: torch.Tensor | list | None) -> list:
    """A list over layers: of length one for a combined matrix, and empty for nothing."""
    return [] if value is None else value if isinstance(value, list) else [value]


def missing_associations(stored: dict, args: argparse.Namespace) -> list[str]:
    """Methods asked for that are not there; and stored ones that share a stale one's directions, asked for or not."""
    matrices, sampled = stored.get("assoc", {}), stored.get("assoc_stderr", {})
    asked = all_methods(args)
    together = [method for method in matrices if base(method) in map(base, asked)]
    missing = []
    for method in dict.fromkeys([*asked, *together]):
        made = stored.get("assoc_made_with", {}).get(method, {})
        wanted = directions(args) if method in sampled else {}
        old = made and not is_current([made], [wanted], ASSOC_VERSION)
        if not in_layers(matrices.get(method)) or old or (wanted and not made):
            missing.append(method)
    return missing


def directions(args: argparse.Namespace) -> dict:
    """What decides a matrix that is estimated from random directions."""
    return {"jac_directions": args.jac_directions, "seed": args.seed}


def add_associations(stored: dict, args: argparse.Namespace, missing: list[str]) -> None:
    """The similarity of each pair of units of each layer, over the test set."""
    model, (_, _, test) = network(stored, args.device), splits_of(stored, args)
    try:
        found = associations(
            model,
            batches(model, test),
            methods=sorted({method.removesuffix(COMBINED) for method in missing}),
            combined=any(method.endswith(COMBINED) for method in missing),
            seed=args.seed,
            jac_directions=args.jac_directions,
            progress=args.progress and sys.stderr.isatty(),
        )
    except (ValueError, RuntimeError) as error:
        raise FileError(f"associations: {error}") from None
    made_with = {
        method: {"version": ASSOC_VERSION} | (directions(args) if method in found.stderr else {}) for method in missing
    }
    bases = {base(method) for method in missing}
    put(stored, "assoc", found.assoc, missing)
    put(stored, "assoc_stderr", found.stderr, missing)
    put(stored, "assoc_sign", found.sign, bases)
    put(stored, "assoc_made_with", made_with, missing)
    for method in missing:
        stored.get("modules", {}).pop(method, None)
    forget(stored, missing)


def put(stored: dict, key: str, new: dict, names: Iterable[str]) -> None:
    """Stores those of some new results that have one of the names, beside what is there under other names."""
    stored[key] = stored.get(key, {}) | {name: new[name] for name in names if name in new}


# ---- silent units ---------------------------------------------------------------------------------------------------


def missing_silent(stored: dict, args: argparse.Namespace) -> list[str]:
    return [] if stored.get("silent") else ["silent"]


def add_silent(stored: dict, args: argparse.Namespace, missing: list[str]) -> None:
    """`silent`: which units of each layer never fire."""
    _, _, test = splits_of(stored, args)
    stored["silent"] = silent_units(network(stored, args.device), test)


@torch.inference_mode()
def silent_units(model: nn.Module, split: Split) -> list[torch.Tensor]:
    """Which units of each layer are zero at every location, for every image: (d,) bool, one a layer."""
    fire = None
    for x, _ in batches(model, split):
        now = [(h != 0).transpose(0, 1).flatten(1).any(1) for h in model(x)[0]]
        fire = now if fire is None else [a | b for a, b in zip(fire, now, strict=True)]
    return [~some.cpu() for some in fire]


# ---- modules --------------------------------------------------------------------------------------------------------


def module_options(stored: dict, args: argparse.Namespace, method: str) -> list[dict]:
    """What the modules of each layer's matrix are made with: the options of `find_modules`."""
    same = {
        "search": args.search,
        "steps": DEFAULT_STEPS,
        "target_entropy": args.target_entropy,
        "null_draws": args.null_draws,
    }
    layers = range(len(in_layers(stored.get("assoc", {}).get(method))))
    return [same | {"seed": stream(args.seed, method, layer)} for layer in layers]


def missing_modules(stored: dict, args: argparse.Namespace) -> list[str]:
    modules = stored.get("modules", {})
    return [
        method
        for method in all_methods(args)
        if not is_current(modules.get(method, []), module_options(stored, args, method), MODULES_VERSION)
    ]


def add_modules(stored: dict, args: argparse.Namespace, missing: list[str]) -> None:
    """The modules of each association matrix, layer by layer (one "layer" for a combined matrix)."""
    stored.setdefault("modules", {})
    for method in missing:
        matrices = in_layers(stored["assoc"][method])
        signs = in_layers(stored.get("assoc_sign", {}).get(base(method))) or [None] * len(matrices)
        silent = [torch.cat(stored["silent"])] if method.endswith(COMBINED) else stored["silent"]
        layers = stored["modules"][method] = []
        options = module_options(stored, args, method)
        for adj, sign, units, made_with in zip(matrices, signs, silent, options, strict=True):
            modules = find_modules(adj, sign=sign, **made_with)
            downstream = method.removesuffix(COMBINED) in DOWNSTREAM
            without = score_without(units, adj, modules["score"], made_with) if downstream else math.nan
            layers.append(modules | {"score_without_silent": without})
    forget(stored, missing)


def score_without(silent: torch.Tensor, adj: torch.Tensor, score: float, options: dict) -> float:
    """Q of the best clustering of the units that fire alone; `score`, that of all of them, if none is silent.

    Silent units have no upstream associations, but may carry much of a downstream matrix's weight.
    """
    if silent.all() or not silent.any():
        return math.nan if silent.all() else score
    return find_modules(adj[~silent][:, ~silent], **options | {"null_draws": 0})["score"]


def forget(stored: dict, methods: list[str]) -> None:
    """Removes what was said of clusterings that have just been replaced."""
    for method in methods:
        stored.get("lesions", {}).pop(method, None)
    align = stored.get("align", {})
    stored["align"] = {pair: value for pair, value in align.items() if not set(pair.split(":")) & set(methods)}


# ---- alignments -----------------------------------------------------------------------------------------------------


def alignment_options(stored: dict, args: argparse.Namespace, pair: str) -> list[dict]:
    """What the alignment of each layer's modules is made with, besides these."""
    layers = range(len(stored.get("modules", {}).get(pair.split(":")[0], [])))
    return [{"seed": stream(args.seed, pair, layer)} for layer in layers]


def missing_alignments(stored: dict, args: argparse.Namespace) -> list[str]:
    methods = sorted(all_methods(args))
    pairs = [
        f"{a}:{b}"
        for a, b in itertools.combinations_with_replacement(methods, 2)
        if a.endswith(COMBINED) == b.endswith(COMBINED)
    ]
    align = stored.get("align", {})
    return [
        pair
        for pair in pairs
        if not is_current(align.get(pair, []), alignment_options(stored, args, pair), ALIGN_VERSION)
    ]


def add_alignments(stored: dict, args: argparse.Namespace, missing: list[str]) -> None:
    """How far the modules of each pair of methods agree, layer by layer."""
    stored.setdefault("align", {})
    for pair in missing:
        modules_a, modules_b = (stored["modules"][method] for method in pair.split(":"))
        stored["align"][pair] = [
            align_modules(a, b, **options) | options
            for a, b, options in zip(modules_a, modules_b, alignment_options(stored, args, pair), strict=True)
        ]


# ---- lesions --------------------------------------------------------------------------------------------------------


def lesion_options(stored: dict, args: argparse.Namespace, method: str) -> list[dict]:
    """What the lesions of each layer are made with: the options of `find_lesions`, and the images of each class."""
    size = CONVOLUTIONAL_LESIONS if is_convolutional(stored.get("state_dict", {})) else DENSE_LESIONS
    asked = {"images": args.lesion_images, "draws": args.lesion_draws}
    size = size._asdict() | {name: number for name, number in asked.items() if number is not None}
    layers = range(len(stored.get("modules", {}).get(method, [])))
    return [size | {"seed": stream(args.seed, "lesions", layer)} for layer in layers]


def missing_lesions(stored: dict, args: argparse.Namespace) -> list[str]:
    lesions = stored.get("lesions", {})
    return [
        method
        for method in args.methods  # combined matrices have no layer whose units could be lesioned
        if not is_current(lesions.get(method, []), lesion_options(stored, args, method), LESIONS_VERSION)
    ]


def add_lesions(stored: dict, args: argparse.Namespace, missing: list[str]) -> None:
    """What lesions of the modules do to each class, over the first test images of each; all methods of a layer share
    its null's random orders, whichever of them are made now."""
    model, (_, _, test) = network(stored, args.device), splits_of(stored, args)
    found = {method: [] for method in missing}
    for layer, options in enumerate(lesion_options(stored, args, missing[0])):
        images, labels = first_images(test, options["images"])
        clusterings = {method: stored["modules"][method][layer]["clusters"] for method in missing}
        null = {name: options[name] for name in ("draws", "seed")}
        progress = args.progress and sys.stderr.isatty()
        try:
            lesions = find_lesions(model, images, labels, clusterings, layer=layer, progress=progress, **null)
        except (ValueError, RuntimeError) as error:
            raise FileError(f"lesions: {error}") from None
        for method in missing:
            found[method].append(lesions[method] | options)
    put(stored, "lesions", found, missing)


def first_images(split: Split, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The first images of each class of a split, as many of each, or all there are; and their labels."""
    chosen = split.index[first_of_each_class(split.labels[split.index], number)]
    return next(Split(split.images, split.labels, chosen).batches(len(chosen)))
