"""Images per second during training."""

from lightning.pytorch.callbacks import ThroughputMonitor

from rad.training.module import Batch


class Throughput(ThroughputMonitor):
    """Lightning's ThroughputMonitor for our batches: train/device/samples_per_sec, and train/samples_per_sec of all processes.

    Args:
        window_size: number of batches to average over; rates are logged once there are that many.
    """

    def __init__(self, window_size: int = 20) -> None:
        super().__init__(_count_images, window_size=window_size)


def _count_images(batch: Batch) -> int:
    return len(batch["image"])
