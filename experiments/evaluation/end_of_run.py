"""The results at the end of a run: accuracies, rewards of its policy on held-out batches, and figures."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from rich.table import Table
from torch import Tensor, nn

from astra_gym.agents import Agent, RandomAgent, Sb3Agent
from astra_gym.experiments.evaluation.protocols import own_probe, weak_views_for
from astra_gym.experiments.evaluation.store import TRAINED_ON, listed
from astra_gym.experiments.plotting import run_plots
from astra_gym.experiments.runs.metrics import read_metrics
from astra_gym.experiments.runs.run import Run
from astra_gym.experiments.runs.run_folder import RunFolder
from astra_gym.experiments.runs.run_log import write_final
from astra_gym.ssl_core.attacks.pgd import Budget, NonFiniteGradientError
from astra_gym.ssl_core.data.labels import required_labels
from astra_gym.ssl_core.data.sampler import BatchSampler
from astra_gym.ssl_core.downstream.linear_probe import RawPixels, train_probe
from astra_gym.ssl_core.evaluation.attack_suite import Attack, evaluate
from astra_gym.ssl_core.evaluation.masking import check_attack
from astra_gym.ssl_core.evaluation.results import VOID, Origin, Row, write_results
from astra_gym.ssl_core.evaluation.robustness import STEP_SIZE
from astra_gym.ssl_core.evaluation.sanity import SanityError, TrainedOnError
from astra_gym.ssl_core.models.target_network import build_network
from astra_gym.ssl_core.transforms.views import as_float
from astra_gym.ssl_core.utils.device import ieee_fp32
from astra_gym.ssl_core.utils.files import write_json
from astra_gym.ssl_core.utils.hashing import digest
from astra_gym.ssl_core.utils.messages import amount
from astra_gym.ssl_core.utils.provenance import ROOT, commit, versions
from astra_gym.ssl_core.utils.rng import Streams

POLICY_BATCHES = 4
"""Held-out batches on which policies are compared; if there are few test images, they recur with new views."""
RANDOM_WEIGHTS = "random-weights"
RAW_PIXELS = "raw-pixels"
UNIFORM = "uniform random"
FIXED = "method's own budget"


def standard_linear_finetuning(
    run: Run, folder: RunFolder, note: Callable[[str], None]
) -> tuple[list[Row], Mapping[Attack, Tensor]]:
    """Run SLF and PGD-20 on the trained encoder, and with `controls` on two trivial encoders.

    SLF is `astra_gym.ssl_core.downstream.linear_probe`. All are evaluated in float32. Writes `results/slf.json`; a
    control's rows have its name as `checkpoint`. After few updates the statistics of batch norm are not settled; the
    probe's logits may then be so large that the cross entropy has no gradient, and every image seems robust. RA is then
    marked as void (`check_attack`, `Row.void`).

    Args:
        run: a run with labeled data.
        folder: folder of the run.
        note: function that prints a line.

    Returns:
        The rows, the trained encoder's first; for each attack, whether the trained encoder classified each test image
        (n,) correctly.
    """
    settings, engine, seed = run.settings, run.engine, run.settings.run.seed
    network, route = copy.deepcopy(run.encoder), engine.method.routes.evaluation
    # float32 whatever the run's precision, so that accuracies of different runs are comparable and the attack has exact
    # gradients
    network.precision = "fp32"
    encoders: dict[str, tuple[nn.Module, str]] = {run.checkpoint_name: (network, route)}
    epsilons = settings.probe.eval_epsilons
    if settings.probe.controls:
        untrained = build_network(Streams(seed)["evaluation/init"], **network.arguments | {"precision": "fp32"})
        encoders[RANDOM_WEIGHTS] = (untrained, route)
        encoders[RAW_PIXELS] = (RawPixels(engine.image_shape), "none")
    rows: list[Row] = []
    correct: Mapping[Attack, Tensor] = {}
    for name, (encoder, path) in encoders.items():
        note(f"linear probe on {name}, then PGD-20 at {amount(len(epsilons), 'epsilon')}")
        classifier = train_probe(
            encoder,
            path,
            engine.data.probe_train,
            own_probe(settings.probe),
            weak_views_for(engine.image_shape[-1], settings.views.flip),
            seed=seed,
            device=engine.device,
        )
        test, reason = engine.data.test, ""
        try:
            if epsilons:
                check_attack(classifier, test.images, required_labels(test, "the evaluation"), seed=seed)
        except (SanityError, NonFiniteGradientError) as error:
            reason = str(error)
        found = evaluate(
            classifier,
            test,
            # not `step_size_for`, because kept results used the step size 2/255 at epsilons above 16/255 too
            [Attack("pgd20", epsilon, step_size=min(STEP_SIZE, epsilon / 2)) for epsilon in epsilons],
            origin=Origin(
                protocol="slf",
                route=path,
                seed=seed,
                checkpoint=name,
                checkpoint_hash=digest(encoder),
                dataset=settings.data.dataset,
                commit=commit(ROOT),
                deviations=("the preset's probe, see config.yaml",),
            ),
            void=bool(reason),
        )
        correct = correct or found.correct
        for sentence in found.notes:
            note(sentence)
        for row in found.rows:
            more = (f"{VOID}{reason}",) if reason and row.metric == "RA" else ()
            # without the seconds, a repeated run writes the same file
            rows.append(replace(row, seconds=None, deviations=(*row.deviations, *more)))
        write_results(folder.results / "slf.json", rows)
    return rows, correct


def write_outcomes(folder: RunFolder, checkpoint: str, correct: Mapping[Attack, Tensor], void: str = "") -> None:
    """Write `results/outcomes.json`: whether the encoder classified each test image correctly, as a string of 0 and 1
    for each epsilon (0.0: clean), so that runs can be compared image by image; and why robust ones are void, if so."""
    marks = {repr(attack.epsilon): "".join(map(str, right.int().tolist())) for attack, right in correct.items()}
    document = {"schema": 1, "checkpoint": checkpoint, "correct": marks}
    write_json(folder.results / "outcomes.json", document | ({"void": void} if void else {}))


def held_out_rewards(run: Run, folder: RunFolder) -> dict[str, list[float]]:
    """Return the mean rewards of the trained policy, uniform random and the method's fixed budget on held-out views.

    All three attack the same views of test images, on the trained target network, from the same random starts; nothing
    is learned. Writes `results/policy.json`.

    Returns:
        One mean for each batch, by policy.
    """
    settings, engine, env = run.settings, run.engine, run.env
    images = engine.data.test.images
    size = min(settings.optimizer.batch_size, len(images))
    streams = Streams(settings.run.seed, engine.device)
    uniform = RandomAgent(env, seed=settings.run.seed)
    rewards: dict[str, list[float]] = {settings.agent.agent: [], UNIFORM: [], FIXED: []}
    sampler = BatchSampler(len(images), size, streams["policy/data"])
    noise = streams.on_device("policy/noise")
    for _ in range(POLICY_BATCHES):
        views = engine.make_views(as_float(images[sampler.next()].to(engine.device)), streams["policy/views"])
        clean = engine.raw_observation(views)[1].embeddings
        budgets = {
            settings.agent.agent: chosen_budget(run, run.agent, views),
            UNIFORM: chosen_budget(run, uniform, views),
            FIXED: engine.method.budget_at(engine.step).expand(len(clean)),
        }
        start = noise.get_state()
        for name, budget in budgets.items():
            noise.set_state(start)
            with engine.learner.untracked():
                outcome = engine.assess(views, clean, budget, noise)
            rewards[name].append(outcome.reward.mean().item())
    document = {
        "schema": 1,
        "seed": settings.run.seed,
        "checkpoint": run.checkpoint_name,
        "batch_views": engine.method.num_attacked(size),
        "rewards": rewards,
        "commit": commit(ROOT),
        "versions": versions(),
    }
    write_json(folder.results / "policy.json", document)
    return rewards


def chosen_budget(run: Run, agent: Agent | Sb3Agent, views: Tensor) -> Budget:
    """Draw the agent's budget (n,) for the attacked views of a batch (v, 3, h, w), as in training."""
    actions = torch.as_tensor(agent.predict(run.env.observation_of(views))[0])
    # one action of the batch environment holds for every view
    attacked = run.engine.method.attacked(views)
    budget = run.env.table.decode(actions.expand(len(attacked), *actions.shape[1:]))
    if budget is None:
        raise ValueError(f"the method {run.settings.method.method} has no attack to choose")
    return budget


