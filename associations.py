"""Association matrices: how similar are two units of a hidden layer, in what drives them and in what they drive?

Four similarities of units i, j with activations h, input x, logits y and cross-entropy L (means over examples):

    forward_cov    |Cov(h_i, h_j)|                          forward_jac     |E ⟨∂h_i/∂x, ∂h_j/∂x⟩|
    backward_jac   |E Σ_k ∂y_k/∂h_i ∂y_k/∂h_j|              backward_hess   |E ∂²L/∂h_i∂h_j|

and each with `_norm`, divided by the square roots of both diagonal entries. Units of a convolutional layer are its
channels; each quantity is taken per location and averaged over all of them. `associations` computes all in one pass.
"""

import itertools
import operator
import warnings
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from tqdm import tqdm

from numerics import nested
from numerics.checks import check_network, checked_batch
from numerics.linear import linear_where_linear
from numerics.measurement import Measurement
from numerics.recording import recorded
from numerics.running_sums import diagonal_blocks, normalized
from numerics.seeds import checked_seed
from numerics.settings import careful_arithmetic, frozen, keep_freed_memory, twice_differentiable


class Method(NamedTuple):
    """A similarity of units: upstream (what drives a unit) or downstream (what it drives), and how figures draw it."""

    name: str
    family: str
    color: str
    marker: str
    shown: bool = False  # in figures that have room for a few matrices only


METHOD_TABLE = (  # colours: Okabe & Ito's, and two of Tol's: cool upstream, warm downstream
    Method("forward_cov", "upstream", "#0072B2", "o", shown=True),
    Method("forward_jac", "upstream", "#56B4E9", "s", shown=True),
    Method("forward_cov_norm", "upstream", "#332288", "D"),
    Method("forward_jac_norm", "upstream", "#009E73", "^"),
    Method("backward_jac", "downstream", "#D55E00", "o", shown=True),
    Method("backward_hess", "downstream", "#E69F00", "s", shown=True),
    Method("backward_jac_norm", "downstream", "#882255", "D"),
    Method("backward_hess_norm", "downstream", "#CC79A7", "^"),
)
METHODS = tuple(method.name for method in METHOD_TABLE)
PAPER_METHODS = (  # the study's own: its headline numbers are about these, whatever else is measured
    *("forward_cov", "forward_jac", "forward_cov_norm", "forward_jac_norm"),
    *("backward_jac", "backward_hess", "backward_jac_norm", "backward_hess_norm"),
)
BASE_METHODS = tuple(name for name in METHODS if not name.endswith("_norm"))
UPSTREAM = tuple(method.name for method in METHOD_TABLE if method.family == "upstream")
DOWNSTREAM = tuple(method.name for method in METHOD_TABLE if method.family == "downstream")
FAMILIES = {"upstream": UPSTREAM, "downstream": DOWNSTREAM}
PAIRS = tuple(":".join(sorted(pair)) for pair in itertools.combinations_with_replacement(METHODS, 2))

ASSOC_VERSION = 100  # raise it where the same network and data come to give other matrices

# Error and cost, Cifar10Fast(channels=(16, 32, 64, 64)) trained to 71% on CIFAR-10 (JPEG copy). In images × directions:
#                      240    960   3,840   15,360   61,440
#   error h5, h4      37, 12  19, 7   9, 3    5, 1.7   2, 0.8  % of the exact matrix (Frobenius); h0–h3 less than h4
#   Q − exact Q, h5   −.007  −.001   −.001   +.001   +.0002   of .115; h4 −.005, +.001, +.001, −.0001, .0000 of .098
# With 10,000 images 8 directions are 80,000; each costs about one forward pass, everything else about 16.
JAC_DIRECTIONS = 8
OUTPUT_DIRECTIONS = 32
# The same for the Hessian by the residual stream of a vision transformer (64 units at 17 places of the second block of
# examples/vision_transformer.py), 60 images. In images × directions:
#                      960    3,840   15,360   61,440
#   error              124      63      32       16   % of the exact matrix (Frobenius)
#   Q − exact Q      −.009   +.008   +.005    +.002   of .086
# Each image × direction costs two forward passes. By the standard errors, 10% takes 150,000 for the first 60 or 100
# images and 840,000 for the first 500; by the MLP's 128 units, 200,000 for 100 images and 1,560,000 for 500.
HESS_DIRECTIONS = 32


