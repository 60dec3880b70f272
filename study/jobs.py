"""The study's jobs as command lines, and how far they are: what train.sh and eval.sh ask for.

    python -m study.jobs WHAT NAME ... [--batch N] [-- OPTION ...]

Imports neither torch nor any other heavy package, so that listing, skipping and counting hundreds of runs is instant.
"""

import contextlib
import itertools
import json
import math
import shlex
import signal
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from study import grids, options, runs
from study.cli import Parser, UserError, one_line
from study.files import FileError

OWNED = ("dataset", "task", *grids.REGULARIZERS, "run", "save-dir")  # options of train.py that the grid sets
EVALUATED = ("run-dir", "ckpt-file")  # those of eval.py that the folders set
SHARED = ("data_dir", "device")  # those that eval.py has as well
STATES = ("done", "running", "failed", "left")


class Found(NamedTuple):
    """A run of the grid and what is on disk for it: `state` and `why` as `runs.state` has them."""

    part: str
    spec: dict
    run_dir: Path
    state: str
    why: str


def command(experiment: str, part: str, specs: Sequence[dict], words: Sequence[str] = ()) -> str:
    """The self-contained command line that trains some repetitions of one grid point, or makes untrained networks.

    Args:
        specs: those of consecutive repetitions; train.py skips those between the first and the last that are done.
        words: further options for train.py.
    """
    e, first, last = grids.EXPERIMENTS[experiment], specs[0]["run"], specs[-1]["run"]
    line = ["python", "train.py", "--dataset", e.dataset, "--task", "sup"]
    for name in grids.REGULARIZERS:
        line += [f"--{name}", str(specs[0][name])]
    line += ["--run", f"{first}-{last}" if last > first else str(first)]
    line += ["--save-dir", grids.save_dir(experiment, part)]
    if e.model_args:
        line += ["--model-args", json.dumps(e.model_args)]
    line += words
    if part == "dummy":
        line += ["--max-epochs", "0"]
    return shlex.join(line)


def commands(
    experiment: str, parts: Iterable[str], unfinished_only: bool = False, words: Sequence[str] = (), batch: int = 1
) -> list[str]:
    """The command lines of some parts, one for `batch` repetitions of a grid point and one for all untrained networks.

    The first repetitions of every grid point come before any further ones, so that a grid cut short has no holes.

    Raises: UserError if a directory holds another run than the grid and these options make: nothing is trained then.
    """
    chosen = [(part, spec) for part in parts for spec in grids.specs(experiment, part)]
    if unfinished_only:
        found = survey(experiment, parts, words)
        refuse_others(experiment, found)
        chosen = [(run.part, run.spec) for run in found if run.state != "done"]

    def turn(part, spec):
        return math.inf if part == "dummy" else spec["run"] // batch

    chosen.sort(key=lambda run: turn(*run))
    jobs = itertools.groupby(chosen, key=lambda run: (turn(*run), run[0], _point(run[1])))
    return [command(experiment, part, [spec for _, spec in job], words) for (_, part, _), job in jobs]


def _point(spec):
    """The grid point of a run."""
    return [spec[name] for name in grids.REGULARIZERS]


def asked(experiment: str, part: str, words: Sequence[str] = ()) -> list[runs.Asked]:
    """What train.py is asked for with these options: the runs of one part, in the order of `grids.specs`."""
    found, parser = [], options.parser()
    for _, specs in itertools.groupby(grids.specs(experiment, part), key=_point):
        line = shlex.split(command(experiment, part, list(specs), words))
        found += runs.asked(parser.parse_args(line[2:]))
    return found


def survey(experiment: str, parts: Iterable[str], words: Sequence[str] = ()) -> list[Found]:
    """What is on disk for every run of some parts, judged by what train.py is asked for with these options."""
    rows = []
    for part in parts:
        rows += zip(itertools.repeat(part), grids.specs(experiment, part), asked(experiment, part, words), strict=False)
    args = options.parser().parse_args(["--dataset", grids.EXPERIMENTS[experiment].dataset, *words])
    data = data_at_hand(args.dataset, args.data_dir) if any(_says_its_data(ask) for _, _, ask in rows) else None
    rows = [(part, spec, ask._replace(data=data)) for part, spec, ask in rows]
    return [Found(part, spec, ask.run_dir, *runs.state(ask.run_dir, ask)) for part, spec, ask in rows]


def _says_its_data(ask):
    with contextlib.suppress(FileError):
        return "data" in (runs.read_record(ask.run_dir) or {})
    return False


def data_at_hand(dataset: str, data_dir: str) -> str | None:
    """The fingerprint of a data set; None where it is not there, or unusable: train.py downloads it, or tells."""
    from study import datasets

    if (Path(data_dir) / dataset).is_dir():
        with contextlib.suppress(UserError):
            return datasets.fingerprint(dataset, data_dir, download=False)
    return None


def refuse_others(experiment: str, found: list[Found]) -> None:
    """Raises UserError if a directory holds a run that is not the grid's."""
    others = [run for run in found if run.state == "other"]
    if others:
        more = f", and so do {len(others) - 1} more" if len(others) > 1 else ""
        raise UserError(
            f"{others[0].run_dir} holds another run ({others[0].why}){more}; give the options that it was made with, "
            f"or move {grids.save_dir(experiment, others[0].part)} away"
        )


