"""The loss that a Hessian is of: whether it fits logits and targets, and its second derivatives by the logits."""

import torch
from torch.autograd import grad
from torch.nn import functional as F

from numerics import nested
from numerics.graph import before_changes_of_form, kind_of

STEP = 1 / 3  # finite differences by steps of eps**STEP err by about eps**(2 * STEP)
KINKED = 0.2  # share of outputs that may sit next to a kink of the loss
SUM_OF_PROBABILITIES = 1e-3  # by how much it may differ from 1, after some clamping or smoothing
SIGMOIDS = ("Sigmoid", "Hardsigmoid", "_HardSigmoid")


def cross_entropy(logits, y):
    """Softmax cross-entropy, summed over examples."""
    return F.cross_entropy(logits, y, reduction="sum")


def check_labels(
    logits,
    y,
    what="the Hessian of softmax cross-entropy",
    otherwise="or give another loss, loss=…, or leave out backward_hess",
):
    """Whether softmax cross-entropy is defined for a batch; messages name what needs it, and the way out.

    Raises: ValueError for logits other than (B, K > 1), or that are probabilities; labels not int64 (B,) below K.
    """
    shape = tuple(logits.shape)
    if logits.ndim != 2 or shape[1] < 2:
        raise ValueError(f"{what} needs logits (B, classes), not {shape}: {otherwise}")
    if not isinstance(y, torch.Tensor) or y.dtype != torch.int64 or y.shape != shape[:1]:
        found = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, torch.Tensor) else f"{type(y).__name__}"
        raise ValueError(f"{what} needs labels, int64 ({shape[0]},), not {found}: {otherwise}")
    low, high = int(y.min()), int(y.max())
    if low < 0 or high >= shape[1]:
        raise ValueError(f"labels from {low} to {high} for {shape[1]} logits: they must be 0 to {shape[1] - 1}")
    total = logits.detach().double().sum(1)
    tolerance = max(SUM_OF_PROBABILITIES, torch.finfo(logits.dtype).eps ** 0.5)
    if (logits >= 0).all() and ((total - 1).abs() < tolerance).all():
        raise ValueError(
            "the network returns probabilities, every row sums to one: softmax cross-entropy needs the logits before "
            f"the softmax; let the network return these, {otherwise}"
        )
    if _is_sigmoid(logits.grad_fn):
        raise ValueError(
            "the network returns probabilities, the values of a sigmoid: softmax cross-entropy needs the logits before "
            f"it; let the network return these, {otherwise}"
        )


def _is_sigmoid(node):
    """Whether the last operation that autograd recorded, apart from changes of form, is a sigmoid."""
    node = before_changes_of_form(node)
    return node is not None and kind_of(node) in SIGMOIDS


def check_loss(loss, logits, y):
    """Whether a loss is a sum over examples, that of a batch those of two parts of it, and twice differentiable.

    Raises: ValueError if it is not, or if targets and logits differ in number, or it returns no number.
    """
    n = len(logits)
    if nested.tensors(y) and nested.size(y) != n:
        raise ValueError(f"targets for {nested.size(y)} examples, logits of {n}")
    some = n // 2
    with torch.no_grad():
        whole = _value(loss, logits, y)
        parts = [_value(loss, logits[a:b], _targets(y, a, b)) for a, b in ((0, some), (some, n)) if some]
    scale = abs(whole) + sum(map(abs, parts))
    if parts and abs(whole - sum(parts)) > torch.finfo(logits.dtype).eps ** 0.5 * scale:
        raise ValueError(
            f"loss= must be a sum over examples: {n} examples give {whole:.6g}, the first {some} and the others "
            f'{parts[0]:.6g} and {parts[1]:.6g}; with torch\'s losses take reduction="sum"'
        )
    _check_differences(loss, logits, y)


def _targets(y, start, stop):
    return nested.part(y, start, stop) if nested.tensors(y) else y


def _value(loss, logits, y):
    value = loss(logits, y)
    if not isinstance(value, torch.Tensor) or not value.is_floating_point():
        raise ValueError(f"loss= must return a tensor, the loss summed over examples, not {type(value).__name__}")
    return float(value.sum())


def _check_differences(loss, logits, y):
    """Whether autograd's second derivatives are the finite differences of the gradient, but for outputs near a kink."""
    logits = _leaf(logits)
    signs = torch.ones(logits.numel(), dtype=logits.dtype, device=logits.device)
    signs[1::2] = -1
    signs = signs.view(logits.shape)
    step = torch.finfo(logits.dtype).eps ** STEP
    try:
        gradient = _gradient(loss, logits, y, create_graph=True)
        expected = _second((gradient * _by_example(signs)).sum(), logits)
    except RuntimeError as error:
        raise ValueError(f"loss= must be twice differentiable by torch.autograd: {error}") from error
    above, below = (_gradient(loss, _leaf(logits + e * signs), y) for e in (step, -step))
    found = (above.double() - below.double()) / (2 * step)
    rounding = 100 * step**2 * (1 + above.abs().max())
    off = (found - expected).abs() > 0.1 * (found.abs() + expected.abs()) + rounding
    if off.double().mean() > KINKED:
        raise ValueError(
            "loss= must be twice differentiable by torch.autograd: finite differences of its gradient give another "
            "second derivative than autograd does"
        )


def curvature(loss, logits, y):
    """∂²L/∂y² of every example.

    Args: loss: function of (logits, y), summed over examples.  logits: (B, …), K numbers an example.
    Returns: (B, K, K), float64, symmetric.
    """
    logits = _leaf(logits)
    gradient = _gradient(loss, logits, y, create_graph=True)
    rows = [_second(gradient[:, k].sum(), logits) for k in range(gradient.shape[1])]
    matrix = torch.stack(rows, dim=1).double()
    return (matrix + matrix.mT) / 2


def _leaf(logits):
    """The logits alone, in no less than float32."""
    logits = logits.detach()
    return (logits.float() if logits.element_size() < 4 else logits).requires_grad_()


def _by_example(tensor):
    return tensor.reshape(len(tensor), -1)


def _gradient(loss, logits, y, create_graph=False):
    return _by_example(grad(loss(logits, y).sum(), logits, create_graph=create_graph, materialize_grads=True)[0])


def _second(total, logits):
    if not total.requires_grad:
        return torch.zeros_like(_by_example(logits))
    return _by_example(grad(total, logits, retain_graph=True, materialize_grads=True)[0]).detach()


def principal_directions(matrix):
    """Yields the eigenvectors of (B, K, K) symmetric matrices one by one: (λ (B,), u (B, K)); Σ λ u uᵀ = matrix.

    Leaves out those whose λ is zero in every example, but for one. Where there are NaN or infinite entries, λ is NaN.
    """
    finite = matrix.isfinite().all(-1).all(-1)
    values, vectors = torch.linalg.eigh(matrix.where(finite[:, None, None], 0))
    values = values.where(finite[:, None], torch.nan)
    for k in range(values.shape[1]):
        if k == 0 or values[:, k].any():
            yield values[:, k], vectors[:, :, k]
