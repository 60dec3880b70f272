"""The LightningModule that trains one network of the study."""

import itertools
import math
from collections.abc import Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch.nn import functional as F

from models import norms
from models.build import build
from study import datasets, grids
from study.grids import BASE_SEED, NAMED, REGULARIZERS

CHANNELS_AT_A_TIME = 8  # a vector's floats; torch 2.14 writes beyond its memory where channels_last layers have fewer
STEPS_AT_A_TIME = 10  # optimizer steps between two visits to Lightning's loop, whose cost is about that of one step


class EpochBatches:
    """A data loader that hands Lightning a list of STEPS_AT_A_TIME batches at a time.

    Args:
        split: a `datasets.Split`.
        batch_size: images a batch.
        epoch_seed: called at the start of each epoch for the seed of its order and flips; None: the split's own order.
    """

    def __init__(self, split, batch_size, epoch_seed=None):
        self.split, self.batch_size, self.epoch_seed = split, batch_size, epoch_seed

    def __len__(self) -> int:
        return math.ceil(math.ceil(len(self.split) / self.batch_size) / STEPS_AT_A_TIME)

    def __iter__(self) -> Iterator[list[tuple[torch.Tensor, torch.Tensor]]]:
        generator = torch.Generator().manual_seed(self.epoch_seed()) if self.epoch_seed else None
        batches = self.split.batches(self.batch_size, generator)
        while group := list(itertools.islice(batches, STEPS_AT_A_TIME)):
            yield group


class RunningMeans:
    """Mean cross-entropy and accuracy over the batches seen, summed on the device in float64."""

    def __init__(self, device):
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.n = 0

    def update(self, mean_loss: torch.Tensor, logits: torch.Tensor, y: torch.Tensor) -> None:
        self.sums[0] += mean_loss * len(y)
        self.sums[1] += (logits.argmax(1) == y).sum()
        self.n += len(y)

    def means(self) -> list[float]:
        return (self.sums / self.n).tolist()


