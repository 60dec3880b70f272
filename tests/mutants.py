"""Do the tests notice? Breaks the program in one place at a time and runs the tests that should then fail.

    python -m tests.mutants [PART ...] [--jobs 2]

The faults are listed in tests/mutants/PART.toml: `file`, `was` (text that the file holds once), `became`, and
`tests`, the pytest arguments that must fail; or `equivalent`, the reason why no result can change, and then nothing is
run. Every list of tests is first seen to pass on the unbroken program. Prints the faults that survive and the share
killed; exits 1 below 90%. Each fault is put into a copy of the project, never into the checkout.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
LISTS = ROOT / "tests" / "mutants"
REQUIRED = 0.9
KILLED, SURVIVED, BROKEN = "killed", "SURVIVED", "NOT RUN"


def read_mutants(parts: list[str]) -> list[dict]:
    """The faults of some parts, each with its `part`; exits where a list does not fit the program."""
    mutants = []
    for path in sorted(LISTS.glob("*.toml")):
        if not parts or path.stem in parts:
            mutants += [mutant | {"part": path.stem} for mutant in tomllib.loads(path.read_text())["mutant"]]
    for mutant in mutants:
        if "equivalent" not in mutant and (ROOT / mutant["file"]).read_text().count(mutant["was"]) != 1:
            sys.exit(f"{mutant['part']}.toml: {mutant['file']} does not hold once: {mutant['was']}")
    return mutants


def passes(copy: Path, tests: str) -> bool | None:
    """Whether some tests pass in a copy of the project; None where pytest could not run any."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    status = subprocess.run(command, cwd=copy, env=environment, capture_output=True).returncode
    return {0: True, 1: False, 2: False}.get(status)  # 2: the fault broke the import of a test


def outcome(mutant: dict, copies: Queue) -> str:
    """What becomes of one fault, in a copy of the project that nobody else uses meanwhile."""
    copy = copies.get()
    file = copy / mutant["file"]
    right = file.read_text()
    try:
        file.write_text(right.replace(mutant["was"], mutant["became"]))
        return {True: SURVIVED, False: KILLED, None: BROKEN}[passes(copy, mutant["tests"])]
    finally:
        file.write_text(right)
        copies.put(copy)


def check_unbroken(mutants: list[dict], copy: Path) -> None:
    """Exits where tests that should notice a fault fail, or do not exist, without it."""
    for tests in tqdm(sorted({mutant["tests"] for mutant in mutants}), desc="unbroken", disable=None):
        if not passes(copy, tests):
            sys.exit(f"these tests do not pass on the program as it is: pytest {tests}")


def main(args: argparse.Namespace) -> None:
    """Prints what became of every fault, and the share killed."""
    mutants = read_mutants(args.parts)
    equivalent = [mutant for mutant in mutants if "equivalent" in mutant]
    run = [mutant for mutant in mutants if "equivalent" not in mutant]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(args.jobs) as pool:
        copies: Queue = Queue()
        for i in range(args.jobs):
            ignored = shutil.ignore_patterns(".git", ".venv", "logs*", "data", "figures", "__pycache__")
            copies.put(Path(shutil.copytree(ROOT, Path(folder) / str(i), ignore=ignored)))
        check_unbroken(run, copies.queue[0])
        outcomes = list(tqdm(pool.map(lambda m: outcome(m, copies), run), total=len(run), desc="broken", disable=None))
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
