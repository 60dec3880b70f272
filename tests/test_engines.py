"""Lists of command lines are run whole, side by side, and what failed is named, whatever the engine."""

import fcntl
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from study import grids, jobs, runs

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
    print("the reason", rest[0], file=sys.stderr)
    sys.exit(int(rest[0]))
elif what == "count":  # fails, but for the last of so many times
    open("tries", "a").write("x")
    sys.exit(os.path.getsize("tries") < int(rest[0]))
elif what == "alone":  # fails beside another one
    os.mkdir("alone")
    time.sleep(0.2)
    os.rmdir("alone")
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


NO_PARALLEL = "GNU parallel is not installed: install it, and run this test again"
HAS_PARALLEL = shutil.which("parallel") is not None
ENGINES = ["local", pytest.param("parallel", marks=pytest.mark.skipif(not HAS_PARALLEL, reason=NO_PARALLEL))]


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


STAND_IN = """
import subprocess, sys
words = sys.argv[1:]
command = " ".join(words[words.index("bash") :]).replace("{%}", "1")
for line in sys.stdin:
    tries = int(words[words.index("--retries") + 1])
    while tries and subprocess.call(command.replace("{}", line.strip()), shell=True):
        tries -= 1
"""


@pytest.mark.parametrize(("retries", "tries"), [("", 2), ("1", 1), ("3", 3)])
@pytest.mark.parametrize("parallel", ["stand-in", *ENGINES[1:]])
def test_parallel_tries_a_line_that_fails_again(place, parallel, retries, tries):
    """By default twice; GNU parallel's own count is seen where it is installed, what is asked of it everywhere."""
    if parallel == "stand-in":
        (place / "stand_in.py").write_text(STAND_IN)
        program(place, "parallel", f'exec "{sys.executable}" stand_in.py "$@"')
    result = run_lines(["count 9"], ENGINE="parallel", RETRIES=retries)
    assert result.returncode != 0 and "1 of 1 jobs failed" in result.stdout
    assert (place / "tries").read_text() == "x" * tries
    (place / "tries").unlink()
    result = run_lines([f"count {tries}", "exit 3"], ENGINE="parallel", RETRIES=retries)
    assert (place / "tries").read_text() == "x" * tries
    assert "1 of 2 jobs failed" in result.stdout
    assert [path.name for path in place.glob("logs/jobs/*/*.failed")] == ["2.failed"]


def test_the_local_engine_tries_a_line_once(place):
    assert run_lines(["count 9"], RETRIES="3").returncode != 0
    assert (place / "tries").read_text() == "x"


def test_no_more_lines_run_side_by_side_than_jobs_says(place):
    """Though there are more GPUs."""
    assert run_lines(["alone"] * 4, JOBS="1", CUDA_VISIBLE_DEVICES="0,1").returncode == 0
    assert run_lines(["alone"] * 2, JOBS="2", CUDA_VISIBLE_DEVICES="0").returncode != 0


@pytest.mark.parametrize(
    ("sshlogins", "words"), [("a b-gpu1", ["--sshlogin", "a,b-gpu1"]), ("hosts", ["--sshloginfile", "hosts"])]
)
def test_parallel_is_told_the_machines_the_folder_and_how_many_lines_on_each(place, sshlogins, words):
    (place / "hosts").write_text("a\nb\n")
    program(place, "parallel", "printf '%s\\n' \"$@\" >words")
    run_lines(["show 1"], ENGINE="parallel", SSHLOGINS=sshlogins, JOBS="3")
    told = (place / "words").read_text().splitlines()
    assert told[:7] == [*words, "--workdir", str(place), "--filter-hosts", "-j", "3"]
    assert told[-1] == "${PARALLEL_SSHLOGIN##*-gpu}"


def test_each_line_tells_how_many_are_through_and_the_time_left_for_the_others(place):
    folder = place / "logs" / "jobs" / "1"
    folder.mkdir(parents=True)
    (folder / "lines").write_text("true\n" * 10)
    for mark in ("1.done", "2.failed", "3.done", "4.done"):
        (folder / mark).touch()
    begun = time.time() - 6000
    os.utime(folder / "lines", (begun, begun))
    told = subprocess.run(["bash", "study/engines.sh", str(folder), "5"], capture_output=True, text=True, check=True)
    assert re.match(r"\[5/10, 100 min \d+ s left\]", told.stdout)


