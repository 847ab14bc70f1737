"""Training: settings, a loop that knows nothing of codecs, checkpoints, and one run from settings to record."""

from tuckprop.train.checkpoint import load_checkpoint, save_checkpoint
from tuckprop.train.classification import Classification
from tuckprop.train.loop import Trainer
from tuckprop.train.prepare import Prepared, choose, compress, prepare
from tuckprop.train.run import Start, run
from tuckprop.train.segmentation import Segmentation
from tuckprop.train.settings import (
    Compression,
    DataSettings,
    Experiment,
    Machine,
    NetworkSettings,
    Schedule,
    codec_name,
)
from tuckprop.train.task import Meter, Task
from tuckprop.train.watch import Silent, Step, Watch

__all__ = [
    "Classification",
    "Compression",
    "DataSettings",
    "Experiment",
    "Machine",
    "Meter",
    "NetworkSettings",
    "Prepared",
    "Schedule",
    "Segmentation",
    "Silent",
    "Start",
    "Step",
    "Task",
    "Trainer",
    "Watch",
    "choose",
    "codec_name",
    "compress",
    "load_checkpoint",
    "prepare",
    "run",
    "save_checkpoint",
]
