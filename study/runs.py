"""One run on disk: what is asked for, what is there, and who works on it. Its record is `run.json`. No torch."""

import argparse
import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from study import grids
from study.cli import UserError
from study.files import FileError, locked, write_bytes

OF_DATA = ("input_shape", "num_classes")  # arguments of models that train.py adds where a data set's name lacks them


class Asked(NamedTuple):
    """One run as a command asks for it.

    Attributes:
        run_dir: its directory.
        identity: all that determines its result, but for the data and the number of epochs.
        max_epochs: how many epochs it may train; 0 for an untrained network.
        data: the fingerprint of the data at hand; None where nobody looked.
    """

    run_dir: Path
    identity: dict
    max_epochs: int
    data: str | None = None


def asked(args: argparse.Namespace, data: str | None = None) -> list[Asked]:
    """The runs that train.py's words, parsed, ask for.

    Raises: UserError where a hyperparameter has a value that means nothing.
    """
    found = []
    for run in args.run:
        identity = {name: getattr(args, name) for name in grids.HYPERPARAMETERS}
        seed = grids.BASE_SEED + run if args.seed is None else args.seed
        identity |= {"run": run, "seed": seed, "untrained": args.max_epochs == 0}
        try:
            grids.check(identity)
        except ValueError as error:
            raise UserError(str(error)) from None
        name = grids.uid(**{name: identity[name] for name in grids.NAMED})
        found.append(Asked(Path(args.save_dir) / name, identity, args.max_epochs, data))
    return found


def state(run_dir: Path, ask: Asked | None = None) -> tuple[str, str]:
    """How far a run is, and why: this alone decides what is trained, listed, counted and evaluated.

    Args:
        ask: what the run should be; None: whatever it was when it was last trained.

    Returns:
        ("done", ""): its result is there, whole, and as asked for;
        ("other", what differs): the directory holds checkpoints of another run, which must not be touched;
        ("running", ""): a process holds its lock;
        ("failed", the last error, or that it was interrupted): it was started, and the same command goes on with it;
        ("left", ""): nothing is there, or too few epochs. A record without a checkpoint is nothing.
    """
    run_dir = Path(run_dir)
    lost = f"{run_dir}/run.json is lost"
    try:
        held = has_checkpoint(run_dir)
        record = read_record(run_dir)
    except FileError as error:
        record, lost = None, str(error)
    except OSError as error:
        return "failed", f"{error.filename} cannot be read: {error.strerror}"
    other = ask is not None and record is not None and differences(record, ask)
    if held and other:
        return "other", "; ".join(other)
    finished = record is not None and record.get("finished", False)
    enough = finished and (ask is None or record["early_stopped"] or record["epochs"] >= ask.max_epochs)
    if held and enough:
        return "done", ""
    if is_locked(run_dir):
        return "running", ""
    if held and record is None:
        return "failed", f"{lost}; the same command makes it again if the checkpoints are this run's"
    if record is None or finished or other:
        return "left", ""
    return "failed", record.get("error") or "interrupted; the same command goes on where it stopped"


def differences(record: dict, ask: Asked) -> list[str]:
    """In what a record, or a checkpoint's hyperparameters in the place of one, differs from what is asked for."""
    theirs = grids.DEFAULTS | record["hyperparameters"]
    found = []
    for name, wanted in ask.identity.items():
        there = theirs.get(name)
        if name == "model_args" and isinstance(there, dict):
            there, wanted = _both_given(there, wanted), _both_given(wanted, there)
        if there != wanted:
            found.append(f"{name} {there!r}, not {wanted!r}")
    data = record.get("data")  # files written earlier do not say
    if data and ask.data and data != ask.data:
        found.append(f"trained on other data ({data[:8]}) than is there now ({ask.data[:8]})")
    if record.get("epochs", 0) > ask.max_epochs:
        found.append(f"{record['epochs']} epochs, not {ask.max_epochs} at most")
    return found


