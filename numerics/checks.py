"""What must hold of networks and batches for association matrices to be what they claim; refusals in a sentence."""

from contextlib import contextmanager

import torch
from torch import nn
from torch.autograd import grad

from numerics import nested
from numerics.running_sums import at_least_float32

CHECKED = 4  # images of every batch that must give the same alone and in other company


def check_network(model):
    """Raises ValueError for networks that cannot be differentiated, or are in training mode."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"the network must be a torch.nn.Module, not a {type(model).__name__}")
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError(
                f"the network{name and f', in its module {name!r},'} is a TorchScript program, whose layers cannot be "
                "seen: give the module that it was made from"
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"{name} has no values before the network has run once: run it on a batch first")
        if tensor.is_meta:
            raise ValueError(f"{name} is on the device 'meta' and has no values: load the network's weights first")
        if tensor.is_inference():
            raise ValueError(
                f"{name} was made inside torch.inference_mode(), and cannot be differentiated through: make or load "
                "the network outside of it"
            )
    if any(module.training for module in model.modules()):
        raise ValueError("associations are defined in evaluation mode: call model.eval() first")


def checked_batch(batch):
    """A batch as (x, y), both ordinary tensors of torch's.

    Raises: ValueError for anything but a pair, numpy arrays, sparse tensors, images of whole numbers.
    """
    if not isinstance(batch, (tuple, list)) or len(batch) != 2:
        raise ValueError(f"batches must be pairs (x, y), inputs and labels, not {_kind(batch)}")
    x, y = batch
    found = nested.tensors(x)
    if not found:
        raise ValueError(f"inputs must be tensors, not {_kind(x)}: torch.as_tensor makes them from arrays and lists")
    for tensor in found:
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_meta or tensor.is_complex():
            raise ValueError(f"inputs must be dense real tensors with values, not {_kind(tensor)}")
        if tensor.dtype == torch.uint8:
            raise ValueError("inputs of type uint8: networks take floats, x.float() / 255, or token numbers, x.long()")
    if isinstance(y, torch.Tensor) and not y.ndim:
        raise ValueError("labels are a single number: give batches of examples (B, …) and labels (B,), as a DataLoader")
    return nested.mapped(_ordinary, x), nested.mapped(_ordinary, y)


def _ordinary(tensor):
    return tensor.clone() if tensor.is_inference() else tensor


def _kind(thing):
    if isinstance(thing, torch.Tensor):
        form = "nested" if thing.is_nested else str(thing.layout).removeprefix("torch.")
        return f"a {form} tensor of {thing.dtype}" + (f", {tuple(thing.shape)}" if not thing.is_nested else "")
    return f"a {type(thing).__module__}.{type(thing).__name__}".replace("a builtins.", "a ")


def check_examples(run, batch, layouts):
    """Raises ValueError for networks that draw random numbers, or whose examples influence each other.

    The first images run twice, the second time in the company of other images. Both batches have the same shape, so
    that all rounding is alike, and every difference counts, in half precision too. Dropout of few units may show in no
    difference: torch's own random numbers are watched, too.
    """
    n = nested.size(batch)
    few = max(1, min(CHECKED, n // 2))
    first = nested.part(batch, 0, 2 * few)
    again = nested.mapped(lambda tensor: _first_repeated(tensor, few, nested.size(first)), first)
    before = _random_states(first)
    hidden, logits = run(first)
    hidden_again, logits_again = run(again)
    if not all(map(torch.equal, before, _random_states(first))):
        raise ValueError(
            "the network is random, or its examples influence each other, in evaluation mode: it draws random numbers"
        )
    pairs = [(logits, logits_again, 0)]
    pairs += [(*both, layout.examples) for *both, layout in zip(hidden, hidden_again, layouts, strict=True)]
    for a, b, examples in pairs:
        a, b = (tensor.narrow(examples, 0, min(few, n)).nan_to_num() for tensor in (a, b))
        if (a - b).abs().max() > 4 * torch.finfo(a.dtype).eps * a.abs().max():
            raise ValueError(
                "the network is random, or its examples influence each other, in evaluation mode: "
                "the same images get other logits in another batch"
            )


def _random_states(batch):
    """The states of torch's random numbers, on the CPU and on the batch's GPUs."""
    gpus = {tensor.device for tensor in nested.tensors(batch) if tensor.is_cuda}
    return [torch.get_rng_state(), *map(torch.cuda.get_rng_state, sorted(gpus, key=str))]


def _first_repeated(tensor, few, n):
    """Copies of the first example in place of all after the first few; of tensors without examples, the same."""
    if not tensor.ndim or len(tensor) != n or n == 1:
        return tensor
    repeated = tensor.detach().clone()  # of the same layout in memory
    repeated[few:] = tensor[:1]
    return repeated


@contextmanager
def differentiable():
    """Context manager in which torch's refusals to differentiate are ValueErrors, in a sentence."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise ValueError(f"the network cannot be differentiated: {str(error).splitlines()[0]}") from error


