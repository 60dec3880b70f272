"""One pass over the data: which quantity of which layers is taken by which route, and added to which running sum."""

import torch
from torch import nn
from torch.autograd import grad

from numerics import losses, nested
from numerics.chains import agree, chain_sums, run_chain
from numerics.checks import (
    CHECKED,
    check_connected,
    check_dependence,
    check_derivatives,
    check_examples,
    count_not_finite,
    differentiable,
    second_derivatives_vanish,
)
from numerics.derivatives import (
    hessian_product,
    input_jacobian,
    logit_gradients,
    loss_hessian,
    pullback,
)
from numerics.finite_differences import second_derivatives_are_complete
from numerics.graph import paths
from numerics.layers import Layers
from numerics.running_sums import at_least_float32, gram
from numerics.tangents import checked_tangents

MAX_EXACT_LOGITS = 64  # beyond, random output directions take fewer passes
MAX_EXACT_PASSES = 64  # a layer of a convolutional network with so few units × locations gets its exact input Jacobian
MAX_HESSIAN_PASSES = 1024  # units × locations; beyond, a Hessian that is no Gram matrix comes from random directions
JACOBIAN_FLOATS = 2**24  # explicit Jacobians are made for as many images at once as fit in this
CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


class Measurement:
    """One pass over the data, batch by batch."""

    def __init__(self, model, run, methods, combined, directions, seed, unit_dim=None, loss=None):
        self.model, self.run, self.methods, self.combined = model, run, methods, combined
        self.unit_dim, self.loss, self.seed = unit_dim, loss, seed
        self.jac_pairs, self.output_pairs, self.hess_pairs = (number // 2 for number in directions)
        self.n, self.layers, self.not_finite = 0, None, 0
        self.channels_last, self.forward_mode = None, False

    def add(self, x, y):
        """Takes in one batch."""
        batch, hidden, logits, weights = self._run(x)
        inputs, cut_off = self.run.inputs, self.run.cut_off
        self._check_inputs(batch, inputs)
        if not logits.ndim or len(logits) != nested.size(batch):
            raise ValueError(
                f"need logits (B, …), not {tuple(logits.shape)} for {nested.size(batch)} examples: of a single one, too"
            )
        if self.layers is None:
            self._start(batch, hidden, logits, dense_chain=weights is not None)
        self.layers.measure(hidden)
        if "backward_hess" in self.methods and self.loss is None:
            losses.check_labels(logits, y)
        elif "backward_hess" in self.methods:
            losses.check_loss(self.loss, logits, y)
        self.n += len(logits)
        self.not_finite += count_not_finite([*inputs, logits], hidden, self.layers.layouts)
        if "forward_cov" in self.methods:
            self.layers.add_activations([h.detach() for h in hidden])
        if weights and logits.shape[1] <= MAX_EXACT_LOGITS:
            detached = [h.detach() for h in hidden], logits.detach()
            for method, group, matrix in chain_sums(weights, *detached, y, self.layers.groups, self.methods, self.loss):
                self.layers.add_exact(method, group, matrix)
        else:
            check_examples(self.run, batch, self.layers.layouts)
            with differentiable():
                self._add_general(batch, y, inputs, hidden, logits, cut_off)

    def _run(self, x):
        """The batch as the network took it; hidden, logits; and the weights, if it is a chain."""
        if self.channels_last is None:
            self.channels_last = self._takes_channels_last(x)
        batch = self._differentiable(nested.mapped(self._laid_out, x))
        if self.run.source is None and isinstance(batch, torch.Tensor):
            return batch, *run_chain(self.model, self.run, batch)
        return batch, *self.run(batch), None

    def _takes_channels_last(self, x):
        """Whether a few images give the same logits with channels innermost, where convolutions are fastest.

        Networks that view their activations as vectors need them outermost, and say so or take other numbers.
        """
        few, logits = nested.part(x, 0, CHECKED), []
        if all(tensor.ndim != 4 for tensor in nested.tensors(few)):
            return False
        for self.channels_last in (False, True):
            try:
                logits.append(self.run(self._differentiable(nested.mapped(self._laid_out, few)))[1].detach())
            except RuntimeError as error:
                if not self.channels_last or "view size is not compatible" not in str(error):
                    raise
                return False
        return agree(*logits)

    def _laid_out(self, x):
        return x.contiguous(
            memory_format=torch.channels_last if x.ndim == 4 and self.channels_last else torch.contiguous_format
        )

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
        self.layers = Layers(
            self.run,
            batch,
            hidden,
            _few(batch),
            combined=self.combined,
            unit_dim=self.unit_dim,
            dense_chain=dense_chain,
        )
        passes = self.layers.passes()
        dense = not any(isinstance(module, CONVOLUTIONS) for module in self.model.modules())
        self.exact = [
            group
            for group in self.layers.groups
            if passes[group] <= MAX_EXACT_PASSES or (dense and all(hidden[i].ndim == 2 for i in group))
        ]
        self.check, self.output, self.input, self.hessian = (
            torch.Generator(logits.device).manual_seed(self.seed) for _ in range(4)
        )

    # Any network

    def _add_general(self, batch, y, inputs, hidden, logits, cut_off):
        backward = [method for method in self.methods if method.startswith("backward")]
        flat = logits.reshape(len(logits), -1)
        few_outputs = flat.shape[1] <= MAX_EXACT_LOGITS
        if backward:
            ways = paths(hidden, [logits])
            check_derivatives("the backward methods", ways)
            check_connected(self.run, batch, ways.reached)
            hidden = [h if h.requires_grad else h.detach().requires_grad_() for h in hidden]
        if "forward_jac" in self.methods:
            check_derivatives("forward_jac", paths(inputs, hidden))
            check_dependence(self.run, hidden, self.layers.layouts, cut_off)
        if "backward_hess" in backward:
            linear = self._is_piecewise_linear(batch, hidden, flat, ways)
            loss = self.loss or losses.cross_entropy
            if not linear or (self.loss and not few_outputs):
                self._check_curvature(batch, ways, lambda outputs: loss(outputs, y).sum())
                self._add_hessians(hidden, loss(logits, y).sum())
                backward.remove("backward_hess")
            elif self.loss:
                self._add_curved_logit_gradients(hidden, flat, losses.curvature(self.loss, logits, y))
                backward.remove("backward_hess")
        if backward and few_outputs:
            self._add_logit_gradients(hidden, flat, backward)
        elif backward:
            self._add_sampled_logit_gradients(hidden, flat, backward)
        if "forward_jac" in self.methods:
            self._add_tangents(batch, inputs, hidden)
            self._add_input_jacobians(batch, inputs)

    def _is_piecewise_linear(self, batch, hidden, logits, ways):
        """Whether all is piecewise linear between layers and logits: known operations, or second derivatives of zero.

        Those of operations that are not torch's own are compared with finite differences.
        """
        if ways.linear:
            return True
        try:
            linear = second_derivatives_vanish(hidden, logits, self.check)
        except RuntimeError as error:
            raise _twice_differentiable(error) from error
        if linear and ways.custom:
            weights = torch.randn(logits.shape[1:], generator=self.check, dtype=logits.dtype, device=logits.device)
            self._check_curvature(batch, ways, lambda outputs: (outputs.flatten(1) * weights).sum())
        return linear

    def _check_curvature(self, batch, ways, scalar):
        if ways.custom and not second_derivatives_are_complete(self.run, batch, self.layers.layouts, scalar):
            raise ValueError(
                f"backward_hess: the second derivatives of {', '.join(sorted(ways.custom))} cannot be relied on: "
                "autograd's differ from finite differences, or cannot be compared; give it a backward that is itself "
                "made of torch's differentiable operations, run it in float32 or float64, or leave out backward_hess"
            )

    def _add_hessians(self, hidden, loss):
        """The true Hessian of each layer, from a pass for each unit and location or, if that is many, random signs v.

        E[(Hv)_i v_j] = H_ij; v are over all units and locations, the pairs i, j within one location.
        """
        if self.combined:
            raise ValueError(
                "backward_hess: this network is not piecewise linear after its layers, or has other losses of more "
                f"than {MAX_EXACT_LOGITS} outputs; its Hessian is offered for single layers. Leave out combined"
            )
        for group in self.layers.groups:
            (layer,) = group
            h, rows = hidden[layer], self.layers.layouts[layer].rows
            if self.layers.passes()[group] <= MAX_HESSIAN_PASSES:
                self.layers.add_exact("backward_hess", group, loss_hessian(h, loss, rows))
                continue
            (gradient,) = grad(loss, h, create_graph=True, materialize_grads=True)
            for _ in range(self.hess_pairs):
                v, w = (_signs(h, self.hessian) for _ in range(2))
                products = [at_least_float32(rows(hessian_product(h, gradient, u))) for u in (v, w)]
                signs = [rows(u).to(products[0].dtype) for u in (v, w)]
                self.layers.add_pair(group, "backward_hess", self.hess_pairs, *products, signs)

    def _add_curved_logit_gradients(self, hidden, logits, curvature):
        """Adds Jᵀ(∂²L/∂y²)J = Σ_k λ_k (Jᵀu_k)(Jᵀu_k)ᵀ, λ_k and u_k the eigenvalues and -vectors of ∂²L/∂y²."""
        for value, direction in losses.principal_directions(curvature):
            gradients = pullback(hidden, logits, direction.to(logits.dtype))
            for group, rows in self.layers.grouped(gradients):
                self.layers.add_exact("backward_hess", group, gram(rows * value.to(rows.dtype)[:, None, None], rows))

    def _add_logit_gradients(self, hidden, logits, methods):
        """Adds Σ_k J_k J_kᵀ and the Hessian Jᵀ(diag(p) − ppᵀ)J, J_k = ∂y_k/∂h, from one backward pass a logit.

        The Hessian is the covariance of J_k under p: Σ_k p_k D_k D_kᵀ − D̄ D̄ᵀ with D_k = J_k − J_c, D̄ = Σ_k p_k D_k, for
        any c. With c each example's most probable logit all terms are small where p_c → 1, and no digits cancel.
        """
        reference, centre = None, None
        for gradients, p in logit_gradients(hidden, logits):
            rows = dict(self.layers.grouped(gradients))
            if "backward_jac" in methods:
                for group in self.layers.groups:
                    self.layers.add_exact("backward_jac", group, gram(rows[group]))
            if "backward_hess" in methods:
                if reference is None:
                    reference, centre = rows, {group: torch.zeros_like(rows[group]) for group in self.layers.groups}
                for group in self.layers.groups:
                    relative = rows[group] - reference[group]
                    weighted = relative * p[:, None, None]
                    centre[group] += weighted
                    self.layers.add_exact("backward_hess", group, gram(weighted, relative))
        for group in centre or ():
            self.layers.add_exact("backward_hess", group, -gram(centre[group]))

    def _add_sampled_logit_gradients(self, hidden, logits, methods):
        """E[(Jᵀr)(Jᵀr)ᵀ] = JᵀJ for random signs r; with S r for r it is the Hessian, S = diag(√p) − p√pᵀ."""
        p = logits.detach().double().softmax(1)

        def estimate(method):
            r = _signs(p, self.output)
            if method == "backward_hess":
                r = p.sqrt() * r - p * (p.sqrt() * r).sum(1, keepdim=True)
            return self.layers.grouped(pullback(hidden, logits, r.to(logits.dtype)))

        for method in methods:
            for _ in range(self.output_pairs):
                self.layers.add_pairs(method, self.output_pairs, estimate(method), estimate(method))

    def _add_tangents(self, batch, inputs, hidden):
        """E[(Jv)(Jv)ᵀ] = JJᵀ for random signs v: one Jacobian–vector product serves every unit of every layer."""
        groups = [group for group in self.layers.groups if group not in self.exact]
        layers = [layer for group in groups for layer in group]
        if not layers:
            return
        try:
            tangents, self.forward_mode = checked_tangents(
                self.run,
                batch,
                inputs,
                [hidden[layer] for layer in layers],
                layers,
                [self.layers.layouts[layer] for layer in layers],
                self.check,
                self.forward_mode,
            )
        except ValueError as error:
            raise ValueError(f"{error}, or choose layers of up to {MAX_EXACT_PASSES} units × locations") from error

        def estimate():
            v = [_signs(x, self.input) for x in inputs]
            return self.layers.grouped(dict(zip(layers, tangents(v), strict=True)), groups)

        for _ in range(self.jac_pairs):
            self.layers.add_pairs("forward_jac", self.jac_pairs, estimate(), estimate())

    def _add_input_jacobians(self, batch, inputs):
        """Exact Gram matrices of ∂h/∂x, for a few images at a time: their Jacobians are held in memory."""
        n, passes = nested.size(batch), self.layers.passes()
        for group in self.exact:
            at_once = max(1, JACOBIAN_FLOATS // (passes[group] * sum(x[0].numel() for x in inputs)))
            parts = -(-n // at_once)
            for i in range(parts):  # of about equal size
                some = self._differentiable(nested.part(batch, i * n // parts, (i + 1) * n // parts))
                ((_, rows),) = self.layers.grouped(self.run(some)[0], [group])
                self.layers.add_exact("forward_jac", group, gram(input_jacobian(rows, self.run.inputs).flatten(1).T))


def _few(batch):
    """How many examples of a batch tell where the examples are: fewer than all."""
    return max(1, min(CHECKED, nested.size(batch) - 1))


def _twice_differentiable(error):
    return ValueError(
        f"backward_hess: an operation after the layers cannot be differentiated twice ({str(error).splitlines()[0]}): "
        "leave out backward_hess, or the layers before it"
    )


def _signs(like, generator):
    """Independent random ±1."""
    signs = torch.empty(like.shape, dtype=like.dtype, device=like.device).bernoulli_(0.5, generator=generator)
    return signs.mul_(2).sub_(1)
