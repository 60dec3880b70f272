"""The study's jobs as command lines, and how far they are: what train.sh and eval.sh ask for.

Imports neither torch nor any other heavy package, so that listing, skipping and counting hundreds of runs is instant.
"""

import argparse
import itertools
import json
import shlex
import signal
import sys
from pathlib import Path

from study.grids import EXPERIMENTS, FIRST_UNTRAINED_RUN, parts, run_dirs, save_dir, specs, uid
from study.runs import state


def command(experiment, part, runs, options=()):
    """The self-contained command line that trains some repetitions of one grid point, or makes the untrained networks.

    Args:
        runs: specs of consecutive repetitions; train.py skips those between the first and the last that are done.
        options: further words for train.py.
    """
    e = EXPERIMENTS[experiment]
    words = ["python", "train.py", "--dataset", e.dataset, "--task", "sup"]
    words += [word for name in ("l2", "l1", "drop") for word in (f"--{name}", f"{runs[0][name]:g}")]
    first, last = runs[0]["run"], runs[-1]["run"]
    if part == "dummy":
        first, last = FIRST_UNTRAINED_RUN, FIRST_UNTRAINED_RUN + e.untrained - 1
    words += ["--run", f"{first}-{last}" if last > first else str(first), "--save-dir", save_dir(experiment, part)]
    if e.model_args:
        words += ["--model-args", json.dumps(e.model_args)]
    words += options
    if part == "dummy":
        words += ["--max-epochs", "0"]
    return shlex.join(words)


def commands(experiment, chosen_parts, unfinished_only=False, options=(), batch=1):
    """The command lines of the chosen parts, one for `batch` repetitions of a grid point.

    One line makes all untrained networks. The first repetitions of every grid point come before any further ones, so
    that a grid cut short has no holes.
    """
    runs = [(part, spec) for part in chosen_parts for spec in specs(experiment, part)]
    if unfinished_only:
        runs = [(p, spec) for p, spec in runs if state(Path(save_dir(experiment, p)) / uid(**spec))[0] != "done"]
    runs.sort(key=lambda run: run[1]["run"] // batch)
    jobs = itertools.groupby(runs, key=lambda run: (run[0], run[1] | {"run": run[1]["run"] // batch}))
    lines = (command(experiment, part, [spec for _, spec in job], options) for (part, _), job in jobs)
    return list(dict.fromkeys(lines))


def progress(experiment, chosen_parts):
    """The lines of a status report: one a part, then one a failed run with its last error line, then the time left."""
    lines, failed, everything = [], [], []
    for part in chosen_parts:
        states = {run_dir: state(run_dir) for run_dir in run_dirs(experiment, part)}
        lines.append(f"{save_dir(experiment, part)}: {_counts(s for s, _ in states.values())}")
        failed += [f"failed: {run_dir}: {error}" for run_dir, (s, error) in states.items() if s == "failed"]
        everything += [(run_dir, s) for run_dir, (s, _) in states.items()]
    return [*lines, *failed, f"in all: {_counts(s for _, s in everything)}{_time_left(everything)}"]


def _counts(states):
    states = list(states)
    return ", ".join(f"{states.count(name)} {name}" for name in ("done", "running", "failed", "left"))


def _time_left(runs):
    """What the runs that are not done will take, if they take as long as those that are, as many at a time as now."""
    records = [json.loads((run_dir / "run.json").read_text()) for run_dir, s in runs if s == "done"]
    seconds = [record["seconds"] for record in records if "seconds" in record]
    states = [s for _, s in runs]
    todo, running = len(states) - states.count("done"), states.count("running")
    if not (todo and seconds):
        return ""
    minutes = sum(seconds) / len(seconds) * todo / max(running, 1) / 60
    return f"; about {minutes:.0f} min left, {running or 'if one'} at a time"


def evaluations(folders, batch=1, options=""):
    """The command lines that evaluate all runs in some folders, `batch` runs a line. A folder may itself be a run."""
    runs = []
    for folder in map(Path, folders):
        candidates = [folder, *sorted(folder.iterdir())] if folder.is_dir() else []
        found = [path for path in candidates if (path / "weights").is_dir() or (path / "dummy.ckpt").exists()]
        if not found:
            sys.exit(f"{folder}: no runs in it; train some with ./train.sh, or check the name")
        runs += found
    groups = [runs[i : i + batch] for i in range(0, len(runs), batch)]
    lines = [shlex.join(["python", "eval.py", "--run-dir", *map(str, group)]) for group in groups]
    return [f"{line} {options}".rstrip() for line in lines]


def main(args):
    """Prints what train.sh and eval.sh ask for."""
    if args.what == "evaluations":
        print(*evaluations(args.names, args.batch, args.options), sep="\n")
        return
    experiment, *chosen = args.names
    if experiment not in EXPERIMENTS:
        sys.exit(f"unknown experiment {experiment!r}: expected one of {', '.join(EXPERIMENTS)}")
    known = parts(experiment)
    unknown = [part for part in chosen if part not in known]
    if unknown:
        sys.exit(f"{experiment} has no part {unknown[0]!r}: expected some of {', '.join(known)}")
    chosen = chosen or known
    if args.what == "status":
        print(*progress(experiment, chosen), sep="\n")
    elif args.what == "dirs":
        print(*(save_dir(experiment, part) for part in chosen), sep="\n")
    else:
        lines = commands(experiment, chosen, args.what == "todo", shlex.split(args.options), args.batch)
        print(*lines, sep="\n", end="\n" if lines else "")


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` is no error
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["list", "todo", "status", "dirs", "evaluations"])
    parser.add_argument("names", nargs="+", help="an experiment and some of its parts; for evaluations, directories")
    parser.add_argument("--batch", type=int, default=1, help="runs a command")
    parser.add_argument("--options", default="", help="appended to each command")
    main(parser.parse_args())
