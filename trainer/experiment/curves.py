"""Training curves of several runs as one PNG.

In: log.jsonl of each run.  Out: accuracy, length, TECA and total entropy of the rollouts over the steps.
"""

from pathlib import Path

from trainer.training.run_log import LOG_FILE, read_log

# title, name in the log
PANELS = (
    ("accuracy", "accuracy"),
    ("length (tokens)", "completions/mean_length"),
    ("TECA (nats)", "teca"),
    ("total entropy (nats)", "entropy_sum"),
)


def series(records: list[dict], name: str) -> tuple[list[int], list[float]]:
    """Steps and values of what was logged under a name."""
    points = [(record["step"], record[name]) for record in records if record.get(name) is not None]
    return [step for step, _ in points], [value for _, value in points]


def draw(runs: dict[str, Path], path: Path) -> None:
    """`runs` maps a label to the run's output directory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    for axis, (title, name) in zip(axes.flat, PANELS, strict=True):
        for label, directory in runs.items():
            steps, values = series(read_log(directory / LOG_FILE), name)
            axis.plot(steps, values, label=label, linewidth=1.5)
        axis.set_title(title, fontsize=10)
        axis.grid(alpha=0.3)
        axis.set_ylim(bottom=0)
    for axis in axes[1]:
        axis.set_xlabel("optimizer step")
    axes[0][0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
