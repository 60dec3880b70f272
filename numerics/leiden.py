"""Leiden's search for modules, by the packages igraph and leidenalg: what other programs find."""

import numpy as np


def graph_of(A: np.ndarray):
    """The weighted undirected graph (igraph) of an adjacency matrix (n, n); its diagonal is ignored."""
    import igraph

    return igraph.Graph.Weighted_Adjacency(np.asarray(A, dtype=np.float64), mode="undirected", loops=False)


def leiden_labels(A: np.ndarray, seed: int, iterations: int = -1) -> np.ndarray:
    """Labels (n,) of one run of Leiden's algorithm on modularity, until stable (or for some iterations).

    Args: A: (n, n), symmetric, non-negative; its diagonal is ignored.  seed: below 2³¹.
    Reference: Traag, Waltman & van Eck (2019), Sci. Rep. 9:5233.
    """
    import leidenalg

    kind = leidenalg.ModularityVertexPartition
    found = leidenalg.find_partition(graph_of(A), kind, weights="weight", seed=seed, n_iterations=iterations)
    return np.array(found.membership)
