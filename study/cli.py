"""What the command-line scripts share: how they read their words, how they fail, and which device they run on."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import torch


class UserError(Exception):
    """A mistake in what the program was given: shown as one line that says what is wrong and what to do."""

    def _render_traceback_(self):
        """What notebooks show of it."""
        return [f"{type(self).__name__}: {self}"]


class Parser(argparse.ArgumentParser):
    """An argument parser that tells a mistake in one line, and takes options by their whole names only.

    Its description is the text above a script's code, and printed as it stands.
    """

    def __init__(self, **options):
        defaults = {"formatter_class": argparse.RawDescriptionHelpFormatter, "allow_abbrev": False}
        super().__init__(**defaults | options)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {one_line(message)} (--help lists all options)\n")


def one_line(text: object) -> str:
    """A message in one line, whatever names and values it tells of."""
    return " ".join(str(text).splitlines())


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turns a UserError into one line on stderr and exit status 1, Ctrl-C into status 130, `| head` into silence."""
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"{program}: {one_line(error)}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader has seen enough; what is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


@contextlib.contextmanager
def named(path: Path) -> Iterator[None]:
    """Makes whatever goes wrong a UserError that names the file: neither bad files nor faults here end a batch."""
    try:
        yield
    except UserError as error:
        raise error if str(path) in str(error) else UserError(f"{path}: {error}") from None
    except BrokenPipeError:  # is no fault of the file's
        raise
    except OSError as error:
        raise UserError(f"{error.filename or path}: {error.strerror or error}") from None
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        told = f"{type(error).__name__}: {one_line(error)[:200]}"
        raise UserError(f"{path}: {told} ({Path(place.filename).name}, line {place.lineno})") from error


def device(name: str) -> torch.device:
    """The torch device called `name`: "cpu", "cuda", "cuda:1", or "auto" (the first GPU if there is one).

    Raises: UserError if there is no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:[0-9]{1,9})?", name):
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if name != "cpu" and int(name.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise UserError(f"--device {name}: this machine has {torch.cuda.device_count()} CUDA devices")
    return torch.device(name)


def hide_gpus() -> None:
    """For trainings on the CPU: else Adam looks for the driver of a GPU at each of its steps."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def stop_on_sigterm() -> None:
    """Makes SIGTERM end the program at once: files are whole at every moment, so that there is nothing to tidy up.

    An exception raised anywhere could leave a thread waiting; by default Lightning would install a handler of its own.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))


def threads() -> int:
    """Number of threads a process may use: OMP_NUM_THREADS where it is set, otherwise all cores.

    As in OpenMP, the first of several numbers ("4,2") is that of the outermost level, and what is none is ignored.
    """
    first = re.match(r"\s*([1-9]\d*)\s*(,|$)", os.environ.get("OMP_NUM_THREADS", ""))
    return int(first[1]) if first else os.cpu_count()
