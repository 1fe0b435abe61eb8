"""The agent's, the probe's and the run's own sections: what they refuse."""

import pytest

from astra_gym.experiments.config.sections import AgentSection, ProbeSection, RunSection


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agent": "reinfroce"}, "unknown agent 'reinfroce'.*did you mean 'reinforce'"),
        ({"env": "veiw"}, "did you mean 'view'"),
        ({"env": "batch", "observation": "image"}, "observation 'image'"),
        ({"agent_kwargs": {1: 2}}, "agent_kwargs is .* expected settings by name"),
        ({"agent": "fixed", "epsilon": 8}, "epsilon is 8: expected a fraction"),
        ({"agent": "fixed", "steps": 5.5}, "steps is 5.5: expected an integer"),
        ({"agent": "fixed", "steps": 5.0}, "steps is 5.0: expected an integer"),
        ({"agent": "ppo", "epsilon": 8 / 255}, "--epsilon: only the agents fixed, .* take it, and the agent is ppo"),
        ({"agent": "customized", "env": "batch"}, "env is batch: the agent customized needs --env view"),
        ({"schedule": ()}, "expected at least one radius"),
    ],
)
def test_a_bad_choice_of_agent_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AgentSection(**change)


def test_an_agents_settings_are_recorded_by_present_names() -> None:
    assert AgentSection(agent="reinforce", agent_kwargs={"entropy_coef": 0.1}).agent_kwargs == {"ent_coef": 0.1}
    with pytest.raises(ValueError, match="entropy_coef is the old name of ent_coef"):
        AgentSection(agent="reinforce", agent_kwargs={"entropy_coef": 0.1, "ent_coef": 0.2})


def test_a_budget_is_what_is_given_of_it() -> None:
    assert AgentSection(agent="fixed", steps=7, epsilon=0.0).budget == {"epsilon": 0.0, "steps": 7}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probe_every": -1}, "probe_every is -1: expected a number of epochs, or 0"),
        ({"probe_epochs": 0}, "probe_epochs is 0"),
        ({"probe_lr": 0.0}, "probe_lr is 0.0"),
        ({"probe_lr": float("nan")}, "probe_lr is nan"),
        ({"eval_epsilons": (8,)}, "eval_epsilons is 8: expected fractions"),
        ({"eval_epsilons": (0.0,)}, "eval_epsilons is 0.0"),
        ({"eval_epsilons": (0.1, 0.1)}, "which results both call 25.5/255"),
        ({"eval_epsilons": (8 / 255, 0.031372)}, "which results both call 8/255: expected radii with different names"),
    ],
)
def test_a_bad_probe_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ProbeSection(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "digit"}, "did you mean 'digits'"),
        ({"device": "gpu"}, "choose from auto, cpu, cuda"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": True}, "seed is True"),
        ({"seed": 2**63}, "seed is .* expected an integer from 0"),
        ({"checkpoint_every": 0}, "checkpoint_every is 0"),
        ({"keep_every": -1}, "keep_every is -1: expected a number of epochs, or 0"),
        ({"keep_every": 0.5}, r"keep_every is 0\.5"),
        ({"keep_every": True}, "keep_every is True"),
        ({"post_kwargs": {"epoch": 3}}, "setting of the post-processing 'epoch'"),
    ],
)
def test_a_bad_run_is_refused(change: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RunSection(**change)
