"""Chains of linear layers and ReLUs, whose Jacobians are products of weights and masks."""

import torch
from torch import nn


def run_chain(model, run, x):
    """Runs the network and, if on this batch it is a chain Linear → ReLU → … → Linear, also gives the weights.

    That it is one is read off the values: each linear layer's input equals the layer before (or the flattened x), each
    hidden layer equals the ReLU of its linear layer's output, and the logits equal the last one's output.

    Returns: hidden, logits, and [W₁, …, W_L, W_out], each (out, in), or None where the network is anything else.
    """
    calls = []
    linears = [module for module in model.modules() if isinstance(module, nn.Linear)]
    handles = [
        module.register_forward_hook(lambda m, inputs, output: calls.append((m, *inputs, output))) for module in linears
    ]
    try:
        hidden, logits = run(x)
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) != len(hidden) + 1 or any(len(call) != 3 for call in calls):
        return hidden, logits, None
    modules, inputs, outputs = zip(*calls, strict=True)
    expected = [x.flatten(1), *hidden, *hidden, logits]
    found = [*inputs, *(torch.relu(output) for output in outputs[:-1]), outputs[-1]]
    is_chain = all(_same(a, b) for a, b in zip(expected, found, strict=True))
    return hidden, logits, [module.weight for module in modules] if is_chain else None


def _same(a, b):
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())


def chain_input_jacobians(weights, masks):
    """∂h_l/∂z of a dense ReLU chain for every layer l, z = W₁x + b the first layer's output.

    ∂h₁/∂z = diag(m₁) and ∂h_l/∂z = diag(m_l) W_l ∂h_{l−1}/∂z, with m_l the 0/1 mask of active units.

    Args: weights: [W₁, …, W_L, W_out].  masks: [(B, d_l)] in the weights' dtype.
    Returns: list of (d_l, B, d₁).
    """
    jacobians = [torch.diag_embed(masks[0]).movedim(1, 0)]
    for layer, (weight, mask) in enumerate(zip(weights[1:-1], masks[1:], strict=True)):
        if layer == 0:  # a diagonal matrix before it: no matrix product
            product = weight[:, None] * masks[0]
        else:
            product = (weight @ jacobians[-1].flatten(1)).view(len(weight), *jacobians[-1].shape[1:])
        jacobians.append(product * mask.T[:, :, None])
    return jacobians


def chain_logit_jacobians(weights, masks):
    """∂y/∂h_l of a dense ReLU chain for every layer l: W_out diag(m_L) W_L … diag(m_{l+1}) W_{l+1}.

    Returns: list of (B, logits, d_l).
    """
    jacobians = [weights[-1].expand(len(masks[0]), -1, -1)]
    for weight, mask in zip(weights[-2:0:-1], masks[:0:-1], strict=True):
        jacobians.append((jacobians[-1] * mask[:, None]) @ weight)
    return jacobians[::-1]
