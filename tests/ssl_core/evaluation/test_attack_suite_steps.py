import torch
from torch import nn

from astra_gym.ssl_core.data.image_set import ImageSet
from astra_gym.ssl_core.evaluation.attack_suite import Attack, Evaluation, evaluate
from astra_gym.ssl_core.evaluation.results import Origin
from astra_gym.ssl_core.evaluation.robustness import pgd_accuracy
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.rng import Streams

N = 120
ORIGIN = Origin(protocol="slf", route="none", seed=0, checkpoint="last", commit="unknown", deviations=("short",))


def linear() -> nn.Module:
    """Two classes."""
    head = nn.Linear(75, 2)
    head.weight.data = 0.4 * torch.randn(2, 75, generator=torch.Generator().manual_seed(0))
    head.bias.data.zero_()
    return nn.Sequential(nn.Flatten(), head).eval()


def pushed() -> ImageSet:
    """Images that the classifier is right about, by 10/255 to 60/255."""
    weight = linear().get_parameter("1.weight")
    push = torch.linspace(10, 60, N)[:, None] * (weight[1] - weight[0]).sign()
    push[::2] *= -1
    images = (128 + push).round().to(torch.uint8).view(N, 3, 5, 5)
    return ImageSet(images, linear()(as_float(images)).argmax(1), ("a", "b"), "pushed")


def run(attacks: list[Attack]) -> Evaluation:
    return evaluate(linear(), pushed(), attacks, origin=ORIGIN)


def test_steps_other_than_the_protocols_are_a_deviation() -> None:
    attacks = [Attack("pgd20", numerator / 255) for numerator in (0, 1, 2, 4, 8, 16, 20, 24, 32)]
    attacks += [Attack("fgsm", 24 / 255), Attack("pgd20", 8 / 255, step_size=1 / 255)]
    attacks.append(Attack("pgd20", 20 / 255, step_size=2 / 255))
    found = run(attacks)

    def steps(text: str) -> tuple[str, ...]:
        return (f"PGD-20 with steps of {text}/255, not 2/255",)

    said = [(row.attack, round(255 * row.epsilon), row.deviations[1:]) for row in found.rows]
    assert said == [
        ("none", 0, ()),
        ("pgd20", 0, ()),
        ("pgd20", 1, steps("0.5")),
        ("pgd20", 2, steps("1")),
        ("pgd20", 4, ()),
        ("pgd20", 8, ()),
        ("pgd20", 16, ()),
        ("pgd20", 20, steps("2.5")),
        ("pgd20", 24, steps("3")),
        ("pgd20", 32, steps("4")),
        ("fgsm", 24, ()),
        ("pgd20", 8, steps("1")),
        ("pgd20", 20, ()),
        ("worst", 8, steps("1")),
        ("worst", 20, steps("2.5")),
        ("worst", 24, steps("3")),
    ]


def test_the_step_is_the_one_that_is_asked_for() -> None:
    data = pushed()
    assert data.labels is not None
    epsilon = 32 / 255
    usual, short = Attack("pgd20", epsilon), Attack("pgd20", epsilon, step_size=2 / 255)
    found = run([short, usual])
    for attack, step in ((usual, 4 / 255), (short, 2 / 255)):
        generator = Streams(0).on_device(f"pgd20/{epsilon!r}")
        alone = pgd_accuracy(linear(), data.images, data.labels, epsilon, generator=generator, step_size=step)
        assert torch.equal(found.correct[attack], alone)
    # steps of 2/255 do not cross the ball
    assert int(found.correct[short].sum()) > int(found.correct[usual].sum()) > 0
