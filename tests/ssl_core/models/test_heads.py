import pytest
import torch
from torch import nn

from astra_gym.ssl_core.models.heads import Classifiers, Predictor, build_heads
from astra_gym.ssl_core.models.init import build_module
from astra_gym.ssl_core.utils.rng import Streams
from tests.helpers.draws import generator


def predictor() -> Predictor:
    return build_module(generator(), lambda: Predictor(4, 3, 5, ("normal", "pgd"))).double()


def test_the_predictor_is_two_layers_with_batch_norm_and_relu_between() -> None:
    head = predictor()
    z = torch.randn(6, 4, generator=generator(1), dtype=torch.float64, requires_grad=True)
    first, last = head.linears
    hidden = z @ first.weight.T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, correction=0) + 1e-5).sqrt()
    torch.testing.assert_close(head.train()(z, "pgd"), hidden.clamp(min=0) @ last.weight.T + last.bias)
    assert first.bias is None and [p.shape for p in (first.weight, last.weight)] == [(3, 4), (5, 3)]
    assert torch.autograd.gradcheck(lambda z: head.train()(z, "normal"), z)


def test_the_predictor_has_statistics_for_each_route() -> None:
    head = predictor()
    z = torch.randn(6, 4, generator=generator(1), dtype=torch.float64)
    quiet = [head.eval()(z, route).detach() for route in ("normal", "pgd")]
    head.train()(z + 1, "pgd")
    assert torch.equal(head.eval()(z, "normal"), quiet[0]) and not torch.equal(head(z, "pgd"), quiet[1])


def test_classifiers_stand_side_by_side() -> None:
    head = build_module(generator(), lambda: Classifiers(4, (2, 10, 3)))
    features = torch.randn(6, 4, generator=generator(1))
    logits = head(features, "pgd_ce")
    assert logits.shape == (6, 15) and torch.equal(logits, head(features, "normal"))
    parts = head.split(logits)
    assert [part.shape for part in parts] == [(6, 2), (6, 10), (6, 3)]
    for part, linear in zip(parts, head.linears, strict=True):
        torch.testing.assert_close(part, features @ linear.weight.T + linear.bias)


def test_bad_sizes_are_refused() -> None:
    for sizes in ((0, 3, 5), (4, 0, 5), (4, 3, 0)):
        with pytest.raises(ValueError, match="expected an integer of 1 or more"):
            Predictor(*sizes, ("normal",))
    for inputs, counts in ((0, (2,)), (4, (2, 0)), (4, ())):
        with pytest.raises(ValueError, match="expected positive numbers"):
            Classifiers(inputs, counts)


def test_the_weights_come_from_the_generator_alone() -> None:
    before = torch.get_rng_state()
    # making a head draws nothing either: a method may do that anywhere
    heads = {"predictor": Predictor(4, 3, 5, ("pgd",)), "classes": Classifiers(4, (2, 3))}
    assert torch.equal(before, torch.get_rng_state())
    drawn = []
    for seed in (0, 0, 1):
        made = build_heads(Streams(seed), heads)
        assert list(made) == list(heads)
        drawn.append(torch.cat([p.detach().flatten() for head in made.values() for p in head.parameters()]))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    again = build_heads(Streams(1), dict(reversed(heads.items())))
    assert torch.equal(torch.cat([p.detach().flatten() for name in heads for p in again[name].parameters()]), drawn[2])


def test_without_a_head_no_stream_is_touched() -> None:
    streams = Streams(0)
    assert build_heads(streams, {}) == {} and not streams.state_dict()["host"]


def test_a_head_of_unknown_parts_is_refused() -> None:
    with pytest.raises(ValueError, match="no initialization is known for LayerNorm"):
        build_heads(Streams(0), {"odd": nn.LayerNorm(3)})
