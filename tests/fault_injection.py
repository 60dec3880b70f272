"""Breaks trainings and evaluations in every way that a machine can, lets them finish, and counts what was lost.

    python -m tests.fault_injection [--kills 30] [--damages 1000] [--seed 0]

Runs of a dense and of a convolutional network, the latter in both precisions, are ended by SIGKILL at random moments,
by SIGKILL at random operations on files, by SIGTERM, by a full disk, and by a second process that does the same work at
the same time. Each is then started again until it finishes, and must leave what an undisturbed run leaves, bit for bit:
weights, optimizer, scheduler, early stopping, kept files, chosen best checkpoint, logged scalars, evaluation. Then
checkpoints are damaged and read.
"""

import argparse
import json
import logging
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parent.parent
SIGNALS = ("SIGKILL at a file operation", "SIGKILL at a random moment", "SIGTERM at a random moment")
FILE_OPERATIONS = ("fsync", "replace", "remove", "unlink", "symlink")
CLASSES, TEST_IMAGES = 10, 4  # images a class
MODELS = {
    "dense": ["--dataset", "mnist", "--drop", "0.2", "--l2", "1e-3", "--model-args", '{"channels": [16, 12]}'],
    "conv": ["--dataset", "cifar10", "--drop", "0.1", "--model-args", '{"channels": [8, 8, 8, 8]}'],
}
MODELS["bf16"] = [*MODELS["conv"], "--precision", "bf16-mixed", "--max-epochs", "3"]  # slow on most processors
TRAIN = ["--device", "cpu", "--batch-size", "20", "--max-epochs", "30", "--no-progress"]
ROOM = 20_000  # bytes of a file for which there is room on a full disk: not for a checkpoint
EVAL = ["--device", "cpu", "--null-draws", "2", "--jac-directions", "2", "--no-progress"]


# Runs in processes of their own, which start at once because a server has imported everything for them


def start_server():
    """The source of processes in which torch, Lightning and the project are already imported."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["train", "eval", "pytorch_lightning", "models.resumption", "torch.utils.tensorboard"]
    )
    first = context.Process(target=int)
    first.start()  # waits until everything is imported
    first.join()
    return context


def work(program, words, log, fatal_operation, last_space, sign):
    """In a process of its own: runs train.py or eval.py, sent a signal before its n-th operation on files if n > 0.

    Instead of a full disk, which takes a disk of one's own, no file may grow any more after the operation `last_space`.
    """
    from study import cli

    tqdm.set_lock(threading.RLock())  # its own one is shared between processes, which do not live to give it back
    sys.stdout = sys.stderr = open(log, "a", buffering=1)  # noqa: SIM115
    operations = 0

    def counted(function):
        def call(*args, **kwargs):
            nonlocal operations
            if str(args[-1]).endswith((".nbi", ".nbc")):  # numba's cache, which only a checkout's first job fills
                return function(*args, **kwargs)
            operations += 1
            if operations == fatal_operation:
                os.kill(os.getpid(), sign)
            if operations == last_space:
                room = os.path.getsize(log) + ROOM
                resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
            return function(*args, **kwargs)

        return call

    for name in FILE_OPERATIONS:
        setattr(os, name, counted(getattr(os, name)))
    cli.stop_on_sigterm()
    module = __import__(program)
    with cli.one_line_errors(program):
        module.main(module.parser().parse_args(words))
    Path(log).with_suffix(".operations").write_text(str(operations))


class Job:
    """A training or an evaluation that can be started, ended early, and started again."""

    def __init__(self, context, program, words, log):
        self.context, self.program, self.words, self.log = context, program, list(map(str, words)), log

    def start(self, fatal_operation=0, last_space=0, sign=signal.SIGKILL):
        args = (self.program, self.words, self.log, fatal_operation, last_space, sign)
        process = self.context.Process(target=work, args=args)
        process.start()
        return process

    def end(self, process):
        """Waits for a process; its exit status, negative for a signal."""
        process.join()
        time.sleep(1.1 - time.time() % 1)  # TensorBoard orders files by the second in which they were begun
        return process.exitcode

    def run(self, fatal_operation=0, last_space=0, sign=signal.SIGKILL):
        return self.end(self.start(fatal_operation, last_space, sign))

    def run_for(self, seconds, sign):
        """Runs and sends a signal after some time; the exit status, 0 if it had finished before."""
        process = self.start()
        process.join(seconds)
        if process.exitcode is None:
            os.kill(process.pid, sign)
        return self.end(process)

    def operations(self):
        """How many operations on files its last complete run made."""
        return int(Path(self.log).with_suffix(".operations").read_text())


def make_data(folder):
    """Tiny image folders: classes that differ by little more than noise, so that training soon stops improving."""
    from PIL import Image

    from study import datasets

    rng = np.random.default_rng(0)
    for name, shape, contrast, train_images in (("mnist", (28, 28), 12, 20), ("cifar10", (32, 32, 3), 3, 10)):
        patterns = rng.normal(128, contrast, (CLASSES, *shape))
        for part, n in (("train", train_images), ("test", TEST_IMAGES)):
            for label, pattern in enumerate(patterns):
                place = folder / name / part / str(label)
                place.mkdir(parents=True)
                for i in range(n):
                    image = np.clip(pattern + rng.normal(0, 60, shape), 0, 255).astype(np.uint8)
                    Image.fromarray(image).save(place / f"{i}.png")
        datasets.load(name, folder)  # makes its cache, or the first job alone would: all make the same file operations


# Comparison


def same(a, b):
    """Whether two nested structures of plain values and tensors are equal bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()
    return a == b or (a != a and b != b)


