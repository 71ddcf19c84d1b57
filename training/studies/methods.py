"""Lists the compared methods: the training run that each needs, and the processing after it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from service.contract.nearest import did_you_mean
from training.faults import WrongUse

Afterwards: TypeAlias = Literal[
    "nothing",
    "tau-one",
    "tau-chosen",
    "norm-one",
    "norm-chosen",
    "crt",
    "lws",
]

ON_FEATURES: tuple[Afterwards, ...] = ("norm-one", "norm-chosen", "crt", "lws")

ADAM_RUN = "erm-adam"
RUNS: dict[str, Mapping[str, Any]] = {
    "erm": {},
    "logit-adjusted": {"loss": "logit-adjusted"},
    "weighted-logit-adjusted": {"loss": "weighted-logit-adjusted", "loss_tau": 0.5},
    "logit-adjusted+adaptive": {"loss": "logit-adjusted+adaptive"},
    "balanced": {"loss": "balanced"},
    "adaptive": {"loss": "adaptive"},
    "ldam": {"loss": "ldam", "loss_options": {"drw": False}},
    "ldam-drw": {"loss": "ldam"},
    "equalised": {"loss": "equalised"},
    "equalised-random": {"loss": "equalised-random"},
    "focal": {"loss": "focal"},
    "sampler-balanced": {"sampler": "balanced"},
    "sampler-square-root": {"sampler": "square-root"},
    "sampler-effective-number": {"sampler": "effective-number"},
    "sampler-progressive": {"sampler": "progressive"},
    "sampler-deferred": {"sampler": "deferred"},
    ADAM_RUN: {"optimiser": "adamw", "weight_decay": 0.0, "adam_beta2": 0.95},
}
"""The changes that each training run makes to the recipe of the comparison. AdamW without decay is
the paper's Adam.

Its beta2 is 0.95: the usual 0.999 would average squared gradients over about 1,000 steps, which is
most of a run of 1,200.
"""

ADAM_RATE = 0.1
"""The Adam run uses this fraction of the recipe's learning rate: AdamW needs less than SGD.

docs/results.md compares other fractions.
"""


@dataclass(frozen=True)
class Method:
    """A method of the comparison, which is one row of its table.

    run: the training run that it uses, a key of RUNS. afterwards: the processing of the finished
    run. note: a description for the report.
    """

    name: str
    run: str
    afterwards: Afterwards = "nothing"
    note: str = field(default="", compare=False)


METHODS: tuple[Method, ...] = (
    Method("erm", "erm", note="cross-entropy"),
    Method("weight-norm τ=1", "erm", "norm-one", "w / ‖w‖, no bias (Kang 2020)"),
    Method("weight-norm τ chosen", "erm", "norm-chosen", "τ from validation"),
    Method("crt", "erm", "crt", "classifier retrained on frozen features, balanced (Kang 2020)"),
    Method("lws", "erm", "lws", "a scale a class on frozen features, balanced (Kang 2020)"),
    Method("adaptive", "adaptive", note="margin π^-¼ of the label (Cao 2019, as in the paper)"),
    Method("ldam", "ldam", note="cosine head, s = 30, no DRW (Cao 2019)"),
    Method("ldam-drw", "ldam-drw", note="with class-balanced weights from 80 % of the run on"),
    Method("equalised", "equalised", note="log π of the rival (Tan 2020, as in the paper)"),
    Method("equalised-random", "equalised-random", note="random mask, γ = 0.9 (Tan 2020)"),
    Method("focal", "focal", note="γ = 2 (Lin 2017)"),
    Method("balanced", "balanced", note="weights 1 / π"),
    Method("sampler-balanced", "sampler-balanced", note="classes equally often"),
    Method("sampler-square-root", "sampler-square-root", note="classes by √n"),
    Method("sampler-effective-number", "sampler-effective-number", note="β = 0.9999 (Cui 2019)"),
    Method("sampler-progressive", "sampler-progressive", note="uniform → balanced (Kang 2020)"),
    Method("sampler-deferred", "sampler-deferred", note="balanced from 80 % of the run on"),
    Method("post-hoc τ=1", "erm", "tau-one", "f − log π (Menon 2021)"),
    Method("post-hoc τ chosen", "erm", "tau-chosen", "f − τ log π, τ from validation"),
    Method("logit-adjusted", "logit-adjusted", note="cross-entropy of f + log π (Menon 2021)"),
    Method("weighted-logit-adjusted", "weighted-logit-adjusted", note="loss_tau = 0.5"),
    Method("logit-adjusted+adaptive", "logit-adjusted+adaptive", note="both margins"),
    Method("erm-adam", "erm-adam", note="cross-entropy, Adam without decay in place of SGD"),
    Method("weight-norm-adam τ chosen", "erm-adam", "norm-chosen", "of the Adam run"),
    Method("post-hoc-adam τ=1", "erm-adam", "tau-one", "of the Adam run"),
)


def choose(names: str) -> tuple[Method, ...]:
    """Return the methods that `--methods` names: `all`, or names separated by commas.

    Spaces and τ may be left out (`post-hoc`, `weight-norm`). Raises WrongUse for an unknown name.
    """
    if names == "all":
        return METHODS
    wanted = [_plain(name) for name in names.split(",") if name.strip()]
    if not wanted:
        raise WrongUse("--methods names no method; expected all, or names separated by commas")
    found = [
        [m for m in METHODS if _plain(m.name) == name or _plain(m.name.split(" ")[0]) == name]
        for name in wanted
    ]
    for name, matches in zip(wanted, found, strict=True):
        if not matches:
            known = list(dict.fromkeys(m.name.split(" ")[0] for m in METHODS))
            raise WrongUse(
                f"--methods: no method '{name}'; expected all, or some of {', '.join(known)}"
                f"{did_you_mean(name, known)}"
            )
    chosen = {m.name for matches in found for m in matches}
    return tuple(m for m in METHODS if m.name in chosen)


def runs_of(methods: tuple[Method, ...]) -> tuple[str, ...]:
    """Return the training runs that the methods need, each once, in the order of RUNS."""
    needed = {method.run for method in methods}
    return tuple(name for name in RUNS if name in needed)


def _plain(name: str) -> str:
    return name.lower().replace("τ", "tau").replace(" ", "-").replace("=", "-").strip()
