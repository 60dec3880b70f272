"""Autograd's second derivatives against finite differences, for operations whose derivatives are not torch's own."""

import torch
from torch.autograd import grad

from numerics import nested

SCALES = {  # relative size of steps, and of the roundings (in eps) that do not count
    torch.float64: ((1e-5, 64), (1e-9, 2)),
    torch.float32: ((1e-3, 64), (2e-5, 2)),
}
DIRECTIONS = 2
AGREES = 0.05  # relative difference that finite differences may have


def second_derivatives_are_complete(run, batch, layouts, scalar):
    """Whether second derivatives of a function of the logits are those that finite differences of the first ones show.

    They are not where an operation's backward is no differentiable function of its own: it runs in numpy, or uses what
    it kept of the forward pass. For gradients g by the hidden layers and random u, compares ⟨u, g(x + δ) − g(x)⟩ with
    ⟨∂⟨u, g⟩/∂x, δ⟩ in every example, for several δ. They differ where δ crosses a kink, and there only: one δ that
    agrees is enough. Coarse δ tell curvature from rounding; fine ones cross few kinks, and then g must stay as it is.

    Args:
        run: a Recording.  batch: tensors that ask for gradients.  layouts: of the layers.
        scalar: function from logits to a number, a sum over examples.
    Returns: False, too, where it cannot be told: in half precision, and without floating-point inputs.
    """
    hidden, logits = run(batch)
    inputs = run.inputs
    if run.source is not None or not inputs or any(x.dtype not in SCALES for x in (*inputs, logits)):
        return False
    generator = torch.Generator(logits.device).manual_seed(0)

    def normal(like):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)

    def projected(gradients):
        """⟨u, g⟩ and Σ |u g| of every example."""
        products = [
            (weights * gradient).movedim(layout.examples, 0).flatten(1)
            for weights, gradient, layout in zip(u, gradients, layouts, strict=True)
        ]
        return sum(product.sum(1) for product in products), sum(product.detach().abs().sum(1) for product in products)

    u = [normal(h) for h in hidden]
    before, size = projected(grad(scalar(logits), hidden, create_graph=True, materialize_grads=True))
    slopes = [torch.zeros_like(x) for x in inputs]
    if before.requires_grad:
        slopes = grad(before.sum(), inputs, materialize_grads=True)
    agrees = torch.zeros(len(before), dtype=torch.bool, device=before.device)
    eps = torch.finfo(logits.dtype).eps
    for scale, roundings in SCALES[logits.dtype]:
        for step in _steps(inputs, scale, normal):
            moved = {id(x): (x + dx).detach().requires_grad_() for x, dx in zip(inputs, step, strict=True)}
            hidden, logits = run(nested.mapped(lambda x, moved=moved: moved.get(id(x), x), batch))
            after, _ = projected(grad(scalar(logits), hidden, materialize_grads=True))
            found = after - before.detach()
            expected = sum((slope * dx).flatten(1).sum(1) for slope, dx in zip(slopes, step, strict=True))
            allowed = AGREES * torch.maximum(found.abs(), expected.abs()) + roundings * eps * size
            agrees |= (found - expected).abs() <= allowed
    return bool(agrees.all())


def _steps(inputs, scale, normal):
    """Yields steps of the inputs of a relative size, each also backwards."""
    for _ in range(DIRECTIONS):
        steps = [scale * (x.detach().square().mean().sqrt() or 1) * normal(x) for x in inputs]
        yield steps
        yield [-step for step in steps]
