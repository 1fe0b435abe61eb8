"""The health of the features as a part of an evaluation, with rows and figures."""

from dataclasses import asdict

from astra_gym.experiments.evaluation.encoders import FeaturesOnly
from astra_gym.experiments.evaluation.protocol_runner import Evaluator
from astra_gym.experiments.evaluation.store import EvaluationPart
from astra_gym.ssl_core.evaluation.representation import representation_health
from astra_gym.ssl_core.evaluation.results import Row
from astra_gym.ssl_core.models.target_network import TargetNetwork
from astra_gym.ssl_core.transforms.views import ViewSettings

TSNE, SPECTRUM, LANDSCAPE = "tsne.png", "spectrum.png", "landscape.png"


def health_part(evaluator: Evaluator) -> list[Row]:
    """Return the rows of `astra_gym.ssl_core.evaluation.representation.representation_health`; keep its figures too.

    Strong views are those of the encoder's run; for another encoder they are the published ones.

    Args:
        evaluator: evaluator of the encoder.
    """
    subject, store, stages = evaluator.subject, evaluator.store, evaluator.stages
    settings, encoder = subject.settings, subject.encoder
    if isinstance(encoder, TargetNetwork) and not subject.projector:
        encoder = FeaturesOnly(encoder)
    views = settings.views.make() if settings is not None else ViewSettings()
    doing = "representation health"
    key = evaluator.key("health") | {"views": asdict(views)}
    figures = store.figures_of(key)

    def measured() -> EvaluationPart:
        # matplotlib and scikit-learn take a second to import
        from astra_gym.experiments.plotting.representation_plots import landscape, spectrum, tsne

        health = representation_health(
            encoder,
            evaluator.data.test,
            views,
            origin=evaluator.origin("features"),
            device=evaluator.device,
            progress=stages.update,
        )
        stages.begin(f"{doing}: figures")
        clean, attacked = health.vectors["features"], health.vectors["features/attacked"]
        tsne(clean, attacked, health.labels, health.classes, figures / TSNE, evaluator.plan.seed)
        spectrum({"clean": clean, "attacked": attacked}, figures / SPECTRUM)
        if health.landscape is not None:
            landscape(health.landscape, figures / LANDSCAPE)
        return EvaluationPart(health.rows)

    rows = list(evaluator.kept(key, doing, measured).rows)
    store.show(sorted(figures.glob("*.png")))
    return rows