@dataclass
class Associations:
    """Association matrices of one network.

    Attributes:
        assoc: {method: [(d, d) float32 absolute values, one a layer]}, and {method_combined: one matrix}.
        signed: {base method: [(d, d) float64]} before the absolute value, and {base method_combined: one matrix}.
        stderr: like `assoc`, for the methods of which some layer was sampled: standard errors of the signed entries for
            the given images; zeros for layers that are exact.
    """

    assoc: dict = field(default_factory=dict)
    signed: dict = field(default_factory=dict)
    stderr: dict = field(default_factory=dict)

    @property
    def sign(self):
        """{base method: [(d, d) int8 signs]}: sign · assoc is the signed matrix. NaN counts as 0."""
        return {
            method: [_sign(a) for a in value] if isinstance(value, list) else _sign(value)
            for method, value in self.signed.items()
        }


def _sign(matrix):
    return matrix.nan_to_num().sign().to(torch.int8)


def associations(
    model,
    batches,
    *,
    methods=METHODS,
    layers=None,
    outputs=None,
    inputs=None,
    unit_dim=None,
    loss=None,
    combined=False,
    jac_directions=JAC_DIRECTIONS,
    output_directions=OUTPUT_DIRECTIONS,
    hess_directions=HESS_DIRECTIONS,
    seed=0,
    progress=False,
):
    """Association matrices of every hidden layer, in one pass over the data.

    Exact to rounding, except: `forward_jac` of layers with locations or in convolutional networks, of more than 64
    units × locations, comes from random input directions; both backward methods from random output directions where
    there are more than 64 logits; and `backward_hess` of layers of more than 1,024 units × locations from random
    directions v, by E[(Hv)_i v_j] = H_ij, where the network is not piecewise linear after them, or has a loss of its
    own and more than 64 outputs. These come with standard errors, which rest on (images / 16) × (directions / 2)
    differences. A sampled Hessian costs two forward passes a direction, and takes many: for an error of 10% about
    150,000 to 1,500,000 images × directions in a small vision transformer (measured, see HESS_DIRECTIONS).
    `backward_hess_norm` has a meaning only where the Hessian's diagonal is positive, as it need not be in smooth ones.

    Derivatives are autograd's: where a network detaches one of several ways, or gives an operation a gradient of its
    own (straight-through estimators, reversed gradients, hooks on tensors), so does this. Layers without any way to the
    logits, or from the input, that nevertheless depend on each other are refused; but layers made under `no_grad`, as
    in frozen backbones, have a `forward_jac` of zero, as layers have that are the same for all inputs. Second
    derivatives are compared with finite differences where operations are not torch's own.

    Args:
        model: in evaluation mode; returns (hidden, logits), or logits alone if `layers` is given: a tensor, an object
            with `.logits` or a dict with "logits".
        batches: iterable of (x, y), inputs (B, …) and int64 labels (B,), on the model's device. Read once. Memory grows
            with the batch, not with the data. Inputs are one tensor, or a tuple or dict, which becomes the arguments of
            the model's forward.
        methods: which of METHODS; a method and its `_norm` cost the same as either.
        layers: names of modules whose outputs are analysed; None: the model's own `hidden`, (B, units, *locations)
            each. Of a module that runs several times, one call: "relu:2", the second. Of a module that returns several
            tensors, the first, or another: "lstm[1]".
        outputs: a function from what the model returns to logits, or to (hidden, logits), for models that return more.
        inputs: name of a module whose output counts as the input x of `forward_jac`: an embedding, where the inputs are
            token numbers. None: all floating-point tensors of the inputs.
        unit_dim: which dimension of a layer's output holds its units, one number or one a layer (None: not said); all
            others but that of the examples are locations. Needed where it cannot be told, as in transformers: −1.
        loss: a function of (logits, labels) or (outputs, targets), twice differentiable and summed over examples, that
            `backward_hess` is the Hessian of. None: softmax cross-entropy over int64 labels.
        combined: also one matrix over the units of all layers, in their order; all layers must be dense.
        jac_directions: random input directions for each image, even.
        output_directions: random output directions for each image, even.
        hess_directions: random directions of Hessians for each image, even.
        seed: of all random directions; the same seed gives the same matrices.
        progress: show a progress bar.

    Raises: ValueError for a network in training mode, one that is random or whose examples influence each other, is
        scripted or without values; ways cut off by detach, no_grad, numpy or checkpoint(use_reentrant=True); operations
        without derivatives (quantized modules), or with ones that cannot be relied on; layers whose units cannot be
        told, that have backward hooks, run inside vmap, or run several times where no call is named; unknown methods or
        layers, no data, combined matrices of layers with locations, combined Hessians of smooth networks; inputs,
        labels and losses that do not fit, and cross-entropy of probabilities. NaN and infinite numbers, in images and
        in matrices, are told of by a warning.
    """
    methods, layers = _names(methods), _names(layers)
    bases = _base_methods(methods)
    directions = [_even(number) for number in (jac_directions, output_directions, hess_directions)]
    seed = checked_seed(seed)
    for name, given in (("outputs", outputs), ("loss", loss)):
        if given is not None and not callable(given):
            raise ValueError(f"{name}= must be a function, not {given!r:.80}")
    if inputs is not None and not isinstance(inputs, str):
        raise ValueError(f"inputs= must be the name of a module, not {inputs!r:.80}")
    check_network(model)
    if not isinstance(batches, Iterable) and not hasattr(batches, "__getitem__"):
        raise ValueError(f"batches are an iterable of pairs (x, y), not {batches!r:.80}")
    keep_freed_memory()
    with (
        twice_differentiable(),
        recorded(model, layers, outputs, inputs) as run,
        run.autocast.off(),
        frozen(model),
        linear_where_linear(model),
        careful_arithmetic(),
    ):
        measurement = Measurement(model, run, bases, combined, directions, seed, unit_dim, loss)
        for batch in tqdm(batches, desc="associations", disable=not progress):
            x, y = checked_batch(batch)
            if nested.size(x):
                measurement.add(x, y)
    return _result(measurement, methods, bases, combined)