def comparable(value):
    """A checkpoint without what may differ: folders in paths, and a score that Lightning neither restores nor reads."""
    if isinstance(value, dict):
        return {comparable(k): comparable(v) for k, v in value.items() if k not in ("current_score", "dirpath")}
    if isinstance(value, list):
        return [comparable(v) for v in value]
    return os.path.basename(value) if isinstance(value, str) else value


def scalars(run_dir):
    """The logged scalars as TensorBoard reads them: {tag: [(step, value), …]}."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # it tells of every resumption
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"]) - {"hp_metric", "epoch"}
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def differences(run_dir, reference):
    """What distinguishes a run from the undisturbed one: a list of words, empty if nothing does."""
    from study import checkpoints

    found = []
    kept, expected = (sorted(path.name for path in (run / "weights").iterdir()) for run in (run_dir, reference))
    if set(kept) - {".lock"} != set(expected) - {".lock"}:
        return [f"kept files: {kept}, not {expected}"]
    links = [os.readlink(run / "weights" / "best.ckpt") for run in (run_dir, reference)]
    if links[0] != links[1]:
        found.append(f"best: {links}")
    for name in (name for name in expected if name.endswith(".ckpt")):
        ours, theirs = (comparable(checkpoints.read(run / "weights" / name)) for run in (run_dir, reference))
        found += [f"{name}: {key}" for key in ours.keys() | theirs.keys() if not same(ours.get(key), theirs.get(key))]
    if scalars(run_dir) != scalars(reference):
        found.append("scalars")
    may_differ = {"seconds": 0, "commit": None}
    records = [json.loads((run / "run.json").read_text()) | may_differ for run in (run_dir, reference)]
    if records[0] != records[1]:
        found.append("run.json")
    return found


# Faults


class Trial:
    """One network: its undisturbed training and evaluation, and others that are compared with them."""

    def __init__(self, context, folder, model):
        self.context, self.folder, self.model, self.number = context, folder, model, 0
        self.seconds, self.operations = {}, {}
        self.trained = self.undisturbed("train")
        self.evaluated = self.undisturbed("eval")

    def job(self, program, place):
        """A job on the run in a folder; the training or evaluation of a run that is there goes on."""
        data = ["--data-dir", self.folder / "data"]
        if program == "train":
            words = [*TRAIN, *MODELS[self.model], *data, "--save-dir", place]
        else:
            words = [*EVAL, *data, "--run-dir", self.run_dir(place)]
        return Job(self.context, program, words, self.folder / f"{program}-{self.model}.log")

    def run_dir(self, place):
        return next(path for path in place.iterdir() if path.name.startswith(("mnist", "cifar10")))

    def place(self, program):
        """A new folder: empty, or with an undisturbed training that is to be evaluated."""
        self.number += 1
        place = self.folder / f"{self.model}-{program}-{self.number}"
        if program == "eval":
            subprocess.run(["cp", "-a", self.trained.parent, place], check=True)
        return place

    def undisturbed(self, program):
        place = self.place(program)
        job, started = self.job(program, place), time.time()
        process = job.start()
        process.join()
        assert process.exitcode == 0, Path(job.log).read_text()
        self.seconds[program], self.operations[program] = time.time() - started, job.operations()
        return self.run_dir(place)

    def reference(self, program):
        return self.trained if program == "train" else self.evaluated

    def disturbed(self, program, faults, rng):
        """Injects faults into one run, lets it finish, and returns (faults injected, differences)."""
        place, injected = self.place(program), Counter()
        job, finished = self.job(program, place), False
        for fault in faults:
            if fault == SIGNALS[0]:
                status = job.run(fatal_operation=rng.randrange(1, self.operations[program]))
            else:
                sign = signal.SIGTERM if fault == SIGNALS[2] else signal.SIGKILL
                status = job.run_for(rng.uniform(0, 0.8 * self.seconds[program]), sign)
            if status == 0:
                finished = True
                break
            injected[fault] += 1
        if not finished:
            status = job.run()
        if status != 0:
            return injected, [f"does not finish: {Path(job.log).read_text().splitlines()[-1]}"]
        return injected, differences(self.run_dir(place), self.reference(program))

    def two_at_once(self, program):
        """Two processes do the same work at the same time."""
        place = self.place(program)
        place.mkdir(exist_ok=True)
        jobs = [self.job(program, place) for _ in range(2)]
        processes = [job.start() for job in jobs]
        statuses = [job.end(process) for job, process in zip(jobs, processes, strict=True)]
        return differences(self.run_dir(place), self.reference(program)) + [f"status {s}" for s in statuses if s]

    def full_disk(self, program):
        """The disk is full in the middle; what is lost once it has space again."""
        place = self.place(program)
        place.mkdir(exist_ok=True)
        job = self.job(program, place)
        status = job.run(last_space=self.operations[program] // 2)
        log = Path(job.log).read_text().splitlines()[-1]
        if status == 0 or "cannot write" not in log:
            return [f"a full disk gave status {status}: {log}"]
        status = job.run()
        found = [f"status {status}"] if status else []
        return found + differences(self.run_dir(place), self.reference(program))


def corrupted(data, rng):
    """Some bytes with some damage: flipped bits (many in the zip's headers), a cut, a block of zeros, an insertion."""
    damaged, size, central = bytearray(data), len(data), data.index(b"PK\x01\x02")
    kind = rng.choice(["bit", "header", "bytes", "cut", "zeros", "insertion"])
    if kind == "cut":
        return data[: rng.randrange(size)]
    if kind == "insertion":
        at = rng.randrange(size)
        return data[:at] + rng.randbytes(1) + data[at:]
    if kind == "zeros":
        at = rng.randrange(size)
        damaged[at : at + 512] = bytes(len(damaged[at : at + 512]))
    elif kind == "bytes":
        for _ in range(rng.randrange(2, 20)):
            damaged[rng.randrange(size)] = rng.randrange(256)
    else:
        damaged[rng.randrange(central if kind == "header" else 0, size)] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def read_damaged(path, n, rng):
    """Reads n damaged variants of a checkpoint; how many were equal to it, refused in one line, or wrong."""
    from study import checkpoints, files

    original, data, outcomes = checkpoints.read(path), Path(path).read_bytes(), Counter(equal=0, refused=0, wrong=0)
    with tempfile.NamedTemporaryFile(suffix=".ckpt") as file:
        for _ in range(n):
            Path(file.name).write_bytes(corrupted(data, rng))
            try:
                outcomes["equal" if same(checkpoints.read(file.name), original) else "wrong"] += 1
            except files.FileError as error:
                outcomes["wrong" if "\n" in str(error) else "refused"] += 1
    return outcomes


def report(kills, damages, seed, folder):
    """Injects everything into all networks, printing what was done and what was lost; returns the number of losses."""
    rng, context, lost = random.Random(seed), start_server(), 0
    make_data(folder / "data")
    print(f"{'':5} {'':5} {'fault':30} {'injected':>8} {'lost':>5}")

    def line(what, fault, injected, found):
        nonlocal lost
        lost += len(found)
        print(f"{model:5} {what:5} {fault:30} {injected:8} {len(found):5}  {found or ''}", flush=True)

    for model in MODELS:
        trial = Trial(context, folder, model)
        for program in ("train", "eval"):
            injected, found, runs = Counter(), [], 0
            while sum(injected.values()) < kills / (2 * len(MODELS)):
                some, differ = trial.disturbed(program, [SIGNALS[(runs + i) % 3] for i in range(3)], rng)
                injected, found, runs = injected + some, found + differ, runs + 1
            for fault in SIGNALS:
                line(program, fault, injected[fault], [])
            line(program, f"in all, in {runs} runs", sum(injected.values()), found)
            line(program, "two processes at once", 1, trial.two_at_once(program))
            line(program, "full disk", 1, trial.full_disk(program))
        outcomes = read_damaged(trial.evaluated / "weights" / "best.ckpt", damages // 2, rng)
        line("read", f"damage ({outcomes['refused']} refused)", damages // 2, ["wrong"] * outcomes["wrong"])
    print(f"results lost: {lost}")
    return lost


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="signals sent, over all networks and both programs (30)")
    parser.add_argument("--damages", type=int, default=1000, help="damaged checkpoints read (1000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(report(args.kills, args.damages, args.seed, Path(folder)) > 0)


if __name__ == "__main__":
    main()
