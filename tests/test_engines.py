"""Lists of command lines are run whole, side by side, and what failed is named, whatever the engine."""

import fcntl
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from study import grids

ROOT = Path(__file__).parent.parent
STUB = """
import os, sys, time
what, *rest = sys.argv[1:]
if what == "show":
    print(os.environ.get("CUDA_VISIBLE_DEVICES"), os.environ["OMP_NUM_THREADS"])
    open(f"shown-{rest[0]}", "w").write(str(os.environ.get("CUDA_VISIBLE_DEVICES")))
    time.sleep(0.3)
elif what == "sleep":
    open(f"pid-{rest[0]}", "w").write(str(os.getpid()))
    time.sleep(60)
elif what == "exit":
    print("the reason", rest[0])
    sys.exit(int(rest[0]))
elif what == "die":
    os.kill(os.getpid(), 9)
elif what == "orphan":
    os.kill(os.getppid(), 9)
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with the engines and a program that stands in for train.py; commands run there see no GPU."""
    for name in ("train.sh", "eval.sh"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "study", tmp_path / "study", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "stub.py").write_text(STUB)
    (tmp_path / "bin").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHON", sys.executable)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("ENGINE", "JOBS", "SSHLOGINS", "RETRIES", "SBATCH_OPTIONS"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def run_lines(lines, **environment):
    """Runs lines as train.sh does, their output in the folder logs."""
    script = "set -euo pipefail; source study/engines.sh; run_lines logs"
    text = "".join(f"python stub.py {line}\n" for line in lines)
    return subprocess.run(
        ["bash", "-c", script], input=text, env=os.environ | environment, capture_output=True, text=True, timeout=60
    )


def program(place, name, text):
    """Puts a program of that name first in the path."""
    (place / "bin" / name).write_text(f"#!/bin/sh\n{text}\n")
    (place / "bin" / name).chmod(0o755)


HAS_PARALLEL = shutil.which("parallel") is not None
ENGINES = ["local", pytest.param("parallel", marks=pytest.mark.skipif(not HAS_PARALLEL, reason="no GNU parallel here"))]


@pytest.mark.parametrize("engine", ENGINES)
def test_failures_stop_nothing_and_are_named(place, engine):
    result = run_lines(["exit 255", "die", "exit 3", "orphan", "show 1", "show 2", "exit 0"], ENGINE=engine, JOBS="2")
    assert result.returncode != 0
    assert (place / "shown-1").exists() and (place / "shown-2").exists()
    assert "4 of 7 jobs failed" in result.stdout
    for line, reason in (("exit 255", "the reason 255"), ("exit 3", "the reason 3"), ("die", ""), ("orphan", "")):
        assert f"stub.py {line}\n    {reason}" in result.stdout


@pytest.mark.parametrize("engine", ENGINES)
def test_success_leaves_no_output_behind(place, engine):
    result = run_lines(["show 1", "exit 0"], ENGINE=engine)
    assert result.returncode == 0 and "[2/2, 0 min 0 s left]" in result.stdout
    assert not (place / "logs" / "jobs").exists()


def test_an_empty_list_is_no_failure(place):
    result = run_lines([])
    assert result.returncode == 0 and result.stdout == "nothing to do\n"


def test_an_unknown_engine_is_refused(place):
    result = run_lines(["show 1"], ENGINE="magic")
    assert result.returncode != 0 and "expected local, parallel or slurm" in result.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_visible_gpus_are_dealt_out_by_slot(place, engine):
    """Four lines at a time share the two visible GPUs evenly; a line that names its device keeps them all."""
    lines = [f"show {i}" for i in range(4)] + ["show own --device cuda:1"]
    assert run_lines(lines, ENGINE=engine, JOBS="4", CUDA_VISIBLE_DEVICES="5,7").returncode == 0
    assert sorted((place / f"shown-{i}").read_text() for i in range(4)) == ["5", "5", "7", "7"]
    assert (place / "shown-own").read_text() == "5,7"


