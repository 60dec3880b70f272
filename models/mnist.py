"""The fully connected MNIST classifier (and, with the same code, its wide and deep variants)."""

from itertools import pairwise

import torch
from torch import nn


class MnistSupervised(nn.Module):
    """Flatten, then Linear → ReLU → dropout for each width, then a linear readout to ten logits.

    Args:
        pdrop: probability that dropout silences a hidden unit, in [0, 1).
        channels: width of each hidden layer.
    """

    def __init__(self, pdrop=0.0, channels=(64, 64)):
        super().__init__()
        widths = [28 * 28, *channels]
        self.fc_layers = nn.ModuleList(nn.Linear(n_in, n_out) for n_in, n_out in pairwise(widths))
        self.drop = nn.Dropout(pdrop)
        self.proj = nn.Linear(widths[-1], 10)

    def forward(self, x):
        """Maps images (B, 1, 28, 28) to (hidden, logits): a list of (B, channels[i]), and (B, 10)."""
        h = x.flatten(1)  # (B, 784)
        hidden = []
        for linear in self.fc_layers:
            h = self.drop(torch.relu(linear(h)))
            hidden.append(h)
        return hidden, self.proj(h)
