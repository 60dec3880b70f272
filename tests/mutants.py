"""Do the tests notice? Breaks the program in one place at a time and runs the tests that should then fail.

    python -m tests.mutants [PART ...] [--jobs 2]

The faults are listed in tests/mutants/PART.toml: `file`, `was` (text that the file holds once), `became`, and
`tests`, the pytest arguments that must fail; or `equivalent`, the reason why no result can change, and then nothing is
run. Every list of tests is first seen to pass on the unbroken program. Prints the faults that survive and the share
killed; exits 1 below 90%. Each fault is put into a copy of the project, never into the checkout.
"""

import argparse
import multiprocessing
import os
import shlex
import shutil
import signal
import sys
import tempfile
import tomllib
from pathlib import Path

import matplotlib.pyplot  # noqa: F401 - here and below: loaded once, for all the tests that are started by forking
import numba  # noqa: F401
import pandas  # noqa: F401
import pytest
import pytorch_lightning  # noqa: F401
import scipy.stats  # noqa: F401
import torch  # noqa: F401
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
LISTS = ROOT / "tests" / "mutants"
REQUIRED = 0.9
KILLED, SURVIVED, BROKEN = "killed", "SURVIVED", "NOT RUN"
SECONDS = 300  # tests that take longer have noticed


def read_mutants(parts: list[str]) -> list[dict]:
    """The faults of some parts, each with its `part`; exits where a list does not fit the program."""
    mutants = []
    for path in sorted(LISTS.glob("*.toml")):
        if not parts or path.stem in parts:
            mutants += [mutant | {"part": path.stem} for mutant in tomllib.loads(path.read_text())["mutant"]]
    misfits = [
        f"{mutant['part']}.toml: {mutant['file']} does not hold once: {mutant['was']}"
        for mutant in mutants
        if "equivalent" not in mutant and (ROOT / mutant["file"]).read_text().count(mutant["was"]) != 1
    ]
    if misfits:
        sys.exit("\n".join(misfits))
    return mutants


def passes(copy: Path, tests: str) -> bool | None:
    """Whether some tests pass in a copy of the project; None where pytest could not run any."""
    child = os.fork()
    if not child:
        run_tests(copy, tests)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {pytest.ExitCode.OK: True, pytest.ExitCode.USAGE_ERROR: None, pytest.ExitCode.NO_TESTS_COLLECTED: None}.get(
        status, False
    )


def run_tests(copy: Path, tests: str) -> None:
    """Ends the process with pytest's exit status, or by SIGALRM where the tests never end."""
    signal.alarm(SECONDS)
    os.chdir(copy)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):
        os.dup2(nothing, stream)
    sys.path[:] = [str(copy), *(place for place in sys.path if place not in ("", str(ROOT)))]
    sys.modules.pop("tests", None)  # that of the checkout
    sys.dont_write_bytecode = True
    multiprocessing.current_process().daemon = False  # tests may start processes of their own
    os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    status = 1
    try:
        status = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)])
    finally:
        os._exit(status)


def take_copy(copies) -> None:
    """Gives a process of the pool a copy of the project of its own."""
    global own_copy
    own_copy = copies.get()


def holds(tests: str) -> bool | None:
    """Whether some tests pass on the program as it is."""
    return passes(own_copy, tests)


def outcome(mutant: dict) -> str:
    """What becomes of one fault."""
    file = own_copy / mutant["file"]
    right = file.read_text()
    try:
        file.write_text(right.replace(mutant["was"], mutant["became"]))
        return {True: SURVIVED, False: KILLED, None: BROKEN}[passes(own_copy, mutant["tests"])]
    finally:
        file.write_text(right)


def progress(pool, function, things: list, title: str):
    """What the function says of each thing, in order, with a bar."""
    return tqdm(pool.imap(function, things), total=len(things), desc=title, disable=None)


def main(args: argparse.Namespace) -> None:
    """Prints what became of every fault, and the share killed."""
    mutants = read_mutants(args.parts)
    equivalent = [mutant for mutant in mutants if "equivalent" in mutant]
    run = [mutant for mutant in mutants if "equivalent" not in mutant]
    context = multiprocessing.get_context("fork")
    with tempfile.TemporaryDirectory() as folder:
        copies = context.Queue()
        for i in range(args.jobs):
            ignored = shutil.ignore_patterns(".git", ".venv", "logs*", "data", "figures", "__pycache__")
            copies.put(Path(shutil.copytree(ROOT, Path(folder) / str(i), ignore=ignored)))
        lists = sorted({mutant["tests"] for mutant in run})
        with context.Pool(args.jobs, take_copy, (copies,)) as pool:
            for tests, pass_ in zip(lists, progress(pool, holds, lists, "unbroken"), strict=True):
                if not pass_:
                    sys.exit(f"these tests do not pass on the program as it is: pytest {tests}")
            outcomes = list(progress(pool, outcome, run, "broken"))
    for mutant, result in zip(run, outcomes, strict=True):
        if result != KILLED:
            print(f"{result}: {mutant['file']}: {mutant['was']!r} → {mutant['became']!r} (pytest {mutant['tests']})")
    for mutant in equivalent:
        print(f"equivalent: {mutant['file']}: {mutant['was']!r} → {mutant['became']!r}: {mutant['equivalent']}")
    killed = outcomes.count(KILLED)
    print(f"{killed} of {len(run)} faults killed ({killed / max(len(run), 1):.0%}); {len(equivalent)} equivalent")
    sys.exit(killed < REQUIRED * len(run))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="lists in tests/mutants/ (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="faults tried side by side")
    main(parser.parse_args())
