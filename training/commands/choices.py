"""The names that flags of `fit` and `compare` accept, one per line, for their `--help`."""

import tomllib
from collections.abc import Mapping
from pathlib import Path

NETWORKS = {
    "auto": "tries those that suit the data and keeps the best on validation (the default)",
    "linear": "logistic regression, with a penalty that validation chooses",
    "linear-pieces": "piecewise linear in each number, with bends at its quantiles",
    "linear-scaled": "linear with the values of categories standardised: rare ones count more",
    "mlp": "two hidden layers of 256 with dropout, for rows of numbers",
    "mlp-pieces": "mlp with each number also cut into pieces at its quantiles",
    "mlp-scaled": "mlp with the values of categories standardised",
    "mlp-128": "two hidden layers of 128 without dropout",
    "cnn": "a small convolutional network with a hidden layer",
    "cnn-direct": "the same convolutions, with the classifier directly on their features",
    "resnet32": "the paper's network for CIFAR",
    "released-resnet32": "the ResNet-32 of the code released with the paper",
    "tfidf": "logistic regression on TF-IDF features of texts",
    "text": "the mean of word vectors and a linear layer, for texts",
    "module:function": "any importable factory f(num_classes) -> torch.nn.Module",
}
LOSSES = {
    "erm": "cross-entropy",
    "balanced": "cross-entropy, each class weighted by 1 / its frequency",
    "logit-adjusted": "cross-entropy of logits + loss_tau · log frequency (the paper's loss)",
    "balanced-softmax": "logit-adjusted with loss_tau 1",
    "weighted-logit-adjusted": "logit-adjusted, with the weights that keep it consistent",
    "adaptive": "a margin that grows with the rarity of the label",
    "ldam": "label-distribution-aware margin on a cosine head",
    "equalised": "a margin of the log frequency of the rival class",
    "equalised-random": "rare rivals are ignored at random",
    "logit-adjusted+adaptive": "both margins",
    "focal": "cross-entropy, with less weight on examples that are already right",
}
SAMPLERS = {
    "uniform": "every example once per epoch",
    "balanced": "classes equally often",
    "square-root": "classes by the root of their counts",
    "effective-number": "examples weighted by the effective number of their class",
    "progressive": "from uniform to balanced over the run",
    "deferred": "uniform, then balanced for the last part of the run",
}
RECIPES = Path(__file__).parents[1] / "recipes"


def recipes() -> dict[str, str]:
    """Return the descriptions of the package's recipes, by name."""
    return {
        path.stem: tomllib.loads(path.read_text(encoding="utf-8")).get("description", "")
        for path in sorted(RECIPES.glob("*.toml"))
    }


def methods() -> dict[str, str]:
    """Return the notes on the methods of a comparison, by name."""
    from training.studies.methods import METHODS

    return {method.name: method.note for method in METHODS}


def listing(**tables: Mapping[str, str]) -> str:
    """Return an epilog for argparse that lists each table under its name."""
    parts = []
    for title, table in tables.items():
        width = max(map(len, table))
        lines = [f"  {name:<{width}}  {text}" for name, text in table.items()]
        parts.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(parts)
