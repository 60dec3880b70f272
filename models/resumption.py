"""What Lightning needs to resume a training exactly: durable files, and to know that a stopped training has stopped."""

import os

import pytorch_lightning as pl
from pytorch_lightning.plugins.io import CheckpointIO

from study import checkpoints


class DurableIO(CheckpointIO):
    """Lightning's checkpoints, written and read by `checkpoints.write` and `checkpoints.read`."""

    def save_checkpoint(self, checkpoint_dict, path, storage_options=None):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        checkpoints.write(path, checkpoint_dict)

    def load_checkpoint(self, path, map_location=None, **kwargs):
        stored, folder = checkpoints.read(path), os.path.realpath(os.path.dirname(path))
        stored["callbacks"] = {
            name: _moved(state, folder) if "dirpath" in state else state for name, state in stored["callbacks"].items()
        }
        return stored

    def remove_checkpoint(self, path):
        if os.path.exists(path):  # a killed training may have removed it already
            os.remove(path)


def _moved(state, folder):
    """A ModelCheckpoint's state with the paths that its files have now; under others it would forget which are best."""

    def here(path):
        return path and os.path.join(folder, os.path.basename(path))

    paths = {key: here(path) for key, path in state.items() if key.endswith("_path")}
    best = {here(path): score for path, score in state["best_k_models"].items()}
    return state | paths | {"best_k_models": best, "dirpath": folder}


class StopIfStopped(pl.Callback):
    """Ends a resumed training whose early stopping had already struck (Lightning does not save that it had)."""

    def __init__(self, early_stopping):
        self.early_stopping = early_stopping

    def on_train_start(self, trainer, module):
        if self.early_stopping.wait_count >= self.early_stopping.patience:
            trainer.should_stop = True