def _both_given(ours, others):
    """A model's arguments but for those that its data determines, where the other side leaves these to the data."""
    return {name: value for name, value in ours.items() if name not in OF_DATA or name in others}


def is_lost(run_dir: Path) -> bool:
    """Whether a run's directory holds checkpoints, and no record says of which run."""
    try:
        return has_checkpoint(run_dir) and read_record(run_dir) is None
    except FileError:
        return True


def has_checkpoint(run_dir: Path) -> bool:
    """Whether a run's directory holds a network.

    Raises: OSError if it may not be looked into.
    """
    if (run_dir / "dummy.ckpt").exists():
        return True
    try:
        names = os.listdir(run_dir / "weights")
    except (FileNotFoundError, NotADirectoryError):
        return False
    files = [run_dir / "weights" / name for name in names if name.endswith(".ckpt") and not name.startswith(".")]
    return any(path.exists() for path in files)


# ---- run.json -------------------------------------------------------------------------------------------------------


def read_record(run_dir: Path) -> dict | None:
    """A run's record; None if there is none.

    Returns: `hyperparameters` (a value for each of grids.HYPERPARAMETERS but those with a default, and `untrained`);
        once it has finished, `finished`, `epochs` and `early_stopped`; else perhaps `error`. Perhaps `data`, `seconds`,
        `started` and what made it.
    Raises: FileError if it cannot be read or is no such record.
    """
    path = Path(run_dir) / "run.json"
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise FileError(f"{path} is damaged: not JSON") from None
    if problem := _problem_with(record):
        raise FileError(f"{path} is not a run's record: {problem}")
    return record


def _problem_with(record):
    """What keeps a value from being a run's record; empty if nothing does."""
    if not isinstance(record, dict) or not isinstance(record.get("hyperparameters"), dict):
        return "it holds no hyperparameters"
    h = record["hyperparameters"]
    lacking = [name for name in grids.HYPERPARAMETERS if name not in grids.DEFAULTS | h]
    if lacking:
        return f"it lacks {lacking[0]}"
    try:
        grids.check(h)
    except ValueError as error:
        return str(error)
    finished = record.get("finished", False)
    types = {"finished": bool, "error": str, "data": str, "seconds": (int, float), "started": (int, float)}
    types |= {"epochs": int, "early_stopped": bool}
    required = {"epochs", "early_stopped"} if finished else set()
    wrong = [name for name, kind in types.items() if name in record.keys() | required and not _is(record, name, kind)]
    return f"{wrong[0]} is {record.get(wrong[0])!r}" if wrong else ""


def _is(record, name, kind):
    value = record.get(name)
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


def write_record(ask: Asked, **outcome) -> None:
    """Writes `run.json`: what the run is, and how it ended once it has."""
    record = {"hyperparameters": ask.identity, "data": ask.data, **outcome}
    record = {name: value for name, value in record.items() if value is not None}
    write_bytes(ask.run_dir / "run.json", json.dumps(record, indent=1).encode() + b"\n")


def seconds_before(run_dir: Path) -> float | None:
    """How long earlier trainings of a run took up to its last checkpoint; None where its record is lost."""
    last = run_dir / "weights" / "last.ckpt"
    try:
        record = read_record(run_dir)
    except FileError:
        record = None
    if not last.exists():
        return 0.0
    if record is None:
        return None
    seconds = record.get("seconds", 0.0)
    if "started" in record:  # it did not end by itself
        seconds += max(0.0, last.stat().st_mtime - record["started"])
    return seconds


# ---- its lock -------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def run_lock(run_dir: Path) -> Iterator[bool]:
    """Creates a run's directory and holds its lock. Yields False if another process holds it."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {run_dir}: {error.strerror}") from None
    with locked(run_dir, wait=False) as obtained:
        yield obtained


def is_locked(run_dir: Path) -> bool:
    """Whether a process holds the lock of a run's directory.

    Looking takes the lock for a moment, together with all others who look, and may keep nobody from work: who wants
    to hold it tries for longer than that (see `files.locked`).
    """
    try:
        with open(Path(run_dir) / ".lock", "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
