"""The record of every command's flags."""

from astra_gym.experiments.benchmark import BenchmarkFlags
from astra_gym.experiments.compare_agents import CompareCommand
from astra_gym.experiments.config.cli import TrainCommand
from astra_gym.experiments.evaluation.flags import EvaluationFlags
from astra_gym.experiments.export_encoder import ExportFlags
from astra_gym.experiments.measure_headroom import HeadroomFlags
from astra_gym.experiments.publish import PublishFlags
from astra_gym.experiments.report import ReportFlags
from astra_gym.experiments.tune import TuneFlags

RECORDS: dict[str, type] = {
    "train": TrainCommand,
    "compare": CompareCommand,
    "tune": TuneFlags,
    "headroom": HeadroomFlags,
    "evaluate": EvaluationFlags,
    "export": ExportFlags,
    "report": ReportFlags,
    "publish": PublishFlags,
    "benchmark": BenchmarkFlags,
}
"""By the names of the commands."""
