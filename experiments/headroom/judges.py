"""Judges of an encoder: exams on held-out training images."""

from torch import Tensor

from astra_gym.envs.engine import AttackEngine
from astra_gym.ssl_core.attacks.pgd import strided_budget
from astra_gym.ssl_core.training.exams import Exam, make_exam
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.rng import Streams

STEPS = 10


def make_image_exam(
    engine: AttackEngine, images: Tensor, epsilon: float, score: str, stream: str, streams: Streams | None = None
) -> Exam:
    """Make views of images, in batches of about the world's size, and attack them by PGD-10 on the present weights.

    Args:
        engine: engine of the world; its network and its other streams do not change.
        images: (m, 3, h, w) uint8.
        epsilon: the judged radius.
        score: the world's `judge_score`: "mean" (clean and attacked views half and half) or "robust" (attacked only).
        stream: name of the stream of views and of the attack's start.
        streams: where it is; by default the engine's.
    """
    drawn = streams or engine.streams
    count = max(1, len(images) // engine.settings.optimizer.batch_size)
    views = [engine.make_views(as_float(part), drawn[stream]) for part in images.tensor_split(count)]
    share = 1.0 if score == "robust" else 0.5
    return make_exam(engine.learner, views, strided_budget(epsilon, STEPS), share, drawn.on_device(stream))
