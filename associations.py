"""Association matrices: how similar are two units of a hidden layer, in what drives them and in what they drive?

Four similarities of units i, j with activations h, input x, logits y and cross-entropy L (means over examples):

    forward_cov    |Cov(h_i, h_j)|                          forward_jac     |E ⟨∂h_i/∂x, ∂h_j/∂x⟩|
    backward_jac   |E Σ_k ∂y_k/∂h_i ∂y_k/∂h_j|              backward_hess   |E ∂²L/∂h_i∂h_j|

and each with `_norm`, divided by the square roots of both diagonal entries. Units of a convolutional layer are its
channels; each quantity is taken per location and averaged over all of them. `associations` computes all in one pass.
"""

import itertools
import warnings
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from numerics.derivatives import (
    by_unit,
    careful_arithmetic,
    chain_input_jacobians,
    chain_logit_jacobians,
    examples_are_independent,
    frozen,
    input_jacobian,
    input_tangents,
    linear_where_linear,
    logit_gradients,
    loss_hessian,
    pullback,
    recorded,
    run_chain,
    second_derivatives_vanish,
)
from numerics.running_sums import Covariance, GramSum, SampledGramSum, diagonal_blocks, gram, normalized


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
BASE_METHODS = tuple(name for name in METHODS if not name.endswith("_norm"))
UPSTREAM = tuple(method.name for method in METHOD_TABLE if method.family == "upstream")
DOWNSTREAM = tuple(method.name for method in METHOD_TABLE if method.family == "downstream")
PAIRS = tuple(":".join(sorted(pair)) for pair in itertools.combinations_with_replacement(METHODS, 2))

# Error and cost, Cifar10Fast(channels=(16, 32, 64, 64)) trained to 71% on CIFAR-10 (JPEG copy). In images × directions:
#                      240    960   3,840   15,360   61,440
#   error h5, h4      37, 12  19, 7   9, 3    5, 1.7   2, 0.8  % of the exact matrix (Frobenius); h0–h3 less than h4
#   Q − exact Q, h5   −.007  −.001   −.001   +.001   +.0002   of .115; h4 −.005, +.001, +.001, −.0001, .0000 of .098
# With 10,000 images 8 directions are 80,000; each costs about one forward pass, everything else about 16.
JAC_DIRECTIONS = 8
OUTPUT_DIRECTIONS = 32
MAX_EXACT_LOGITS = 64  # beyond, random output directions take fewer passes
MAX_EXACT_PASSES = 64  # a layer of a convolutional network with so few units × locations gets its exact input Jacobian
MAX_HESSIAN_PASSES = 1024  # units × locations, where the Hessian is not a Gram matrix
CHECKED = 4  # images of every batch on which the assumptions are tested
JACOBIAN_FLOATS = 2**24  # explicit Jacobians are made for as many images at once as fit in this
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass
class Associations:
    """Association matrices of one network.

    Attributes:
        assoc: {method: [(d, d) float32 absolute values, one a layer]}, and {method_combined: one matrix}.
        signed: {base method: [(d, d) float64]} before the absolute value, and {base method_combined: one matrix}.
        stderr: like `assoc`, for the methods of which some layer was sampled: standard errors of the signed entries for
            the given images; zeros for layers that are exact.
        halves: {base method: [(A, A′) or None a layer]}: |estimate| from each half of the random directions; None for
            layers that are exact. Only methods of which some layer was sampled.
    """

    assoc: dict = field(default_factory=dict)
    signed: dict = field(default_factory=dict)
    stderr: dict = field(default_factory=dict)
    halves: dict = field(default_factory=dict)

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
    combined=False,
    jac_directions=JAC_DIRECTIONS,
    output_directions=OUTPUT_DIRECTIONS,
    seed=0,
    progress=False,
):
    """Association matrices of every hidden layer, in one pass over the data.

    Exact to rounding, except: `forward_jac` of layers of a convolutional network with more than 64 units × locations
    comes from random input directions, and both backward methods from random output directions where there are more
    than 64 logits. These come with standard errors, which rest on (images / 16) × (directions / 2) differences.

    Args:
        model: in evaluation mode; returns (hidden, logits), or logits alone if `layers` is given.
        batches: iterable of (x, y), float inputs (B, …) and int64 labels (B,), on the model's device. Read once. Memory
            grows with the batch, not with the data.
        methods: which of METHODS; a method and its `_norm` cost the same as either.
        layers: names of modules whose outputs (B, units, *locations) are analysed; None: the model's own `hidden`.
        combined: also one matrix over the units of all layers, in their order; all layers must be dense.
        jac_directions: random input directions for each image, even.
        output_directions: random output directions for each image, even.
        seed: of all random directions; the same seed gives the same matrices.
        progress: show a progress bar.

    Raises: ValueError for a network in training mode, one that is random or whose examples influence each other,
        unknown methods or layers, no data, combined matrices of layers with locations, a Hessian that takes too long.
    """
    if any(module.training for module in model.modules()):
        raise ValueError("associations are defined in evaluation mode: call model.eval() first")
    bases = _base_methods(methods)
    with recorded(model, layers) as run, frozen(model), linear_where_linear(model), careful_arithmetic():
        measurement = _Measurement(model, run, bases, combined, _even(jac_directions), _even(output_directions), seed)
        for x, y in tqdm(batches, desc="associations", disable=not progress):
            measurement.add(x, y)
    return measurement.result(methods)


