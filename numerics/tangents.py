"""Jacobian–vector products ∂h/∂x · v, by whichever way a network allows, and seen to be right."""

import torch
from torch.autograd import forward_ad, grad

from numerics import nested


def checked_tangents(run, batch, inputs, hidden, layers, layouts, generator, forward_mode=False):
    """Function v ↦ [∂h/∂x · v for every layer], seen to be the adjoint of the network's first derivatives.

    By double differentiation or, where that cannot be had, in forward mode.

    Args:
        run: a Recording.  batch: what it ran on.  inputs: tensors of it, to differentiate by.
        hidden: the layers, computed from these.  layers: their numbers.  layouts: their examples and units.
        generator: of the check's directions.  forward_mode: not to try double differentiation.

    Returns: the function; and whether it works in forward mode.
    Raises: ValueError naming the layers of which no such product can be had.
    """
    v = [_normal(x, generator) for x in inputs]
    pullback = _Pullback(hidden, inputs, layouts, generator)

    def in_forward_mode(v):
        found = forward_tangents(run, batch, v)
        return [found[layer] for layer in layers]

    ways = [] if forward_mode else [pullback]
    if run.source is None:
        ways.append(in_forward_mode)
    problems = []
    for way in ways:
        right, problem = _is_right(way, pullback, v)
        if right:
            return way, way is in_forward_mode
        problems.append(problem)
    alone = [_Pullback([h], inputs, [layout], generator) for h, layout in zip(hidden, layouts, strict=True)]
    wrong = [layer for layer, way in zip(layers, alone, strict=True) if not _is_right(way, way, v)[0]]
    why = next(filter(None, problems), "it is not adjoint to the first derivative")
    raise ValueError(
        f"forward_jac: the derivative of {', '.join(map(run.name, wrong or layers))} by the input cannot be "
        f"differentiated, or not rightly ({why}): "
        "give the operations before it a backward that is itself made of torch's differentiable operations"
    )


def _is_right(way, pullback, v):
    """Whether a way to compute Jv agrees with the network's first derivatives; and torch's complaint, if it has one."""
    try:
        return pullback.agrees(way(v), v), None
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        return False, str(error).splitlines()[0]


class _Pullback:
    """Function v ↦ [∂h/∂x · v for every layer], all layers from one pass.

    The pullback g(u) = Σ_l (∂h_l/∂x)ᵀu_l is linear in u, and its own pullback at v is the Jacobian–vector product. One
    backward pass builds g for the batch; forward-mode differentiation would redo the forward pass for each direction.

    Args:
        hidden: layers.  inputs: what they were computed from, a list of tensors.
        layouts: the layers' examples and units.  generator: of the u at which g is taken.
    """

    def __init__(self, hidden, inputs, layouts, generator):
        self.hidden, self.layouts = hidden, layouts
        self.varying = [layer for layer, h in enumerate(hidden) if h.requires_grad]
        self.u = [_random_weights(hidden[layer], generator) for layer in self.varying]
        layers = [hidden[layer] for layer in self.varying]
        self.g = [torch.zeros_like(x) for x in inputs]
        if layers:
            self.g = grad(layers, inputs, self.u, create_graph=True, materialize_grads=True)

    def __call__(self, v):
        found = [torch.zeros_like(h) for h in self.hidden]
        used = [(g, v_of_input) for g, v_of_input in zip(self.g, v, strict=True) if g.requires_grad]
        if used:
            g, v = zip(*used, strict=True)
            products = grad(g, self.u, v, retain_graph=True, materialize_grads=True)
            for layer, product in zip(self.varying, products, strict=True):
                found[layer] = product
        return found

    def agrees(self, tangents, v):
        """Whether ⟨u, Jv⟩ = ⟨Jᵀu, v⟩ in every example, to half of the digits.

        Jᵀu is the network's own first derivative. Jv is wrong where an operation's backward cannot be differentiated
        and does not say so.
        """
        left = right = size = 0
        for u, layer in zip(self.u, self.varying, strict=True):
            product = (u * tangents[layer]).double().movedim(self.layouts[layer].examples, 0).flatten(1)
            left, size = left + product.sum(1), size + product.square().sum(1)
        for g, v_of_input in zip(self.g, v, strict=True):
            product = (g.detach() * v_of_input).double().flatten(1)
            right, size = right + product.sum(1), size + product.square().sum(1)
        tolerance = max(torch.finfo(tensor.dtype).eps for tensor in (*self.g, *self.hidden)) ** 0.5
        return bool(((left - right).nan_to_num() ** 2 <= tolerance**2 * size.nan_to_num()).all())


def _random_weights(h, generator):
    """Random numbers of the size of 1 / |h|: layers of small activations weigh as much as others."""
    h = h.detach()
    scale = h.float().nan_to_num(posinf=0, neginf=0).square().mean().sqrt().clamp(min=1e-4)
    return (_normal(h, generator) / scale.to(h.dtype)).requires_grad_()


def forward_tangents(run, batch, v):
    """[∂h/∂x · v for every layer] by forward-mode differentiation, for networks that torch differentiates once only.

    Args: run: a Recording.  batch: what it runs on.  v: a tensor for each of its floating-point tensors.
    """
    directions = {id(x): v_of_input for x, v_of_input in zip(nested.float_tensors(batch), v, strict=True)}
    with forward_ad.dual_level():
        dual = nested.mapped(lambda x: forward_ad.make_dual(x, directions[id(x)]) if id(x) in directions else x, batch)
        hidden, _ = run(dual)
        tangents = [forward_ad.unpack_dual(h).tangent for h in hidden]
        return [
            torch.zeros_like(h) if tangent is None else tangent.detach()
            for h, tangent in zip(hidden, tangents, strict=True)
        ]


def _normal(like, generator):
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)
