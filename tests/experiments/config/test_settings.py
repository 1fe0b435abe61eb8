"""Settings: defaults that depend on each other, presets, contradictions."""

import re
from dataclasses import FrozenInstanceError, asdict, fields, replace
from functools import partial
from pathlib import Path

import pytest
import torch

from astra_gym.agents import AGENTS
from astra_gym.envs.actions import ActionTable
from astra_gym.envs.world_config import WorldSettings
from astra_gym.experiments.config.cli import LEAVES, load, parse
from astra_gym.experiments.config.presets import INSTANCES, PRESETS
from astra_gym.experiments.config.sections import AgentSection
from astra_gym.experiments.config.settings import Settings, default_run_dir
from astra_gym.ssl_core.attacks.pgd import ConstantBudget
from astra_gym.ssl_core.data.datasets import DATASETS
from astra_gym.ssl_core.methods import METHODS
from astra_gym.ssl_core.training.settings import OptimizerSection
from tests.helpers.method_worlds import encoder_of

WORLD = [item.name for item in fields(WorldSettings)]
ACL_BUDGET = ConstantBudget(epsilon=8 / 255, step_size=2 / 255, steps=5)


def test_the_defaults_are_reinforce_on_digits() -> None:
    settings = Settings.of()
    assert (settings.data.dataset, settings.method.method, settings.reward.reward_scope) == ("digits", "astra", "view")
    chosen = settings.agent
    assert (chosen.agent, chosen.env, chosen.observation, chosen.actions) == (
        "reinforce",
        "view",
        "features",
        "factored",
    )


@pytest.mark.parametrize("name", [name for name, values in PRESETS.items() if "method" not in values])
def test_every_preset_is_valid_with_every_agent(name: str) -> None:
    for agent in (agent for agent in AGENTS if agent != "none"):
        # it begins with clean views, which only the presets with wide ranges have
        clean = {"action_steps": (0, 3, 5)} if agent == "delayed" and name not in INSTANCES else {}
        assert Settings.from_preset(name, agent=agent, **clean).run.preset == name


def test_a_preset_of_one_method_is_of_no_other() -> None:
    for preset in ("cifar10-teacher", "cifar10-teacher-daq"):
        assert Settings.from_preset(preset).method.method == "simclr"
        for method in ("deacl", "astra"):
            with pytest.raises(ValueError, match=f"{preset} is of the method simclr, and not of {method}"):
                Settings.from_preset(preset, method=method)


def test_every_data_set_has_a_preset() -> None:
    owners = {"digits": "digits", "cifar10-quick": "cifar10", "folder": "folder"}
    for dataset, preset in ((name, spec.preset) for name, spec in DATASETS.items()):
        # data sets that share a preset keep their own name
        assert Settings.from_preset(preset).data.dataset == owners[preset]
        assert parse(["--dataset", dataset]).settings == Settings.from_preset(preset, dataset=dataset)


def test_cifar100_and_stl10_are_trained_as_cifar10_is(tmp_path: Path) -> None:
    for dataset in ("cifar100", "stl10"):
        settings = parse([f"--dataset={dataset}"]).settings
        assert (settings.data.dataset, settings.run.preset, settings.data.image_size) == (dataset, "cifar10-quick", 32)
        (tmp_path / "config.yaml").write_text(f"dataset: {dataset}\n")
        assert parse([f"--config={tmp_path / 'config.yaml'}"]).settings == settings
        (tmp_path / "config.yaml").write_text(settings.to_yaml())
        assert load(tmp_path / "config.yaml") == settings
        assert parse(["--preset=cifar10", f"--dataset={dataset}"]).settings.network.arch == "resnet18"


def test_a_written_record_that_is_older_than_a_setting_has_its_default(tmp_path: Path) -> None:
    lines = Settings.of().to_yaml().splitlines(keepends=True)
    older = [line for line in lines if not line.startswith("keep_every:")]
    assert len(older) == len(lines) - 1
    (tmp_path / "config.yaml").write_text("".join(older))
    assert load(tmp_path / "config.yaml") == Settings.of() and Settings.of().run.keep_every == 0