def _base_methods(methods):
    unknown = sorted(set(methods) - set(METHODS))
    if unknown or not methods:
        raise ValueError(f"unknown methods {unknown}; there are {', '.join(METHODS)}")
    return [base for base in BASE_METHODS if base in methods or f"{base}_norm" in methods]


def _even(directions):
    if directions < 2 or directions % 2:
        raise ValueError(f"the number of random directions must be even and at least 2, not {directions}")
    return directions


class _Measurement:
    """The running sums of one pass, per method and group: a group is one layer, or all for combined matrices."""

    def __init__(self, model, run, methods, combined, jac_directions, output_directions, seed):
        self.model, self.run, self.methods, self.combined = model, run, methods, combined
        self.jac_pairs, self.output_pairs, self.seed = jac_directions // 2, output_directions // 2, seed
        self.n, self.groups = 0, None
        self.sums = {method: {} for method in methods}

    def add(self, x, y):
        """Takes in one batch."""
        x = _in_fast_layout(x.detach()).requires_grad_()
        hidden, logits, weights = run_chain(self.model, self.run, x)
        if self.groups is None:
            self._start(x, hidden, logits)
        self.n += len(x)
        if "forward_cov" in self.methods:
            for group, rows in self._grouped([h.detach() for h in hidden]):
                self._sum("forward_cov", group, Covariance).add(rows)
        if weights and logits.shape[1] <= MAX_EXACT_LOGITS:
            self._add_chain(weights, [h.detach() for h in hidden], logits.detach())
        else:
            self._add_general(x, y, hidden, logits)

    def _start(self, x, hidden, logits):
        shapes = [tuple(h.shape) for h in hidden]
        if logits.ndim != 2 or any(len(shape) < 2 or shape[0] != len(x) for shape in shapes):
            raise ValueError(f"need logits (B, classes) and layers (B, units, …), not {tuple(logits.shape)}, {shapes}")
        if self.combined and any(len(shape) > 2 for shape in shapes):
            raise ValueError(f"combined matrices need dense layers (B, units), not {shapes}")
        layers = range(len(shapes))
        self.widths = [shape[1] for shape in shapes]
        self.locations = [by_unit(h).shape[1] for h in hidden]
        self.groups = [tuple(layers)] if self.combined else [(layer,) for layer in layers]
        self.passes = {group: sum(self.widths[i] * self.locations[i] for i in group) for group in self.groups}
        dense = not any(isinstance(module, CONVOLUTIONS) for module in self.model.modules())
        self.exact = [
            group
            for group in self.groups
            if self.passes[group] <= MAX_EXACT_PASSES or (dense and all(len(shapes[i]) == 2 for i in group))
        ]
        self.check, self.output, self.input = (torch.Generator(x.device).manual_seed(self.seed) for _ in range(3))

    def _sum(self, method, group, make):
        return self.sums[method].setdefault(group, make())

    def _exact(self, method, group, matrix):
        """Adds Σ over examples and locations of an exact quantity, to be averaged over both."""
        self._sum(method, group, GramSum).add(matrix / self.locations[group[0]])

    def _sampled(self, method, pairs, rows, rows_again):
        """Adds one pair of estimates for every group: [(group, (B, S, d))] twice."""
        for (group, a), (_, b) in zip(rows, rows_again, strict=True):
            root = self.locations[group[0]] ** 0.5
            self._sum(method, group, lambda: SampledGramSum(pairs)).add(a / root, b / root)

    def _grouped(self, tensors, groups=None):
        """(group, (B, S, d)) for every group, from one tensor a layer."""
        return [
            (group, torch.cat([by_unit(tensors[layer]) for layer in group], dim=-1)) for group in groups or self.groups
        ]

    # Chains of linear layers and ReLUs

    def _add_chain(self, weights, hidden, logits):
        masks = [(~(h <= 0)).to(h.dtype) for h in hidden]
        if "forward_jac" in self.methods:
            metric = (weights[0].double() @ weights[0].double().T).to(logits.dtype)  # ⟨∂z_a/∂x, ∂z_b/∂x⟩, z = W₁x + b
            jacobians = chain_input_jacobians(weights, masks)
            for group in self.groups:
                if group == (0,):
                    self._exact("forward_jac", group, masks[0].T @ masks[0] * metric)
                else:
                    jacobian = torch.cat([jacobians[layer] for layer in group])  # (d, B, d₁)
                    self._exact("forward_jac", group, gram((jacobian @ metric).flatten(1).T, jacobian.flatten(1).T))
        if {"backward_jac", "backward_hess"} & set(self.methods):
            jacobians, first = chain_logit_jacobians(weights, masks), logits.argmax(1)
            for group in self.groups:
                jacobian = torch.cat([jacobians[layer] for layer in group], dim=-1)  # (B, logits, d)
                if "backward_jac" in self.methods:
                    self._exact("backward_jac", group, gram(jacobian))
                if "backward_hess" in self.methods:  # the formula is explained at _add_logit_gradients
                    relative = jacobian - jacobian[torch.arange(len(first)), first][:, None]
                    weighted = relative * logits.softmax(1)[:, :, None]
                    self._exact("backward_hess", group, gram(weighted, relative) - gram(weighted.sum(1)))

    # Any network

    def _add_general(self, x, y, hidden, logits):
        few = x[: max(1, min(CHECKED, len(x) // 2))]
        few_hidden, few_logits = self.run(few)
        if not examples_are_independent(logits, few_logits):
            raise ValueError(
                "the network is random, or its examples influence each other, in evaluation mode: "
                "the same images get other logits in another batch"
            )
        backward = [method for method in self.methods if method.startswith("backward")]
        if "backward_hess" in backward and not second_derivatives_vanish(few_hidden, few_logits, self.check):
            self._add_hessians(hidden, F.cross_entropy(logits, y, reduction="sum"))
            backward.remove("backward_hess")
        if backward and logits.shape[1] <= MAX_EXACT_LOGITS:
            self._add_logit_gradients(hidden, logits, backward)
        elif backward:
            self._add_sampled_logit_gradients(hidden, logits, backward)
        if "forward_jac" in self.methods:
            self._add_tangents(x, hidden)
            self._add_input_jacobians(x)

    def _add_hessians(self, hidden, loss):
        most = max(self.passes.values())
        if self.combined or most > MAX_HESSIAN_PASSES:
            raise ValueError(
                "backward_hess: this network is not piecewise linear after its layers, so that a Hessian takes a pass "
                f"for each unit and location; offered for single layers of up to {MAX_HESSIAN_PASSES} (here {most}). "
                "Leave out backward_hess, the large layers, or combined"
            )
        for group in self.groups:
            self._exact("backward_hess", group, loss_hessian(hidden[group[0]], loss))

    def _add_logit_gradients(self, hidden, logits, methods):
        """Adds Σ_k J_k J_kᵀ and the Hessian Jᵀ(diag(p) − ppᵀ)J, J_k = ∂y_k/∂h, from one backward pass a logit.

        The Hessian is the covariance of J_k under p: Σ_k p_k D_k D_kᵀ − D̄ D̄ᵀ with D_k = J_k − J_c, D̄ = Σ_k p_k D_k, for
        any c. With c each example's most probable logit all terms are small where p_c → 1, and no digits cancel.
        """
        reference, centre = None, None
        for gradients, p in logit_gradients(hidden, logits):
            rows = dict(self._grouped(gradients))
            if "backward_jac" in methods:
                for group in self.groups:
                    self._exact("backward_jac", group, gram(rows[group]))
            if "backward_hess" in methods:
                if reference is None:
                    reference, centre = rows, {group: torch.zeros_like(rows[group]) for group in self.groups}
                for group in self.groups:
                    relative = rows[group] - reference[group]
                    weighted = relative * p[:, None, None]
                    centre[group] += weighted
                    self._exact("backward_hess", group, gram(weighted, relative))
        for group in centre or ():
            self._exact("backward_hess", group, -gram(centre[group]))

    def _add_sampled_logit_gradients(self, hidden, logits, methods):
        """E[(Jᵀr)(Jᵀr)ᵀ] = JᵀJ for random signs r; with S r for r it is the Hessian, S = diag(√p) − p√pᵀ."""
        p = logits.detach().double().softmax(1)

        def estimate(method):
            r = _signs(p, self.output)
            if method == "backward_hess":
                r = p.sqrt() * r - p * (p.sqrt() * r).sum(1, keepdim=True)
            return self._grouped(pullback(hidden, logits, r.to(logits.dtype)))

        for method in methods:
            for _ in range(self.output_pairs):
                self._sampled(method, self.output_pairs, estimate(method), estimate(method))

    def _add_tangents(self, x, hidden):
        """E[(Jv)(Jv)ᵀ] = JJᵀ for random signs v: one Jacobian–vector product serves every unit of every layer."""
        groups = [group for group in self.groups if group not in self.exact]
        layers = [layer for group in groups for layer in group]
        if not layers:
            return
        tangents = input_tangents([hidden[layer] for layer in layers], x)

        def estimate():
            return self._grouped(dict(zip(layers, tangents(_signs(x, self.input)), strict=True)), groups)

        for _ in range(self.jac_pairs):
            self._sampled("forward_jac", self.jac_pairs, estimate(), estimate())

    def _add_input_jacobians(self, x):
        """Exact Gram matrices of ∂h/∂x, for a few images at a time: their Jacobians are held in memory."""
        for group in self.exact:
            for images in x.detach().split(max(1, JACOBIAN_FLOATS // (self.passes[group] * x[0].numel()))):
                images = images.requires_grad_()
                ((_, rows),) = self._grouped(self.run(images)[0], [group])
                self._exact("forward_jac", group, gram(input_jacobian(rows, images).flatten(1).T))

    # The result

    def result(self, methods):
        if not self.n:
            raise ValueError("there are no batches to measure on")
        result = Associations()
        for base in self.methods:
            self._store(result, base, [name for name in (base, f"{base}_norm") if name in methods])
        broken = [
            name
            for name, value in result.assoc.items()
            if any(a.isnan().any() for a in (value if isinstance(value, list) else [value]))
        ]
        if broken:
            warnings.warn(f"there are NaN entries in {', '.join(broken)}", stacklevel=3)
        return result

    def _store(self, result, base, names):
        sums = [self.sums[base][group] for group in self.groups]
        means = [s.mean(self.n).cpu() for s in sums]
        self._put(result.signed, base, [(mean + mean.T) / 2 for mean in means])
        for name in names:
            function = normalized if name.endswith("_norm") else torch.clone
            self._put(result.assoc, name, [function((mean + mean.T) / 2).abs().float() for mean in means])
        if any(s.sampled for s in sums):
            for name in names:
                errors = [
                    s.stderr(self.n, name.endswith("_norm")) if s.sampled else torch.zeros_like(mean)
                    for s, mean in zip(sums, means, strict=True)
                ]
                self._put(result.stderr, name, [error.float().cpu() for error in errors])
            result.halves[base] = [
                tuple(half.abs().float().cpu() for half in s.half_means(self.n)) if s.sampled else None for s in sums
            ]

    def _put(self, results, name, matrices):
        """Stores one matrix a layer; a combined matrix under its own name, and its diagonal blocks as the layers'."""
        if self.combined:
            results[f"{name}_combined"] = matrices[0]
            matrices = diagonal_blocks(matrices[0], self.widths)
        results[name] = matrices


def _in_fast_layout(x):
    """The batch with channels innermost: where convolutions and per-location Gram matrices are fastest."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


def _signs(like, generator):
    """Independent random ±1."""
    signs = torch.empty(like.shape, dtype=like.dtype, device=like.device).bernoulli_(0.5, generator=generator)
    return signs.mul_(2).sub_(1)