def draw(run: Run, folder: RunFolder, rows: list[Row]) -> None:
    """Draw into `figures/` the figures that the run's method and data allow; void accuracies are left out."""
    # damaged lines of the log were already reported when the run was resumed
    metrics = read_metrics(folder.path / "metrics.jsonl", [])
    # without the log only the curves are missing
    if any(row.get("loss/total") is not None for row in metrics):
        run_plots.losses_and_reward(metrics, folder.figures / "losses_and_reward.png")
    if run.engine.method.attack.exists:
        if any(row.get("actions/steps") for row in metrics):
            ends = run_plots.ends_of(run.settings.ranges.sets)
            run_plots.action_shares(metrics, folder.figures / "action_shares.png", ends=ends)
        engine = run.engine
        budget = chosen_budget(run, run.agent, engine.all_views)
        generator = Streams(run.settings.run.seed, engine.device).on_device("gallery/noise")
        with engine.learner.untracked():
            attacked = engine.learner.attack(engine.all_views, budget, generator)
        # one view of each image, since the others show the same again
        each = slice(None, None, engine.method.attacked_per_image)
        first = Budget(epsilon=budget.epsilon[each], step_size=budget.step_size[each], steps=budget.steps[each])
        path = folder.figures / "attack_gallery.png"
        run_plots.attack_gallery(engine.views[each], attacked.images[each], first, path)
    if rows:
        void = {row.checkpoint for row in rows if row.void}
        by_classifier: dict[str, list[Row]] = {}
        for row in rows:
            name = run.settings.method.method if row.checkpoint == run.checkpoint_name else row.checkpoint
            if row.checkpoint in void:
                name += " (RA void)"
            if not row.void:
                by_classifier.setdefault(name, []).append(row)
        run_plots.accuracy_against_epsilon(by_classifier, folder.figures / "accuracy_against_epsilon.png")