def test_a_dotted_path_is_imported_only_for_what_is_left_to_the_agent() -> None:
    said = {"observation": "features", "actions": "flat", "reward_scope": "view"}
    settings = Settings.of(agent="no_such_module_here:Name", **said)
    assert settings.replace(epochs=3).agent.agent == "no_such_module_here:Name"
    for name in said:
        with pytest.raises(ValueError, match="cannot import no_such_module_here"):
            Settings.of(agent="no_such_module_here:Name", **said | {name: "auto"})
    with pytest.raises(ValueError, match="unknown agent 'reinfroce'"):
        Settings.of(agent="reinfroce", **said)


def test_cifar10_is_the_papers_setting() -> None:
    paper = Settings.from_preset("cifar10", agent="reinforce-paper")
    expected = {
        "arch": "resnet18",
        "width": 64,
        "stem": "cifar",
        "projector_hidden": 2048,
        "projector_dim": 512,
        "batch_size": 512,
        "epochs": 1000,
        "optimizer": "lars",
        "lr": 5.0,
        "weight_decay": 1e-6,
        "warmup_epochs": 10,
        "temperature": 0.5,
        "mixed_weight": 0.5,
        "mixed_reading": "pairs",
        "strength": 1.0,
        "flip": 0.5,
        "interpolation": "bicubic",
        "reward_scope": "batch",
        "observation": "image",
        "seed": 3407,
        "probe_epochs": 25,
        "probe_lr": 0.01,
        "probe_batch_size": 512,
        "limit": None,
        "test_limit": None,
    }
    assert paper.flat().items() >= expected.items()


def lacking(agent: str, method: str) -> str:
    """What is said of a rule that a method, with ASTrA's sets, does not have."""
    made = METHODS[method]()
    refused = {
        "delayed": "the agent delayed begins with clean views, but actions begin at 3 steps and a radius of 3/255",
        "accelerating": "agent accelerating: the world cannot report attack/slope" if made.attack.free else "",
        "escalating": "agent escalating: the world cannot report attack/gain" if made.attack.free else "",
        "customized": "" if made.retrieves else "agent customized: the world cannot report attack/retrieved",
        "friendly": "" if made.retrieves else r"attack_stop is retrieval \(the agent friendly sets it\), but",
    }
    return refused.get(agent, "")


@pytest.mark.parametrize("method", METHODS)
def test_a_method_without_an_attack_takes_no_agent_and_any_other_takes_one(method: str) -> None:
    taught = encoder_of(method, "somewhere")
    make = partial(Settings.of, method=method, **taught)
    settings = make()
    attacks = METHODS[method].attack.exists
    assert (settings.agent.agent, settings.agent.actions) == (
        ("reinforce", "factored") if attacks else ("none", "none")
    )
    for agent in AGENTS:
        if (agent == "none") == attacks:
            with pytest.raises(ValueError, match=re.escape(f"agent is '{agent}', but the method {method}")):
                make(agent=agent)
        elif message := lacking(agent, method):
            with pytest.raises(ValueError, match=message):
                make(agent=agent)
        else:
            assert make(agent=agent).agent.agent == agent


def test_the_fixed_agent_plays_the_methods_own_budget_exactly() -> None:
    kinds = {}
    for method, kind in METHODS.items():
        if kind.attack.exists:
            taught = encoder_of(method, "somewhere")
            settings = Settings.of(method=method, agent="fixed", **taught)
            table = ActionTable(settings.agent.actions)
            budget = table.decode(torch.as_tensor(table.encode(settings.fixed_budget))[None])
            found = {name: getattr(budget, name).item() for name in ("epsilon", "step_size", "steps")}
            assert found == pytest.approx(asdict(kind().default_budget(1)), rel=1e-6)
            kinds[method] = settings.agent.actions
    # budgets beside the grid of factored actions
    assert {method for method, kind in kinds.items() if kind == "continuous"} == {"rocl", "emp-ssl", "cf-amc-ssl"}
    assert Settings.of(method="rocl", agent="schedule").agent.actions == "continuous"
    assert Settings.of(method="rocl", agent="fixed", epsilon=8 / 255).agent.actions == "continuous"


