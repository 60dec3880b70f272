"""Chains of linear layers and ReLUs, whose Jacobians are products of weights and masks."""

import torch
from torch import nn
from torch.autograd import grad
from torch.autograd.graph import get_gradient_edge

from numerics import losses
from numerics.graph import before_changes_of_form, kind_of
from numerics.running_sums import gram

HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


def run_chain(model, run, x):
    """Runs the network and, if on this batch it is a chain Linear → ReLU → … → Linear, also gives the weights.

    That it is one is read off the values: each linear layer's input equals the layer before (or the flattened x), each
    hidden layer equals the ReLU of its linear layer's output, and the logits equal the last one's output. And off a
    random pullback on the whole batch: autograd's gradients are the products of weights and masks; to x itself, where
    that would take long, nothing but changes of form lies before the first linear layer.

    Returns: hidden, logits, and [W₁, …, W_L, W_out], each (out, in), or None where the network is anything else.
    """
    linears = [module for module in model.modules() if type(module) is nn.Linear and _is_untouched(module)]
    if not linears or x.ndim < 2 or any(module.weight.dtype != x.dtype or x.element_size() < 4 for module in linears):
        return *run(x), None
    calls = []

    def note(module, inputs, output):
        inside = torch._C._functorch.maybe_current_level() is not None  # vmap, whose tensors must not leave it
        plain = not inside and output.requires_grad
        calls.append((module, *inputs, output, get_gradient_edge(output)) if plain else ())

    handles = [module.register_forward_hook(note) for module in linears]
    try:
        hidden, logits = run(x)
    finally:
        for handle in handles:
            handle.remove()
    if len(calls) != len(hidden) + 1 or any(len(call) != 4 for call in calls):
        return hidden, logits, None
    modules, inputs, outputs, edges = zip(*calls, strict=True)
    expected = [x.flatten(1), *hidden, *hidden, logits]
    found = [*inputs, *(torch.relu(output) for output in outputs[:-1]), outputs[-1]]
    weights = [module.weight for module in modules]
    is_chain = all(_same(a, b) for a, b in zip(expected, found, strict=True))
    is_chain = is_chain and _reads(edges[0].node, x) and _has_gradients_of_chain(weights, edges[0], hidden, logits)
    return hidden, logits, weights if is_chain else None


def _is_untouched(module):
    """Whether a module of torch's own class does what its class says: nothing hooks it or stands in its place."""
    return "forward" not in vars(module) and not any(vars(module).get(hooks) for hooks in HOOKS)


def _same(a, b):
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(a, b) or bool(((a == b) | (a.isnan() & b.isnan())).all())


def _reads(linear, x):
    """Whether a linear layer, by what autograd recorded of it, is one of x, whose form alone was changed before."""
    below = [node for node, _ in linear.next_functions if node is not None]
    if kind_of(linear) not in ("Addmm", "Mm") or len(below) != 1:
        return False
    return getattr(before_changes_of_form(below[0]), "variable", None) is x


def _has_gradients_of_chain(weights, first, hidden, logits):
    """Whether autograd's gradients of Σ_l ⟨u_l, h_l⟩ + ⟨r, y⟩ by W₁x + b and all layers, u, r random, are the chain's.

    Args: first: W₁x + b, as an edge of the graph.
    """
    generator = torch.Generator(logits.device).manual_seed(0)
    tops = [*hidden, logits]
    if not all(top.requires_grad and top.dtype == weights[0].dtype and top.numel() for top in tops):
        return False

    def random(*shape):
        return torch.randn(shape, generator=generator, dtype=logits.dtype, device=logits.device)

    of_example = random(len(logits), 1)
    u = [of_example * random(top.shape[1]) for top in tops]
    try:
        found = grad(tops, [first, *hidden], u, retain_graph=True, allow_unused=True)
    except RuntimeError:
        return False
    gradient = u[-1] @ weights[-1]
    for layer in range(len(hidden) - 1, -1, -1):
        gradient = gradient + u[layer]
        if not agree(found[layer + 1], gradient):
            return False
        gradient = gradient * active(hidden[layer])
        if layer:
            gradient = gradient @ weights[layer]
    return agree(found[0], gradient)


def agree(a, b):
    """Whether two arrays of one shape agree to half of their digits."""
    if a is None:
        return False
    return bool((a - b).nan_to_num().abs().max() <= torch.finfo(b.dtype).eps ** 0.5 * b.nan_to_num().abs().max())


def active(h):
    """1 where a ReLU with output h passes gradients on, 0 elsewhere; torch's passes those of NaN on."""
    return (~(h <= 0)).to(h.dtype)


def chain_sums(weights, hidden, logits, y, groups, methods, loss=None):
    """Yields (method, group, Σ over a batch of its matrix) for all derivatives of a chain.

    Args:
        weights: as of run_chain.  hidden, logits: of the batch, without graph.  y: labels or targets, for `loss`.
        groups: tuples of layers.  methods: base methods.
        loss: what backward_hess is the Hessian of, function of (logits, y); None: softmax cross-entropy.
    """
    masks = [active(h) for h in hidden]
    if "forward_jac" in methods:
        metric = (weights[0].double() @ weights[0].double().T).to(logits.dtype)  # ⟨∂z_a/∂x, ∂z_b/∂x⟩, z = W₁x + b
        jacobians = chain_input_jacobians(weights, masks)
        for group in groups:
            if group == (0,):
                yield "forward_jac", group, gram(masks[0]) * metric
            else:
                jacobian = torch.cat([jacobians[layer] for layer in group])  # (d, B, d₁)
                yield "forward_jac", group, gram((jacobian @ metric).flatten(1).T, jacobian.flatten(1).T)
        del jacobians
    if not {"backward_jac", "backward_hess"} & set(methods):
        return
    jacobians, first = chain_logit_jacobians(weights, masks), logits.argmax(1)
    curved = loss is not None and "backward_hess" in methods
    curvature = losses.curvature(loss, logits, y).to(logits.dtype) if curved else None
    for group in groups:
        jacobian = torch.cat([jacobians[layer] for layer in group], dim=-1)  # (B, logits, d)
        if "backward_jac" in methods:
            yield "backward_jac", group, gram(jacobian)
        if curved:
            yield "backward_hess", group, gram(curvature @ jacobian, jacobian)
        elif "backward_hess" in methods:  # the formula is explained at Measurement._add_logit_gradients
            relative = jacobian - jacobian[torch.arange(len(first)), first][:, None]
            weighted = relative * logits.softmax(1)[:, :, None]
            yield "backward_hess", group, gram(weighted, relative) - gram(weighted.sum(1))


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
