"""Formats results as text, for the command without --json."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

MAX_CLASSES = 20


def table(result: Mapping[str, Any]) -> str:
    """Return the result of a verb as lines of text."""
    tables: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "splits": _data_table,
        "bayes": _synthetic_table,
        "curves": _comparison_table,
        "resumed_blocks": _scored_table,
        "methods": _estimate_table,
        "calibration": _calibration_table,
    }
    found = next((each for member, each in tables.items() if member in result), _score_table)
    return found(result)


def _comparison_table(result: Mapping[str, Any]) -> str:
    from training.studies.report import text_table

    return text_table(result)


def _scored_table(result: Mapping[str, Any]) -> str:
    rows = max(result["n"], 1)
    most = sorted(result["predicted"].items(), key=lambda item: -item[1])
    estimate = result.get("estimate")
    used = estimate is not None and estimate["used"]
    prior = "as estimated from these rows" if used else result["prior"]
    lines = [
        f"{result['n']} rows at tau {result['tau']:g}, prior {prior}: {result['out']}",
        f"{result['changed']} decisions ({_percent(result['changed'] / rows)}) differ from tau 0",
    ]
    if estimate is not None:
        kept = "" if used else f"; the answers have the prior {result['prior']} instead"
        lines.append(f"verdict on the estimate: {estimate['verdict']}: {estimate['reason']}{kept}")
        lines.append(f"{'':30}{'answers':>10}{'share':>9}   estimated share, 95 % interval")
    for name, count in most[:MAX_CLASSES]:
        line = f"{name:30}{count:>10}{_percent(count / rows):>9}"
        if estimate is not None:
            low, share, high = (estimate[key][name] for key in ("low", "prior", "high"))
            line += f"{_percent(share):>10}  {_percent(low)} … {_percent(high)}"
        lines.append(line)
    if len(most) > MAX_CLASSES:
        lines.append(f"and {len(most) - MAX_CLASSES} more classes")
    return "\n".join(lines)


def _calibration_table(result: Mapping[str, Any]) -> str:
    low, high = result["temperature_interval"]
    bias = "with" if result["calibration"] == "bias" else "without"
    lines = [
        f"{result['bundle']}: {result['rows']} rows, {result['fewest_rows']} of the rarest class",
        (
            f"temperature {result['temperature']:.3f} ({low:.3f} … {high:.3f}), {bias} a bias per "
            "class"
        ),
    ]
    if result["temperature_note"] is not None:
        lines.append(f"the temperature stays 1: {result['temperature_note']}")
    test = result["self_test"]
    if test is not None:
        errors = ", ".join(f"{mix} {test[mix]:.2f}" for mix in ("training", "uniform", "reversed"))
        lines.append(f"error of an estimate from {test['rows']} rows (L1): {errors}")
    return "\n".join(lines)


def _score_table(result: Mapping[str, Any]) -> str:
    from service.contract.shift.verdict import VALIDATION_ROWS_PER_CLASS

    lines: list[str] = []
    if "temperature" in result:
        lines.append(
            f"temperature {result['temperature']:.3f}, τ {result['tau']['chosen']:g}, "
            f"{result['seconds']:.0f} s"
        )
    norm_tau = result.get("last_layer", {}).get("norm_tau")
    if norm_tau is not None:
        lines.append(
            f"weights normalised at tau {norm_tau:g}: loss_tau {result['loss_tau']:.2f}, "
            "approximate"
        )
    scores = {name: result[name] for name in ("validation", "test") if result.get(name)}
    if "balanced_error" in result:
        scores = {result["split"]: result}
    lines.append(
        f"{'':12}{'τ':>7}{'n':>8}{'error':>9}{'balanced':>10}{'many':>8}{'medium':>8}{'few':>8}{'ECE':>8}{'NLL':>8}"
    )
    for name, score in scores.items():
        seen = set()
        for at in score["at_tau"].values():
            if at["tau"] not in seen:
                mark = "  served" if at["tau"] == _served_tau(score) else ""
                lines.append(_score_line(name, score["n"], at) + mark)
            seen.add(at["tau"])
    lines += [_interval_line(name, score) for name, score in scores.items()]
    rare = result.get("rarest_in_validation")
    if rare is not None and rare["rows"] < VALIDATION_ROWS_PER_CLASS:
        lines.append(
            f"note     class '{rare['class']}' has {rare['rows']} validation "
            f"row{'' if rare['rows'] == 1 else 's'}: the temperature and the choice of τ are "
            f"uncertain below {VALIDATION_ROWS_PER_CLASS}"
        )
    return "\n".join(lines)


def _served_tau(score: Mapping[str, Any]) -> float:
    """Return the τ of the top-level scores, which may differ from the chosen one."""
    top = ("error_interval", "balanced_error_interval")
    found = next(
        (
            at["tau"]
            for at in reversed(score["at_tau"].values())
            if all(at[key] == score[key] for key in top)
        ),
        score["at_tau"]["chosen"]["tau"],
    )
    return float(found)


def _interval_line(name: str, score: Mapping[str, Any]) -> str:
    spans = [
        f"{text} {_percent(score[f'{key}_interval'][0])} … {_percent(score[f'{key}_interval'][1])}"
        for key, text in (("error", "error"), ("balanced_error", "balanced error"))
    ]
    return f"{name}, 95 % at τ = {_served_tau(score):g}: {', '.join(spans)}"


def _synthetic_table(result: Mapping[str, Any]) -> str:
    lines = [
        f"{name:40}{_percent(found['mean']):>9} ± {_percent(found['sd'])}"
        for name, found in result["balanced_error"].items()
    ]
    heading = f"analytic balanced error, {result['trials']} trials of {result['n_train']} points"
    return "\n".join([heading, *lines, f"{'Bayes':40}{_percent(result['bayes']):>9}"])


def _estimate_table(result: Mapping[str, Any]) -> str:
    lines = [f"{result['n']} unlabelled rows, {result['n_held_out']} labelled for calibration"]
    for name, found in result["methods"].items():
        about = {"em": "share with 95 % interval", "bbse": "cross-check"}[name]
        if "refused" in found:
            lines.append(f"{name}: refused: {found['refused']}")
            continue
        lines.append(f"{name}: {about}")
        spans = found.get("interval", [None] * len(found["prior"]))
        for label, share, span in zip(result["class_names"], found["prior"], spans, strict=True):
            ends = "" if span is None else f"  {span[0]:.4f} … {span[1]:.4f}"
            lines.append(f"  {label:24}{share:8.4f}{ends}")
    return "\n".join([*lines, f"verdict: {result['verdict']}: {result['reason']}"])


def _score_line(name: str, n: int, at: Mapping[str, Any]) -> str:
    groups = "".join(f"{_percent(at.get(group)):>8}" for group in ("many", "medium", "few"))
    return (
        f"{name:12}{at['tau']:>7g}{n:>8}{_percent(at['error']):>9}{_percent(at['balanced_error']):>10}"
        f"{groups}{_percent(at['ece']):>8}{at['nll']:>8.3f}"
    )


def _data_table(result: Mapping[str, Any]) -> str:
    splits = result["splits"]
    lines = [f"{result['data']}: {result['kind']}, {len(result['class_names'])} classes"]
    lines += [f"  {name:6}{split['n']:>9} rows" for name, split in splits.items()]
    lines.append(
        "  "
        + ", ".join(f"{group} {n}" for group, n in result["groups"].items())
        + " (classes by training rows)"
    )
    if result["fit"]:
        lines.append(
            "  fit would use " + ", ".join(f"{name} {n}" for name, n in result["fit"].items())
        )
    lines += [f"  warning: {problem}" for problem in result["problems"]]
    lines += _column_lines(result.get("columns", []))
    names = result["class_names"]
    lines.append(f"  {'rows of each class':30}" + "".join(f"{name:>9}" for name in splits))
    for index, name in enumerate(names[:MAX_CLASSES]):
        counts = "".join(f"{split['class_counts'][index]:>9}" for split in splits.values())
        lines.append(f"  {name[:30]:30}{counts}")
    if len(names) > MAX_CLASSES:
        lines.append(f"  … and {len(names) - MAX_CLASSES} more (--json has them all)")
    return "\n".join(lines)


def _column_lines(columns: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        f"  column {column['name'][:30]:30}{_contents(column):31}{column['distinct']:>9} distinct"
        for column in columns[:MAX_CLASSES]
    ]
    if len(columns) > MAX_CLASSES:
        lines.append(f"  … and {len(columns) - MAX_CLASSES} more columns (--json has them all)")
    return lines


def _contents(column: Mapping[str, Any]) -> str:
    """Return the range of a numeric column, or the most frequent values of a category."""
    if "values" in column:
        listed = ", ".join(map(str, column["values"]))
        return listed if len(listed) <= 30 else f"{listed[:29]}…"
    if column["min"] is None:
        return "no value"
    return f"{column['min']:>14.6g} … {column['max']:<14.6g}"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}%"
