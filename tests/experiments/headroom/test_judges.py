"""A judge's exam."""

from astra_gym.experiments.headroom.judges import make_image_exam
from astra_gym.experiments.headroom.world import HeadroomWorld


def test_a_judge_attacks_all_its_images_at_the_judged_radius(tiny_world: HeadroomWorld) -> None:
    engine, images = tiny_world.started(0)
    exams = [make_image_exam(engine, images[0], 24 / 255, score, "headroom/judge A") for score in ("mean", "robust")]
    for exam, share in zip(exams, (0.5, 1.0), strict=True):
        assert exam.attacked_share == share and [len(views) for views, _ in exam.batches] == [8, 8, 8]
        strongest = max(float((attacked - views).abs().max()) for views, attacked in exam.batches)
        assert abs(strongest - 24 / 255) < 1e-6
