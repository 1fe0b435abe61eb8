from pathlib import Path

import pytest
import torch
from torch import nn

from astra_gym.experiments.evaluation.classifier_parts import curves_of, landscape_rows, training_rows
from astra_gym.ssl_core.evaluation.attack_suite import Attack
from astra_gym.ssl_core.evaluation.landscape import downstream_landscape
from astra_gym.ssl_core.evaluation.results import Origin
from astra_gym.ssl_core.transforms.views import as_float
from tests.helpers.finetuned import image_set

ORIGIN = Origin(protocol="slf", route="pgd", seed=2, checkpoint="last", commit="abc")


@pytest.fixture(scope="module")
def classifier() -> nn.Module:
    """The mean color as logits, of red, green and blue."""
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3)).eval()
    with torch.no_grad():
        model[2].weight.copy_(20 * torch.eye(3))
        model[2].bias.zero_()
    return model


def test_training_images_are_drawn_from_every_class_and_attacked(classifier: nn.Module, tmp_path: Path) -> None:
    train, attacks = image_set(60), [Attack("pgd20", 8 / 255), Attack("fgsm", 8 / 255)]
    done: list[int] = []
    found = training_rows(
        classifier,
        train,
        12,
        attacks,
        origin=ORIGIN,
        batch_size=8,
        state_dir=tmp_path,
        progress=lambda now, total: done.append(now),
    )
    kinds = [("train_SA", "none"), ("train_RA", "pgd20"), ("train_RA", "fgsm"), ("train_RA", "worst")]
    assert [(row.metric, row.attack) for row in found] == kinds and {row.n for row in found} == {12}
    assert found[0].value == 100 and found[1].value <= found[0].value and done
    arguments = {"origin": ORIGIN, "batch_size": 8, "state_dir": tmp_path, "progress": lambda *_: None}
    [every] = training_rows(classifier, train, 1000, [], **arguments)
    assert every.n == 60


def test_the_rows_of_the_downstream_loss_give_the_curves_back(classifier: nn.Module) -> None:
    test = image_set(300)
    rows = landscape_rows(classifier, test, origin=ORIGIN, progress=lambda *_: None)
    assert {row.metric for row in rows} == {"cross_entropy"} and {row.n for row in rows} == {256}
    assert not any(row.standard for row in rows)
    few = test.take(256)
    expected = downstream_landscape(classifier, as_float(few.images), few.labels, seed=2)
    assert curves_of(rows) == {"slf": {"last": expected}}
    assert curves_of([ORIGIN.accuracy("SA", 1, 2)]) == {}
