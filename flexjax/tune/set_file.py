"""A finding as a flag set that the launcher loads, with its evidence in the comments."""

from collections.abc import Sequence

from flexjax.lab import Candidate, Cost, Evaluator, Setting, is_block_size
from flexjax.tune.search import Factor, Finding, Trial


def set_file(
    finding: Finding, factors: Sequence[Factor], evaluator: Evaluator, *, what: str, where: str, date: str
) -> str:
    """The text of `xla_flags/<chip>/<purpose>.txt`: what was tuned, on what, when, each flag and what it brought.

    Where nothing pays it is a file of comments, and so an empty set. Block sizes are named in a comment: they are no
    flags, and stand in their kernel's module.
    """
    measured = evaluator.kind == "measured"
    lines = [f"# {what}.", f"# Found by configs/tune_flags.py, {evaluator.kind} {date}:", f"# {where}."]
    if not measured:
        lines.append("# What the compiler expects, never a speed seen: to be measured on a chip before it is trusted.")
    if finding.cost is None:
        lines.append("# Nothing that was tried pays: this set is empty.")
        lines += [f"# The defaults: {t.cost.default_value:.4g} {evaluator.unit}." for t in finding.trials[:1] if t.cost]
    else:
        lines.append(f"# All together: {_figures(finding.cost, evaluator.unit)}.")
        sizes = {name: value for name, value in finding.best.items() if is_block_size(name)}
        if sizes:
            lines.append("# With these block sizes, to be written into the kernel: " + describe(sizes))
    spread = ", 10th to 90th percentile of the rounds" if measured else ""
    lines += ["#", f"# Alone (time over that of the defaults{spread}):"]
    lines += [f"#   {describe(t.candidate)}: {figure(t)}" for t in finding.trials if t.phase == "alone"]
    notes = {factor.name: factor.note for factor in factors}
    for name, value in finding.best.items():
        if not is_block_size(name):
            evidence = f"Alone {_alone(finding, name, value)} of the time without it ({evaluator.kind})."
            lines += ["", f"# {notes[name]}", f"# {evidence}", f"--{name}={_plain(value)}"]
    return "\n".join(lines) + "\n"


def describe(candidate: Candidate) -> str:
    return " ".join(f"{name}={_plain(value)}" for name, value in candidate.items())


def figure(trial: Trial) -> str:
    """A trial's ratio with its spread, or why it has none."""
    return trial.reason if trial.cost is None else _ratio(trial.cost)


def _alone(finding: Finding, name: str, value: Setting) -> str:
    (trial,) = (t for t in finding.trials if t.phase == "alone" and t.candidate == {name: value})
    return figure(trial)


def _ratio(cost: Cost) -> str:
    spread = f" ({cost.low:.3f}–{cost.high:.3f})" if cost.low != cost.high else ""
    return f"{cost.ratio:.3f}{spread}{'' if cost.same_results is not False else ', changes results'}"


def _figures(cost: Cost, unit: str) -> str:
    return f"{cost.default_value:.4g} → {cost.value:.4g} {unit}, {_ratio(cost)}"


def _plain(value: Setting) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
