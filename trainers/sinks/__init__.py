"""Where the curves of a run go besides its log: TensorBoard, MLflow, Weights & Biases. Each is imported when it is asked for.

    tensorboard:DIR     event files under DIR/<run>
    mlflow:URI          a tracking server or database; "mlflow:" takes MLFLOW_TRACKING_URI
    wandb:PROJECT       or wandb:ENTITY/PROJECT; WANDB_MODE=offline keeps it on this machine

What is missing is said before a training begins. What fails later (a full disk, a server that is away) costs the curves
and one warning, never the training: trainers.sinks.background.
"""

from trainers.sinks.background import BackgroundSink
from trainers.sinks.open import KINDS, open_sink
from trainers.sinks.sink import Sink

__all__ = ["KINDS", "BackgroundSink", "Sink", "open_sink"]
