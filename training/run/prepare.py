"""Turns a recipe into data, a loss, a sampler, a plan and a network, all checked."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from service.contract.adjustment import Vector, log_source_prior
from training.data.columns import Columns, has_missing
from training.data.dataset import Dataset, has_categories
from training.data.image_cache import cached_pixels
from training.data.image_files import Cached, ImageFiles, made_ready
from training.data.long_tail import profile_counts
from training.data.order import Part
from training.data.problems import check_held_out
from training.data.sources import load as sources
from training.data.splits import long_tailed, set_aside_validation
from training.data.text import Vocabulary
from training.faults import BadData, WrongUse, say
from training.learning.fronts import Mixed, Standardise
from training.learning.losses import Objective, make_loss
from training.learning.networks import PIECES, SCALED, build
from training.learning.samplers import Recorded, Sampler, make_sampler, recorded
from training.learning.weights import ALL_BUT_LAST, freeze, read, start_from
from training.loop.last_layer import head_of
from training.loop.train import Plan
from training.run.recipe import Recipe


@dataclass(frozen=True)
class Prepared:
    """A recipe's data, loss, sampler and plan, ready to train."""

    data: Dataset
    objective: Objective
    sampler: Sampler
    recorded: Recorded
    plan: Plan

    @property
    def log_source_prior(self) -> Vector:
        """[C] log of the source prior sigma of the model to be trained."""
        return log_source_prior(self.data.class_counts, loss_tau=self.recorded.loss_tau)


def prepare(
    recipe: Recipe,
    *,
    in_memory: bool | None = None,
    cache: Path | None = None,
    part: Part | None = None,
) -> Prepared:
    """Load the data, set validation aside, apply the profile, and make the loss and the sampler.

    in_memory: for image files, as in `made_ready`. cache: the folder for decoded images. part: the
    files that this process checks. Raises WrongUse for settings that do not fit the data, BadData
    for data that cannot be used.
    """
    data = prepare_data(recipe)
    check_held_out(data)
    _with_method(recipe, data)  # a wrong method is reported before the images are read
    data = made_ready(
        data,
        in_memory=_kept(recipe, data, asked=in_memory),
        part=part or Part(),
        skip_broken=recipe.skip_broken,
        cached=_cached(recipe, data, cache, in_memory=in_memory),
    )
    return _with_method(recipe, data)


def _with_method(recipe: Recipe, data: Dataset) -> Prepared:
    """Add the loss, the sampler and the plan, which depend on the training rows."""
    objective = make_loss(
        recipe.loss, data.class_counts, loss_tau=recipe.loss_tau, **recipe.loss_options
    )
    sampler = make_sampler(
        recipe.sampler,
        data.train.labels,
        data.num_classes,
        seed=recipe.seed,
        **recipe.sampler_options,
    )
    plan = recipe.plan(len(data.train))
    return Prepared(data, objective, sampler, recorded(objective, sampler), plan)


def prepare_data(recipe: Recipe) -> Dataset:
    """Load the data of a recipe, set validation aside, then apply the profile.

    Raises WrongUse for settings that do not fit the data, BadData for data that cannot be used.
    """
    data = set_aside_validation(
        sources.load(recipe.data, seed=recipe.seed, options=recipe.image_options),
        per_class=recipe.validation_per_class,
        seed=recipe.seed,
    )
    data = with_profile(recipe, data)
    if recipe.tokens != "words" and data.kind != "text":
        raise WrongUse(
            f"--tokens {recipe.tokens}: {recipe.data} holds no texts; leave the flag out"
        )
    if data.kind == "text":
        vocabulary = Vocabulary.learnt(
            np.asarray(data.train.inputs), tokens=recipe.tokens, with_rare=recipe.network == "tfidf"
        )
        if not vocabulary.size:
            raise BadData(
                f"{recipe.data}: no word is in two training texts, so there is nothing to learn "
                "from; words are separated by spaces, and --tokens characters needs none"
            )
        return replace(data, vocabulary=vocabulary)
    if data.kind == "columns":
        held_out = [np.asarray(split.inputs) for split in (data.val, data.test) if split]
        return replace(data, columns=Columns.learnt(np.asarray(data.train.inputs), *held_out))
    return data


def with_profile(recipe: Recipe, data: Dataset) -> Dataset:
    """Make the training rows long-tailed if the recipe has a profile; else change nothing."""
    if recipe.profile is None:
        return data
    counts = profile_counts(
        recipe.profile,
        max_per_class=recipe.max_per_class or int(data.class_counts.min()),
        imbalance_ratio=recipe.imbalance_ratio,
        num_classes=data.num_classes,
    )
    return data.with_splits(train=long_tailed(data.train, counts, seed=recipe.seed), val=data.val)


def identity(recipe: Recipe, ready: Prepared) -> dict[str, Any]:
    """Return the settings that must be equal for a run to continue from a checkpoint."""
    return recipe.learnt_from() | {"total_steps": ready.plan.steps} | contents(ready.data)


