"""Trains one network of the study, or writes untrained ones.

    python train.py --dataset mnist --l2 1e-5 --drop 0.3 --run 0 --save-dir logs

writes `logs/mnist_sup_l2=0.00001_drop=0.30000/`: TensorBoard events, `weights/` (three best checkpoints, `last.ckpt`
and the link `best.ckpt`) and `run.json`, which says how far the run is. Started again, a finished run is skipped and an
interrupted one goes on exactly as if it had not been interrupted. With --max-epochs 0 it writes `dummy.ckpt` instead.
"""

import argparse
import contextlib
import logging
import os
import sys
import time
import warnings

import torch

import models
from study import checkpoints, cli, datasets, grids, options, runs
from study.cli import UserError
from study.files import FileError
from study.provenance import provenance

HELD = {"hyper_parameters": dict, "state_dict": dict}  # what a checkpoint must have to be told from another run's
RESUMED = {"epoch": int, "global_step": int, "optimizer_states": list, "lr_schedulers": list, "callbacks": dict,
           "loops": dict}  # and what else to be gone on from  # fmt: skip
COPIES = 4  # of the weights, that training holds at least: themselves, their gradients, and Adam's two means


def main(args: argparse.Namespace) -> None:
    """Trains, or writes untrained, every run that the arguments name; all are checked before the first is begun."""
    device = cli.device(args.device)
    if device.type == "cpu":
        cli.hide_gpus()
    runs.asked(args)  # values that mean nothing are told before anything is read
    args.model_args = complete_model_args(args)
    datasets.splits(args.dataset, args.data_dir, train_val_split=args.train_val_split)
    asked = runs.asked(args, datasets.fingerprint(args.dataset, args.data_dir))
    todo = [ask for ask in asked if not is_done(ask)]
    for ask in todo:
        with runs.run_lock(ask.run_dir) as obtained:
            if not obtained:
                print(f"{ask.run_dir}: another process works on it; nothing to do")
            elif not is_done(ask):  # another process may have finished it meanwhile
                make(ask, args, device)


def complete_model_args(args: argparse.Namespace) -> dict:
    """The network's arguments, with the input's shape and the number of classes where the data set's name lacks them.

    Raises: UserError if no network can be made of them.
    """
    model_args = datasets.model_args(args.dataset, args.model_args, args.data_dir)
    try:
        with torch.device("meta"):
            model = models.build(args.dataset, args.drop, model_args)
    except ValueError as error:
        raise UserError(f"--model-args: {error}") from None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = COPIES * sum(p.numel() * p.element_size() for p in model.parameters())
    if needed > memory:
        raise UserError(f"--model-args: training takes {needed / 1e9:.3g} GB, and this machine has {memory / 1e9:.3g}")
    return model_args


def is_done(ask: runs.Asked) -> bool:
    """Whether a run is finished, and says so.

    Raises: UserError if its directory holds another run.
    """
    state, why = runs.state(ask.run_dir, ask)
    if state == "other":
        raise UserError(f"{ask.run_dir} holds another run ({why}); choose another --save-dir")
    if state == "done":
        print(f"{ask.run_dir}: finished before; nothing to do")
    return state == "done"


def make(ask: runs.Asked, args: argparse.Namespace, device: torch.device) -> None:
    """Trains one run, or writes it untrained, and keeps its record. The caller holds its lock."""
    held = held_checkpoint(ask)
    before, started = runs.seconds_before(ask.run_dir), time.time()
    runs.write_record(ask, seconds=before, started=started)
    try:
        outcome = write_untrained(ask, held) if ask.identity["untrained"] else train(ask, args, device, held)
    except Exception as error:
        told = " ".join(str(error).split())[:300] or type(error).__name__
        with contextlib.suppress(FileError):  # as on a full disk: the error itself is told in any case
            runs.write_record(ask, seconds=before, started=started, error=told)
        raise
    seconds = None if before is None else round(before + time.time() - started, 3)
    runs.write_record(ask, finished=True, **outcome, seconds=seconds, **provenance())
    how = f"best val_loss {outcome['best_val_loss']:.4f}" if outcome["epochs"] else "untrained"
    print(f"{ask.run_dir}: finished after {outcome['epochs']} epochs in {time.time() - started:.0f} s, {how}")


