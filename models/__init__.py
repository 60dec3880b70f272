"""The networks of the study, and the LightningModule that trains them."""

from models.build import Cifar10Fast, MnistSupervised, build

__all__ = ["Cifar10Fast", "LitWrapper", "MnistSupervised", "build"]


def __getattr__(name):
    # Lightning takes seconds to import, and evaluation does without it.
    if name == "LitWrapper":
        from models.lightning_wrapper import LitWrapper

        return LitWrapper
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
