"""The built-in networks by name, and networks made by a user's own factory function."""

import importlib
import inspect
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from service.contract.nearest import did_you_mean
from training.faults import WrongUse, short
from training.learning.losses import COSINE_SCALE
from training.learning.resnet import released_resnet32, resnet32
from training.learning.tfidf import TfIdf


class CosineLinear(nn.Module):
    """Logits COSINE_SCALE · cos(features, class weight): the head of LDAM (Cao et al., 2019)."""

    def __init__(self, features: int, num_classes: int) -> None:
        super().__init__()
        # Vectors start with length 1, as in the authors' code: the angle by which a step turns a
        # vector depends on the step's size over the squared length.
        directions = torch.empty(num_classes, features).uniform_(-1, 1)
        self.weight = nn.Parameter(functional.normalize(directions, dim=-1))

    def forward(self, features: Tensor) -> Tensor:
        """Return logits [B, C] in -COSINE_SCALE … COSINE_SCALE for features [B, features]."""
        return COSINE_SCALE * functional.linear(
            functional.normalize(features, dim=-1), functional.normalize(self.weight, dim=-1)
        )


class Logits(nn.Module):
    """Wraps a user's network so that it returns only its logits.

    Hugging Face models return an object or a dict with `logits`. torchvision's networks with
    auxiliary heads return a named tuple with `logits` while they train. Tensors are passed through.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Any:
        """Return the logits [B, C] of inputs [B, …]; without any, the network's own result."""
        outputs = self.network(inputs)
        if isinstance(outputs, dict) and isinstance(outputs.get("logits"), Tensor):
            return outputs["logits"]
        logits = getattr(outputs, "logits", None)
        return logits if isinstance(logits, Tensor) else outputs


def linear(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Multinomial logistic regression: one linear layer [B, *input_shape] -> [B, C]."""
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(input_shape)), num_classes))


def mlp_128(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Two hidden layers of 128 units, without dropout: [B, *input_shape] -> [B, C]."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(int(np.prod(input_shape)), 128),
        nn.ReLU(),
        nn.Linear(128, 128),
        nn.ReLU(),
        nn.Linear(128, num_classes),
    )


def mlp(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Two hidden layers of 256 units with dropout 1/3: [B, *input_shape] -> [B, C]."""
    width = 256
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(int(np.prod(input_shape)), width),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Dropout(0.3),
        nn.Linear(width, num_classes),
    )