def test_an_empty_list_is_no_failure(place):
    result = run_lines([])
    assert result.returncode == 0 and result.stdout == "nothing to do\n"


def test_an_unknown_engine_is_refused(place):
    result = run_lines(["show 1"], ENGINE="magic")
    assert result.returncode != 0 and "expected local, parallel or slurm" in result.stderr


@pytest.mark.parametrize("engine", ENGINES)
def test_visible_gpus_are_dealt_out_by_slot(place, engine):
    """Four lines at a time share the two visible GPUs evenly; a line that names its device keeps them all."""
    lines = [f"show {i}" for i in range(4)] + ["show own --device cuda:1", "show same --device=cuda:1"]
    assert run_lines(lines, ENGINE=engine, JOBS="4", CUDA_VISIBLE_DEVICES="5,7").returncode == 0
    assert sorted((place / f"shown-{i}").read_text() for i in range(4)) == ["5", "5", "7", "7"]
    assert (place / "shown-own").read_text() == (place / "shown-same").read_text() == "5,7"


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
    assert script.wait(20) == 130
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
    assert all("--gres=gpu:1" in call and "--dependency" not in call for call in calls)
    assert all("--requeue" in call and "--open-mode=append" in call for call in calls)
    numbers = "; ".join(f"echo {call[call.index('$((') :]}" for call in calls)  # the first line of each array
    told = subprocess.run(["bash", "-c", numbers], env={"SLURM_ARRAY_TASK_ID": "1"}, capture_output=True, text=True)
    assert told.stdout.split() == ["1", "11", "21"]
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
        pytest.skip("Slurm is not installed: run this on a cluster's login node")
    if answer.returncode or not answer.stdout.split():
        pytest.skip("no Slurm answers: run this on a cluster's login node (set SLURM_CONF?)")


def test_slurm_runs_the_lines(slurm, place):
    result = run_lines(["show 1", "exit 3", "show 2"], ENGINE="slurm", JOBS="1")
    assert result.returncode == 0 and "submitted 3 jobs as array" in result.stdout
    (folder,) = (place / "logs" / "jobs").iterdir()
    wait_until(lambda: len([*folder.glob("*.done"), *folder.glob("*.failed")]) == 3, 60)
    assert (place / "shown-1").exists() and (place / "shown-2").exists()
    assert [path.name for path in folder.glob("*.failed")] == ["2.failed"]
    assert "the reason 3" in (folder / "2.log").read_text()


@pytest.mark.skipif(not HAS_PARALLEL, reason=NO_PARALLEL)
def test_parallel_runs_the_lines_over_ssh(place):
    login = os.environ.get("TEST_SSHLOGIN", "localhost")
    words = ["ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=3", login, "true"]
    if not shutil.which("ssh") or subprocess.run(words, capture_output=True).returncode:
        pytest.skip(f"ssh {login} wants a password: add a key, or name another machine in TEST_SSHLOGIN")
    result = run_lines(["show 1", "exit 3", "show 2"], ENGINE="parallel", SSHLOGINS=login, JOBS="2")
    assert "1 of 3 jobs failed" in result.stdout and "the reason 3" in result.stdout
    assert (place / "shown-1").exists() and (place / "shown-2").exists()


# The study's scripts


def hold(asked, **outcome):
    """Makes a run's directory with a checkpoint and a record."""
    path = asked.run_dir / ("weights/last.ckpt" if asked.max_epochs else "dummy.ckpt")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    runs.write_record(asked, **outcome)


def finish(experiment):
    """Makes all runs of an experiment look finished."""
    for part in grids.parts(experiment):
        for asked in jobs.asked(experiment, part):
            seconds = {} if part == "dummy" else {"seconds": 60}
            hold(asked, finished=True, epochs=1 if seconds else 0, early_stopped=bool(seconds), **seconds)


def script(*words, cwd=None, **environment):
    """Runs one of the scripts, as `bash train.sh …` does."""
    return subprocess.run(
        ["bash", *words], env=os.environ | environment, cwd=cwd, capture_output=True, text=True, timeout=120
    )


def test_a_finished_list_of_270_is_skipped_at_once(place):
    finish("mnist-base")
    started = time.time()
    result = script("train.sh", "mnist-base")
    assert time.time() - started < 10
    assert result.returncode == 0 and "nothing to do" in result.stdout
    assert "in all: 370 done, 0 running, 0 failed, 0 left" in result.stdout


