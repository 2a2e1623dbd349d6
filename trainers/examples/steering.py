"""What the example of driving trains: clouds of a window as one, and a small network over frames and points."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


class Joined:
    """A transform of a window of clouds: all their points in the vehicle's frame, with how many sweeps ago they were: (n, 5)."""

    threads = True

    def __init__(self, mount: NDArray[np.float64]) -> None:
        self.mount = mount.astype(np.float32)

    def __call__(self, clouds: list[NDArray[np.float32]]) -> NDArray[np.float32]:
        out = []
        for ago, cloud in enumerate(reversed(clouds)):
            placed = cloud[:, :3] @ self.mount[:3, :3].T + self.mount[:3, 3]
            out.append(np.concatenate([placed, cloud[:, 3:], np.full((len(cloud), 1), ago, np.float32)], 1))
        return np.concatenate(out)


def steering_model(window: int) -> Any:
    """For windows of so many frames: a small convolutional network over the frames, and one over the points that keeps the largest
    (PointNet: Qi et al. 2017)."""
    import torch
    from torch import nn

    class Steering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.see = nn.Sequential(
                nn.Conv2d(3 * window, 16, 5, 2, 2), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU(),
                nn.Conv2d(32, 32, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d((4, 6)), nn.Flatten(),
                nn.Linear(32 * 24, 64), nn.ReLU(),
            )  # fmt: skip
            self.feel = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 32))
            self.head = nn.Linear(64 + 32, 1)

        def forward(self, batch: dict[str, Any]) -> Any:
            images = batch["camera.image"].permute(0, 1, 4, 2, 3).flatten(1, 2).float() / 255 - 0.5
            points, mask = batch["lidar.points"]["values"] / 20, batch["lidar.points"]["mask"]
            felt = self.feel(points).masked_fill(~mask[..., None], -1e4).amax(1)
            return self.head(torch.cat([self.see(images), felt], 1))[:, 0] * 10

    return Steering()
