"""torch's settings and the network's while derivatives are taken; afterwards all is as it was."""

import sys
from contextlib import ExitStack, contextmanager

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

KINDS = ("cpu", "cuda")  # of devices that know mixed precision


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


def keep_freed_memory():
    """Lets the C library keep memory that was freed, up to 64 MB, rather than give it back and clear it anew.

    Its limits grow with the largest block seen to be freed. Convolutional networks run 1.7 times as fast on a CPU.
    """
    torch.empty(31 * 2**18)


@contextmanager
def twice_differentiable():
    """Context manager in which networks run by operations that torch can differentiate twice.

    Compiled networks run eagerly, attention runs by its formula instead of a fused kernel, transformer layers by their
    own modules instead of the fast path for inference, and gradients are recorded even inside `inference_mode`.
    """
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        if "torch._dynamo" in sys.modules:  # otherwise nothing is compiled, and the import takes seconds
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)


class Autocast:
    """The mixed precision that is on when this is made: for the network, not for what is done with its results."""

    def __init__(self):
        self.dtypes = {kind: torch.get_autocast_dtype(kind) for kind in KINDS if torch.is_autocast_enabled(kind)}

    @contextmanager
    def on(self):
        """Context manager in which it is on again."""
        with ExitStack() as stack:
            for kind, dtype in self.dtypes.items():
                stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=False))
            yield

    @contextmanager
    def off(self):
        """Context manager in which it is off."""
        with ExitStack() as stack:
            for kind in self.dtypes:
                stack.enter_context(torch.autocast(kind, enabled=False))
            yield
