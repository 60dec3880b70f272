"""What made a result: the code's commit, versions, and the processor, whose instructions decide the last digits."""

import functools
import platform
import subprocess
from importlib import metadata
from pathlib import Path

import torch

PACKAGES = ("pytorch-lightning", "numpy", "scipy", "numba")


@functools.cache
def provenance() -> dict:
    """{"versions": of Python and of what computes results, "commit": of this code, "processor", "capability"}.

    `commit` ends in "+" where files that git tracks differ from it, and is None outside a git checkout. `capability`
    is torch's level of vector instructions: float results repeat bit for bit on the same processor and level only.
    """
    versions = {"python": platform.python_version(), "torch": torch.__version__}
    versions |= {name: metadata.version(name) for name in PACKAGES}
    return {
        "versions": versions,
        "commit": commit(),
        "processor": processor(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def commit() -> str | None:
    """The commit of the code that runs."""
    git = ["git", "-C", str(Path(__file__).parent.parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + "+" * bool(changes.returncode)


def processor() -> str:
    """The processor's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [line for line in cpuinfo.read_text().splitlines() if "model name" in line] if cpuinfo.exists() else []
    return names[0].partition(":")[2].strip() if names else platform.processor() or platform.machine()


def constraints() -> str:
    """The exact version of every installed package, in the form of a constraints file for pip."""
    found = {(d.metadata["Name"].lower(), d.version) for d in metadata.distributions()}
    return "".join(f"{name}=={version.partition('+')[0]}\n" for name, version in sorted(found))