def contents(data: Dataset) -> dict[str, str | None]:
    """Return the checksums of the files that a network learns from: data and tokenizer."""
    file = None if data.vocabulary is None else data.vocabulary.tokenizer
    tokens = {} if file is None else {"tokens_sha256": sha256(file.read_bytes()).hexdigest()}
    return {"data_sha256": data.origin.get("sha256"), **tokens}


def _kept(recipe: Recipe, data: Dataset, *, asked: bool | None) -> bool | None:
    """Return whether images are decoded once; None decides by size.

    Random crops need the file each time.
    """
    if recipe.augment == "none":
        return asked
    if data.image is None:
        raise WrongUse(
            f"--augment {recipe.augment}: {recipe.data} holds no images; leave the flag out"
        )
    if recipe.augment != "resized-crop-flip":
        return asked
    if asked or not isinstance(data.train.inputs, ImageFiles):
        raise WrongUse(
            "--augment resized-crop-flip crops images while they are decoded: it needs images in "
            "files, not in memory"
        )
    return False


def _cached(
    recipe: Recipe, data: Dataset, folder: Path | None, *, in_memory: bool | None
) -> Cached | None:
    """Return what reads decoded images from the folder of --cache; None without that flag."""
    if folder is None:
        return None
    if not isinstance(data.train.inputs, ImageFiles):
        raise WrongUse(f"--cache {folder}: {recipe.data} holds no image files; leave the flag out")
    if in_memory:
        raise WrongUse(
            f"--cache {folder} keeps the images in a file, and --in-memory does not; give one"
        )
    if recipe.augment == "resized-crop-flip":
        raise WrongUse(
            "--augment resized-crop-flip crops images while they are decoded, so they cannot be "
            "cached; leave out --cache, or choose --augment crop-flip"
        )
    return partial(cached_pixels, folder=folder)


def make_network(recipe: Recipe, ready: Prepared) -> nn.Module:
    """Make the recipe's network for this data, initialised from the seed.

    It standardises numbers itself. Raises WrongUse when it does not fit the data.
    """
    torch.manual_seed(recipe.seed)
    data = ready.data
    front = _front(data, recipe.network)
    if data.image is not None:
        shape: tuple[int, ...] = (data.image.channels, *data.image.size)
    elif isinstance(front, Mixed):
        shape = (front.width,)
    else:
        shape = np.asarray(data.train.inputs[:1]).shape[1:]
    network = build(
        recipe.network,
        num_classes=data.num_classes,
        input_shape=shape,
        idf=data.vocabulary.idf if data.vocabulary else None,
        head=ready.objective.head,
    )
    network = network if front is None else nn.Sequential(front, network)
    fitted = [] if front is None else [f"0.{name}" for name in front.state_dict()]
    _started(recipe, data, network, fitted)
    return network


def _started(recipe: Recipe, data: Dataset, network: nn.Module, fitted: Sequence[str]) -> None:
    """Copy the weights of --init into a new network, and freeze what --freeze names."""
    frozen = (*recipe.freeze, *([ALL_BUT_LAST] if recipe.features_once else []))
    if recipe.init is None and not frozen:
        return
    last, _ = head_of(network)
    if recipe.init is not None:
        if data.vocabulary is not None:
            raise WrongUse(
                f"--init {recipe.init}: a network for texts learns a vocabulary from its own "
                "data, which does not match that of other weights; leave out --init"
            )
        weights = read(Path(recipe.init))
        for sentence in start_from(network, weights, last, data.class_names, fitted=fitted):
            say(sentence)
    if frozen:
        freeze(network, frozen, last)


def _front(data: Dataset, network: str) -> nn.Module | None:
    """Return the first module of a network for rows of a table; None for other data."""
    in_pieces, scaled = network.endswith(PIECES), network.endswith(SCALED)
    rows = np.asarray(data.train.inputs if data.kind in {"tensor", "columns"} else ())
    if in_pieces and data.columns is None and (data.kind != "tensor" or rows.ndim != 2):
        raise WrongUse(
            f"network {network} takes rows of numbers and categories; an input here is "
            f"{data.kind if data.kind != 'tensor' else list(rows.shape[1:])}; use --network auto"
        )
    if scaled and not has_categories(data):
        raise WrongUse(
            f"network {network} scales the values of categories, and the data have none; use "
            f"--network {network.removesuffix(SCALED)}"
        )
    if data.kind not in {"tensor", "columns"}:
        return None
    if data.columns is not None:
        encoded = data.columns.encode(rows)
        return Mixed.fitted(encoded, data.columns.sizes, in_pieces=in_pieces, scaled=scaled)
    held_out = [np.asarray(split.inputs) for split in (data.val, data.test) if split is not None]
    if rows.ndim == 2 and (in_pieces or has_missing(rows, *held_out)):
        return Mixed.fitted(rows, [0] * rows.shape[1], in_pieces=in_pieces)
    return Standardise.fitted(rows)
