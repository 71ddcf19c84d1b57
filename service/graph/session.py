"""Opens, checks and runs a graph with its adjustment head.

This module, `providers` and `reasons` are the only ones that import onnxruntime.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from service.contract.bundle import Bundle
from service.contract.inputs.columns import fields, float_names, float_rows
from service.contract.inputs.familiarity import Familiarity
from service.contract.inputs.spec import InputSpec, TokenizerSpec
from service.contract.inputs.tokens import Tokens
from service.graph import head, ranking
from service.graph.composer import compose_file
from service.graph.providers import (
    FIRST_DEVICE,
    PROVIDERS,
    Device,
    ProviderUnavailable,
    open_session,
    resolve_provider,
)
from service.graph.reasons import first_line, lacks_memory, refusal

Array = NDArray[Any]
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"
_SPINNING = "session.intra_op.allow_spinning"
_SHRINK = "memory.enable_memory_arena_shrinkage"
_NO, _YES = np.array(False), np.array(True)  # 0-d arrays, which onnxruntime accepts as scalars


_ORT_TYPES = {
    "float16": "tensor(float16)",
    "float32": "tensor(float)",
    "float64": "tensor(double)",
    "string": "tensor(string)",
    "bool": "tensor(bool)",
    **{name: f"tensor({name})" for name in ("uint8", "int8", "int16", "int32", "int64")},
}


_DTYPES = {long: short for short, long in _ORT_TYPES.items()}


class UnusableModel(ValueError):
    """A graph that does not do what its model.json says."""


class Declared(Protocol):
    """An input or an output as onnxruntime describes it."""

    name: str
    type: str
    shape: Sequence[int | str | None]


@dataclass(frozen=True)
class GraphOutputs:
    """The outputs of one graph call, row by row. The last five are None unless asked for."""

    top_index: NDArray[np.int64]  # [n, k] best first, by adjusted logits
    top_probability: NDArray[np.float32]  # [n, k]
    unadjusted_index: NDArray[np.int64]  # [n]
    unadjusted_probability: NDArray[np.float32]  # [n]
    logits: NDArray[np.float32] | None = None  # [n, C] as the network gives them
    adjusted_logits: NDArray[np.float32] | None = None  # [n, C]
    probabilities: NDArray[np.float32] | None = None  # [n, C]
    features: NDArray[np.float64] | None = None  # [n, 2] of `Familiarity`, where model.json has it
    decision: NDArray[np.int64] | None = None  # [n] by cost; see service.batching.decisions
    expected_cost: NDArray[np.float64] | None = None  # [n]

    def rows(self, start: int, stop: int) -> "GraphOutputs":
        """The outputs of rows `start` to `stop`."""
        return GraphOutputs(*[None if v is None else v[start:stop] for v in self._values()])  # type: ignore[arg-type]

    def ranked_only(self) -> "GraphOutputs":
        """The outputs without those of [n, C]."""
        return dataclasses.replace(self, logits=None, adjusted_logits=None, probabilities=None)

    @staticmethod
    def joined(parts: "list[GraphOutputs]") -> "GraphOutputs":
        """The outputs of several calls, joined as if from one call. k is the smallest of theirs."""
        k = min(part.top_index.shape[1] for part in parts)
        columns = list(zip(*(part._values() for part in parts), strict=True))  # noqa: SLF001 - of the same class
        ranked = [np.concatenate([v[:, :k] for v in values]) for values in columns[:2]]
        rest = [
            None if any(v is None for v in values) else np.concatenate(values)
            for values in columns[2:]
        ]
        return GraphOutputs(*ranked, *rest)

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field.name) for field in dataclasses.fields(self))


@lru_cache(maxsize=256)
def _scalar(number: int) -> NDArray[np.int64]:
    """int64 [1]. Every call of the graph gets the same array, so it cannot be written to."""
    found = np.array([number], np.int64)
    found.flags.writeable = False
    return found


class Graph:
    """One session over a composed graph. `run` may be called from one thread at a time."""

    def __init__(
        self,
        session: ort.InferenceSession,
        bundle: Bundle,
        *,
        bound: bool,
        place: tuple[str, int] = ("cpu", 0),
        small: tuple[int, ort.InferenceSession] | None = None,
        large_rows: int | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        """Wrap an opened session of the model of `bundle`.

        bound: run through an IOBinding. place: type and number of the device. small: the rows and
        the session of the smaller size class. large_rows: the rows of the larger class, which
        `session` runs. A batch is padded to the rows of its class; where these are None it runs at
        its own size. tokens: turns texts into the graph's inputs.
        """
        self._session = session
        self.feeds = tokens or _feeder(bundle)
        """Turns rows into the graph's own inputs, by name."""
        self._place = place
        self._bound = bound
        self._small, self._large_rows = small, large_rows
        self._rows_held: tuple[tuple[int, bytes], ort.OrtValue] | None = None
        self._ranked = list(head.RANKED)
        self._with_logits = [*head.RANKED, head.LOGITS]
        self._all = [*head.RANKED, *head.FULL]
        self._options: ort.RunOptions | None = None
        self.fixed_rows = bundle.input.shape[0] if bundle.input.shape else None
        """The only batch size that the graph accepts; None when it accepts any."""
        self.has_choice = head.BY_BLOCKS in [item.name for item in session.get_inputs()]
        """Whether the graph has two selections of the best classes, as for a large class list."""
        self.blocks_from_rows: int | None = None
        """The smallest batch that selects by blocks; None: no batch does. Answers are the same."""
        self.familiarity = _familiarity(bundle)
        """Finds inputs far from those of training; None where model.json has no statistics."""
        self._floats = float_names(bundle.input)
        self._most_by_blocks = ranking.most_by_blocks(len(bundle.class_names))

    @contextlib.contextmanager
    def returning_memory(self) -> Iterator[None]:
        """Free onnxruntime's memory arena after each call inside the `with` statement.

        The arena otherwise keeps what the largest batch so far needed.
        """
        self._options = ort.RunOptions()
        kind, number = self._place
        device = "" if kind == "cpu" else f";gpu:{number}"
        self._options.add_run_config_entry(_SHRINK, f"cpu:0{device}")
        try:
            yield
        finally:
            self._options = None

    @property
    def provider(self) -> str:
        """The provider that runs the graph: cpu or cuda."""
        first = self._session.get_providers()[0]
        return next((name for name, long in PROVIDERS.items() if long == first), first)

    def run(
        self,
        inputs: Array,
        *,
        tau: NDArray[np.float32],
        prior_index: NDArray[np.int64],
        prior_table: NDArray[np.float32],
        top_k: int,
        generation: int = 0,
        with_logits: bool = False,
        full: bool = False,
    ) -> GraphOutputs:
        """Score inputs [n, …] with tau [n] and prior_index [n] into prior_table [P, C].

        generation: changes whenever the table does; a device reuses its copy of the rows until
        then. full: also return the three [n, C] outputs. with_logits: of these, only the logits.
        Raises whatever onnxruntime raises, and MemoryError where it has no memory.
        """
        rows, features = len(inputs), None
        if self.familiarity is not None:
            features = self.familiarity.features(self.float_rows(inputs))
        session, size = self._session_for(rows)
        if size is not None and rows != size:
            inputs, tau, prior_index = (_padded(a, size) for a in (inputs, tau, prior_index))
        if self.has_choice and (tau == tau[0]).all() and (prior_index == prior_index[0]).all():
            # One row of offsets is then worked out and applied to all, which changes no bit.
            tau, prior_index = tau[:1], prior_index[:1]
        feeds = {
            **self.feeds(inputs),
            head.TAU: tau,
            head.PRIOR_INDEX: prior_index,
            head.TOP_K: _scalar(top_k),
            head.FULL_ROWS: _scalar(len(inputs) if full else 0),
        }
        if self.has_choice:
            feeds[head.BY_BLOCKS] = _YES if self._by_blocks(len(inputs), top_k) else _NO
        names = self._all if full else self._with_logits if with_logits else self._ranked
        try:
            if self._bound:
                found = self._run_bound(session, feeds, prior_table, generation, names)
            else:
                feeds[head.PRIOR_TABLE] = prior_table
                # Without the checks of `InferenceSession.run`: 3 % of the time of a lone row.
                found = session._sess.run(names, feeds, self._options)  # noqa: SLF001
        except Exception as error:
            if lacks_memory(error):
                raise MemoryError(first_line(error)) from error
            raise
        if size is not None:
            found = [values[:rows] for values in found]
        more = [*found[4:], None, None, None]
        return GraphOutputs(
            found[0],
            found[1],
            found[2].ravel(),
            found[3].ravel(),
            more[0],
            more[1],
            more[2],
            features,
        )

    def float_rows(self, inputs: Array) -> Array:
        """Rows [n, …] of numbers: `inputs` itself, or the float fields of its records."""
        return float_rows(inputs, self._floats)

    def _by_blocks(self, rows: int, top_k: int) -> bool:
        least = self.blocks_from_rows
        return least is not None and rows >= least and top_k <= self._most_by_blocks

    def _session_for(self, rows: int) -> tuple[ort.InferenceSession, int | None]:
        """The session for a batch, and the number of rows to pad the batch to; None: no padding."""
        if self.fixed_rows is not None:
            return self._session, self.fixed_rows
        if self._small is not None and rows <= self._small[0]:
            return self._small[1], self._small[0]
        if self._large_rows is not None and rows <= self._large_rows:
            return self._session, self._large_rows
        return self._session, None

    def _run_bound(
        self,
        session: ort.InferenceSession,
        feeds: dict[str, Array],
        prior_table: Array,
        generation: int,
        names: list[str],
    ) -> list[Array]:
        """Run through an IOBinding, with only those rows of the prior table that the batch uses.

        The rows stay on the device for the next batch that uses the same ones.
        """
        slots, feeds[head.PRIOR_INDEX] = np.unique(feeds[head.PRIOR_INDEX], return_inverse=True)
        key = (generation, slots.tobytes())
        if self._rows_held is None or self._rows_held[0] != key:
            rows = np.ascontiguousarray(prior_table[slots])
            self._rows_held = (key, ort.OrtValue.ortvalue_from_numpy(rows, *self._place))
        binding = session.io_binding()
        for name, value in feeds.items():
            binding.bind_cpu_input(name, value)
        binding.bind_ortvalue_input(head.PRIOR_TABLE, self._rows_held[1])
        for name in names:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding, self._options)
        return list(binding.copy_outputs_to_cpu())


