"""What is said to have made a result is what made it."""

import subprocess
import sys

import numpy
import torch

from study import provenance


def git(folder, *words):
    command = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e", *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_versions_and_instruction_set_are_those_of_this_process():
    made = provenance.provenance()
    assert made["versions"]["torch"] == torch.__version__ and made["versions"]["numpy"] == numpy.__version__
    assert made["versions"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert made["capability"] == torch.backends.cpu.get_cpu_capability() and made["processor"]


def test_the_commit_is_marked_where_files_differ_from_it_and_absent_outside_git(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "study" / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit() is None
    git(tmp_path, "init", "-q")
    (tmp_path / "a.py").write_text("1")
    git(tmp_path, "add", "a.py")
    git(tmp_path, "commit", "-qm", "a")
    head = git(tmp_path, "rev-parse", "--short=12", "HEAD")
    assert provenance.commit() == head
    (tmp_path / "a.py").write_text("2")
    assert provenance.commit() == head + "+"


def test_pip_can_install_from_the_constraints():
    lines = provenance.constraints().splitlines()
    assert f"numpy=={numpy.__version__}" in lines and lines == sorted(lines, key=lambda line: line.split("==")[0])
    assert all(line.count("==") == 1 and "+" not in line for line in lines)
