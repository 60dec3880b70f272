"""The user's view of results: any networks as a table, one checkpoint at a glance.

    python analysis.py CKPT          prints what is known about one network's modules
    python analysis.py CKPT --plot   also draws its association matrices, sorted by cluster, into figures/

`load_data_as_table` and what else makes tables of checkpoints live in tables.py; results.py has whole experiments.
"""
import argparse
from pathlib import Path

import pandas as pd

import matrix_plots
import plots
from cli import one_line_errors
from tables import (
    DOWNSTREAM,
    UPSTREAM,
    align_metrics,
    checkpoint_layers,
    generate_model_specs,
    load_checkpoints,
    load_data_as_table,
    module_metrics,
    table_of,
)

__all__ = ["checkpoint_summary", "generate_model_specs", "load_data_as_table"]


def checkpoint_summary(path) -> pd.DataFrame:
    """What one checkpoint says about its modules: a row per method and layer.

    Returns: columns method, layer, Q, z and p (against shuffled matrices), clusters (effective number), and agreement:
        mean element-centric similarity to the clusterings of the other upstream, and of the other downstream methods.
    Raises: UserError if the file cannot be read or has no modules.
    """
    layers = range(checkpoint_layers(path))
    entry = [({}, Path(path))]
    modules = table_of(entry, module_metrics(("score", "z", "p", "num_clusters"), layers=layers), [])
    align = table_of(entry, align_metrics(layers=layers), [])
    for name, family in (("with upstream", UPSTREAM), ("with downstream", DOWNSTREAM)):
        modules[name] = [
            _agreement(align, assoc, layer, family)
            for assoc, layer in zip(modules["assoc"], modules["layer"], strict=True)
        ]
    return modules.rename(columns={"assoc": "method", "score": "Q", "num_clusters": "clusters"})


def _agreement(align, assoc, layer, family):
    """Mean element_sim between one method and the others of a family, in one layer."""
    a, b = align["assoc_a"], align["assoc_b"]
    others = (a == assoc) & (b != assoc) & b.isin(family) | (b == assoc) & (a != assoc) & a.isin(family)
    return align.loc[others & (align["layer"] == layer), "element_sim"].mean()


def main(args):
    """Prints the summary of each checkpoint, and draws its matrices if asked to."""
    for path in args.checkpoint:
        print(path, checkpoint_summary(path).to_string(index=False, float_format="{:.3f}".format, na_rep="-"), sep="\n")
        if args.plot:
            examples = load_checkpoints([path], module_metrics(("score", "adj", "clusters"), layers=(args.layer,)))
            print(
                *plots.save(matrix_plots.sorted_matrices(examples), f"matrices-{path.parent.parent.name}-{path.stem}"),
                sep="\n",
            )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="+", type=Path, help="evaluated checkpoints")
    parser.add_argument("--plot", action="store_true", help="draw the association matrices of one layer into figures/")
    parser.add_argument("--layer", type=int, default=0, help="the layer to draw, from 0 (default)")
    with one_line_errors("analysis.py"):
        main(parser.parse_args())
