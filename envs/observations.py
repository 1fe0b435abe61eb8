"""What an agent sees of a batch: standardised features, summaries over its views, or the views themselves."""

import torch
from torch import Tensor

OBSERVATIONS = {
    "features": "standardised features of the target network, the clean loss and the training progress",
    "image": "the views themselves, uint8 (view environment only)",
}
OBSERVATION_BOUND = 10.0
"""Standardised features are clipped to plus and minus this."""
MEMORY = 0.99
"""How much of the running statistics stays at each batch: they follow the target network, which drifts."""
VARIANCE_FLOOR = 1e-6


class RunningStatistics:
    """Mean and variance of raw observations over the batches so far, older ones counting less (`MEMORY`)."""

    def __init__(self) -> None:
        self.mean: Tensor | None = None
        self.variance: Tensor | None = None

    def update(self, raw: Tensor) -> None:
        """Takes a batch's raw observations (n, d)."""
        variance, mean = torch.var_mean(raw, dim=0, correction=0)
        if self.mean is None or self.variance is None:
            self.mean, self.variance = mean, variance
        else:
            self.mean = MEMORY * self.mean + (1 - MEMORY) * mean
            self.variance = MEMORY * self.variance + (1 - MEMORY) * variance

    def standardise(self, raw: Tensor, progress: float) -> Tensor:
        """Raw observations (n, d) to what an agent sees (n, d + 1): standardised, clipped to plus and minus
        `OBSERVATION_BOUND`, and with the training progress appended, from [0, 1] to [-1, 1].

        Raises:
            ValueError: if there are no statistics yet.
        """
        if self.mean is None or self.variance is None:
            raise ValueError("there are no running statistics yet: call observe() first")
        scaled = (raw - self.mean) / (self.variance + VARIANCE_FLOOR).sqrt()
        last = scaled.new_full((len(raw), 1), 2 * progress - 1)
        return torch.cat([scaled.clamp_(-OBSERVATION_BOUND, OBSERVATION_BOUND), last], dim=1)

    def state_dict(self) -> dict[str, Tensor | None]:
        """Both, None before the first batch."""
        return {"mean": self.mean, "variance": self.variance}

    def load_state_dict(self, state: dict[str, Tensor | None], device: torch.device) -> None:
        """Restores what `state_dict` gave."""
        self.mean, self.variance = (
            None if state[name] is None else state[name].to(device)  # type: ignore[union-attr]
            for name in ("mean", "variance")
        )


def as_pixels(views: Tensor) -> Tensor:
    """Views in [0, 1] as uint8, laid out contiguously: a saved copy must be laid out alike to resume exactly."""
    return (views * 255).round().to(torch.uint8).contiguous()


def summary(each: Tensor) -> Tensor:
    """The observations (n, d + 1) of a batch's views as one of the batch, (1, 2d + 1): means, standard deviations, and
    the progress, which all have in common."""
    deviation, mean = torch.std_mean(each[:, :-1], dim=0, correction=0)
    return torch.cat([mean, deviation, each[0, -1:]])[None]
