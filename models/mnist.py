"""The fully connected MNIST classifier (and, with the same code, its wide and deep variants)."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import nn


class MnistSupervised(nn.Module):
    """Flatten, then Linear → ReLU → dropout for each width, then a linear readout.

    Args:
        pdrop: probability that dropout silences a hidden unit, in [0, 1).
        channels: width of each hidden layer.
        input_shape: of an image, in any number of dimensions.
        num_classes: how many logits there are.
    """

    def __init__(
        self,
        pdrop: float = 0.0,
        channels: Sequence[int] = (64, 64),
        input_shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
    ):
        super().__init__()
        if not channels or min(*channels, *input_shape, num_classes) < 1:
            raise ValueError(
                f"channels {channels}, input {input_shape}, classes {num_classes}: expected widths above 0"
            )
        widths = [math.prod(input_shape), *channels]
        self.fc_layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(widths))
        self.drop = nn.Dropout(pdrop)
        self.proj = nn.Linear(widths[-1], num_classes)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        """Maps images (B, *input_shape) to (hidden, logits): a list of (B, channels[i]), and (B, num_classes)."""
        h = x.flatten(1)  # (B, 784)
        hidden = []
        for linear in self.fc_layers:
            h = self.drop(torch.relu(linear(h)))
            hidden.append(h)
        return hidden, self.proj(h)

    def forward_from(self, layer: int, h: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes), given the activations (B, channels[layer]) of a hidden layer."""
        for linear in self.fc_layers[layer + 1 :]:
            h = self.drop(torch.relu(linear(h)))
        return self.proj(h)

    def linears_behind(self, layer: int) -> list[nn.Linear]:
        """The linear layers behind a hidden layer; in evaluation mode there is a ReLU between any two, and no more."""
        return [*self.fc_layers[layer + 1 :], self.proj]