def held_checkpoint(ask: runs.Asked) -> dict | None:
    """The checkpoint that a run goes on from; None at its beginning.

    Raises: UserError if it is another run's, or cannot be gone on from.
    """
    path = ask.run_dir / ("dummy.ckpt" if ask.identity["untrained"] else "weights/last.ckpt")
    if not path.exists():
        if runs.is_lost(ask.run_dir):
            raise UserError(f"{ask.run_dir} holds checkpoints, but neither run.json nor {path.name}; move it away")
        return None
    stored = checkpoints.read(path)
    kinds = HELD if ask.identity["untrained"] else HELD | RESUMED
    lacking = [key for key, kind in kinds.items() if not isinstance(stored.get(key), kind)]
    if lacking:
        raise UserError(f"{path} is not a training's checkpoint: it lacks {lacking[0]}; move it away")
    hyperparameters = stored["hyper_parameters"] | {"untrained": ask.identity["untrained"]}
    record = {"hyperparameters": hyperparameters, "data": stored.get("data"), "epochs": stored.get("epoch", -1) + 1}
    if other := runs.differences(record, ask):
        raise UserError(f"{path} belongs to another run ({'; '.join(other)}); move it away")
    return stored


def write_untrained(ask: runs.Asked, held: dict | None) -> dict:
    """Writes a freshly initialised network as `dummy.ckpt`, unless that is there."""
    h = {name: ask.identity[name] for name in grids.HYPERPARAMETERS}
    if held is None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(h["seed"])
            model = models.build(h["dataset"], h["drop"], h["model_args"])
        state = {f"model.{name}": value for name, value in model.state_dict().items()}
        stored = {"hyper_parameters": h, "state_dict": state, "data": ask.data}
        checkpoints.write(ask.run_dir / "dummy.ckpt", stored)
    return {"epochs": 0, "early_stopped": False}


def train(ask: runs.Asked, args: argparse.Namespace, device: torch.device, held: dict | None) -> dict:
    """Trains one network to early stopping, from the checkpoint it held if there is one; how that ended."""
    import pytorch_lightning as pl
    from pytorch_lightning import callbacks
    from pytorch_lightning.plugins.environments import LightningEnvironment

    from models import LitWrapper
    from models.resumption import DurableIO, StopIfStopped

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    torch.set_flush_denormal(True)  # weights of pixels that are always 0 decay towards it, and denormal floats are slow
    weights = ask.run_dir / "weights"
    model = LitWrapper(**{name: ask.identity[name] for name in grids.HYPERPARAMETERS}, data_dir=args.data_dir)
    early = callbacks.EarlyStopping("val_loss", patience=6)
    # The order matters: `last` is written after the three best, so that it knows of them when training resumes from it.
    best = callbacks.ModelCheckpoint(str(weights), monitor="val_loss", save_top_k=3, enable_version_counter=False)
    latest = callbacks.ModelCheckpoint(str(weights), "last", save_top_k=1, enable_version_counter=False)
    logger = pl.loggers.TensorBoardLogger(
        ask.run_dir.parent,
        ask.run_dir.name,
        version="",
        default_hp_metric=False,
        purge_step=held["global_step"] if held else 0,  # what was logged after the last checkpoint is logged again
    )
    progress = args.progress and sys.stderr.isatty()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pytorch_lightning|lightning_fabric")  # advice for other uses
        trainer = pl.Trainer(
            max_epochs=args.max_epochs,
            precision=args.precision,
            accelerator=device.type,
            devices=[device.index or 0] if device.type == "cuda" else 1,
            logger=logger,
            callbacks=[early, StopIfStopped(early), best, latest, *([callbacks.TQDMProgressBar()] if progress else [])],
            plugins=[DurableIO(), LightningEnvironment()],  # under Slurm, Lightning would requeue jobs on its own
            log_every_n_steps=1,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            enable_progress_bar=progress,
        )
        with contextlib.suppress(SystemExit):  # Lightning's answer to Ctrl-C, with status 1
            trainer.fit(model, ckpt_path=str(weights / "last.ckpt") if held else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    checkpoints.link_best(weights, best.best_model_path)
    return {
        "epochs": trainer.current_epoch,
        "early_stopped": early.stopped_epoch > 0,
        "best_val_loss": best.best_model_score.item(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }


def parser() -> cli.Parser:
    return options.parser(__doc__, datasets.choices())


if __name__ == "__main__":
    cli.stop_on_sigterm()
    with cli.one_line_errors("train.py"):
        main(parser().parse_args())
