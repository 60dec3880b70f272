"""Derivatives of a network's hidden layers and logits, in the forms that the association matrices need.

associations.py chooses the random directions and averages; here are the derivatives alone. Every function takes a batch
whose examples do not influence each other, so that one backward pass serves all of them.
"""

from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd import grad


@contextmanager
def recorded(model, layers=None):
    """Context manager giving `run(x) → (hidden, logits)` for any network, which stays unchanged.

    Args:
        model: returns (hidden, logits) where `layers` is None, otherwise logits alone.
        layers: names from `model.named_modules()`; `hidden` then lists these modules' outputs (B, units, *locations).

    Raises: ValueError for an unknown name, for a module that runs never or more than once, or returns no tensor.
    """
    if layers is None:
        yield model
        return
    modules, outputs = dict(model.named_modules()), {}
    if not layers or not set(layers) <= set(modules):
        raise ValueError(f"no layers {sorted(set(layers) - set(modules))} among {', '.join(modules).strip(', ')}")

    def keep(name):
        def hook(_module, _inputs, output):
            if name in outputs or not isinstance(output, torch.Tensor):
                raise ValueError(f"layer {name!r} runs twice in one forward pass, or does not return a tensor")
            outputs[name] = output
            return output.clone()  # the next operation may write in place, which must not change what was recorded

        return hook

    def run(x):
        outputs.clear()
        logits = model(x)
        if set(outputs) != set(layers):
            raise ValueError(f"layers {sorted(set(layers) - set(outputs))} did not run")
        return [outputs[name] for name in layers], logits

    handles = [modules[name].register_forward_hook(keep(name)) for name in layers]
    try:
        yield run
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def frozen(model):
    """Context manager in which no parameter asks for a gradient, so that graphs hold paths from the input alone."""
    asked = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    try:
        with torch.enable_grad():
            yield
    finally:
        for parameter in asked:
            parameter.requires_grad_(True)


@contextmanager
def careful_arithmetic():
    """Context manager in which numbers below 1e-38 count as zero, for speed, and GPUs compute in full float32.

    Weights of pixels that are always 0 decay into such numbers, which make a CPU 2–7 times slower.
    """
    flushed = (torch.tensor(1e-40) * 1).item() == 0
    tf32, precision = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.set_flush_denormal(True)
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)
        torch.backends.cudnn.allow_tf32 = tf32
        torch.set_float32_matmul_precision(precision)


class _Convolve(torch.autograd.Function):
    """Convolution as a function of its input alone."""

    @staticmethod
    def forward(ctx, x, module):
        ctx.x, ctx.module, ctx.weight = x.detach(), module, module.weight.detach()
        return type(module).forward(module, x)

    @staticmethod
    def backward(ctx, g):
        return _ConvolveTransposed.apply(g, ctx.x, ctx.module, ctx.weight), None


class _ConvolveTransposed(torch.autograd.Function):
    """The adjoint of a convolution of x, without its constant term."""

    @staticmethod
    def forward(ctx, g, x, module, weight):
        ctx.module, ctx.weight = module, weight
        return torch.ops.aten.convolution_backward(
            g,
            x,
            weight,
            None,
            module.stride,
            module.padding,
            module.dilation,
            False,
            [0] * len(module.stride),
            module.groups,
            [True, False, False],
        )[0]

    @staticmethod
    def backward(ctx, v):
        return ctx.module._conv_forward(v, ctx.weight, None), None, None, None


class _Rescale(torch.autograd.Function):
    """Batch normalisation by running statistics, an affine map of each channel."""

    @staticmethod
    def forward(ctx, x, module):
        scale = (module.running_var + module.eps).rsqrt() * (1 if module.weight is None else module.weight)
        ctx.scale = scale.view(-1, *[1] * (x.ndim - 2))
        return type(module).forward(module, x)

    @staticmethod
    def backward(ctx, g):
        return g * ctx.scale, None


@contextmanager
def linear_where_linear(model):
    """Context manager in which convolutions and batch normalisations differentiate as the linear maps they are.

    Same values, to the bit. torch's own second derivatives also work out what is not asked for here (the weights'
    share), and make a Jacobian–vector product of a convolutional network cost three forward passes; this way it costs
    one. Concerns modules of torch's own classes in evaluation mode; any other differentiates as it did.
    """
    swapped = []
    for module in model.modules():
        if type(module) in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
            function, usable = _Convolve, module.padding_mode == "zeros" and not isinstance(module.padding, str)
        elif type(module) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d):
            function, usable = _Rescale, not module.training and module.running_mean is not None
        else:
            continue
        if usable and "forward" not in vars(module):
            module.forward = _of_input(function, module)
            swapped.append(module)
    try:
        yield
    finally:
        for module in swapped:
            del module.forward


def _of_input(function, module):
    return lambda x: function.apply(x, module)


def by_unit(tensor):
    """(B, units) or (B, units, *locations) as (B, locations, units)."""
    return tensor[:, None] if tensor.ndim == 2 else tensor.flatten(2).movedim(1, 2)


# What must hold ------------------------------------------------------------------------------------------------------


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


# Dense chains: products of weights and masks -------------------------------------------------------------------------


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


# Any network: autograd -----------------------------------------------------------------------------------------------


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


def input_tangents(hidden, x):
    """Function v ↦ [∂h/∂x · v for every layer], all layers from one pass.

    The pullback g(u) = Σ_l (∂h_l/∂x)ᵀu_l is linear in u, and its own pullback at v is the Jacobian–vector product. One
    backward pass builds g for the batch; forward-mode differentiation would redo the forward pass for each direction.
    """
    u = [torch.zeros_like(h, requires_grad=True) for h in hidden]
    g = grad(hidden, x, u, create_graph=True, materialize_grads=True)[0]
    if not g.requires_grad:
        return lambda v: u
    return lambda v: grad(g, u, v, retain_graph=True, materialize_grads=True)


def input_jacobian(units, x):
    """∂h/∂x by one backward pass per unit and location.

    Args: units: (B, locations, d), computed from x.
    Returns: (d, locations, B, elements of x).
    """
    _, n_locations, n_units = units.shape
    rows = [
        grad(units[:, s, i].sum(), x, retain_graph=True, materialize_grads=True)[0].flatten(1)
        for i in range(n_units)
        for s in range(n_locations)
    ]
    return torch.stack(rows).unflatten(0, (n_units, n_locations))


def loss_hessian(h, loss):
    """Σ over examples and locations of ∂²L/∂h_i∂h_j (same location): a Hessian–vector product per unit and location.

    Args: h: (B, d, *locations).  loss: sum over examples of a function of h.
    Returns: (d, d), symmetric.
    """
    gradient = by_unit(grad(loss, h, create_graph=True, materialize_grads=True)[0])  # (B, S, d)
    _, n_locations, n_units = gradient.shape
    hessian = h.new_zeros(n_units, n_units)
    if gradient.requires_grad:
        for i in range(n_units):
            for s in range(n_locations):
                row = grad(gradient[:, s, i].sum(), h, retain_graph=True, materialize_grads=True)[0]
                hessian[i] += by_unit(row)[:, s].sum(0)
    return (hessian + hessian.T) / 2
