"""What the command-line scripts share: how they read their words, how they fail, and which device they run on."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator
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
        self.exit(2, f"{self.prog}: {message} (--help lists all options)\n")


@contextlib.contextmanager
def one_line_errors(program: str) -> Iterator[None]:
    """Turns a UserError into one line on stderr and exit status 1, Ctrl-C into status 130, `| head` into silence."""
    try:
        yield
        sys.stdout.flush()
    except UserError as error:
        sys.exit(f"{program}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # the reader has seen enough; what is still buffered goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def device(name: str) -> torch.device:
    """The torch device called `name`: "cpu", "cuda", "cuda:1", or "auto" (the first GPU if there is one).

    Raises: UserError if there is no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdigit()):
        raise UserError(f"--device {name}: expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
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