def progress(experiment: str, parts: Iterable[str], words: Sequence[str] = ()) -> list[str]:
    """The lines of a status report: one a part, then one a failed run with its last error line, then the time left."""
    found = survey(experiment, parts, words)
    lines = []
    for part in parts:
        lines.append(f"{grids.save_dir(experiment, part)}: {_counts(run for run in found if run.part == part)}")
    for run in found:
        if run.state in ("failed", "other"):
            why = run.why if run.state == "failed" else f"holds another run ({run.why})"
            lines.append(f"failed: {run.run_dir}: {why}")
    return [*lines, f"in all: {_counts(found)}{_time_left(found)}"]


def _counts(found):
    states = ["failed" if run.state == "other" else run.state for run in found]
    return ", ".join(f"{states.count(name)} {name}" for name in STATES)


def _time_left(found):
    """What the runs that are not done will take, if they take as long as those that are, as many at a time as now."""
    records = [runs.read_record(run.run_dir) for run in found if run.state == "done"]
    seconds = [record["seconds"] for record in records if "seconds" in record]
    todo, running = len(found) - len(records), sum(run.state == "running" for run in found)
    if not (todo and seconds):
        return ""
    minutes = sum(seconds) / len(seconds) * todo / max(running, 1) / 60
    return f"; about {minutes:.0f} min left, {running or 'if one'} at a time"


def evaluations(folders: Iterable[str | Path], batch: int = 1, words: Sequence[str] = ()) -> list[str]:
    """The command lines that evaluate all runs in some folders, `batch` runs a line. A folder may itself be a run."""
    if taken := _options(words, EVALUATED):
        raise UserError(f"{taken[0]} is set by the folders; eval.py evaluates single networks of your choice")
    found = []
    for folder in map(Path, folders):
        try:
            candidates = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
        except OSError as error:
            raise UserError(f"{folder} cannot be read: {error.strerror}") from None
        inside = [path for path in candidates if (path / "weights").is_dir() or (path / "dummy.ckpt").exists()]
        if not inside:
            raise UserError(f"{folder}: no runs in it; train some with ./train.sh, or check the name")
        found += inside
    found = list(dict.fromkeys(found))
    groups = [found[i : i + batch] for i in range(0, len(found), batch)]
    return [shlex.join(["python", "eval.py", "--run-dir", *map(str, group), *words]) for group in groups]


def check_words(words: Sequence[str]) -> None:
    """Raises UserError, or ends with the parser's message, if these are no options for the jobs of a grid."""
    if taken := _options(words, OWNED):
        raise UserError(f"{taken[0]} is set by the grid; train.py trains single networks of your choice")
    runs.asked(options.parser().parse_args(["--dataset", "any", *words]))


def _options(words, names):
    """Those of some words that are options of these names."""
    options = [word.partition("=")[0] for word in words if word.startswith("--")]
    return [option for option in options if option.removeprefix("--") in names]


def shared(words: Sequence[str]) -> list[str]:
    """Those of some options for train.py that eval.py needs too."""
    args, defaults = (options.parser().parse_args(["--dataset", "any", *given]) for given in (words, ()))
    chosen = [(name, getattr(args, name)) for name in SHARED if getattr(args, name) != getattr(defaults, name)]
    return [word for name, value in chosen for word in (f"--{name.replace('_', '-')}", value)]


def lines(what: str, names: Sequence[str], words: Sequence[str], batch: int) -> list[str]:
    """What train.sh and eval.sh ask for, as lines."""
    if what == "evaluations":
        return evaluations(names, batch, words)
    experiment, *chosen = names
    if experiment not in grids.EXPERIMENTS:
        raise UserError(f"unknown experiment {experiment!r}: expected one of {', '.join(grids.EXPERIMENTS)}")
    known = grids.parts(experiment)
    unknown = [part for part in chosen if part not in known]
    if unknown:
        raise UserError(f"{experiment} has no part {unknown[0]!r}: expected some of {', '.join(known)}")
    chosen = list(dict.fromkeys(chosen)) or known
    check_words(words)
    if what == "status":
        return progress(experiment, chosen, words)
    if what == "dirs":
        return [grids.save_dir(experiment, part) for part in chosen]
    if what == "shared":
        return shared(words)
    return commands(experiment, chosen, what == "todo", words, batch)


def main(argv: list[str]) -> None:
    """Prints the lines asked for."""
    at = argv.index("--") if "--" in argv else len(argv)
    parser = Parser(prog="study.jobs", description=__doc__)
    parser.add_argument("what", choices=["list", "todo", "status", "dirs", "shared", "evaluations"])
    parser.add_argument("names", nargs="+", help="an experiment and some of its parts; for evaluations, directories")
    parser.add_argument("--batch", type=int, default=1, help="runs a command")
    args = parser.parse_args(argv[:at])
    found = lines(args.what, args.names, argv[at + 1 :], args.batch)
    print(*found, sep="\n", end="\n" if found else "")


if __name__ == "__main__":
    for sign in (signal.SIGPIPE, signal.SIGINT):  # `| head` and Ctrl-C end it without a word
        signal.signal(sign, signal.SIG_DFL)
    try:
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(one_line(error))