def open_graph(
    folder: Path,
    bundle: Bundle,
    *,
    provider: str = "auto",
    intra_op_threads: int = 1,
    bound: bool | None = None,
    device: Device = FIRST_DEVICE,
    size_classes: tuple[int, int] | None = None,
) -> Graph:
    """Compose the adjustment head onto a published model and open a session.

    provider: cpu, cuda, or auto (cuda where it works, else cpu).
    intra_op_threads: the most threads of one graph call, from 1.
    bound: use an IOBinding; by default on every device but the CPU. device: the GPU.
    size_classes: rows of a small and a large batch. Each class gets its own session, and batches
    are padded to one of the two sizes: cuDNN plans a convolution again whenever the shape differs
    from that of the session's last call.
    Raises UnsupportedGraph, UnusableModel or ProviderUnavailable.
    """
    scores = bundle.output.calibration
    composed = compose_file(
        folder / "model.onnx",
        output=bundle.output.name,
        kind=bundle.output.kind,
        temperature=bundle.temperature,
        classes=len(bundle.class_names),
        calibration=None if scores is None else (scores.scale, scores.bias),
    )
    options = ort.SessionOptions()
    wanted = resolve_provider(provider, device) if provider == "auto" else provider
    # What a graph says of a row that it refuses is answered to the caller; a log must not quote it.
    options.log_severity_level = 4 if wanted == "cpu" else 3
    options.intra_op_num_threads = intra_op_threads
    options.inter_op_num_threads = 1
    # Threads of onnxruntime that wait would otherwise spin, and take the cores of the event loop.
    options.add_session_config_entry(_SPINNING, "0")
    # onnxruntime would keep a plan for each batch size, which saves no time.
    options.enable_mem_pattern = False
    options.add_session_config_entry(_EXTERNAL_FOLDER, str(folder))
    fixed = bool(bundle.input.shape) and bundle.input.shape[0] is not None
    small = None
    try:
        session = open_session(composed, options, wanted, device)
        if size_classes is not None and not fixed:
            small = (size_classes[0], open_session(composed, options, wanted, device))
            _release_model_bytes(small[1])
    except Exception as error:
        raise UnusableModel(f"{folder}: {refusal(error)}") from error
    _release_model_bytes(session)
    if session.get_providers()[0] != PROVIDERS[wanted]:
        raise ProviderUnavailable(
            f"{folder}: {wanted} was requested, but onnxruntime opened the graph on "
            f"{session.get_providers()[0]}; run `priordial doctor`, or use --provider auto"
        )
    own = [item for item in session.get_inputs() if not item.name.startswith(ranking.PREFIX)]
    (logits,) = [item for item in session.get_outputs() if item.name == head.LOGITS]
    wrong = wrong_input(own, bundle) or wrong_columns(logits, bundle)
    if wrong:
        raise UnusableModel(f"{folder}: {wrong}")
    tokens = None
    if bundle.input.tokenizer is not None:
        tokens = Tokens(folder, bundle.input.tokenizer, {i.name: _DTYPES[i.type] for i in own})
    bound = wanted != "cpu" if bound is None else bound
    bindable = all(
        spec.dtype != "string" for spec in _stated(bundle.input)
    )  # strings stay on the CPU
    return Graph(
        session,
        bundle,
        bound=bound and (bindable or tokens is not None),
        place=("cpu", 0) if wanted == "cpu" else ("cuda", device.number),
        small=small,
        large_rows=None if small is None or size_classes is None else size_classes[1],
        tokens=tokens,
    )


