import pytest

from astra_gym.ssl_core.utils.training_plan import Moment, PassesPlan, TrainingPlan


def test_a_plain_plan_counts_epochs_and_updates() -> None:
    plan = TrainingPlan(epochs=3, steps=4)
    assert plan.total == 12
    assert [plan.place(step) for step in (0, 3, 4, 11, 12)] == [(0, 0), (0, 3), (1, 0), (2, 3), (3, 0)]
    assert [step for step in range(1, 13) if plan.ends_epoch(step)] == [4, 8, 12]
    assert plan.epochs_done(6) == 1.5
    # the very integers: a schedule of floats would round elsewhere
    assert all(type(plan.full_steps(step)) is int and plan.full_steps(step) == step for step in range(13))
    assert plan.moment(5) == Moment(step=5, epoch=1, epochs=3, progress=5 / 12, replay=0)
    assert plan.moment(99).progress == 1.0
    assert TrainingPlan(epochs=1, steps=4).moment(0) == Moment()


def test_later_epochs_may_be_of_a_part_of_the_data() -> None:
    plan = TrainingPlan(epochs=5, steps=10, reduced_from=2, reduced_steps=2)
    assert plan.total == 26
    assert [plan.steps_in(epoch) for epoch in range(5)] == [10, 10, 2, 2, 2]
    assert [plan.place(step) for step in (19, 20, 21, 22, 25, 26)] == [(1, 9), (2, 0), (2, 1), (3, 0), (4, 1), (5, 0)]
    assert [step for step in range(1, 27) if plan.ends_epoch(step)] == [10, 20, 22, 24, 26]
    assert plan.epochs_done(23) == 3.5 and plan.moment(23).progress == 0.7
    # a schedule sees an epoch where an epoch is
    assert [plan.full_steps(step) for step in (20, 21, 22, 26)] == [20, 25, 30, 50]


def test_a_part_from_the_first_epoch_on_and_one_that_never_comes() -> None:
    assert TrainingPlan(epochs=4, steps=10, reduced_from=0, reduced_steps=3).total == 12
    assert TrainingPlan(epochs=4, steps=10, reduced_from=9, reduced_steps=3).total == 40


def test_replays_of_a_batch() -> None:
    plan = TrainingPlan(epochs=2, steps=6, replays=3)
    assert [plan.moment(step).replay for step in range(7)] == [0, 1, 2, 0, 1, 2, 0]
    assert plan.total == 12


def test_bad_plans_are_refused() -> None:
    with pytest.raises(ValueError, match="steps is 0"):
        TrainingPlan(epochs=1, steps=0)
    with pytest.raises(ValueError, match="no multiple of 3 replays"):
        TrainingPlan(epochs=1, steps=4, replays=3)
    with pytest.raises(ValueError, match="no multiple of 2 replays"):
        TrainingPlan(epochs=4, steps=4, replays=2, reduced_from=1, reduced_steps=3)
    with pytest.raises(ValueError, match="passes is 0"):
        PassesPlan(epochs=1, steps=4, passes=0)


def test_a_plan_of_passes_goes_by_what_is_spent() -> None:
    plan = PassesPlan(epochs=4, steps=10, passes=33)
    assert plan.total == 10 and plan.moment(0) == Moment(epochs=4) and not plan.ends(0)
    plan.spend(0, 3.3 + 5)
    assert plan.spent(0) == 0 and plan.moment(1).progress == pytest.approx(8.3 / 33)
    # a later part of the same update, as what its reward measures
    plan.spend(0, 8.2)
    assert plan.moment(1) == Moment(step=1, epoch=2, epochs=4, progress=0.5)
    assert plan.full_steps(1) == 20 and plan.epochs_done(1) == 0.1
    for step in range(1, 6):
        plan.spend(step, 3.3)
        assert plan.ends(step + 1) == (step == 5)
    assert plan.moment(6).progress == 1.0 and plan.moment(6).epoch == 3
    other = PassesPlan(epochs=4, steps=10, passes=33)
    other.restore(6, plan.spent(6))
    other.spend(6, 1)
    assert other.spent(7) == pytest.approx(34)
    with pytest.raises(ValueError, match="of a run without --passes"):
        other.restore(6, None)