def check_derivatives(methods, ways):
    """Raises ValueError where an operation has no derivative, which torch would take for zero."""
    if ways.without:
        raise ValueError(
            f"an operation of the network has no derivative, as those of quantized modules: leave out {methods}, or "
            "give the network that it was made from"
        )


def check_connected(run, batch, reached):
    """Raises ValueError where the logits depend on a layer in a way that autograd did not see.

    Args: reached: for every layer, whether autograd saw one. A layer without any effect is none to complain of.
    """
    for layer, seen in enumerate(reached):
        if seen:
            continue
        if run.layers is None:
            raise ValueError(
                f"{run.name(layer)} is not what the logits are computed from: a copy, a view, or cut off by detach or "
                "no_grad; let the network return the tensor itself, name its module in layers=[…], or leave out the "
                "backward methods"
            )
        if run.has_effect(layer, batch):
            raise ValueError(
                f"{run.name(layer)} has an effect on the logits, but autograd sees none: something after it is cut off "
                "by detach, no_grad, numpy or checkpoint(use_reentrant=True); mend that, or leave out the layer or the "
                "backward methods"
            )


def check_dependence(run, hidden, layouts, cut_off):
    """Raises ValueError where layers depend on the input in a way that autograd did not see.

    Layers that are the same for all examples are constant; those of modules under no_grad are meant to be.
    """
    for layer in cut_off:
        rows = layouts[layer].rows(hidden[layer].detach())
        if run.source is None and not torch.equal(rows, rows[:1].expand_as(rows)):
            raise ValueError(
                f"forward_jac: {run.name(layer)} depends on the input, but autograd sees no way: something on it is "
                "cut off by detach, no_grad or numpy; mend that, name its module in layers, or leave out forward_jac"
            )


def second_derivatives_vanish(hidden, logits, generator):
    """Whether the logits are piecewise linear functions of the hidden layers, so that Hessian = Gauss–Newton matrix.

    Tests ∂²(rᵀy)/∂h² v = 0 for random r and v, on the whole batch: zero to the bit for ReLU, max-pool, affine and
    linear maps; for any smooth nonlinearity zero with probability 0, unless every example sits on a straight stretch.
    """

    def normal(like):
        return torch.randn(like.shape, generator=generator, dtype=like.dtype, device=like.device)

    gradients = grad(logits, hidden, normal(logits), create_graph=True, materialize_grads=True)
    varying = [gradient for gradient in gradients if gradient.requires_grad]
    if not varying:
        return True
    second = grad(varying, hidden, [normal(gradient) for gradient in varying], retain_graph=True, allow_unused=True)
    return not any(product is not None and product.nan_to_num().any() for product in second)


def count_not_finite(tensors, hidden, layouts):
    """Of how many examples some number is NaN or infinite.

    Args: tensors: (B, …) each.  hidden: layers, examples where the layouts say.
    """
    by_example = [*tensors, *(h.movedim(layout.examples, 0) for h, layout in zip(hidden, layouts, strict=True))]
    broken = torch.zeros(len(by_example[0]), dtype=torch.bool, device=by_example[0].device)
    for tensor in by_example:
        rows = tensor.detach().reshape(len(tensor), -1)
        if not at_least_float32(rows).sum(1).isfinite().all():  # the sum is quicker, and may be infinite by itself
            broken |= ~rows.isfinite().all(1)
    return int(broken.sum())