_REPUBLISH = "publish or import the model again, which writes both files"


def wrong_input(own: Sequence[Declared], bundle: Bundle) -> str | None:
    """How the graph's own inputs differ from model.json, in words; None when they agree."""
    names = [item.name for item in own]
    if bundle.input.tokenizer is not None:
        return _wrong_tokens(own, bundle.input.tokenizer)
    stated = {spec.name: _ORT_TYPES[spec.dtype] for spec in _stated(bundle.input)}
    if sorted(names) != sorted(stated):
        return f"the graph's inputs are {names}, and model.json says {list(stated)}; {_REPUBLISH}"
    for item in own:
        if item.type != stated[item.name]:
            wanted = stated[item.name]
            return f"input '{item.name}' is {item.type}, and model.json says {wanted}; {_REPUBLISH}"
    return None


def _wrong_tokens(own: Sequence[Declared], tokenizer: TokenizerSpec) -> str | None:
    names = [item.name for item in own]
    if sorted(names) != sorted(tokenizer.inputs):
        return f"the graph's inputs are {names}; the tokenizer feeds {list(tokenizer.inputs)}"
    for item in own:
        if item.type not in {"tensor(int32)", "tensor(int64)"}:
            return f"input '{item.name}' is {item.type}; a tokenizer feeds int32 or int64"
    return None