def test_status_counts_and_names_failures_and_the_time_left(place):
    finish("demo")
    first, second, third, *_ = jobs.asked("demo", "drop")
    hold(first, error="it broke")
    (second.run_dir / "run.json").unlink()
    (second.run_dir / "weights" / "last.ckpt").unlink()
    hold(third)
    with open(third.run_dir / ".lock", "wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        result = script("train.sh", "demo", "--status")
    assert "logs-demo-drop: 3 done, 1 running, 1 failed, 1 left" in result.stdout
    assert f"failed: {first.run_dir}: it broke" in result.stdout
    assert "in all: 17 done, 1 running, 1 failed, 1 left; about 3 min left, 1 at a time" in result.stdout


TRAIN = """
import os, sys
print(" ".join(sys.argv[1:]))
with open("trained", "a") as file:
    print(os.environ["OMP_NUM_THREADS"], *sys.argv[1:], file=file)
sys.exit(os.path.exists("fail"))
"""
EVALUATION = """
import argparse, sys
def parser():
    p = argparse.ArgumentParser(prog="eval.py", usage="")
    p.add_argument("--fail", action="store_true")
    for name in ("--null-draws", "--seed", "--jac-directions", "--data-dir", "--device", "--metrics"):
        p.add_argument(name)
    return p
if __name__ == "__main__":
    print("evaluated")
    with open("evaluated", "a") as file:
        print(*sys.argv[1:], file=file)
    sys.exit("--fail" in sys.argv)
"""


@pytest.fixture
def stand_ins(place):
    """Programs in the place of train.py and eval.py that only say what they were given; the run that there is."""
    (place / "train.py").write_text(TRAIN)
    (place / "eval.py").write_text(EVALUATION)
    (place / "logs-demo-drop" / "a run" / "weights").mkdir(parents=True)
    (place / "logs-demo-dummy" / "untrained").mkdir(parents=True)
    (place / "logs-demo-dummy" / "untrained" / "dummy.ckpt").touch()
    return place


def test_a_failure_is_told_until_the_lines_have_run_again(stand_ins):
    """Such as when Python lacks a package: there is no run then to hold the error."""
    (stand_ins / "fail").touch()
    result = script("train.sh", "demo", "drop")
    assert result.returncode == 1 and "3 of 3 jobs failed" in result.stdout
    result = script("train.sh", "demo", "--status")
    assert "3 jobs failed, such as logs-demo-drop/jobs/" in result.stdout and "--drop 0.2" in result.stdout
    (stand_ins / "fail").unlink()
    assert script("train.sh", "demo").returncode == 0  # other lines, of which the failed ones are a part
    result = script("train.sh", "demo", "drop", "--status")
    assert result.returncode == 0 and "jobs failed" not in result.stdout


def test_options_reach_the_trainings_each_on_one_thread(stand_ins):
    result = script("train.sh", "demo", "drop", "--max-epochs", "2", "--batch-size=7", OMP_NUM_THREADS="3")
    assert result.returncode == 0
    lines = (stand_ins / "trained").read_text().splitlines()
    assert len(lines) == 3 and all(line.startswith("1 --dataset mnist5k ") for line in lines)
    assert all(line.endswith(" --max-epochs 2 --batch-size=7") for line in lines)
    assert not (stand_ins / "evaluated").exists()


def test_then_eval_evaluates_what_was_trained_on_its_data(stand_ins):
    words = ["demo", "--then-eval", "drop", "dummy", "--device", "cpu", "--max-epochs", "2", "--data-dir", "my data"]
    result = script("train.sh", *words)
    assert result.returncode == 0, result.stderr
    (line,) = (stand_ins / "evaluated").read_text().splitlines()
    assert line == ("--run-dir logs-demo-drop/a run logs-demo-dummy/untrained --data-dir my data --device cpu")
    assert len((stand_ins / "trained").read_text().splitlines()) == 4


def test_then_eval_evaluates_though_a_training_failed_and_tells_it(stand_ins):
    (stand_ins / "fail").touch()
    result = script("train.sh", "demo", "drop", "--then-eval")
    assert result.returncode == 1 and (stand_ins / "evaluated").exists()


def test_under_slurm_the_evaluation_waits_for_the_trainings(stand_ins):
    program(stand_ins, "scontrol", "echo 'MaxArraySize            = 3'")
    program(stand_ins, "sbatch", 'echo "$@" >>calls; wc -l <calls')
    words = ["demo", "drop", "l2", "--then-eval", "--data-dir", "my data"]
    assert script("train.sh", *words, ENGINE="slurm").returncode == 0
    calls = (stand_ins / "calls").read_text().splitlines()
    assert [call.split("--array=")[1].split()[0] for call in calls[:-1]] == ["1-2", "1-2", "1-2"]
    assert "--dependency=afterany:1:2:3 --job-name=then-eval" in calls[-1]
    assert calls[-1].endswith("exec './eval.sh' 'logs-demo-drop' 'logs-demo-l2' '--data-dir' 'my data'")


def test_a_failed_evaluation_fails_the_script(stand_ins):
    assert script("eval.sh", "logs-demo-drop").returncode == 0
    result = script("eval.sh", "logs-demo-drop", "--fail")
    assert result.returncode == 1 and "1 of 1 jobs failed" in result.stdout


def test_options_reach_the_evaluations_and_runs_with_only_a_dummy_are_evaluated(stand_ins):
    result = script("eval.sh", "logs-demo-drop", "logs-demo-dummy", "--null-draws", "0", "--metrics", "a b", BATCH="1")
    assert result.returncode == 0
    lines = (stand_ins / "evaluated").read_text().splitlines()
    expected = ["--run-dir logs-demo-drop/a run", "--run-dir logs-demo-dummy/untrained"]
    assert sorted(lines) == [f"{line} --null-draws 0 --metrics a b" for line in expected]


@pytest.mark.parametrize("words", ["--null-draws", "--max-epochs 3", "--run-dir x", "--ckpt-file=x"])
def test_wrong_options_of_an_evaluation_are_told_once_and_nothing_is_evaluated(stand_ins, words):
    result = script("eval.sh", "logs-demo-drop", "logs-demo-dummy", *words.split(), BATCH="1")
    assert result.returncode and words.split("=")[0].split()[0] in result.stderr.splitlines()[-1]
    assert "jobs" not in result.stdout and not (stand_ins / "evaluated").exists()


@pytest.mark.parametrize("python", ["no/such/python", "no-such-python"])
def test_a_python_that_is_not_there_is_told_in_one_line(stand_ins, python):
    result = script("train.sh", "demo", PYTHON=python)
    assert result.returncode == 2 and result.stderr == f"PYTHON={python}: no such program\n"


def test_paths_are_those_of_the_caller_and_the_scripts_may_be_links(stand_ins, tmp_path_factory):
    """From another folder, through links there: results stay in the project, the caller's paths are the caller's."""
    elsewhere = tmp_path_factory.mktemp("else where")
    for name in ("train.sh", "eval.sh"):
        (elsewhere / name).symlink_to(stand_ins / name)
    (elsewhere / "mine" / "run" / "weights").mkdir(parents=True)
    assert script("train.sh", "demo", "drop", "--data-dir", "data", cwd=elsewhere).returncode == 0
    lines = (stand_ins / "trained").read_text().splitlines()
    assert all(line.endswith(f"--save-dir logs-demo-drop --data-dir {elsewhere}/data") for line in lines)
    result = script("eval.sh", "mine", "--data-dir=data", cwd=elsewhere)
    assert result.returncode == 0, result.stderr
    expected = f"--run-dir {elsewhere}/mine/run --data-dir={elsewhere}/data\n"
    assert (stand_ins / "evaluated").read_text() == expected
    result = script("eval.sh", "nothing", cwd=elsewhere)
    assert result.returncode == 1 and result.stderr.startswith(f"{elsewhere}/nothing: no runs in it")


def test_python_may_have_a_path_with_spaces_and_odd_letters(stand_ins, tmp_path_factory):
    folder = tmp_path_factory.mktemp("a & b's | c")
    (folder / "python").symlink_to(sys.executable)
    result = script("train.sh", "demo", "drop", PYTHON=str(folder / "python"))
    assert result.returncode == 0, result.stdout + result.stderr
    result = script(str(stand_ins / "train.sh"), "demo", "drop", PYTHON="./python", cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    assert len((stand_ins / "trained").read_text().splitlines()) == 6


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("JOBS", value) for value in ("0", "-3", "abc", "1.5", "1 2", "00", "+1", "9" * 20)),
        ("BATCH", "0"),
        ("RETRIES", "-1"),
    ],
)
def test_settings_that_are_no_numbers_are_refused(stand_ins, name, value):
    for words in (["train.sh", "demo"], ["train.sh", "demo", "--list"], ["eval.sh", "logs-demo-drop"]):
        result = script(*words, **{name: value})
        assert result.returncode == 2 and result.stderr == f"{name}={value}: expected a whole number from 1 to 999999\n"
    assert not (stand_ins / "trained").exists() and not (stand_ins / "evaluated").exists()