def test_reinforce_paper_fixes_what_the_paper_fixes() -> None:
    paper = Settings.of(agent="reinforce-paper")
    assert (paper.reward.reward_scope, paper.agent.observation, paper.agent.actions) == ("batch", "image", "factored")
    assert Settings.of(agent="reinforce-paper", reward_scope="batch", observation="image") == paper
    assert Settings.of(agent="reinforce-paper", env="batch").agent.observation == "features"


@pytest.mark.parametrize("change", [{"reward_scope": "view"}, {"observation": "features"}, {"actions": "flat"}])
def test_reinforce_paper_refuses_the_contrary_by_name(change: dict[str, str]) -> None:
    [(name, value)] = change.items()
    with pytest.raises(ValueError, match=f"--{name} {value} contradicts the agent reinforce-paper"):
        Settings.of(agent="reinforce-paper", **change)


@pytest.mark.parametrize(
    ("name", "value", "nearest"),
    [
        ("agent", "reinfroce", "reinforce"),
        ("method", "astar", "astra"),
        ("dataset", "cifar", "cifar10"),
        ("preset", "digit", "digits"),
        ("env", "veiw", "view"),
        ("observation", "imgae", "image"),
        ("actions", "contiuous", "continuous"),
        ("reward_scope", "bacth", "batch"),
        ("device", "gpu", None),
        ("progress", "line", "lines"),
    ],
)
def test_an_unknown_name_offers_the_nearest(name: str, value: str, nearest: str | None) -> None:
    hint = f"did you mean '{nearest}'" if nearest else "choose from auto, cpu, cuda"
    with pytest.raises(ValueError, match=f"unknown .* '{value}'.*{hint}"):
        Settings.of(**{name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"agent": "fixed", "epsilon": 16 / 255}, "epsilon is 16/255: expected 3/255 to 15/255"),
        ({"agent": "fixed", "step_size": 0.5 / 255}, "step_size is 0.5/255"),
        ({"agent": "fixed", "steps": 15}, "steps is 15: expected 3 to 14"),
        ({"steps": 5, "step_size": 2 / 255}, "--step_size, --steps: only the agents fixed.* the agent is reinforce"),
        ({"schedule": (0.1,)}, "--schedule: only the agent schedule takes it, and the agent is reinforce"),
        ({"schedule": (0.1,), "epsilon": 0.1}, "--epsilon: only the agents fixed, .* and the agent is reinforce"),
        ({"post_kwargs": {"epochs": 3}}, "post_kwargs: the method astra has no post-processing"),
        ({"env": "batch", "observation": "image"}, "observation 'image'"),
        ({"epochs": 0}, "epochs is 0"),
    ],
)
def test_what_is_out_of_range_or_contradicts_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings.of(**change)


def test_fixed_and_schedule_take_continuous_actions_where_their_sets_lack_a_budget() -> None:
    world = {"action_epsilons": (0.0, 8 / 255, 16 / 255), "action_steps": (1, 5)}
    own = Settings.of(agent="fixed", **world)
    assert own.agent.actions == "factored" and own.fixed_budget == ACL_BUDGET
    with pytest.raises(ValueError, match="steps is 3: the nearest that factored actions have is 1"):
        Settings.of(agent="fixed", steps=3, **world)
    plan = Settings.of(agent="schedule", schedule=(8 / 255, 16 / 255), steps=1, step_size=4 / 255, **world)
    assert plan.agent.actions == "factored"
    assert [(one.epsilon, one.steps, one.step_size) for one in plan.listed_budgets] == [
        (8 / 255, 1, 4 / 255),
        (16 / 255, 1, 4 / 255),
    ]
    assert Settings.of(agent="schedule", **world).agent.actions == "continuous"
    assert Settings.of(agent="fixed-max", **world).fixed_budget == ConstantBudget(
        epsilon=16 / 255, steps=5, step_size=5 / 255
    )
    with pytest.raises(ValueError, match=r"the agent is schedule \(schedule takes --schedule, --step_size, --steps\)"):
        Settings.of(agent="schedule", epsilon=8 / 255)


