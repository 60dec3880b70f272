"""What the command-line scripts share: how they fail and which device they run on."""

import contextlib
import os
import signal
import sys


class UserError(Exception):
    """A mistake in what the program was given: shown as one line that says what is wrong and what to do."""


@contextlib.contextmanager
def one_line_errors(program):
    """Turns a UserError into one line on stderr and exit status 1, Ctrl-C into status 130."""
    try:
        yield
    except UserError as error:
        sys.exit(f"{program}: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


def device(name):
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
    if kind == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else Adam looks for the driver of a GPU at each of its steps
    return torch.device(name)


def stop_on_sigterm():
    """Makes SIGTERM end the program at once: files are whole at every moment, so that there is nothing to tidy up.

    An exception raised anywhere could leave a thread waiting; by default Lightning would install a handler of its own.
    """
    signal.signal(signal.SIGTERM, lambda *_: os._exit(128 + signal.SIGTERM))


def threads():
    """Number of threads a process may use: OMP_NUM_THREADS where it is set, otherwise all cores."""
    return int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count())
