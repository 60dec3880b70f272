"""The layers that are measured: their units, examples and locations, and the running sums of each."""

import torch

from numerics.layout import Layout, find_layouts
from numerics.running_sums import Covariance, GramSum, at_least_float32


class Layers:
    """The layers of a network in groups, and their running sums, by method and group.

    Attributes:
        layouts: where each layer's output has its examples and units.
        widths: units of each layer.  locations: of each layer in this batch, whose images may be larger than others.
        groups: tuples of layers that share a matrix: one each or, for combined matrices, all.
    """

    def __init__(self, run, batch, hidden, n_few, *, combined=False, unit_dim=None, dense_chain=False):
        shapes = [tuple(h.shape) for h in hidden]
        if combined and any(len(shape) > 2 for shape in shapes):
            raise ValueError(f"combined matrices need dense layers (B, units), not {shapes}")
        if dense_chain and unit_dim is None:
            self.layouts = [Layout() for _ in hidden]
        else:
            self.layouts = find_layouts(run, batch, hidden, n_few, unit_dim)
        self.run, self.sums = run, {}
        self.dimensions = [h.ndim for h in hidden]
        self.widths = [h.shape[layout.units] for layout, h in zip(self.layouts, hidden, strict=True)]
        if 0 in self.widths:
            raise ValueError(f"{run.name(self.widths.index(0))} has no units")
        self.groups = [tuple(range(len(hidden)))] if combined else [(layer,) for layer in range(len(hidden))]
        self.measure(hidden)

    def measure(self, hidden):
        """Takes down the locations in a batch; raises ValueError if units or dimensions are not those of the first."""
        shapes = [tuple(h.shape) for h in hidden]
        same = [len(shape) == dimensions for shape, dimensions in zip(shapes, self.dimensions, strict=True)]
        if all(same):
            rows = [layout.rows(h).shape for layout, h in zip(self.layouts, hidden, strict=True)]
            same = [shape[2] == width for shape, width in zip(rows, self.widths, strict=True)]
        if not all(same):
            raise ValueError(
                f"{self.run.name(same.index(False))} returns {shapes[same.index(False)]} in this batch, "
                "and other units before: give all batches one form, at least two examples each"
            )
        self.locations = [shape[1] for shape in rows]

    def passes(self):
        """Units × locations of every group."""
        return {group: sum(self.widths[i] * self.locations[i] for i in group) for group in self.groups}

    def sum_of(self, method, group, make):
        """The running sum of a method and group, made where there is none yet."""
        return self.sums.setdefault((method, group), make())

    def add_exact(self, method, group, matrix):
        """Adds Σ over examples and locations of an exact quantity, to be averaged over both."""
        self.sum_of(method, group, GramSum).add(matrix / self.locations[group[0]])

    def add_pairs(self, method, pairs, rows, rows_again):
        """Adds one pair of estimates for every group: [(group, (B, S, d))] twice."""
        for (group, a), (_, b) in zip(rows, rows_again, strict=True):
            self.add_pair(group, method, pairs, a, b)

    def add_pair(self, group, method, pairs, rows, rows_again, others=None):
        """Adds one pair of estimates of one group, see GramSum.add_pair."""
        root = self.locations[group[0]] ** 0.5
        others = None if others is None else [other / root for other in others]
        self.sum_of(method, group, GramSum).add_pair(rows / root, rows_again / root, pairs, others)

    def grouped(self, tensors, groups=None):
        """(group, (B, S, d)) for every group, from one tensor a layer; half precision becomes float32."""
        grouped = []
        for group in groups or self.groups:
            rows = [at_least_float32(self.layouts[layer].rows(tensors[layer])) for layer in group]
            grouped.append((group, torch.cat(rows, dim=-1)))
        return grouped

    def add_activations(self, hidden):
        """Adds the activations of a batch to their covariances."""
        for group, rows in self.grouped(hidden):
            total = self.sum_of("forward_cov", group, Covariance)
            if total.shift is not None and total.shift.shape != rows.shape[1:]:
                raise ValueError(
                    f"forward_cov: {self.run.name(group[0])} has {rows.shape[1]} locations in this batch, and had "
                    f"{len(total.shift)} before; means are per location: give images of one size, or leave it out"
                )
            total.add(rows)

    def matrices(self, method, n):
        """Of a base method, for every group: the signed mean over n examples (d, d), float64, and its running sum."""
        sums = [self.sums[method, group] for group in self.groups]
        means = [total.mean(n).cpu() for total in sums]
        return [(mean + mean.T) / 2 for mean in means], sums
