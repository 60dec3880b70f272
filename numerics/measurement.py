"""One pass over the data: which quantity of which layers is taken by which route, and added to which running sum."""

import torch
from torch import nn
from torch.autograd import grad

from numerics import losses, nested
from numerics.chains import chain_input_jacobians, chain_logit_jacobians, run_chain
from numerics.checks import examples_are_independent, second_derivatives_vanish
from numerics.derivatives import (
    hessian_product,
    input_jacobian,
    input_tangents,
    logit_gradients,
    loss_hessian,
    pullback,
)
from numerics.layout import Layout, find_layouts
from numerics.running_sums import Covariance, GramSum, at_least_float32, gram

MAX_EXACT_LOGITS = 64  # beyond, random output directions take fewer passes
MAX_EXACT_PASSES = 64  # a layer of a convolutional network with so few units × locations gets its exact input Jacobian
MAX_HESSIAN_PASSES = 1024  # units × locations; beyond, a Hessian that is no Gram matrix comes from random directions
CHECKED = 4  # images of every batch on which the assumptions are tested
JACOBIAN_FLOATS = 2**24  # explicit Jacobians are made for as many images at once as fit in this
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Measurement:
    """The running sums of one pass, per method and group: a group is one layer, or all for combined matrices."""

    def __init__(self, model, run, methods, combined, directions, seed, unit_dim=None, loss=None):
        self.model, self.run, self.methods, self.combined = model, run, methods, combined
        self.unit_dim, self.loss, self.seed = unit_dim, loss, seed
        self.jac_pairs, self.output_pairs, self.hess_pairs = (number // 2 for number in directions)
        self.n, self.groups = 0, None
        self.sums = {method: {} for method in methods}

    def add(self, x, y):
        """Takes in one batch."""
        batch = self._differentiable(nested.mapped(_in_fast_layout, x))
        if self.run.source is None and isinstance(batch, torch.Tensor):
            hidden, logits, weights = run_chain(self.model, self.run, batch)
        else:
            hidden, logits, weights = *self.run(batch), None
        inputs = self.run.inputs
        self._check_inputs(batch, inputs)
        if self.groups is None:
            self._start(batch, hidden, logits, dense_chain=weights is not None)
        if "backward_hess" in self.methods and self.loss is None:
            losses.check_labels(logits, y)
        elif "backward_hess" in self.methods:
            losses.check_loss(self.loss, logits, y)
        self.n += len(logits)
        if "forward_cov" in self.methods:
            for group, rows in self._grouped([h.detach() for h in hidden]):
                self._sum("forward_cov", group, Covariance).add(rows)
        if weights and logits.shape[1] <= MAX_EXACT_LOGITS:
            self._add_chain(weights, [h.detach() for h in hidden], logits.detach(), y)
        else:
            self._add_general(batch, y, inputs, hidden, logits)

    def _differentiable(self, batch):
        """The batch cut off from what made it; its floating-point tensors ask for gradients, if they are the input."""
        return nested.mapped(
            lambda t: t.detach().requires_grad_(t.is_floating_point() and self.run.source is None), batch
        )

    def _check_inputs(self, batch, inputs):
        """Whether there is something to take Jacobians by."""
        if "forward_jac" not in self.methods:
            return
        if not inputs:
            raise ValueError(
                "forward_jac is the Jacobian by floating-point inputs, and there are none: name the module whose "
                'output it should be taken by, inputs="embedding", or leave out forward_jac'
            )
        if any(len(tensor) != nested.size(batch) for tensor in inputs):
            raise ValueError(
                f"inputs={self.run.source.name!r} returns {[tuple(tensor.shape) for tensor in inputs]} "
                f"for {nested.size(batch)} examples: it must be one row an example"
            )

    def _start(self, batch, hidden, logits, dense_chain):
        shapes = [tuple(h.shape) for h in hidden]
        if not logits.ndim or len(logits) != nested.size(batch):
            raise ValueError(f"need logits (B, …), not {tuple(logits.shape)} for {nested.size(batch)} examples")
        if self.combined and any(len(shape) > 2 for shape in shapes):
            raise ValueError(f"combined matrices need dense layers (B, units), not {shapes}")
        layers = range(len(shapes))
        if dense_chain and self.unit_dim is None:
            self.layouts = [Layout() for _ in layers]
        else:
            self.layouts = find_layouts(self.run, batch, hidden, _few(batch), self.unit_dim)
        _, self.locations, self.widths = zip(
            *(layout.rows(h).shape for layout, h in zip(self.layouts, hidden, strict=True)), strict=True
        )
        self.groups = [tuple(layers)] if self.combined else [(layer,) for layer in layers]
        self.passes = {group: sum(self.widths[i] * self.locations[i] for i in group) for group in self.groups}
        dense = not any(isinstance(module, CONVOLUTIONS) for module in self.model.modules())
        self.exact = [
            group
            for group in self.groups
            if self.passes[group] <= MAX_EXACT_PASSES or (dense and all(len(shapes[i]) == 2 for i in group))
        ]
        self.check, self.output, self.input, self.hessian = (
            torch.Generator(logits.device).manual_seed(self.seed) for _ in range(4)
        )

    def _sum(self, method, group, make):
        return self.sums[method].setdefault(group, make())

    def _exact(self, method, group, matrix):
        """Adds Σ over examples and locations of an exact quantity, to be averaged over both."""
        self._sum(method, group, GramSum).add(matrix / self.locations[group[0]])

    def _sampled(self, method, pairs, rows, rows_again):
        """Adds one pair of estimates for every group: [(group, (B, S, d))] twice."""
        for (group, a), (_, b) in zip(rows, rows_again, strict=True):
            self._sampled_of(group, method, pairs, a, b)

    def _sampled_of(self, group, method, pairs, rows, rows_again, others=None):
        """Adds one pair of estimates of one group, see GramSum.add_pair."""
        root = self.locations[group[0]] ** 0.5
        others = None if others is None else [other / root for other in others]
        self._sum(method, group, GramSum).add_pair(rows / root, rows_again / root, pairs, others)

    def _grouped(self, tensors, groups=None):
        """(group, (B, S, d)) for every group, from one tensor a layer; half precision becomes float32."""
        grouped = []
        for group in groups or self.groups:
            rows = [at_least_float32(self.layouts[layer].rows(tensors[layer])) for layer in group]
            grouped.append((group, torch.cat(rows, dim=-1)))
        return grouped

    # Chains of linear layers and ReLUs

    def _add_chain(self, weights, hidden, logits, y):
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
            curved = self.loss is not None and "backward_hess" in self.methods
            curvature = losses.curvature(self.loss, logits, y).to(logits.dtype) if curved else None
            for group in self.groups:
                jacobian = torch.cat([jacobians[layer] for layer in group], dim=-1)  # (B, logits, d)
                if "backward_jac" in self.methods:
                    self._exact("backward_jac", group, gram(jacobian))
                if curved:
                    self._exact("backward_hess", group, gram(curvature @ jacobian, jacobian))
                elif "backward_hess" in self.methods:  # the formula is explained at _add_logit_gradients
                    relative = jacobian - jacobian[torch.arange(len(first)), first][:, None]
                    weighted = relative * logits.softmax(1)[:, :, None]
                    self._exact("backward_hess", group, gram(weighted, relative) - gram(weighted.sum(1)))

    # Any network

    def _add_general(self, batch, y, inputs, hidden, logits):
        few_hidden, few_logits = self.run(nested.part(batch, 0, _few(batch)))
        if not examples_are_independent(logits, few_logits):
            raise ValueError(
                "the network is random, or its examples influence each other, in evaluation mode: "
                "the same images get other logits in another batch"
            )
        backward = [method for method in self.methods if method.startswith("backward")]
        flat = logits.reshape(len(logits), -1)
        few_flat = few_logits.reshape(len(few_logits), -1)
        few_outputs = flat.shape[1] <= MAX_EXACT_LOGITS
        if "backward_hess" in backward:
            linear = second_derivatives_vanish(few_hidden, few_flat, self.check)
            if not linear or (self.loss and not few_outputs):
                self._add_hessians(hidden, (self.loss or losses.cross_entropy)(logits, y).sum())
                backward.remove("backward_hess")
            elif self.loss:
                self._add_curved_logit_gradients(hidden, flat, losses.curvature(self.loss, logits, y))
                backward.remove("backward_hess")
        if backward and few_outputs:
            self._add_logit_gradients(hidden, flat, backward)
        elif backward:
            self._add_sampled_logit_gradients(hidden, flat, backward)
        if "forward_jac" in self.methods:
            self._add_tangents(inputs, hidden)
            self._add_input_jacobians(batch, inputs)

    def _add_hessians(self, hidden, loss):
        """The true Hessian of each layer, from a pass for each unit and location or, if that is many, random signs v.

        E[(Hv)_i v_j] = H_ij; v are over all units and locations, the pairs i, j within one location.
        """
        if self.combined:
            raise ValueError(
                "backward_hess: this network is not piecewise linear after its layers, or has other losses of more "
                f"than {MAX_EXACT_LOGITS} outputs; its Hessian is offered for single layers. Leave out combined"
            )
        for group in self.groups:
            (layer,) = group
            h, rows = hidden[layer], self.layouts[layer].rows
            if self.passes[group] <= MAX_HESSIAN_PASSES:
                self._exact("backward_hess", group, loss_hessian(h, loss, rows))
                continue
            (gradient,) = grad(loss, h, create_graph=True, materialize_grads=True)
            for _ in range(self.hess_pairs):
                v, w = (_signs(h, self.hessian) for _ in range(2))
                products = [at_least_float32(rows(hessian_product(h, gradient, u))) for u in (v, w)]
                signs = [rows(u).to(products[0].dtype) for u in (v, w)]
                self._sampled_of(group, "backward_hess", self.hess_pairs, *products, signs)

    def _add_curved_logit_gradients(self, hidden, logits, curvature):
        """Adds Jᵀ(∂²L/∂y²)J = Σ_k λ_k (Jᵀu_k)(Jᵀu_k)ᵀ, λ_k and u_k the eigenvalues and -vectors of ∂²L/∂y²."""
        for value, direction in losses.principal_directions(curvature):
            gradients = pullback(hidden, logits, direction.to(logits.dtype))
            for group, rows in self._grouped(gradients):
                self._exact("backward_hess", group, gram(rows * value.to(rows.dtype)[:, None, None], rows))

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

    def _add_tangents(self, inputs, hidden):
        """E[(Jv)(Jv)ᵀ] = JJᵀ for random signs v: one Jacobian–vector product serves every unit of every layer."""
        groups = [group for group in self.groups if group not in self.exact]
        layers = [layer for group in groups for layer in group]
        if not layers:
            return
        tangents = input_tangents([hidden[layer] for layer in layers], inputs)

        def estimate():
            v = [_signs(x, self.input) for x in inputs]
            return self._grouped(dict(zip(layers, tangents(v), strict=True)), groups)

        for _ in range(self.jac_pairs):
            self._sampled("forward_jac", self.jac_pairs, estimate(), estimate())

    def _add_input_jacobians(self, batch, inputs):
        """Exact Gram matrices of ∂h/∂x, for a few images at a time: their Jacobians are held in memory."""
        for group in self.exact:
            at_once = max(1, JACOBIAN_FLOATS // (self.passes[group] * sum(x[0].numel() for x in inputs)))
            for start in range(0, nested.size(batch), at_once):
                some = self._differentiable(nested.part(batch, start, start + at_once))
                ((_, rows),) = self._grouped(self.run(some)[0], [group])
                self._exact("forward_jac", group, gram(input_jacobian(rows, self.run.inputs).flatten(1).T))

    # The result

    def matrices(self, method):
        """Of a base method, for every group: the signed mean (d, d), float64, and its running sum."""
        sums = [self.sums[method][group] for group in self.groups]
        means = [total.mean(self.n).cpu() for total in sums]
        return [(mean + mean.T) / 2 for mean in means], sums


def _few(batch):
    """Of how many examples of a batch the assumptions are tested."""
    return max(1, min(CHECKED, nested.size(batch) // 2))


def _in_fast_layout(x):
    """The batch with channels innermost: where convolutions and per-location Gram matrices are fastest."""
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x.contiguous()


def _signs(like, generator):
    """Independent random ±1."""
    signs = torch.empty(like.shape, dtype=like.dtype, device=like.device).bernoulli_(0.5, generator=generator)
    return signs.mul_(2).sub_(1)
