"""The lists of faults that `python -m tests.mutants` tries keep up with the program."""

import mutants


def test_every_fault_is_of_a_text_that_the_program_holds_once():
    faults = mutants.read_mutants([])
    assert {fault["part"] for fault in faults} == {path.stem for path in mutants.LISTS.glob("*.toml")}
    for fault in faults:
        if "equivalent" not in fault:
            assert fault["became"] != fault["was"]
            assert (mutants.ROOT / fault["tests"].split()[0].split("::")[0]).exists(), fault["tests"]