class LitWrapper(pl.LightningModule):
    """A network of the study with its data, loss and optimizer.

    The loss is cross-entropy + l1 · Σ|W| + l2 · ΣW² over weights (parameters with ndim ≥ 2). Optimizer: Adam, learning
    rate 1e-3, divided by 4 after more than 3 epochs in which `val_loss`, the cross-entropy alone, did not improve.

    All randomness of training derives from (seed, epoch), never from what happened before: a training that is killed
    and resumed at an epoch's start goes on exactly as it would have.

    Args:
        dataset: selects data and model, see `datasets.splits` and `datasets.describe`.
        task: "sup", supervised classification.
        l1, l2, drop: weight of the L1 and L2 penalties, dropout probability.
        run: number of the repetition.
        seed: determines initial weights, validation split, batches and dropout. Default: 286436723 + run.
        train_val_split: fraction of the official training images that is trained on.
        model_args: further keyword arguments of the model.
        batch_size: images a training step.
        precision: "32", or "bf16-mixed" for products in bfloat16; the trainer is given the same.
            Validation is always in float32.
        data_dir: the folder that holds the data.
        other: ignored (what files written by other programs have among their hyperparameters).

    Raises: ValueError where a value means nothing, see `grids.check`, or there is no such network.
    """

    def __init__(
        self,
        dataset: str,
        task: str = "sup",
        l1: float = 0.0,
        l2: float = 0.0,
        drop: float = 0.0,
        run: int = 0,
        seed: int | None = None,
        train_val_split: float = 0.9,
        model_args: dict | None = None,
        batch_size: int = 200,
        precision: str = "32",
        data_dir: str | Path = "data",
        **other,
    ):
        super().__init__()
        if task != "sup":
            raise ValueError(f"unknown task {task!r}: expected 'sup'")
        seed = BASE_SEED + run if seed is None else seed
        model_args = dict(model_args or {})
        if dataset not in datasets.DATASETS and not model_args.keys() >= {"input_shape", "num_classes"}:
            model_args = datasets.model_args(dataset, model_args, data_dir)
        ignored = [name for name in other if name not in REGULARIZERS]
        self.save_hyperparameters(ignore=["data_dir", "other", *ignored])
        grids.check(dict(self.hparams))
        self.automatic_optimization = False
        self.data_dir = data_dir
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = build(dataset, drop, model_args)
        widths = [p.shape[0] for p in self.model.parameters() if p.ndim == 4]
        self.channels_last = bool(widths) and not any(width % CHANNELS_AT_A_TIME for width in widths)
        if self.channels_last:  # the layout that convolutions are fastest in
            self.model.to(memory_format=torch.channels_last)

    def forward(self, x: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        return self.model(x.contiguous(memory_format=torch.channels_last) if self.channels_last else x)

    # Weights

    def l1_norm(self) -> torch.Tensor:
        return norms.l1_norm(self.model)

    def l2_norm(self) -> torch.Tensor:
        return norms.l2_norm(self.model)

    def nuc_norm(self) -> torch.Tensor:
        return norms.nuc_norm(self.model)

    def sparsity(self, eps: float = 1e-3) -> torch.Tensor:
        return norms.sparsity(self.model, eps)

    def l1_norm_by_layer(self) -> dict[str, torch.Tensor]:
        return norms.by_layer(norms.l1_norm, self.model)

    def l2_norm_by_layer(self) -> dict[str, torch.Tensor]:
        return norms.by_layer(norms.l2_norm, self.model)

    def nuc_norm_by_layer(self) -> dict[str, torch.Tensor]:
        return norms.by_layer(norms.nuc_norm, self.model)

    def sparsity_by_layer(self, eps: float = 1e-3) -> dict[str, torch.Tensor]:
        return norms.by_layer(norms.sparsity, self.model, eps=eps)

    # Data

    def get_uid(self) -> str:
        """The name of the run's directory, see `grids.uid`."""
        return grids.uid(**{name: self.hparams[name] for name in NAMED if name in self.hparams})

    def get_dataset(self, data_dir: str | Path = "data") -> tuple[datasets.Split, datasets.Split, datasets.Split]:
        """Train, validation and test `datasets.Split`, the validation images chosen by the run's seed."""
        return datasets.splits(self.hparams.dataset, data_dir, self.hparams.seed, self.hparams.train_val_split)

    def setup(self, stage=None):
        self.train_split, self.val_split, _ = self.get_dataset(self.data_dir)
        self.data = datasets.fingerprint(self.hparams.dataset, self.data_dir)

    def train_dataloader(self):
        return EpochBatches(self.train_split.to(self.device), self.hparams.batch_size, self._epoch_seed)

    def val_dataloader(self):
        return EpochBatches(self.val_split.to(self.device), self.hparams.batch_size)

    def _epoch_seed(self):
        return 1_000_003 * (self.current_epoch + 1) + self.hparams.seed

    # Training

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-3, fused=True)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.25, patience=3)
        return {"optimizer": optimizer, "lr_scheduler": plateau}

    def add_penalty_gradients(self) -> None:
        """Adds the gradients of l1 · Σ|W| + l2 · ΣW², l1 · sign W + 2 l2 · W, to those of the cross-entropy.

        Autograd would take ten times as long, a tenth of a whole step; a penalty whose weight is zero costs nothing.
        """
        for W in norms.weights(self.model).values():
            if self.hparams.l1:
                W.grad.add_(W.sign(), alpha=self.hparams.l1)
            if self.hparams.l2:
                W.grad.add_(W, alpha=2 * self.hparams.l2)

    def on_train_epoch_start(self):
        torch.manual_seed(self._epoch_seed())
        self.train_metrics = RunningMeans(self.device)

    def training_step(self, batches, index):
        """One optimizer step for each of the few batches that Lightning hands over at a time (see EpochBatches)."""
        optimizer = self.optimizers()
        for x, y in batches:
            optimizer.zero_grad()
            logits = self(x)[1]
            cross_entropy = F.cross_entropy(logits, y)
            self.manual_backward(cross_entropy)
            self.add_penalty_gradients()
            optimizer.step()
            self.train_metrics.update(cross_entropy.detach(), logits.detach(), y)

    def on_validation_epoch_start(self):
        self.val_metrics = RunningMeans(self.device)

    def validation_step(self, batches, index):
        with torch.autocast(self.device.type, enabled=False):
            for x, y in batches:
                logits = self(x)[1]
                self.val_metrics.update(F.cross_entropy(logits, y), logits, y)

    def on_validation_epoch_end(self):
        """Logs the epoch and steps the scheduler, before the epoch's checkpoint is written, so that it has them."""
        loss, accuracy = self.val_metrics.means()
        scalars = dict(zip(("train_loss", "train_acc"), self.train_metrics.means(), strict=True))
        scalars |= {"val_loss": loss, "val_acc": accuracy, "epoch": self.current_epoch}
        scalars |= {"l1_norm": self.l1_norm().item(), "l2_norm": self.l2_norm().item()}
        scalars |= {"learning_rate": self.optimizers().param_groups[0]["lr"]}
        self.log_dict({"val_loss": loss, "val_acc": accuracy}, logger=False, prog_bar=True)
        if self.logger is not None:
            self.logger.log_metrics(scalars, step=self.global_step - 1)
        self.lr_schedulers().step(loss)

    def on_save_checkpoint(self, checkpoint):
        """Says in a checkpoint which data it was trained on."""
        checkpoint["data"] = self.data
        if self.logger is not None:
            self.logger.experiment.flush()  # what a checkpoint has seen is in the log, whatever happens next
