"""Running a network so that its hidden layers are at hand, and it and torch's settings stay as they were."""

from contextlib import contextmanager

import torch


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