def _stated(spec: InputSpec) -> Sequence[InputSpec]:
    """The graph's inputs as model.json describes them."""
    return spec.columns or (spec,)


def _feeder(bundle: Bundle) -> Callable[[Array], dict[str, Array]]:
    """A function that turns rows into the graph's own inputs."""
    name = bundle.input.name
    if bundle.input.columns or bundle.input.missing:
        return lambda inputs: {name: inputs} if inputs.dtype.names is None else fields(inputs)
    return lambda inputs: {name: inputs}


def _familiarity(bundle: Bundle) -> Familiarity | None:
    statistics = bundle.input.statistics
    if statistics is None:
        return None
    several = bundle.input.kind == "columns"  # only numbers are measured, not categories
    names = float_names(bundle.input) if several else bundle.column_names or ()
    return Familiarity(statistics, layout=bundle.input.layout, names=names)


def wrong_columns(logits: Declared, bundle: Bundle) -> str | None:
    """How the graph's declared number of classes differs from model.json, in words.

    None when they agree or the graph declares none; warm-up then counts the columns.
    """
    columns, classes = logits.shape[-1] if logits.shape else None, len(bundle.class_names)
    if isinstance(columns, int) and columns != classes:
        return f"the graph has {columns} classes, and class_names {classes}; {_REPUBLISH}"
    return None


def _release_model_bytes(session: ort.InferenceSession) -> None:
    """Free the session's copy of the file, which takes as much memory as the weights.

    onnxruntime keeps it to reopen the session on another provider, which the service never does.
    """
    session._model_bytes = None  # noqa: SLF001 - there is no public way; a test checks that this one still works


def open_plain(
    path: Path, serialized: bytes | None = None, *, intra_op_threads: int = 1
) -> Callable[[dict[str, Array]], dict[str, Any]]:
    """Open a file without a head, on the CPU. Returns a function from its inputs to all outputs by
    name.

    serialized: used in place of the file's content. External data is read from beside the file in
    either case.
    intra_op_threads: the most threads of one graph call, from 1.
    Raises UnusableModel when onnxruntime refuses the graph. The returned function raises whatever
    onnxruntime raises.
    """
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = intra_op_threads
    options.add_session_config_entry(_EXTERNAL_FOLDER, str(path.parent))
    try:
        session = open_session(serialized or str(path), options, "cpu")
    except Exception as error:
        raise UnusableModel(f"{path}: {refusal(error)}") from error
    names = [item.name for item in session.get_outputs()]
    return lambda feeds: dict(zip(names, session.run(names, feeds), strict=True))


def _padded(values: Array, rows: int) -> Array:
    if len(values) > rows:
        raise ValueError(f"{len(values)} rows; the graph takes {rows}")
    return np.concatenate([values, np.repeat(values[-1:], rows - len(values), axis=0)])