def table(rows: Sequence[Row]) -> Table:
    """Return the rows as a table for a terminal: a column for each classifier, which are few, and a line for each
    epsilon."""
    epsilons = sorted({row.epsilon for row in rows if row.metric == "RA"})
    columns = [["route", "SA %", *(f"RA % at {255 * epsilon:g}/255" for epsilon in epsilons)]]
    names = list(dict.fromkeys(row.checkpoint for row in rows))
    out = Table("encoder", *names)
    if reasons := dict.fromkeys(f"{row.checkpoint}: {row.void}" for row in rows if row.void):
        out.caption = "\n".join(["void: the attack says nothing, which is usual after few updates.", *reasons])
        # a caption is as wide as its table
        out.caption_justify, out.min_width = "left", 72
    for name in names:
        own = {(row.metric, row.epsilon): row for row in rows if row.checkpoint == name}
        clean = own["SA", 0.0]
        values = [clean, *(own["RA", epsilon] for epsilon in epsilons)]
        columns.append([clean.route, *("void" if row.void else f"{row.value:.1f}" for row in values)])
    for line in zip(*columns, strict=True):
        out.add_row(*line)
    return out


@ieee_fp32()
def conclude(run: Run, folder: RunFolder, note: Callable[[str], None]) -> Table | None:
    """Evaluate and draw. `results/outcomes.json` is written last, so if it exists, all other results do.

    Returns:
        The table of accuracies; None if the data have no labels.

    Raises:
        TrainedOnError: before any measurement, if test images were trained on.
    """
    try:
        for sentence in run.check_held_out():
            note(sentence)
    except TrainedOnError as error:
        raise listed(error, folder.results / TRAINED_ON) from error
    (folder.results / "outcomes.json").unlink(missing_ok=True)
    rows: list[Row] = []
    correct: Mapping[Attack, Tensor] = {}
    if run.engine.data.probe_train.labels is None or run.engine.data.test.labels is None:
        note(f"the data set {run.settings.data.dataset} has no labels: linear evaluation (SLF) is left out")
    else:
        rows, correct = standard_linear_finetuning(run, folder, note)
    own = [row for row in rows if row.checkpoint == run.checkpoint_name]
    if own:
        write_final(folder.path, {row.epsilon: row.value for row in own if not row.void}, run.engine.step)
    if run.engine.method.attack.exists:
        note("rewards of the policy, of uniform random and of the method's own budget on held-out views")
        held_out_rewards(run, folder)
    draw(run, folder, rows)
    if correct:
        # the last row is an attack's, if there is one
        write_outcomes(folder, run.checkpoint_name, correct, own[-1].void)
    return table(rows) if rows else None