def test_settings_that_are_numbers_or_empty_are_taken(stand_ins):
    assert script("train.sh", "demo", "--list", JOBS="12", BATCH="", RETRIES="1").returncode == 0
    assert "6 jobs to do" in script("train.sh", "demo", "drop", JOBS="1", BATCH="1").stdout
    assert "3 jobs to do" in script("train.sh", "demo", "drop", JOBS="1", BATCH="08").stdout


@pytest.mark.parametrize("words", ["-h", "demo --help", "--help demo drop --device cpu", "demo --drop 1 -h"])
def test_help_is_printed_and_nothing_run(stand_ins, words):
    for name in ("train.sh", "eval.sh"):
        result = script(name, *words.split())
        assert result.returncode == 0 and f"./{name} " in result.stdout and not result.stderr
    assert not (stand_ins / "trained").exists() and not (stand_ins / "evaluated").exists()


def test_without_a_name_the_help_is_printed_and_the_status_tells_it(place):
    for words in (
        ["train.sh"],
        ["train.sh", "--status"],
        ["eval.sh"],
        ["eval.sh", "--list"],
        ["eval.sh", "--seed", "1"],
    ):
        result = script(*words)
        assert result.returncode == 2 and f"./{words[0]} " in result.stdout


@pytest.mark.parametrize(
    "words", ["--list demo drop --device cpu", "demo --list drop --device cpu", "demo drop --device cpu --list"]
)
def test_list_works_wherever_it_stands(stand_ins, words):
    result = script("train.sh", *words.split())
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert len(lines) == 6 and all(line.endswith("--save-dir logs-demo-drop --device cpu") for line in lines)
    assert not (stand_ins / "trained").exists()
    result = script("train.sh", *words.replace("--list", "--status").split())
    assert result.returncode == 0 and result.stdout.startswith("logs-demo-drop: 0 done")
    result = script("eval.sh", *words.replace("demo", "logs-demo-dummy").replace("drop", "logs-demo-drop").split())
    assert result.stdout.count("eval.py") == 1 and result.stdout.endswith("--device cpu\n")


