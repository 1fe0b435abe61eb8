"""The sampler goes on where it was, and shows what comes next without drawing it."""

from pathlib import Path

import pytest
import torch

from astra_gym.ssl_core.data.sampler import BatchSampler


def test_an_epoch_is_a_permutation_without_its_incomplete_end() -> None:
    sampler = BatchSampler(10, 3, torch.Generator().manual_seed(0))
    assert sampler.steps_per_epoch == 3
    epochs = [torch.cat([sampler.next() for _ in range(3)]) for _ in range(200)]
    for epoch in epochs:
        assert epoch.dtype == torch.int64 and len(epoch.unique()) == 9
    assert not torch.equal(epochs[0], epochs[1])
    # Every image is left out of about a tenth of the epochs.
    left_out = 200 - torch.bincount(torch.cat(epochs), minlength=10)
    assert ((left_out - 20).abs() < 5 * (200 * 0.09) ** 0.5).all()


def test_without_drop_last_an_epoch_ends_with_what_is_left() -> None:
    sampler = BatchSampler(10, 4, torch.Generator().manual_seed(0), drop_last=False)
    assert sampler.steps_per_epoch == 3
    for _ in range(2):
        batches = [sampler.next() for _ in range(3)]
        assert [len(batch) for batch in batches] == [4, 4, 2] and len(torch.cat(batches).unique()) == 10
    assert BatchSampler(8, 4, torch.Generator(), drop_last=False).steps_per_epoch == 2
    # a single row is no batch
    assert BatchSampler(9, 4, torch.Generator(), drop_last=False).steps_per_epoch == 2


@pytest.mark.parametrize("drop_last", [True, False])
@pytest.mark.parametrize("taken", [0, 1, 4, 5, 7])
def test_a_sampler_goes_on_where_it_was(taken: int, drop_last: bool, tmp_path: Path) -> None:
    sampler = BatchSampler(23, 5, torch.Generator().manual_seed(3), drop_last=drop_last)
    for _ in range(taken):
        sampler.next()
    torch.save(sampler.state_dict(), tmp_path / "sampler.pt")
    expected = [sampler.next() for _ in range(12)]
    other = BatchSampler(23, 5, torch.Generator().manual_seed(99), drop_last=drop_last)
    other.next()
    other.load_state_dict(torch.load(tmp_path / "sampler.pt", weights_only=True))
    assert all(torch.equal(other.next(), batch) for batch in expected)


def test_a_state_is_not_changed_by_going_on() -> None:
    sampler = BatchSampler(8, 4, torch.Generator().manual_seed(3))
    sampler.next()
    state = sampler.state_dict()
    second = sampler.next()
    sampler.next()
    sampler.load_state_dict(state)
    assert torch.equal(sampler.next(), second)


def test_impossible_batches_and_foreign_states_are_refused() -> None:
    with pytest.raises(ValueError, match="batch_size is 11, but there are only 10 images"):
        BatchSampler(10, 11, torch.Generator())
    with pytest.raises(ValueError, match="batch_size is 0"):
        BatchSampler(10, 0, torch.Generator())
    state = BatchSampler(10, 5, torch.Generator()).state_dict()
    with pytest.raises(ValueError, match="batch_size 5, this run 2"):
        BatchSampler(10, 2, torch.Generator()).load_state_dict(state)
    with pytest.raises(ValueError, match="n 10, this run 11"):
        BatchSampler(11, 5, torch.Generator()).load_state_dict(state)
    with pytest.raises(ValueError, match="batch_size is 9, but there are only 8 images beside the 2 held out"):
        BatchSampler(10, 9, torch.Generator(), held_out=torch.tensor([3, 7]))
    sampler = BatchSampler(10, 4, torch.Generator())
    with pytest.raises(ValueError, match=r"call next\(\) first"):
        _ = sampler.last
    sampler.next()
    with pytest.raises(ValueError, match="the sampler's state is of 10 images, this run of 8: hold out the same"):
        BatchSampler(10, 4, torch.Generator(), held_out=torch.tensor([3, 7])).load_state_dict(sampler.state_dict())


def test_rows_held_out_are_never_given(tmp_path: Path) -> None:
    held_out = torch.tensor([7, 0, 3])
    sampler = BatchSampler(12, 4, torch.Generator().manual_seed(0), held_out=held_out)
    plain = BatchSampler(9, 4, torch.Generator().manual_seed(0))
    given = torch.tensor([1, 2, 4, 5, 6, 8, 9, 10, 11])
    assert sampler.steps_per_epoch == 2
    for _ in range(20):
        assert torch.equal(sampler.next(), given[plain.next()])
    other = BatchSampler(12, 4, torch.Generator(), held_out=held_out)
    torch.save(sampler.state_dict(), tmp_path / "sampler.pt")
    other.load_state_dict(torch.load(tmp_path / "sampler.pt", weights_only=True))
    assert torch.equal(other.last, sampler.last)
    assert all(torch.equal(other.next(), sampler.next()) for _ in range(5))


def test_the_last_batch_is_the_one_just_given() -> None:
    sampler = BatchSampler(10, 3, torch.Generator().manual_seed(3))
    for _ in range(8):
        rows = sampler.next()
        sampler.peek()
        assert torch.equal(sampler.last, rows)


def test_a_look_ahead_is_what_comes_next_and_changes_nothing() -> None:
    sampler, twin = (BatchSampler(10, 3, torch.Generator().manual_seed(3)) for _ in range(2))
    for taken in range(8):
        ahead, before = sampler.peek(), sampler.state_dict()
        # the order of the coming epoch is not drawn before it begins
        assert (ahead is None) == (taken % 3 == 0)
        assert all(
            torch.equal(torch.as_tensor(before[name]), torch.as_tensor(value))
            for name, value in (twin.state_dict().items())
        )
        rows = sampler.next()
        assert ahead is None or torch.equal(ahead, rows)
        assert torch.equal(rows, twin.next())


