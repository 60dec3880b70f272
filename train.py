"""Trains one network of the study, or writes untrained ones.

    python train.py --dataset mnist --l2 1e-5 --drop 0.3 --run 0 --save-dir logs

writes `logs/mnist_sup_l2=0.00001_drop=0.30000/`: TensorBoard events, `weights/` (three best checkpoints, `last.ckpt`
and the link `best.ckpt`) and `run.json`, which says how far the run is. Started again, a finished run is skipped and an
interrupted one goes on exactly as if it had not been interrupted. With --max-epochs 0 it writes `dummy.ckpt` instead.
"""

import argparse
import json
import logging
import sys
import time
import warnings
from pathlib import Path

import torch

import models
from study import checkpoints, cli, datasets, grids
from study.provenance import provenance
from study.runs import finished, run_identity, run_lock, write_record


def main(args):
    """Trains, or writes untrained, every run that the arguments name."""
    cli.device(args.device)
    args.model_args = complete_model_args(args)
    for run in args.run:
        identity = run_identity(args, run)
        run_dir = Path(args.save_dir) / grids.uid(**{name: identity[name] for name in grids.NAMED})
        if finished(run_dir, identity, args.max_epochs):
            print(f"{run_dir}: finished before; nothing to do")
            continue
        with run_lock(run_dir) as obtained:
            if not obtained or finished(run_dir, identity, args.max_epochs):
                print(f"{run_dir}: another process trains it; nothing to do")
                continue
            write_record(run_dir, identity)
            try:
                outcome = write_untrained(run_dir, identity) if args.max_epochs == 0 else train(run_dir, identity, args)
            except BaseException as error:
                if isinstance(error, Exception):
                    write_record(run_dir, identity, error=" ".join(str(error).split())[:300] or type(error).__name__)
                raise
            write_record(run_dir, identity, finished=True, **outcome)


def complete_model_args(args):
    """The network's arguments, with the input's shape and the number of classes where the data set's name lacks them.

    Raises: UserError if no network can be made of them.
    """
    model_args = datasets.model_args(args.dataset, args.model_args, args.data_dir)
    try:
        with torch.device("meta"):
            models.build(args.dataset, args.drop, model_args)
    except ValueError as error:
        raise cli.UserError(error) from None
    return model_args


def write_untrained(run_dir, identity):
    """Writes a freshly initialised network as `dummy.ckpt`."""
    h = {name: identity[name] for name in grids.HYPERPARAMETERS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(h["seed"])
        model = models.build(h["dataset"], h["drop"], h["model_args"])
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    checkpoints.write(run_dir / "dummy.ckpt", {"hyper_parameters": h, "state_dict": state})
    print(f"{run_dir / 'dummy.ckpt'}: written, untrained")
    return {"epochs": 0, "early_stopped": False, **provenance()}


def train(run_dir, identity, args):
    """Trains one network to early stopping, from its last checkpoint if there is one."""
    import pytorch_lightning as pl
    from pytorch_lightning import callbacks
    from pytorch_lightning.plugins.environments import LightningEnvironment

    from models import LitWrapper
    from models.resumption import DurableIO, StopIfStopped

    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    datasets.load(args.dataset, args.data_dir)  # fails here if there is no data
    torch.set_flush_denormal(True)  # weights of pixels that are always 0 decay towards it, and denormal floats are slow
    started = time.time()
    weights, last = run_dir / "weights", run_dir / "weights" / "last.ckpt"
    resume = checkpoints.read(last) if last.exists() else None
    model = LitWrapper(**{name: identity[name] for name in grids.HYPERPARAMETERS}, data_dir=args.data_dir)
    early = callbacks.EarlyStopping("val_loss", patience=6)
    # The order matters: `last` is written after the three best, so that it knows of them when training resumes from it.
    best = callbacks.ModelCheckpoint(str(weights), monitor="val_loss", save_top_k=3, enable_version_counter=False)
    latest = callbacks.ModelCheckpoint(str(weights), "last", save_top_k=1, enable_version_counter=False)
    purge_step = resume["global_step"] if resume else 0  # what was logged after the last checkpoint is logged again
    logger = pl.loggers.TensorBoardLogger(
        run_dir.parent, run_dir.name, version="", default_hp_metric=False, purge_step=purge_step
    )
    device = cli.device(args.device)
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
        trainer.fit(model, ckpt_path=str(last) if resume else None)
    if trainer.interrupted:
        raise KeyboardInterrupt
    checkpoints.link_best(weights, best.best_model_path)
    epochs, loss = trainer.current_epoch, best.best_model_score.item()
    print(f"{run_dir}: finished after {epochs} epochs in {time.time() - started:.0f} s, best val_loss {loss:.4f}")
    return {
        "epochs": epochs,
        "early_stopped": early.stopped_epoch > 0,
        "best_val_loss": loss,
        "seconds": round(time.time() - started, 1),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        **provenance(),
    }


def run_range(text):
    """The runs that "3" or "1000-1099" names."""
    first, _, last = text.partition("-")
    runs = range(int(first), int(last or first) + 1)
    if not runs:
        raise ValueError
    return runs


def json_object(text):
    value = json.loads(text)
    if not isinstance(value, dict):
        raise ValueError
    return value


def parser():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--dataset", required=True, help=datasets.choices())
    p.add_argument("--task", default="sup", choices=["sup"], help="sup: supervised classification")
    p.add_argument("--l2", type=float, default=grids.L2_ALONE, help="weight of ΣW² in the loss (default 1e-5)")
    p.add_argument("--l1", type=float, default=0.0, help="weight of Σ|W| in the loss (default 0)")
    p.add_argument("--drop", type=float, default=0.0, help="dropout probability (default 0)")
    p.add_argument("--run", type=run_range, default=range(1), help="number of the repetition, or a range 1000-1099")
    p.add_argument("--seed", type=int, help="default: 286436723 + run")
    p.add_argument("--save-dir", default="logs", help="where the run's directory is made (default logs)")
    p.add_argument("--data-dir", default="data", help="where the data is or will be put (default data)")
    p.add_argument("--max-epochs", type=int, default=500, help="0 writes the untrained network as dummy.ckpt")
    p.add_argument("--batch-size", type=int, default=200)
    p.add_argument(
        "--precision", default=grids.PRECISIONS[0], choices=grids.PRECISIONS, help="of training (default 32)"
    )
    p.add_argument("--train-val-split", type=float, default=0.9, help="fraction of training images trained on")
    p.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    p.add_argument("--model-args", type=json_object, default={}, help="""JSON, as '{"channels": [256, 256]}'""")
    p.add_argument("--no-progress", dest="progress", action="store_false", help="no progress bar")
    return p


if __name__ == "__main__":
    cli.stop_on_sigterm()
    with cli.one_line_errors("train.py"):
        main(parser().parse_args())
