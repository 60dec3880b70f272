"""Running a network so that its hidden layers are at hand, and it stays as it was."""

import copy
import re
from collections.abc import Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch

from numerics import nested
from numerics.settings import Autocast

ADDRESS = re.compile(r"(?P<module>[^:\[\]]*)(?::(?P<call>\d+))?(?P<keys>(?:\[\w+\])*)")


class Address(NamedTuple):
    """Where a tensor is found: the module, which of its calls (None: it has one), and the keys into what it returns."""

    name: str
    module: str
    call: int | None
    keys: tuple


def address(name, modules):
    """The Address that a name stands for: "module", "module:2" for its second call, "module[1]" for a tuple's second.

    Raises: ValueError if there is no such module, or call 0 is asked for.
    """
    if name in modules:
        return Address(name, name, None, ())
    parts = ADDRESS.fullmatch(name)
    if not parts or parts["module"] not in modules:
        raise ValueError(f"no layers {name!r} among {', '.join(modules).strip(', ')}")
    if parts["call"] == "0":
        raise ValueError(f"layer {name!r}: calls are numbered from 1")
    keys = tuple(int(key) if key.isdigit() else key for key in re.findall(r"\[(\w+)\]", parts["keys"]))
    return Address(name, parts["module"], parts["call"] and int(parts["call"]), keys)


class Recording:
    """Runs a network: `recording(batch)` → (hidden, logits).

    Attributes:
        inputs: after a run, the tensors (B, …) that Jacobians by the input are taken by.
        cut_off: after a run, layers that do not depend on the inputs in autograd's eyes, though it was looking.
        modules: the module of each layer; None for the layers that the network returns itself.
        replacement: a tensor that the network goes on with in place of what is recorded of its modules; None for none.
    """

    def __init__(self, model, layers, outputs, inputs):
        self.model, self.outputs, modules = model, outputs, modules_by_name(model)
        self.layers = layers if layers is None else [address(name, modules) for name in layers]
        self.source = None if inputs is None else address(inputs, modules)
        self.wanted = [*(self.layers or []), *([self.source] if self.source else [])]
        self.modules = None if layers is None else [modules[layer.module] for layer in self.layers]
        self.calls, self.found, self.inputs = {}, {}, []
        self.autocast, self.disturbed, self.cut_off = Autocast(), None, []
        self.replacement = None

    def __call__(self, batch):
        self.calls, self.found, self.cut_off = {}, {}, []
        with self.autocast.on():  # on a copy: the network may overwrite its input
            returned = nested.call(self.model, nested.mapped(torch.clone, batch))
            returned = returned if self.outputs is None else self.outputs(returned)
        for wanted in self.wanted:
            self._check_calls(wanted)
        self.inputs = [self.found[self.source]] if self.source else nested.float_tensors(batch)
        if self.layers is None:
            hidden, logits = _hidden_and_logits(returned)
            self.cut_off = [layer for layer, h in enumerate(hidden) if not h.requires_grad]
            return hidden, logits
        return [self.found[layer] for layer in self.layers], _logits(returned)

    def has_effect(self, layer, batch):
        """Whether a named layer has an influence on the logits: whether they change when its output does."""
        before = self(batch)[1]
        self.disturbed = self.layers[layer]
        try:
            after = self(batch)[1]
        finally:
            self.disturbed = None
        return not torch.equal(before.nan_to_num(), after.nan_to_num())

    def name(self, layer):
        """How messages call a layer."""
        return f"hidden[{layer}]" if self.layers is None else f"layer {self.layers[layer].name!r}"

    def keep(self, module):
        """A forward hook that keeps what is wanted of the module's outputs."""

        def hook(_module, _inputs, output):
            self.calls[module] = call = self.calls.get(module, 0) + 1
            for wanted in self.wanted:
                if wanted.module == module and (wanted.call or 1) == call:
                    recording = torch.is_grad_enabled()
                    with torch.inference_mode(False), torch.enable_grad():
                        output = self._kept(wanted, output, recording)
            return output

        return hook

    def _kept(self, wanted, output, recording):
        """The output with a copy in place of the tensor kept: the next operation may overwrite its input."""
        keys = _keys_of_tensor(output, wanted)
        tensor = _at(output, keys)
        if not tensor.is_floating_point():
            raise ValueError(f"layer {wanted.name!r} returns {tensor.dtype}, which has no derivatives")
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise ValueError(f"layer {wanted.name!r} runs inside vmap, or another of torch.func's: name one outside it")
        if not tensor.requires_grad:  # made under no_grad, or not from the input: what follows can depend on it
            if recording and wanted in (self.layers or []):
                self.cut_off.append(self.layers.index(wanted))
            tensor = (tensor.clone() if tensor.is_inference() else tensor.detach()).requires_grad_()
        self.found[wanted] = tensor
        if self.replacement is not None:
            tensor = self.replacement
        return _replaced(output, keys, tensor.clone() if wanted != self.disturbed else 2 * tensor + 1)

    def _check_calls(self, wanted):
        calls = self.calls.get(wanted.module, 0)
        if not calls:
            raise ValueError(f"layers {[wanted.name]} did not run")
        if wanted.call is None and calls > 1:
            raise ValueError(
                f"layer {wanted.name!r} runs twice in one forward pass, or more often ({calls} times): "
                f"name one of its calls, {wanted.module + ':1'!r} to {wanted.module + f':{calls}'!r}"
            )
        if calls < (wanted.call or 1):
            raise ValueError(f"layer {wanted.name!r}: {wanted.module!r} runs {calls} times in one forward pass")