def _names(names):
    """Names as a list: one given by itself, or any iterable of them; None stays None."""
    if names is None:
        return None
    names = [names] if isinstance(names, str) or not isinstance(names, Iterable) else list(names)
    if any(not isinstance(name, str) for name in names):
        raise ValueError(f"methods and layers are given by name, not as {names!r:.80}")
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"{twice[0]!r} is named twice")
    return names


def _base_methods(methods):
    unknown = sorted(set(methods or ()) - set(METHODS))
    if unknown or not methods:
        raise ValueError(f"unknown methods {unknown}; there are {', '.join(METHODS)}")
    return [base for base in BASE_METHODS if base in methods or f"{base}_norm" in methods]


def _even(directions):
    try:
        number = operator.index(directions)
    except TypeError:
        number = 0
    if number < 2 or number % 2:
        raise ValueError(f"the number of random directions must be even and at least 2, not {directions!r}")
    return number


def _result(measurement, methods, bases, combined):
    """The matrices of everything measured, and a warning where there is no number in them."""
    if not measurement.n:
        raise ValueError("there are no batches to measure on")
    result = Associations()

    def put(results, name, matrices):
        """Stores one matrix a layer; a combined matrix under its own name, and its diagonal blocks as the layers'."""
        if combined:
            results[f"{name}_combined"] = matrices[0]
            matrices = diagonal_blocks(matrices[0], measurement.layers.widths)
        results[name] = matrices

    for base in bases:
        means, sums = measurement.layers.matrices(base, measurement.n)
        put(result.signed, base, means)
        for name in (base, f"{base}_norm"):
            if name not in methods:
                continue
            function = normalized if name.endswith("_norm") else torch.clone
            put(result.assoc, name, [function(mean).abs().float() for mean in means])
            if any(s.sampled for s in sums):
                errors = [s.stderr(measurement.n, name.endswith("_norm")) for s in sums]
                put(result.stderr, name, [error.float().cpu() for error in errors])
    _warn(result.assoc, measurement.not_finite)
    return result


def _warn(matrices, not_finite):
    """A warning where there are no numbers: which methods have such entries, and how many images are the cause."""
    whole = {name: torch.cat([matrix.flatten() for matrix in _as_list(value)]) for name, value in matrices.items()}
    said = [
        f"there are {kind} entries in {', '.join(name for name, entries in whole.items() if has(entries).any())}"
        for kind, has in (("NaN", torch.isnan), ("infinite", torch.isinf))
        if any(has(entries).any() for entries in whole.values())
    ]
    if not_finite:
        said.append(
            f"{not_finite} of the images hold or give NaN or infinite numbers, and count in {', '.join(matrices)}: "
            "leave them out"
        )
    if said:
        warnings.warn("; ".join(said), stacklevel=4)


def _as_list(value):
    return value if isinstance(value, list) else [value]
