"""Derivatives of a network's hidden layers and logits, by autograd, in the forms that the association matrices need.

Every function takes a batch whose examples do not influence each other, so that one backward pass serves all of them.
"""

import torch
from torch.autograd import grad


def by_unit(tensor, examples=0, units=1):
    """A layer as (B, locations, units), given the dimensions of examples and units; all others are locations."""
    if tensor.ndim == 2 and (examples, units) == (0, 1):
        return tensor[:, None]
    rows = tensor.movedim((examples, units), (0, -1))
    return rows.flatten(1, -2) if rows.ndim > 2 else rows[:, None]


def logit_gradients(hidden, logits):
    """Yields, for each logit, its gradient by every hidden layer and its probability: (∂y_k/∂h per layer, p_k (B,)).

    In each example the most probable logit comes first, then the others in cyclic order: one backward pass each.
    """
    probabilities, first = logits.detach().softmax(1), logits.argmax(1)
    for k in range(logits.shape[1]):
        index = ((first + k) % logits.shape[1])[:, None]
        one_hot = torch.zeros_like(logits).scatter_(1, index, 1)
        yield pullback(hidden, logits, one_hot), probabilities.gather(1, index)[:, 0]


def pullback(hidden, logits, cotangent):
    """cotangentᵀ ∂y/∂h for every hidden layer; one backward pass."""
    return grad(logits, hidden, cotangent, retain_graph=True, materialize_grads=True)


def input_jacobian(units, x):
    """∂h/∂x by one backward pass per unit and location.

    Args: units: (B, locations, d), computed from x, a tensor or several.
    Returns: (d, locations, B, elements of x).
    """
    _, n_locations, n_units = units.shape
    if not units.requires_grad:  # constants
        return units.new_zeros(n_units, n_locations, len(units), sum(t[0].numel() for t in x))
    rows = []
    for i in range(n_units):
        for s in range(n_locations):
            gradients = grad(units[:, s, i].sum(), x, retain_graph=True, materialize_grads=True)
            rows.append(torch.cat([gradient.reshape(len(gradient), -1) for gradient in gradients], dim=1))
    return torch.stack(rows).unflatten(0, (n_units, n_locations))


def hessian_product(h, gradient, v):
    """∂²L/∂h² v, from ∂L/∂h with its graph."""
    if not gradient.requires_grad:
        return torch.zeros_like(v)
    return grad(gradient, h, v, retain_graph=True, materialize_grads=True)[0]


def loss_hessian(h, loss, rows):
    """Σ over examples and locations of ∂²L/∂h_i∂h_j (same location): a Hessian–vector product per unit and location.

    Args: h: a layer.  loss: sum over examples of a function of h.  rows: a function from h's shape to (B, S, d).
    Returns: (d, d), symmetric.
    """
    gradient = rows(grad(loss, h, create_graph=True, materialize_grads=True)[0])  # (B, S, d)
    _, n_locations, n_units = gradient.shape
    hessian = h.new_zeros(n_units, n_units, dtype=torch.float64)
    if gradient.requires_grad:
        for i in range(n_units):
            for s in range(n_locations):
                row = grad(gradient[:, s, i].sum(), h, retain_graph=True, materialize_grads=True)[0]
                hessian[i] += rows(row)[:, s].double().sum(0)
    return (hessian + hessian.T) / 2
