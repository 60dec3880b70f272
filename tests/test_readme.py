"""The README keeps its word: its commands run, its files exist."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
COMMANDS = [
    line.split("#")[0].strip()
    for block in re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    for line in block.splitlines()
    if line.strip()
]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the project in which commands may write."""
    folder = tmp_path_factory.mktemp("checkout")
    ignored = shutil.ignore_patterns(".*", "logs*", "data", "figures", "tests", "results")
    shutil.copytree(ROOT, folder, ignore=ignored, dirs_exist_ok=True)
    (folder / "logs-mnist-base-l2" / "mnist_sup_l2=0.00001" / "weights").mkdir(parents=True)
    return folder


def run(command, folder):
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, shell=True, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.parametrize("command", COMMANDS)
def test_command_runs(command, checkout):
    if "./train.sh" in command or "./eval.sh" in command:
        command += " --list"  # the whole study takes hours
    elif "make " in command:
        command = command.replace("make", "make --dry-run")
    elif command.startswith("python train.py"):
        command += " --max-epochs 1"
    elif command.startswith("python eval.py"):
        command += " --null-draws 1 --lesion-draws 1"
    result = run(command, checkout)
    assert result.returncode == 0, result.stderr
    assert result.stdout


def test_the_example_of_another_network_runs(checkout):
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (checkout / "example.py").write_text(example)
    result = run("python example.py", checkout)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("layer1 (64, 64) Q = 0.")


def test_the_commands_cover_training_evaluation_and_report():
    text = " ".join(COMMANDS)
    assert all(word in text for word in ("train.sh", "eval.sh", "train.py", "eval.py", "analysis.py", "make report"))


def test_every_file_and_picture_named_in_the_readme_exists():
    named = re.findall(r"^\| (`.*?) \|", README, re.MULTILINE)
    files = [name for cell in named for name in re.findall(r"`([\w./]+)`", cell) if "make" not in name]
    files += re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert len(files) > 15
    assert [name for name in files if not (ROOT / name).exists()] == []


def test_every_module_is_in_the_readmes_map():
    modules = [path.name for path in ROOT.glob("*.py")] + [f"{path.parent.name}/" for path in ROOT.glob("[a-z]*/*.py")]
    assert len(modules) > 30 and {"study/", "numerics/", "report/", "models/", "tests/"} <= set(modules)
    assert [name for name in modules if f"`{name}`" not in README] == []


def test_make_clean_removes_figures_and_caches_alone(tmp_path):
    kept = ["logs-demo-l2/a/weights/best.ckpt", "logs/__pycache__/a", "data/mnist/a", "study/a.py"]
    for name in [*kept, "figures/demo/a.png", "study/__pycache__/a.pyc", ".ruff_cache/a"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    shutil.copy(ROOT / "Makefile", tmp_path)
    subprocess.run(["make", "clean"], cwd=tmp_path, check=True, capture_output=True)
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == sorted(
        ["Makefile", *kept]
    )
