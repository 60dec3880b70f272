"""One run on disk: what it is, how far it is, and who works on it. Its record is `run.json`; imports no torch."""

import contextlib
import fcntl
import json
from pathlib import Path

from study import grids
from study.cli import UserError
from study.files import locked, write_bytes


def run_identity(args, run):
    """All that determines a run's result."""
    identity = {name: getattr(args, name) for name in grids.HYPERPARAMETERS}
    seed = grids.BASE_SEED + run if args.seed is None else args.seed
    return identity | {"run": run, "seed": seed, "untrained": args.max_epochs == 0}


def finished(run_dir, identity, max_epochs):
    """Whether a run's directory holds its finished result.

    Raises: UserError if it holds a run with other hyperparameters, or one of another program.
    """
    try:
        record = json.loads((run_dir / "run.json").read_text())
        theirs = record["hyperparameters"]
    except FileNotFoundError:
        if (run_dir / "weights").exists() or (run_dir / "dummy.ckpt").exists():
            raise UserError(f"{run_dir} holds checkpoints but no run.json; choose another --save-dir") from None
        return False
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{run_dir}/run.json cannot be read; choose another --save-dir") from None
    theirs = {"precision": grids.PRECISIONS[0]} | theirs
    other = [f"{name} {theirs.get(name)!r}, not {x!r}" for name, x in identity.items() if theirs.get(name) != x]
    if other:
        raise UserError(f"{run_dir} holds another run ({'; '.join(other)}); choose another --save-dir")
    return bool(record.get("finished")) and (record["early_stopped"] or record["epochs"] >= max_epochs)


@contextlib.contextmanager
def run_lock(run_dir):
    """Creates a run's directory and holds its lock. Yields False if another process holds it."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot create {run_dir}: {error.strerror}") from None
    with locked(run_dir, wait=False) as obtained:
        yield obtained


def write_record(run_dir, identity, **outcome):
    """Writes `run.json`: what the run is, and how it ended once it has."""
    record = {"hyperparameters": identity, **outcome}
    write_bytes(run_dir / "run.json", json.dumps(record, indent=1).encode() + b"\n")


def state(run_dir):
    """What is on disk for one run: ("done" | "running" | "failed" | "left", the last error line or "").

    A run is done when its `run.json` says so, which train.py writes last; running while some process holds its lock;
    failed when it was started and is neither.
    """
    run_dir = Path(run_dir)
    try:
        record = json.loads((run_dir / "run.json").read_text())
    except FileNotFoundError:
        return "left", ""
    except (OSError, ValueError) as error:
        return "failed", f"run.json cannot be read: {error}"
    if record.get("finished"):
        return "done", ""
    if is_locked(run_dir):
        return "running", ""
    return "failed", record.get("error") or "interrupted; the same command goes on where it stopped"


def is_locked(run_dir):
    """Whether some process holds the lock of a run directory."""
    try:
        with open(Path(run_dir) / ".lock", "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
