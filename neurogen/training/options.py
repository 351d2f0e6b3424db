"""The options of a training step and of a training run, checked once. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass as plain_dataclass
from functools import wraps
from types import NoneType
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin

from pydantic import AfterValidator, ConfigDict, Field, Strict, ValidationError
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from neurogen.contract.parameters import INT64, domain_of
from neurogen.errors import ModelError, ParameterError

__all__ = ["PRESETS", "Preset", "TrainerOptions", "TrainingOptions", "check_preset"]

T = TypeVar("T")

DEFAULT_WARMUP = 100
CHECKED = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid")


def _of_64_bits(value: int) -> int:
    if value not in INT64:
        raise ValueError
    return value


Int64 = Annotated[int, AfterValidator(_of_64_bits)]
Count = Annotated[Int64, Field(ge=1)]
CountOrZero = Annotated[Int64, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
PositiveOrZero = Annotated[float, Field(ge=0)]
Names = Annotated[tuple[str, ...], Strict(False)]


def raises_parameter_error(cls: type[T]) -> type[T]:
    """Let a pydantic dataclass raise ParameterError, which says the domain in words, for a wrong value."""
    make: Any = cls.__init__

    @wraps(make)
    def init(self: T, *args: Any, **values: Any) -> None:
        try:
            make(self, *args, **values)
        except ValidationError as error:
            raise _parameter_error(cls, error) from None

    cls.__init__ = init  # type: ignore[method-assign, assignment]
    return cls


def _parameter_error(cls: Any, error: ValidationError) -> Exception:
    first = error.errors()[0]
    own = first.get("ctx", {}).get("error")
    if isinstance(own, ParameterError):  # raised by a check of ours
        return own
    name = str(first["loc"][0])
    if first["type"] in ("missing", "missing_argument", "unexpected_keyword_argument"):
        return TypeError(f"{cls.__name__}({name}=...): {first['msg']}.")
    return ParameterError(f"{name} must be {_domain(cls.__pydantic_fields__[name])}, got {first['input']!r}.", name)


def _domain(field: FieldInfo) -> str:
    """The values that an option may take, in words, without None."""
    kinds = [kind for kind in get_args(field.annotation) if kind is not NoneType]
    if get_origin(field.annotation) is Literal:
        return " or ".join(kinds)
    if get_origin(field.annotation) is tuple:
        return "a sequence of names"
    words = domain_of(FieldInfo.from_annotation(kinds[0]) if kinds else field)
    return "an integer of 64 bits" if words == "an integer" else words


@plain_dataclass(frozen=True)
class Preset:
    """A size of Llama with tied embeddings.

    Attributes:
        vocab_size: of the tokenizer that is trained where none is given.
        hidden, inner, layers, heads: widths and counts; heads are 64 or 32 wide.
        learning_rate: peak, for AdamW and Muon alike.
    """

    vocab_size: int
    hidden: int
    inner: int
    layers: int
    heads: int
    learning_rate: float


PRESETS = {
    "tiny": Preset(4096, 192, 512, 5, 6, 2e-3),  # about 3M parameters: minutes on a laptop
    "small": Preset(32_000, 384, 1024, 7, 6, 1e-3),  # about 25M
    "base": Preset(32_000, 768, 2560, 12, 12, 6e-4),  # about 124M
}


def check_preset(name: str) -> None:
    """Raise ModelError unless there is a preset of this name."""
    if name not in PRESETS:
        raise ModelError(f"There is no preset {name!r}. Choose one of {', '.join(PRESETS)}, or give a --config FILE.")


@raises_parameter_error
@dataclass(frozen=True, config=CHECKED)
class TrainerOptions:
    """How a training step changes the weights.

    Attributes:
        learning_rate: peak of the learning rate.
        optimizer: "adamw", or "muon" (Muon for the layers' matrices, AdamW for the rest).
        weight_decay: of matrices, per unit of learning rate.
        warmup_steps: over which the learning rate rises to its peak.
        total_steps: over which it then falls to a tenth along a cosine; None: it stays.
        max_gradient_norm: to which the gradient is clipped.
        accumulation: the number of parts that a batch is worked on in, to need less memory; the step is the same.
        seed: seed of what a step draws: dropout and the draws of a contrast. The same seed gives the same run.
        document_separator: the id that begins a document in the sequences: attention is kept within documents. None:
            a token attends to every earlier token of its sequence.

    Raises:
        ParameterError: a value outside its domain.
    """

    learning_rate: Positive = 1e-3
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: PositiveOrZero = 0.1
    warmup_steps: CountOrZero = 100
    total_steps: Count | None = None
    max_gradient_norm: Positive = 1.0
    accumulation: Count = 1
    seed: Int64 = 0
    document_separator: CountOrZero | None = None


@raises_parameter_error
@dataclass(frozen=True, config=CHECKED)
class TrainingOptions:
    """The options of a training run, as `neurogen train` takes them.

    Attributes:
        data: files, folders or names of data sets on the hub; see `neurogen.data.batches`.
        tokenizer: a SentencePiece file, or a folder with a tokenizer; None: one is trained on the data, with as many
            pieces as the preset says.
        preset, config: the architecture; see `presets.model_config`.
        tokens_per_chunk: about how many tokens a report covers, over all processes.
        max_chunks: where the run ends; None: after one pass over the data, at a constant learning rate.
        context: tokens in a sequence.
        batch_size: sequences a step of each process; None: as many as make a chunk one step.
        accumulation: the parts that a process's batch is worked on in.
        learning_rate: peak; None: the preset's.
        optimizer, weight_decay, warmup_steps, max_gradient_norm: see `TrainerOptions`.
        val: data to measure on.
        hold_out: N: without `val`, every N-th document is kept from training and measured on; 0: no document is.
        val_every, val_tokens: measure `val_tokens` held-out tokens every `val_every` chunks.
        save_every, keep: write a checkpoint every `save_every` chunks, and keep the newest `keep`.
        precision: "float32", or "bf16" for matrix products in bfloat16 with float32 weights.
        compile: compile the model with torch.compile.
        contrast: also draw by top-k 50 at temperature 1, to show what that accuracy would have hidden.
        chart_every: draw the charts after every `chart_every` chunks.
        tensorboard: write events for TensorBoard, too.
        device: auto, cpu or cuda.
        seed: of everything that is drawn: fresh weights, dropout, the draws of the contrast.
        parse_special: make special tokens of their spellings in the data, such as "<|endoftext|>"; as a rule they are
            ordinary text, and the only special token in the stream is the one that ends a document.
        document_mask: no token attends to an earlier document that is packed into the same sequence; by default a
            token attends to every earlier token of its sequence.

    Raises:
        ParameterError: a value outside its domain.
        ModelError: no such preset.
    """

    data: Names
    tokenizer: str | None = None
    preset: str = "tiny"
    config: str | None = None
    tokens_per_chunk: Count = 4096
    max_chunks: Count | None = None
    context: Count = 256
    batch_size: Count | None = None
    accumulation: Count = 1
    learning_rate: Positive | None = None
    optimizer: Literal["adamw", "muon"] = "adamw"
    weight_decay: PositiveOrZero = 0.1
    warmup_steps: CountOrZero | None = None
    max_gradient_norm: Positive = 1.0
    val: Names = ()
    hold_out: CountOrZero = 100
    val_every: Count = 50
    val_tokens: Count = 32_768
    save_every: Count = 100
    keep: Count = 2
    precision: Literal["float32", "bf16"] = "float32"
    compile: bool = False
    contrast: bool = False
    chart_every: Count = 100
    tensorboard: bool = False
    device: str = "auto"
    seed: Int64 = 0
    parse_special: bool = False
    document_mask: bool = False

    def __post_init__(self) -> None:
        if self.hold_out == 1:
            raise ParameterError("hold_out must be 0 or an integer >= 2, got 1.", "hold_out")
        if not self.data:
            raise ParameterError("data must name at least one file, folder or data set.", "data")
        check_preset(self.preset)

    def for_trainer(self, processes: int = 1, separator: int | None = None) -> TrainerOptions:
        """How the weights are changed in this run.

        Args:
            processes: that train together.
            separator: the id that begins a document in the data.

        Raises:
            ParameterError: a value outside its domain.
        """
        total_steps = None if self.max_chunks is None else self.max_chunks * self.steps_per_chunk(processes)
        warmup_steps = DEFAULT_WARMUP if total_steps is None else min(DEFAULT_WARMUP, max(1, total_steps // 10))
        preset = PRESETS[self.preset]
        return TrainerOptions(
            learning_rate=preset.learning_rate if self.learning_rate is None else self.learning_rate,
            optimizer=self.optimizer,
            weight_decay=self.weight_decay,
            warmup_steps=warmup_steps if self.warmup_steps is None else self.warmup_steps,
            total_steps=total_steps,
            max_gradient_norm=self.max_gradient_norm,
            accumulation=self.accumulation,
            seed=self.seed,
            document_separator=separator if self.document_mask else None,
        )

    @property
    def sequences(self) -> int:
        """Sequences in a step of one process."""
        return max(1, self.tokens_per_chunk // self.context) if self.batch_size is None else self.batch_size

    def is_trained_on(self, document: int) -> bool:
        """Whether the document of this number is for training rather than for measuring."""
        return bool(self.val) or self.hold_out == 0 or document % self.hold_out != 0

    def steps_per_chunk(self, processes: int) -> int:
        """Optimizer steps in a chunk."""
        return max(1, round(self.tokens_per_chunk / (self.sequences * self.context * processes)))
