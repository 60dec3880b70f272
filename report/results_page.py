"""The results page: everything that the saved tables say, and the numbers that the README quotes.

    python -m report.results_page           writes RESULTS.md, and README.md's lines of results, from results/
    python -m report.results_page --check   says instead whether both are what the tables give; exits 1 if not

No number about an experiment is typed by hand in either file.
"""

import argparse
import sys
from pathlib import Path

from report import experiments, sensitivity, summary
from report.claims import claims_table, null_effect, search_effect
from report.text import markdown
from study import grids
from study.cli import UserError, one_line_errors
from study.files import write_bytes

ROOT = Path(__file__).resolve().parent.parent
QUOTED = ("mnist-base", "cifar10-quarter")  # the experiments whose findings the README quotes
BEGIN, END = "<!-- written by python -m report.results_page -->", "<!-- up to here -->"

HEAD = """# Results

Written by `python -m report.results_page` from the tables in `results/`, which `python -m report.summary EXPERIMENT
--save` makes of evaluated checkpoints. Every number about an experiment is printed by that command.

How to read it. Q is Newman's modularity of the best clustering found, a mean over layers within each network unless a
layer is named; brackets hold 95% intervals over networks (Student's t for means, Welch's for differences, bootstrap
for matched rank correlations). *Change* compares the two ends of a grid, *trend* is the change along the straight line
through all of its networks, strengths equally spaced. z is Q's distance from matrices without modules, optimized with
the same effort, in their standard deviations. Agreement is element-centric similarity (1: identical clusterings),
beside what clusterings of the same sizes reach by chance, and *adjusted* for that: (observed − expected)/(1 −
expected). Strengths at which over half of the runs stay below the experiment's pass mark are named in its first line
and left out of all but the tables of Q and z at each strength. Upstream methods (`forward_…`) compare what drives two
units, downstream methods (`backward_…`) what they drive.
"""

MADE = """## How the numbers were made

```bash
./train.sh EXPERIMENT                                # trains what is not trained yet
./eval.sh logs-EXPERIMENT-*                          # measures, into the checkpoints
python -m report.summary EXPERIMENT --save           # tables into results/; --add: other networks there stay
python -m report.sensitivity EXPERIMENT --compute    # other searches for Q, into results/searches/
make figures                                         # figures and notebook pages of all saved experiments
python -m report.results_page                        # this page
make verify                                          # trains two networks again and compares every value
```

`results/constraints.txt` holds the exact version of every package (`pip install -r requirements.txt -c
results/constraints.txt`). On a CPU, one thread a job, a training repeats bit for bit on the same processor; others
round differently (AVX2 and AVX-512; AVX-512 of AMD and of Intel), and training amplifies this, between AVX2 and
AVX-512 to about 0.4 of the spread of repetitions. `ATEN_CPU_CAPABILITY=avx2` gives the numbers of an AVX2 processor on
one of the same maker that has more.
"""


def section(name: str, folder: Path) -> str:
    """What the saved tables say of one experiment."""
    found = experiments.load_results(folder, name)
    first, *lines = summary.summary(name, found)
    parts = [f"## {name}", f"{first.partition(': ')[2]}. {made(found)}", *note(name, folder)]
    parts += ["\n".join(f"- {line}" for line in [*lines, *summary.verdicts(found), *summary.training(found)])]
    parts += ["### The study's claims", claims_table(found)]
    parts += list(summary.tables(found))
    if list((folder / "searches").glob(f"{name}-*-modules.parquet")):
        table = sensitivity.table(name, found, folder / "searches")
        parts += ["### The claims after other searches for Q, against other nulls, and from single repetitions"]
        parts += [markdown(table), search_effect(table), null_effect(found)]
    return "\n\n".join(parts) + "\n"


def note(name: str, folder: Path) -> list[str]:
    """What must be known of an experiment's data or networks, where there is a file that says so, EXPERIMENT.md."""
    file = folder / f"{name}.md"
    return [file.read_text().strip()] if file.exists() else []


def made(found: experiments.Results) -> str:
    """What made an experiment's tables, as far as its trainings recorded it."""
    texts = []
    titles = {"commit": "code", "torch": "torch", "processor": "processor", "capability": "instruction set"}
    for name, title in titles.items():
        values = sorted(found.models[name].dropna().unique()) if name in found.models else []
        texts.append(f"{title} {', '.join(map(str, values)) or 'not recorded'}")
    return f"Trained with {'; '.join(texts)}."


def saved(folder: Path) -> list[str]:
    """The experiments of which there are tables."""
    return [name for name in grids.EXPERIMENTS if (folder / f"{name}-models.parquet").exists()]


def page(folder: Path, names: list[str] | None = None) -> str:
    """RESULTS.md."""
    deviations = (ROOT / "report" / "deviations.md").read_text()
    sections = [section(name, folder) for name in names or saved(folder)]
    return "\n".join([HEAD, *sections, MADE, deviations])


def quoted(folder: Path) -> str:
    """The lines of results that the README quotes: what each regularizer does, and how the methods agree."""
    parts = []
    for name in QUOTED:
        if name in saved(folder):
            found = experiments.load_results(folder, name)
            title = " ".join(
                [f"**{name}**, {next(summary.summary(name, found)).partition(': ')[2]}.", *note(name, folder)]
            )
            parts.append("\n".join([title, *(f"- {line}" for line in summary.headlines(found))]))
    return "\n\n".join(parts) + "\n"


def with_quotation(readme: str, lines: str) -> str:
    """The README with its lines of results replaced.

    Raises: UserError if it has no place for them.
    """
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise UserError(f"README.md: has no lines {BEGIN} and {END} to write its results between")
    return f"{before}{BEGIN}\n{lines}{END}{after}"


def main(args: argparse.Namespace) -> None:
    """Writes or checks both files."""
    readme = (ROOT / "README.md").read_text()
    files = {"RESULTS.md": page(args.folder), "README.md": with_quotation(readme, quoted(args.folder))}
    for name, text in files.items():
        if not args.check:
            write_bytes(ROOT / name, text.encode())
        elif not (ROOT / name).exists() or (ROOT / name).read_text() != text:
            sys.exit(f"{name} does not say what results/ gives: run python -m report.results_page")


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--check", action="store_true", help="write nothing")
    p.add_argument("--folder", type=Path, default=ROOT / "results", help="where the tables are")
    return p


if __name__ == "__main__":
    with one_line_errors("results_page"):
        main(parser().parse_args())