def test_without_a_choice_there_are_as_many_jobs_as_gpus_or_else_cores(place):
    program(place, "nvidia-smi", "printf '0\\n1\\n2\\n'")
    slots = ["bash", "-c", "source study/engines.sh; unset CUDA_VISIBLE_DEVICES; slots; CUDA_VISIBLE_DEVICES= slots"]
    answer = subprocess.run(slots, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "99"})
    assert answer.stdout.split() == ["3", str(len(os.sched_getaffinity(0)))]


AT_A_TERMINAL = """
import fcntl, os, signal, sys, termios
os.setsid()
signal.signal(signal.SIGINT, signal.SIG_DFL)  # where the tests themselves run in the background it is ignored
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # the terminal on stdin is this session's, as a user's is the shell's
os.execvp(sys.argv[1], sys.argv[1:])
"""


def wait_until(condition, seconds=15):
    end = time.time() + seconds
    while not condition() and time.time() < end:
        time.sleep(0.05)
    assert condition()


def alive(pid_file):
    try:
        os.kill(int(pid_file.read_text()), 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("how", ["SIGTERM", "Ctrl-C"])
def test_stopping_the_script_stops_its_jobs(place, engine, how):
    (place / "lines").write_text("python stub.py sleep 1\npython stub.py sleep 2\npython stub.py sleep 3\n")
    command = ["bash", "-c", "set -euo pipefail; source study/engines.sh; run_lines logs <lines || exit"]
    keyboard, terminal = pty.openpty()
    environment = os.environ | {"ENGINE": engine, "JOBS": "2"}
    script = subprocess.Popen([sys.executable, "-c", AT_A_TERMINAL, *command], stdin=terminal, env=environment)
    pids = [place / "pid-1", place / "pid-2"]
    wait_until(lambda: all(path.exists() and path.read_text() for path in pids))
    if how == "SIGTERM":
        script.send_signal(signal.SIGTERM)
    else:
        os.write(keyboard, b"\x03")
    assert script.wait(20) != 0
    wait_until(lambda: not any(alive(path) for path in pids), 5)
    assert not (place / "pid-3").exists()
    os.close(keyboard)
    os.close(terminal)


# Slurm


def test_long_lists_are_submitted_in_arrays_of_the_size_slurm_allows(place):
    """Each array covers the next lines; with a limit on jobs at a time one array waits for another."""
    program(place, "scontrol", "echo 'MaxArraySize            = 11'")
    program(place, "sbatch", 'echo "$@" >>calls; wc -l <calls')
    assert run_lines([f"show {i}" for i in range(25)], ENGINE="slurm", SBATCH_OPTIONS="--gres=gpu:1").returncode == 0
    calls = (place / "calls").read_text().splitlines()
    assert [call.split("--array=")[1].split()[0] for call in calls] == ["1-10", "1-10", "1-5"]
    assert [call.split(" + ")[1].split()[0] for call in calls] == ["1", "11", "21"]
    assert all("--gres=gpu:1" in call and "--dependency" not in call for call in calls)
    run_lines([f"show {i}" for i in range(15)], ENGINE="slurm", JOBS="4")
    first, second = (place / "calls").read_text().splitlines()[3:]
    assert "--array=1-10%4" in first and "--array=1-5%4 --dependency=afterany:4" in second


def test_a_refused_submission_fails(place):
    program(place, "scontrol", "echo 'MaxArraySize            = 11'")
    program(place, "sbatch", "echo no such partition >&2; exit 1")
    result = run_lines(["show 1"], ENGINE="slurm")
    assert result.returncode != 0 and "no such partition" in result.stderr


@pytest.fixture
def slurm():
    try:
        words = ["sinfo", "-h", "-t", "idle,mix,alloc", "-o", "%n"]
        answer = subprocess.run(words, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        pytest.skip("no Slurm here")
    if answer.returncode or not answer.stdout.split():
        pytest.skip("no Slurm answers here (set SLURM_CONF?)")


def test_slurm_runs_the_lines(slurm, place):
    result = run_lines(["show 1", "exit 3", "show 2"], ENGINE="slurm", JOBS="1")
    assert result.returncode == 0 and "submitted 3 jobs as array" in result.stdout
    (folder,) = (place / "logs" / "jobs").iterdir()
    wait_until(lambda: len([*folder.glob("*.done"), *folder.glob("*.failed")]) == 3, 60)
    assert (place / "shown-1").exists() and (place / "shown-2").exists()
    assert [path.name for path in folder.glob("*.failed")] == ["2.failed"]
    assert "the reason 3" in (folder / "2.log").read_text()


@pytest.mark.skipif(not HAS_PARALLEL, reason="no GNU parallel here")
def test_parallel_runs_the_lines_over_ssh(place):
    login = os.environ.get("TEST_SSHLOGIN", "localhost")
    words = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=3", login, "true"]
    if not shutil.which("ssh") or subprocess.run(words, capture_output=True).returncode:
        pytest.skip(f"ssh {login} is not possible without a password (another machine: TEST_SSHLOGIN)")
    result = run_lines(["show 1", "exit 3", "show 2"], ENGINE="parallel", SSHLOGINS=login, JOBS="2")
    assert "1 of 3 jobs failed" in result.stdout and "the reason 3" in result.stdout
    assert (place / "shown-1").exists() and (place / "shown-2").exists()


# The study's scripts


def finish(experiment):
    """Makes all runs of an experiment look finished."""
    for part in grids.parts(experiment):
        for run_dir in grids.run_dirs(experiment, part):
            run_dir.mkdir(parents=True)
            record = {"finished": True} | ({} if part == "dummy" else {"seconds": 60})
            (run_dir / "run.json").write_text(json.dumps(record))


def script(*words):
    return subprocess.run(["bash", *words], capture_output=True, text=True, timeout=60)


def test_a_finished_list_of_270_is_skipped_at_once(place):
    finish("mnist-base")
    started = time.time()
    result = script("train.sh", "mnist-base")
    assert time.time() - started < 10
    assert result.returncode == 0 and "nothing to do" in result.stdout
    assert "in all: 370 done, 0 running, 0 failed, 0 left" in result.stdout


def test_status_counts_and_names_failures_and_the_time_left(place):
    finish("demo")
    first, second, third, *_ = grids.run_dirs("demo", "drop")
    (first / "run.json").write_text('{"error": "it broke"}')
    (second / "run.json").unlink()
    (third / "run.json").write_text("{}")
    with open(third / ".lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = script("train.sh", "demo", "--status")
    assert "logs-demo-drop: 3 done, 1 running, 1 failed, 1 left" in result.stdout
    assert f"failed: {first}: it broke" in result.stdout
    assert "in all: 17 done, 1 running, 1 failed, 1 left; about 3 min left, 1 at a time" in result.stdout


def test_status_tells_of_jobs_that_did_not_even_start(place):
    """Such as when Python lacks a package: there is no run then to hold the error."""
    (place / "train.py").write_text("import a_package_that_is_missing")
    result = script("train.sh", "demo", "drop")
    assert result.returncode != 0 and "3 of 3 jobs failed" in result.stdout
    result = script("train.sh", "demo", "drop", "--status")
    assert "3 jobs failed, such as logs-demo-drop/jobs/" in result.stdout
    assert "a_package_that_is_missing" in result.stdout


def test_options_reach_train_py_but_untrained_networks_stay_untrained(place):
    result = script("train.sh", "demo", "--list", "--device", "cpu", "--max-epochs", "2")
    trained, *_, untrained = result.stdout.splitlines()
    assert trained.endswith("--device cpu --max-epochs 2")
    assert untrained.endswith("--device cpu --max-epochs 2 --max-epochs 0")


def test_a_wrong_name_is_told_in_one_line(place):
    result = script("train.sh", "nonsense")
    assert result.returncode != 0 and result.stderr.startswith("unknown experiment 'nonsense'") and not result.stdout
