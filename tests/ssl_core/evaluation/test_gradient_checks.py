import copy
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from astra_gym.ssl_core.data.datasets import load_dataset
from astra_gym.ssl_core.data.image_set import Split
from astra_gym.ssl_core.downstream.linear_probe import Classifier, RawPixels, train_probe
from astra_gym.ssl_core.evaluation.gradient_checks import logit_spread, margin, telling
from astra_gym.ssl_core.evaluation.masking import check_classifier
from astra_gym.ssl_core.evaluation.sanity import SanityError
from astra_gym.ssl_core.transforms.views import ViewSettings, as_float
from tests.helpers.faulty_classifiers import PROBE, Wrapped, autocast, halved, network, scaled


@pytest.fixture(autouse=True)
def global_state_is_left_alone() -> Iterator[None]:
    before = torch.random.get_rng_state()
    yield
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.fixture(scope="module")
def digits() -> Split:
    return load_dataset("digits", image_size=8)


@pytest.fixture(scope="module")
def linear(digits: Split) -> Classifier:
    return train_probe(RawPixels((3, 8, 8)), "none", digits.train, PROBE, ViewSettings(), seed=0)


def check(classifier: nn.Module, data: Split, **more: Any) -> list[str]:
    assert data.test.labels is not None
    return check_classifier(classifier, data.test.images, data.test.labels, **more)


@pytest.mark.slow
def test_a_classifier_for_float32_only_is_checked_in_float32(digits: Split) -> None:
    deep = train_probe(network(0), "pgd", digits.train, PROBE, ViewSettings(), seed=0)
    narrow = Wrapped(deep, lambda model, x: copy.deepcopy(model).float()(x.float()))
    note = check(narrow, digits)[0]
    assert "in float32, since a copy in float64 gives logits in torch.float32" in note
    with pytest.raises(SanityError, match=r"differ from central differences"):
        check(Wrapped(narrow, lambda model, x: halved(model, x)), digits)


def test_a_backward_hook_that_clips_is_found(digits: Split) -> None:
    classifier = train_probe(network(0), "pgd", digits.train, PROBE, ViewSettings(), seed=0)
    first = classifier.encoder.get_submodule("backbone.conv")
    first.register_full_backward_hook(lambda module, inward, outward: (inward[0].clamp(-1e-3, 1e-3),))
    with pytest.raises(SanityError, match="differ from central differences"):
        check(classifier, digits)


def flat_on(n: int, linear: Classifier, digits: Split) -> nn.Module:
    """Without a gradient on the first n of 64 images, told apart by their nearest image."""
    known = as_float(digits.test.images[:64]).flatten(1)

    def act(model: nn.Module, x: Tensor) -> Tensor:
        nearest = torch.cdist(x.detach().flatten(1).float(), known).argmin(1)
        return model(torch.where((nearest < n)[:, None, None, None], x.detach(), x))

    return Wrapped(linear, act)


def test_two_images_without_a_gradient_are_a_note_and_three_an_error(linear: Classifier, digits: Split) -> None:
    assert digits.test.labels is not None
    right = linear(as_float(digits.test.images)).argmax(1) == digits.test.labels
    sure = replace(digits.test, images=digits.test.images[right], labels=digits.test.labels[right]).take(64)
    data = replace(digits, test=sure)
    assert check(flat_on(2, linear, data), data)[0].startswith("the margin's gradient is zero for 2 of 64 images")
    with pytest.raises(SanityError, match="zero for 3 of 64 images"):
        check(flat_on(3, linear, data), data)


def test_saturation_is_a_note_and_an_error_once_most_images_have_no_gradient(linear: Classifier, digits: Split) -> None:
    logits = linear(as_float(digits.test.images))
    typical = float((logits.topk(2).values @ torch.tensor([1.0, -1.0])).median())
    (note,) = check(scaled(linear, 50 / typical), digits)
    assert "images rounds to 1 (median margin 4" in note or "images rounds to 1 (median margin 5" in note
    with pytest.raises(SanityError, match=r"the softmax of 6\d of 64 images rounds to 1 .* for 6\d none.*void"):
        check(scaled(linear, 2000 / typical), digits)


@pytest.mark.parametrize("seed", [0, 1])
def test_autocast_inside_is_no_error(seed: int, digits: Split) -> None:
    deep = train_probe(network(seed), "pgd", digits.train, PROBE, ViewSettings(), seed=seed)
    notes = check(autocast(deep), digits, seed=seed)
    assert "in float32, since a copy in float64 gives logits in torch.float32" in notes[0]
    assert not any("differ from" in note for note in notes)


class Narrow(Wrapped):
    """The user's own conditions, in Python."""

    def __init__(self, classifier: nn.Module, copied: bool) -> None:
        def act(model: nn.Module, x: Tensor) -> Tensor:
            assert x.dtype == torch.float32
            return model(x)

        super().__init__(classifier, act)
        self.copied = copied

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        if not self.copied:
            raise KeyError("no copies")
        return type(self)(copy.deepcopy(self.classifier, memo), self.copied)


def test_a_user_s_own_errors_in_a_copy_are_a_note(linear: Classifier, digits: Split) -> None:
    assert "a copy does not run in float64 (AssertionError: " in check(Narrow(linear, True), digits)[0]
    assert "a copy does not run in float64 (KeyError: 'no copies')" in check(Narrow(linear, False), digits)[0]


def test_saturation_is_a_note_without_attacks_by_signs(linear: Classifier, digits: Split) -> None:
    (note,) = check(scaled(linear, 1e4), digits, sign_attacks=False)
    assert "rounds to 1" in note
    with pytest.raises(SanityError, match="void"):
        check(scaled(linear, 1e4), digits)


def test_margin_is_the_label_less_the_largest_other() -> None:
    logits = torch.tensor([[1.0, 4.0, 2.5], [3.0, 0.0, 7.0]])
    assert margin(logits, torch.tensor([1, 0])).tolist() == [1.5, -4.0]


def test_the_spread_does_not_see_a_masked_class() -> None:
    logits = torch.tensor([[5.0, 1.0, 2.0, -1e9], [0.0, 3.0, 1.0, -1e9], [7.0, 1.0, 3.0, -1e9]])
    assert logit_spread(logits) == 4.0
    assert logit_spread(torch.ones(2, 3)) == 1.0


def test_one_or_two_images_and_shares_of_few_are_no_evidence() -> None:
    assert [telling(count, 64, 1 / 20) for count in (3, 4)] == [False, True]
    assert [telling(count, 8, 1 / 20) for count in (2, 3)] == [False, True]
    assert not telling(7, 7, 1 / 20)
