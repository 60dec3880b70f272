"""Verification accepts what repeats, to the bit or within the repetitions' spread, and nothing else."""

import made_up
import numpy as np
import pandas as pd
import pytest

from report import verify
from study import grids

OTHERS = pd.DataFrame({"epochs": [20.0, 22, 24, 26], "test_acc": [0.97, 0.974, 0.975, 0.973]})
OLD = pd.Series({"epochs": 23.0, "test_acc": 0.972})


def test_identical_values_pass_on_any_instruction_set():
    for same in (True, False):
        assert verify.verdict(OLD, OTHERS, OLD.copy(), same) == (True, "all 2 values identical")


def test_other_values_pass_within_the_spread_on_another_instruction_set_only():
    new = pd.Series({"epochs": 21.0, "test_acc": 0.972})
    fine, text = verify.verdict(OLD, OTHERS, new, False)
    assert fine and text == "1 of 2 values identical, 0 beyond the spread of 4 repetitions"
    assert not verify.verdict(OLD, OTHERS, new, True)[0]


@pytest.mark.parametrize("value", [0.5, np.nan])
def test_values_beyond_the_spread_and_missing_ones_fail_by_name(value):
    fine, text = verify.verdict(OLD, OTHERS, pd.Series({"epochs": 23.0, "test_acc": value}), False)
    assert not fine and text.endswith("1 beyond the spread of 4 repetitions (test_acc)")


def test_a_network_is_compared_with_its_own_row_of_the_tables():
    found = made_up.results("demo")
    found.models["epochs"] = range(len(found.models))
    (l2, weakest), (drop, middle) = verify.chosen("demo")
    assert (l2, weakest["l2"], weakest["run"]) == ("l2", 1e-5, 0)
    assert (drop, middle["drop"], middle["run"]) == ("drop", 0.4, 0)
    values = verify.values_of(found, drop, middle)
    rows = found.models[(found.models["part"] == "drop") & (found.models["drop"] == 0.4)]
    assert values["epochs"].tolist() == rows["epochs"].tolist() and values.index.tolist() == rows["run"].tolist()
    one = found.modules.query("part == 'drop' and drop == 0.4 and run == 1 and layer == 1 and assoc == 'backward_jac'")
    assert values.loc[1, "Q backward_jac 1"] == one["score"].item()


def test_the_chosen_networks_exist_in_every_experiment():
    for name in grids.EXPERIMENTS:
        assert all(spec in grids.specs(name, part) for part, spec in verify.chosen(name))