def cnn(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Three convolutions (16, 32, 48 channels) with batch norm, and a hidden layer of 64 units.

    The features are pooled to 3 × 3 before the hidden layer. Raises WrongUse unless an input is an
    image of at least 8 × 8 pixels.
    """
    layers, features = _convolutions(input_shape)
    return nn.Sequential(*layers, nn.Linear(features, 64), nn.ReLU(), nn.Linear(64, num_classes))


def cnn_direct(num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """The convolutions of `cnn` with a linear layer directly on their normalised features."""
    layers, features = _convolutions(input_shape)
    return nn.Sequential(*layers, nn.Linear(features, num_classes))


def _convolutions(input_shape: tuple[int, ...]) -> tuple[list[nn.Module], int]:
    """The layers that turn images into [B, features], and the number of features."""
    if len(input_shape) != 3 or min(input_shape[1:]) < 8:
        raise WrongUse(
            "network cnn takes images of at least 8 × 8 pixels; an input here is "
            f"{list(input_shape)}"
        )
    layers: list[nn.Module] = []
    widths = (input_shape[0], 16, 32, 48)
    for before, after in itertools.pairwise(widths):
        layers += [
            nn.Conv2d(before, after, 3, padding=1, bias=False),
            nn.BatchNorm2d(after),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
    height, width = (side // 8 for side in input_shape[1:])
    if (height, width) != (3, 3):
        layers.append(nn.AdaptiveAvgPool2d(1))
        height = width = 1
    return [*layers, nn.Flatten()], 48 * height * width


class MeanOfWords(nn.Module):
    """Looks up a vector for each word of a text and returns the mean of these vectors.

    Word number 0 is padding and does not count; a text without words gets the zero vector.
    """

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        # not EmbeddingBag: its export is a loop over rows
        self.vectors = nn.Embedding(size + 1, width, padding_idx=0)
        nn.init.normal_(self.vectors.weight, std=width**-0.5)
        with torch.no_grad():
            self.vectors.weight[0] = 0

    def forward(self, numbers: Tensor) -> Tensor:
        """Return means [B, width] for word numbers [B, words]."""
        known = (numbers > 0).to(self.vectors.weight.dtype).unsqueeze(2)
        total = (self.vectors(numbers) * known).sum(dim=1)
        mean: Tensor = total / known.sum(dim=1).clamp(min=1)
        return mean


def text(num_classes: int, vocabulary_size: int) -> nn.Module:
    """A linear layer on the mean of 64-dimensional word vectors (Joulin et al., 2017)."""
    return nn.Sequential(MeanOfWords(vocabulary_size, 64), nn.Linear(64, num_classes))


def tfidf(num_classes: int, idf: NDArray[np.float32]) -> nn.Module:
    """A linear layer on TF-IDF features: token numbers [B, tokens] -> [B, C]."""
    return nn.Sequential(TfIdf(idf), nn.Linear(len(idf), num_classes))


NETWORKS: dict[str, Callable[[int, tuple[int, ...]], nn.Module]] = {
    "linear": linear,
    "linear-pieces": linear,
    "linear-scaled": linear,
    "mlp": mlp,
    "mlp-pieces": mlp,
    "mlp-scaled": mlp,
    "mlp-128": mlp_128,
    "cnn": cnn,
    "cnn-direct": cnn_direct,
    "resnet32": resnet32,
    "released-resnet32": released_resnet32,
}
PIECES = "-pieces"
"""Suffix of networks that also get each number's position in intervals (`fronts.Pieces`)."""
SCALED = "-scaled"
"""Suffix of networks that get the values of a category by their deviations (`fronts.Mixed`)."""
TEXT_NETWORKS = ("text", "tfidf")
NAMES = (*NETWORKS, *TEXT_NETWORKS)


def build(
    name: str,
    *,
    num_classes: int,
    input_shape: tuple[int, ...],
    idf: NDArray[np.float32] | None = None,
    head: str = "linear",
) -> nn.Module:
    """Build a network [B, *input_shape] -> [B, num_classes], initialised by torch's generator.

    name: one of NAMES, or module:function, a factory f(num_classes) -> nn.Module. idf: [size] of
    the vocabulary, for texts given as token numbers [B, tokens]; None for other inputs. head:
    "cosine" replaces the last linear layer by a CosineLinear. Raises WrongUse for an unknown name,
    a network that does not fit the inputs, or a factory that fails.
    """
    if (name in TEXT_NETWORKS) != (idf is not None):
        raise WrongUse(
            f"network {name}: networks {' and '.join(TEXT_NETWORKS)} take texts, and the others do "
            "not; use --network auto"
        )
    if idf is not None:
        network = tfidf(num_classes, idf) if name == "tfidf" else text(num_classes, len(idf))
    elif name in NETWORKS:
        if name.endswith("resnet32") and len(input_shape) != 3:
            raise WrongUse(
                f"network {name} takes images; an input here is {list(input_shape)}: use --network "
                "mlp"
            )
        network = NETWORKS[name](num_classes, input_shape)
    elif ":" in name:
        network = Logits(_made_by(_factory(name), num_classes, name))
    else:
        near = did_you_mean(name, NAMES)
        raise WrongUse(
            f"unknown network '{name}'; expected {', '.join(NAMES)} or module:function{near}"
        )
    if head == "cosine":
        _use_cosine_head(network, name)
    return network


def _made_by(factory: Callable[..., Any], num_classes: int, name: str) -> nn.Module:
    """Call the factory with `num_classes` by keyword where it has that parameter.

    The first parameter of torchvision's and timm's factories is another one.
    """
    try:
        parameters = list(inspect.signature(factory).parameters.values())
    except ValueError:
        parameters = []
    named = any(p.name == "num_classes" or p.kind is p.VAR_KEYWORD for p in parameters)
    try:
        network = factory(num_classes=num_classes) if named else factory(num_classes)
    except TypeError as error:
        raise WrongUse(
            f"network {name}: {short(error)}; expected a factory f(num_classes)"
        ) from error
    except (Exception, SystemExit) as error:
        raise WrongUse(
            f"network {name}: the factory raised {short(error)}; call it in Python to find the "
            "cause"
        ) from error
    if not isinstance(network, nn.Module):
        raise WrongUse(
            f"network {name}: returned {type(network).__name__}; expected a torch.nn.Module"
        )
    return network


def _factory(name: str) -> Callable[..., Any]:
    module_name, _, function_name = name.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        # `python -m` puts the current folder on the path; the console script does not.
        sys.path.append(str(Path.cwd()))
    words = (*module_name.split("."), function_name)
    if not all(map(str.isidentifier, words)) or module_name.endswith(".py"):
        raise WrongUse(
            f"network {name}: expected module:function, as Python imports it: folder.file:function "
            "without .py, from the current folder or an installed package"
        )
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        raise WrongUse(
            f"network {name}: importing {module_name} raised {short(error)}; expected a module in "
            "the current folder or an installed package"
        ) from error
    factory = getattr(module, function_name, None)
    if factory is None:
        near = did_you_mean(function_name, dir(module), most=10_000)
        raise WrongUse(
            f"network {name}: module '{module_name}' has no function '{function_name}'{near}"
        )
    if isinstance(factory, nn.Module):
        raise WrongUse(
            f"network {name}: is a network itself, a {type(factory).__name__}; expected a factory "
            "f(num_classes) that returns one"
        )
    if not callable(factory):
        raise WrongUse(f"network {name}: is not a function; expected a factory f(num_classes)")
    return factory  # type: ignore[no-any-return]  # whatever the user's module holds


def _use_cosine_head(network: nn.Module, name: str) -> None:
    found = [
        (path, layer) for path, layer in network.named_modules() if isinstance(layer, nn.Linear)
    ]
    if not found:
        raise WrongUse(
            f"network {name}: has no linear layer that the cosine head could replace; "
            "use another loss"
        )
    path, last = found[-1]
    parent, _, attribute = path.rpartition(".")
    setattr(
        network.get_submodule(parent), attribute, CosineLinear(last.in_features, last.out_features)
    )