def test_options_reach_train_py_but_untrained_networks_stay_untrained(place):
    result = script("train.sh", "demo", "--list", "--device", "cpu", "--max-epochs", "2")
    trained, *_, untrained = result.stdout.splitlines()
    assert trained.endswith("--device cpu --max-epochs 2")
    assert untrained.endswith("--device cpu --max-epochs 2 --max-epochs 0")


@pytest.mark.parametrize("option", ["--drop 0.3", "--l2=1", "--run 3", "--save-dir x", "--dataset mnist"])
def test_options_that_the_grid_owns_are_refused(stand_ins, option):
    for flag in ([], ["--list"], ["--status"]):
        result = script("train.sh", "demo", *flag, *option.split())
        name = option.replace("=", " ").split()[0]
        assert result.returncode == 1 and result.stderr.startswith(f"{name} is set by the grid") and not result.stdout
    assert not (stand_ins / "trained").exists()


def test_a_grid_that_holds_other_runs_is_refused_whole(stand_ins):
    for asked in jobs.asked("demo", "drop", ["--batch-size", "50"])[:2]:
        hold(asked, finished=True, epochs=9, early_stopped=True)
    result = script("train.sh", "demo", "drop")
    assert result.returncode == 1 and "batch_size 50, not 200" in result.stderr and result.stderr.count("\n") == 1
    assert not (stand_ins / "trained").exists()
    assert "0 done, 0 running, 2 failed, 4 left" in script("train.sh", "demo", "drop", "--status").stdout
    result = script("train.sh", "demo", "drop", "--batch-size", "50", "--status")
    assert "2 done, 0 running, 0 failed, 4 left" in result.stdout


def test_a_wrong_name_is_told_in_one_line(place):
    result = script("train.sh", "nonsense")
    assert result.returncode != 0 and result.stderr.startswith("unknown experiment 'nonsense'") and not result.stdout
    assert result.stderr.count("\n") == 1
