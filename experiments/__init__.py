"""Commands and their parts: settings, runs, evaluation, comparison, reports, benchmarks."""

if __name__ != "astra_gym.experiments":
    raise ImportError(f"{__name__} is a part of astra_gym, not a package of its own: import astra_gym.experiments")