def _keys_of_tensor(output, wanted):
    """The keys given, and as many first elements as it takes to come to a tensor."""
    keys = list(wanted.keys)
    try:
        inside = _at(output, keys)
        while not isinstance(inside, torch.Tensor):
            keys.append(next(iter(inside)) if isinstance(inside, Mapping) else 0)
            inside = _at(output, keys)
    except (LookupError, TypeError, StopIteration):
        raise ValueError(
            f"layer {wanted.name!r} does not return a tensor, or has none at that place: it returns "
            f"{_described(output)}; name the layer as {wanted.module!r}, or a place in what it returns as "
            f"{wanted.module + '[1]'!r}"
        ) from None
    return keys


def _at(output, keys):
    for key in keys:
        if isinstance(output, torch.Tensor):
            raise TypeError("a tensor has no parts")
        output = output[key]
    return output


def _replaced(output, keys, tensor):
    """A copy of what a module returns, with another tensor at a place in it."""
    if not keys:
        return tensor
    inside = _replaced(output[keys[0]], keys[1:], tensor)
    if isinstance(output, tuple):
        items = [inside if i == keys[0] % len(output) else item for i, item in enumerate(output)]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    output = copy.copy(output)
    output[keys[0]] = inside
    return output


def _hidden_and_logits(returned):
    """What a network without named layers returns, (hidden, logits)."""
    pair = isinstance(returned, (tuple, list)) and len(returned) == 2
    if not pair or not isinstance(returned[0], (tuple, list)) or not isinstance(returned[1], torch.Tensor):
        raise ValueError(
            f"the network returns {_described(returned)}, not (list of hidden layers, logits): "
            "name the modules to analyse, layers=[…]"
        )
    return list(returned[0]), returned[1]


def _logits(returned):
    """The logits in what a network returns: itself, its `.logits`, or its item "logits"."""
    inside = returned.get("logits") if isinstance(returned, Mapping) else getattr(returned, "logits", returned)
    if not isinstance(inside, torch.Tensor):
        raise ValueError(
            f"the network returns {_described(returned)}: say which of it are the logits, "
            "as in outputs=lambda returned: returned[0]"
        )
    return inside


def _described(returned):
    """In words, what a network or module returns."""
    if isinstance(returned, torch.Tensor):
        return f"a tensor {tuple(returned.shape)}"
    if isinstance(returned, Mapping):
        return f"a {type(returned).__name__} of {', '.join(map(repr, returned))}"
    if isinstance(returned, (tuple, list)):
        return f"a {type(returned).__name__} of {len(returned)}"
    return f"a {type(returned).__name__}"


def modules_by_name(model):
    """All modules by all of their names; those of compiled modules by the names that they had before, too."""
    modules = dict(model.named_modules(remove_duplicate=False))
    return {name.replace("_orig_mod.", ""): module for name, module in modules.items()} | modules


@contextmanager
def recorded(model, layers=None, outputs=None, inputs=None):
    """Context manager giving a `Recording` of any network, which stays unchanged.

    Args:
        model: returns (hidden, logits) where `layers` is None, otherwise logits.
        layers: names from `model.named_modules()`, see `address`; `hidden` then lists these modules' outputs.
        outputs: a function from what the network returns to the above.
        inputs: name of the module whose output counts as the network's input; None: the floating-point tensors given.

    Raises: ValueError for an unknown name; and, in a run, for a module that runs never, or more than once where no call
        was chosen, or returns no tensor.
    """
    if layers is not None and not layers:
        raise ValueError("no layers are named")
    recording = Recording(model, layers, outputs, inputs)
    modules = modules_by_name(model)
    for wanted in recording.wanted:
        if modules[wanted.module]._backward_hooks or modules[wanted.module]._backward_pre_hooks:
            raise ValueError(
                f"layer {wanted.name!r} has a backward hook, which acts after what is recorded: remove the hook, or "
                "name another layer"
            )
    handles = [
        modules[name].register_forward_hook(recording.keep(name)) for name in {w.module: 0 for w in recording.wanted}
    ]
    try:
        yield recording
    finally:
        for handle in handles:
            handle.remove()