def taken(sampler: BatchSampler, batches: int) -> torch.Tensor:
    return torch.cat([sampler.next() for _ in range(batches)])


def test_a_restriction_begins_with_the_next_epoch_and_ends_with_one() -> None:
    sampler, twin = (BatchSampler(12, 3, torch.Generator().manual_seed(3)) for _ in range(2))
    first = torch.cat([sampler.next(), sampler.next()])
    rows = torch.tensor([11, 2, 5, 7, 0, 8, 3])
    sampler.restrict(rows)
    rows[0] = 1
    assert sampler.steps_per_epoch == 4
    # the present epoch goes on as it would have
    assert torch.equal(torch.cat([first, taken(sampler, 2)]), taken(twin, 4))
    assert sampler.steps_per_epoch == 4 and sampler.peek() is None
    for _ in range(3):
        epoch = taken(sampler, 2)
        assert sampler.steps_per_epoch == 2 and sampler.peek() is None
        assert len(epoch.unique()) == 6 and set(epoch.tolist()) <= {11, 2, 5, 7, 0, 8, 3}
    sampler.restrict(None)
    assert sampler.steps_per_epoch == 2
    # one permutation an epoch, of as many as there are to give
    for _ in range(3):
        torch.randperm(7, generator=twin._generator)
    assert torch.equal(taken(sampler, 4), taken(twin, 4)) and sampler.steps_per_epoch == 4


def test_a_restricted_epoch_orders_its_rows_by_one_permutation() -> None:
    rows = torch.tensor([9, 1, 4, 6, 2])
    sampler, order = BatchSampler(10, 2, torch.Generator().manual_seed(5)), torch.Generator().manual_seed(5)
    sampler.restrict(rows)
    assert torch.equal(taken(sampler, 2), rows[torch.randperm(5, generator=order)][:4])


@pytest.mark.parametrize("lifted", [False, True])
@pytest.mark.parametrize("more", range(6))
def test_a_restricted_sampler_goes_on_where_it_was(more: int, lifted: bool, tmp_path: Path) -> None:
    sampler = BatchSampler(13, 3, torch.Generator().manual_seed(3), held_out=torch.tensor([4]))
    sampler.next()
    sampler.restrict(torch.tensor([0, 1, 2, 3, 7, 8, 9]))
    for _ in range(more):
        sampler.next()
    if lifted:
        sampler.restrict(None)
    torch.save(sampler.state_dict(), tmp_path / "sampler.pt")
    ahead, steps, expected = sampler.peek(), sampler.steps_per_epoch, [sampler.next() for _ in range(9)]
    other = BatchSampler(13, 3, torch.Generator(), held_out=torch.tensor([4]))
    other.restrict(torch.tensor([9, 8, 7]))
    other.load_state_dict(torch.load(tmp_path / "sampler.pt", weights_only=True))
    assert other.steps_per_epoch == steps
    assert other.peek() is None if ahead is None else torch.equal(torch.as_tensor(other.peek()), ahead)
    assert all(torch.equal(other.next(), batch) for batch in expected)


def test_a_state_from_before_restrictions_is_one_without() -> None:
    names = {"n", "batch_size", "taken", "order", "generator"}
    sampler = BatchSampler(8, 4, torch.Generator().manual_seed(3))
    sampler.next()
    state = sampler.state_dict()
    assert state.keys() == names
    expected = taken(sampler, 5)
    sampler.restrict(torch.arange(4))
    sampler.next()
    assert sampler.state_dict().keys() == names | {"rows"}
    sampler.load_state_dict(state)
    assert torch.equal(taken(sampler, 5), expected) and sampler.state_dict().keys() == names


def test_all_rows_are_those_that_may_be_given() -> None:
    assert torch.equal(BatchSampler(5, 2, torch.Generator()).all_rows, torch.arange(5))
    held_out = BatchSampler(5, 2, torch.Generator(), held_out=torch.tensor([3, 0]))
    assert torch.equal(held_out.all_rows, torch.tensor([1, 2, 4]))
    held_out.all_rows.zero_()
    assert torch.equal(held_out.all_rows, torch.tensor([1, 2, 4]))


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.tensor([1, 2]), r"shape \(2,\): expected torch.int64, \(k,\), at least the 3 of a batch"),
        (torch.tensor([1.0, 2.0, 4.0]), "torch.float32 rows"),
        (torch.tensor([[1, 2, 4]]), r"shape \(1, 3\)"),
        (torch.tensor([1, 2, 2, 4]), "twice: give each once"),
        (torch.tensor([1, 2, 3]), "not among the images that are not held out"),
        (torch.tensor([1, 2, 10]), "not among the images that are not held out"),
    ],
)
def test_impossible_restrictions_are_refused(rows: torch.Tensor, message: str) -> None:
    sampler = BatchSampler(10, 3, torch.Generator().manual_seed(0), held_out=torch.tensor([3]))
    with pytest.raises(ValueError, match=message):
        sampler.restrict(rows)
    assert "rows" not in sampler.state_dict()
    with pytest.raises(ValueError, match="not among the 10 images"):
        BatchSampler(10, 3, torch.Generator()).restrict(torch.tensor([-1, 2, 4]))
    other = BatchSampler(10, 3, torch.Generator())
    other.restrict(torch.tensor([1, 2, 3]))
    with pytest.raises(ValueError, match="not among the images that are not held out"):
        sampler.load_state_dict(other.state_dict())