def test_the_judge_is_one_of_the_radii_that_are_evaluated() -> None:
    assert Settings.of(judge_epsilon=8 / 255).judge.judge_score == "robust"
    with pytest.raises(ValueError, match=r"judge_epsilon is .*: expected one of eval_epsilons"):
        Settings.of(judge_epsilon=9 / 255)
    with pytest.raises(ValueError, match="judge_score is mean: give the judged radius too"):
        Settings.of(judge_score="mean")
    with pytest.raises(ValueError, match="unknown judge's score 'best'"):
        Settings.of(judge_score="best")


def test_the_fixed_agents_budget_is_the_methods_own_where_nothing_is_said() -> None:
    assert Settings.of(agent="fixed").fixed_budget == ACL_BUDGET
    hardest = ConstantBudget(epsilon=15 / 255, step_size=4 / 255, steps=14)
    assert Settings.of(agent="fixed-max").fixed_budget == hardest
    assert Settings.of(agent="reinforce").fixed_budget is None
    assert Settings.of(agent="fixed", epsilon=10 / 255, steps=7).fixed_budget == replace(
        ACL_BUDGET, epsilon=10 / 255, steps=7
    )


def test_settings_are_frozen_and_replaceable() -> None:
    settings = Settings.of()
    with pytest.raises(FrozenInstanceError):
        settings.optimizer.epochs = 3  # type: ignore[misc]
    assert settings.replace(epochs=3).optimizer.epochs == 3
    assert settings.replace() == settings


def test_default_run_folders_are_numbered(tmp_path: Path) -> None:
    settings = Settings.of(agent="ppo", method="acl", seed=3)
    for name in ("digits-acl-ppo-seed3", "digits-acl-ppo-seed3-2", "digits-acl-ppo-seed3-3"):
        folder = default_run_dir(settings, tmp_path)
        assert folder == tmp_path / name
        folder.mkdir()


@pytest.mark.parametrize(("native", "precision"), [(True, "bf16"), (False, "fp32")])
def test_the_precision_is_what_the_device_is_good_at(monkeypatch, native: bool, precision: str) -> None:
    monkeypatch.setattr("astra_gym.experiments.config.settings.bf16_is_native", lambda device: native)
    assert Settings.of().optimizer.precision == precision
    assert Settings.of(precision="fp32").optimizer.precision == "fp32"
    # what was resolved is what is written down: a run goes on as it began, wherever that is
    assert f"precision: {precision}\n" in Settings.of().to_yaml()


def test_a_wrong_precision_is_told_all_there_are() -> None:
    with pytest.raises(ValueError, match="auto, fp32, bf16"):
        Settings.of(precision="int8")


def test_tiny_maps_are_not_trusted_to_bfloat16(monkeypatch) -> None:
    monkeypatch.setattr("astra_gym.experiments.config.settings.bf16_is_native", lambda device: True)
    assert Settings.of(stem="imagenet", image_size=16).optimizer.precision == "fp32"
    assert Settings.of(stem="imagenet", image_size=32).optimizer.precision == "bf16"


def test_settings_are_sections_and_flat_values_at_once() -> None:
    settings = Settings.of(agent="fixed", epsilon=8 / 255, epochs=3, dataset="digits")
    assert settings == Settings(
        agent=AgentSection(agent="fixed", epsilon=8 / 255),
        optimizer=OptimizerSection(epochs=3),
    )
    assert Settings.of(**settings.flat()) == settings
    assert settings.world == WorldSettings(**{name: getattr(settings, name) for name in WORLD})
    # records are cut short at their end: its last name is always the same
    assert [*settings.flat()][-1] == "progress" and sorted(settings.flat()) == sorted(LEAVES)
    with pytest.raises(ValueError, match=r"unknown setting 'epoch': .*did you mean 'epochs'"):
        settings.replace(epoch=3)


def test_sections_that_a_run_shares_with_its_world_are_the_same() -> None:
    ours = {item.name: item.type for item in fields(Settings)}
    assert {item.name: item.type for item in fields(WorldSettings)}.items() <= ours.items()
