"""What must hold of a network for its association matrices to be what they claim."""

import torch
from torch.autograd import grad


def second_derivatives_vanish(hidden, logits, generator):
    """Whether the logits are piecewise linear functions of the hidden layers, so that Hessian = Gauss–Newton matrix.

    Tests ∂²(rᵀy)/∂h² v = 0 for random r and v: zero to the bit for ReLU, max-pool, affine and linear maps; for any
    smooth nonlinearity zero with probability 0, unless every example sits on a straight stretch of it.
    """

    def normal(like):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)

    gradients = grad(logits, hidden, normal(logits), create_graph=True, materialize_grads=True)
    varying = [gradient for gradient in gradients if gradient.requires_grad]
    if not varying:
        return True
    second = grad(varying, hidden, [normal(gradient) for gradient in varying], retain_graph=True, allow_unused=True)
    return not any(product is not None and product.nan_to_num().any() for product in second)


def examples_are_independent(logits, logits_of_first):
    """Whether the first examples get the same logits alone as within the batch, to a thousand roundings of the largest.

    Fails for networks that draw random numbers, or normalise by the batch, in evaluation mode.
    """
    difference = (logits[: len(logits_of_first)] - logits_of_first).nan_to_num().abs().max()
    return bool(difference <= 1000 * torch.finfo(logits.dtype).eps * logits.nan_to_num().abs().max())
