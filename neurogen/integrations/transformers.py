"""neurogen's samplers in transformers' `model.generate`: as a logits processor, and as `custom_generate`.

The sampler chooses the token and leaves only that token possible, so that `generate` must take it, whether it draws
or not. Knows tensors and generate's conventions, but no particular sampler.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, StoppingCriteriaList, generation

from neurogen.contract.parameters import is_whole
from neurogen.contract.sampler import Sampler
from neurogen.errors import ParameterError
from neurogen.registry.registry import default_registry, load_sampler

if TYPE_CHECKING:
    from transformers import PreTrainedModel
    from transformers.generation.streamers import BaseStreamer

    from neurogen.contract.sampler import State

__all__ = ["SamplerLogitsProcessor", "custom_generate", "sampler"]

WARPERS = (
    "TemperatureLogitsWarper",
    "TopKLogitsWarper",
    "TopPLogitsWarper",
    "TopHLogitsWarper",
    "MinPLogitsWarper",
    "TypicalLogitsWarper",
    "EpsilonLogitsWarper",
    "EtaLogitsWarper",
)
"""What `do_sample=True` adds by itself; the sampler replaces it."""

NORMALISED = 1e-3
"""Scores whose probabilities sum to 1 this closely, as logarithm, are taken for those of a beam search."""


def sampler(
    name: str | Sampler,
    /,
    *,
    seed: int | Sequence[int] | Tensor = 0,
    attention_mask: Tensor | None = None,
    pad_token_id: int | None = None,
    vocab_size: int | None = None,
    **params: Any,
) -> SamplerLogitsProcessor:
    """A logits processor for `model.generate(..., logits_processor=[sampler("topk", k=50, seed=1)])`.

    Args:
        name: an installed sampler or a chain, as `neurogen.load_sampler` takes it, or what that returned.
        seed, attention_mask, pad_token_id, vocab_size: see `SamplerLogitsProcessor`.
        **params: values for the sampler's parameters.

    Raises:
        PluginError: the sampler cannot be found or loaded.
        ParameterError: an unknown parameter, or a value outside its domain.
    """
    return SamplerLogitsProcessor(
        _loaded(name, params),
        seed=seed,
        attention_mask=attention_mask,
        pad_token_id=pad_token_id,
        vocab_size=vocab_size,
    )


class SamplerLogitsProcessor(LogitsProcessor):
    """Lets a sampler choose, and leaves only its choice: 0 for that token, -inf for all others.

    Position, and so the random number, is the index of the token to be chosen within its own sequence, padding not
    counted. A batch of prompts of different length is padded on the left, which only the caller knows: give
    `attention_mask` or `pad_token_id`, and a row's tokens are those it has alone.

    Args:
        sampler: as `neurogen.load_sampler` gives it.
        seed: an int: row r draws with `seed + r`, so that sample i of the prompt j of n samples each has
            `seed + j * n + i`. Or one int a prompt: sample i of the prompt j draws with `seed[j] + i`.
        attention_mask: [prompts, length], the one that generate is given; its zeros are padding.
        pad_token_id: instead of the mask: a row's leading tokens of this id are padding. Not for a tokenizer that
            begins its texts with the same id.
        vocab_size: ids from here on are never drawn, though the model's logits may be wider; None: all may be.

    Raises:
        ParameterError: mask and padding id together, or a value outside its domain.
    """

    supports_continuous_batching = False

    def __init__(
        self,
        sampler: Sampler,
        *,
        seed: int | Sequence[int] | Tensor = 0,
        attention_mask: Tensor | None = None,
        pad_token_id: int | None = None,
        vocab_size: int | None = None,
    ) -> None:
        if attention_mask is not None and pad_token_id is not None:
            raise ParameterError("Give attention_mask or pad_token_id, not both: each says what is padding.")
        if attention_mask is not None and attention_mask.ndim != 2:
            shape = list(attention_mask.shape)
            raise ParameterError(f"attention_mask must be [prompts, length], got {shape}.", "attention_mask")
        self.sampler = sampler
        self.recorded: list[Tensor] | None = None
        self._seed = _checked_seed(seed)
        self._mask = attention_mask
        self._pad_token_id = pad_token_id
        self._vocab_size = vocab_size
        self._cached_length: int | None = None  # tokens that are not in input_ids, since a cache holds them
        self._may_be_beams = True
        self._state: State | None = None
        self._seen: Tensor | None = None

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Choose a token a row.

        Args:
            input_ids: int64 [rows, length], prompts and what has been chosen so far.
            scores: float [rows, vocab], the logits as other processors leave them; not modified.

        Returns:
            like `scores`: 0 for the token chosen, -inf for all others.

        Raises:
            InvalidLogitsError: a row has no valid distribution.
            ParameterError: rows do not fit the mask or the seeds, or this is a beam search.
        """
        if self.recorded is not None:
            self.recorded.append(scores)
        chosen = self.choose(input_ids, scores)
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen[:, None], 0.0)

    def choose(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """The tokens themselves, int64 [rows]; arguments and errors as for a call."""
        if self._may_be_beams:
            _refuse_beams(scores)
            self._may_be_beams = False
        rows, device = len(scores), scores.device
        return self.sampler.sample(
            scores[:, : self._vocab_size],
            seed=_seed_a_row(self._seed, rows).to(device),
            position=self._positions(input_ids, rows).to(device),
            state=self._state_for(input_ids, rows, device),
        )

    def _positions(self, input_ids: Tensor, rows: int) -> Tensor:
        length = input_ids.shape[1]
        if self._pad_token_id is not None:
            return length - (input_ids != self._pad_token_id).cumsum(dim=1).eq(0).sum(dim=1)
        if self._mask is None:
            return torch.full((rows,), length + (self._cached_length or 0))
        width = self._mask.shape[1]
        if length < width and self._cached_length is None:
            raise ParameterError(
                f"attention_mask has {width} columns, but generate holds only {length} tokens a row: the others are in "
                "a cache. Give generate the whole sequences, or use custom_generate, which can tell.",
                "attention_mask",
            )
        padding = (self._mask == 0).sum(dim=1)
        return length + (self._cached_length or 0) - _a_row(padding, rows, "attention_mask")

    def _state_for(self, input_ids: Tensor, rows: int, device: torch.device) -> State | None:
        """The sampler's memory: new where these sequences are not those of the last call with one token more."""
        if not self.sampler.stateful:
            return None
        before, self._seen = self._seen, input_ids
        if self._state is None or before is None or not _continues(before, input_ids):
            self._state = self.sampler.fresh_state(rows, device)
        return self._state

    def in_generate(self, input_ids: Tensor, width: int) -> None:
        """Take it from `custom_generate` that there are no beams, and how many tokens prompt and cache have."""
        self._may_be_beams = False
        self._cached_length = width - input_ids.shape[1]


class _CustomGenerate:
    """What `custom_generate` is; its signature tells generate which keywords are meant for it."""

    def __call__(
        self,
        model: PreTrainedModel,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        *,
        sampler: str | Sampler | None = None,
        sampler_params: Mapping[str, Any] | None = None,
        seed: int | Sequence[int] | Tensor = 0,
        vocab_size: int | None = None,
        token_streamer: BaseStreamer | None = None,
        **kwargs: Any,
    ) -> Any:
        if sampler is None:
            raise ParameterError('custom_generate needs sampler, such as sampler="topk" or "topk(k=50)".', "sampler")
        beams = generation_config.num_beams or 1
        if beams > 1:
            raise ParameterError(f"num_beams is {beams}: {BEAMS}", "num_beams")
        given = {name: kwargs.pop(name) for name in _parameter_names() & kwargs.keys()}
        params = _for_sampler(sampler, given, generation_config) | dict(sampler_params or {})
        encoder_decoder = bool(model.config.is_encoder_decoder)
        mask = kwargs.get("decoder_attention_mask" if encoder_decoder else "attention_mask")
        processor = SamplerLogitsProcessor(
            _loaded(sampler, params), seed=seed, attention_mask=mask, vocab_size=vocab_size
        )
        length = input_ids.shape[1]
        width = length if encoder_decoder else getattr(generation_config, "_mask_length", None) or length
        processor.in_generate(input_ids, width if mask is None else mask.shape[1])
        return _run(
            model,
            input_ids,
            logits_processor,
            stopping_criteria,
            generation_config,
            processor,
            kwargs | ({} if token_streamer is None else {"streamer": token_streamer}),
        )

    @property
    def __signature__(self) -> inspect.Signature:
        """Its own arguments and the parameters of every installed sampler."""
        named = dict(inspect.signature(type(self).__call__).parameters)
        del named["self"]
        rest = named.pop("kwargs")
        for name in sorted(_parameter_names() - named.keys()):
            named[name] = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None)
        return inspect.Signature([*named.values(), rest])


custom_generate = _CustomGenerate()
"""For `model.generate(**inputs, custom_generate=custom_generate, sampler="topk", k=50, seed=1)`.

Further keywords:
    sampler: an installed sampler or a chain, as `neurogen.load_sampler` takes it, or what that returned.
    seed, vocab_size: see `SamplerLogitsProcessor`. Padding is known here from generate's own mask.
    sampler_params: parameters as a mapping, for names that generate would take for its own.
    token_streamer: is given the tokens. Generate does not pass `streamer` on to any custom_generate: such a one gets
        the prompt only, and is never ended.
    every other name that is a parameter of an installed sampler: its value.

Generate's own logits processors, stopping criteria, lengths, end-of-sequence, caches and dictionaries are as always,
except for what `do_sample` adds (temperature, top_k, top_p and their kind): the sampler replaces these. `scores` are
what the sampler was given.

Raises:
    PluginError, ParameterError: the sampler cannot be loaded, a parameter is unknown or outside its domain; beams.
    InvalidLogitsError: a row has no valid distribution.
"""

BEAMS = (
    "a beam search compares whole sequences and cannot be combined with a sampler that chooses each token. Use "
    "num_beams=1, and num_return_sequences for several samples."
)


def _run(
    model: PreTrainedModel,
    input_ids: Tensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    processor: SamplerLogitsProcessor,
    arguments: Mapping[str, Any],
) -> Any:
    """Transformers' own loop, which takes the only token that is left."""
    replaced = tuple(getattr(generation, name) for name in WARPERS if hasattr(generation, name))
    drawing = bool(generation_config.do_sample)
    others = [other for other in logits_processor if not (drawing and isinstance(other, replaced))]
    config = copy.copy(generation_config)
    config.do_sample = False
    if config.return_dict_in_generate and config.output_scores:
        processor.recorded = []
    kind: Any = type(model)
    result = kind._sample(
        model,
        input_ids,
        logits_processor=LogitsProcessorList([*others, processor]),
        stopping_criteria=stopping_criteria,
        generation_config=config,
        **arguments,
    )
    if processor.recorded is not None:
        result.scores = tuple(processor.recorded[: len(result.scores)])
    return result


def _loaded(name: str | Sampler, params: Mapping[str, Any]) -> Sampler:
    if not isinstance(name, Sampler):
        return load_sampler(name, **params)
    if params:
        raise ParameterError(
            f"{name!r} has its parameters already; {', '.join(sorted(params))} cannot be given beside it. Give the "
            "sampler's name instead, or load it with these values."
        )
    return name


def _parameter_names() -> set[str]:
    """The parameters of all samplers that can be loaded."""
    classes = [plugin.plugin_class for plugin in default_registry().load_all()]
    return {name for cls in classes if cls is not None for name in cls.Params.model_fields}


def _for_sampler(sampler: str | Sampler, given: Mapping[str, Any], config: GenerationConfig) -> dict[str, Any]:
    """What is given without what is generate's own and no parameter of this sampler, such as top_p for `topk`."""
    cls = type(sampler) if isinstance(sampler, Sampler) else default_registry().load_class(sampler)
    return {
        name: value for name, value in given.items() if name in cls.Params.model_fields or not hasattr(config, name)
    }


def _checked_seed(seed: int | Sequence[int] | Tensor) -> int | list[int]:
    value: Any = seed.tolist() if isinstance(seed, Tensor) else seed
    if is_whole(value):
        return int(value)
    if isinstance(value, Sequence) and value and all(map(is_whole, value)):
        return list(value)
    raise ParameterError(f"seed must be an integer of 64 bits, or one a prompt, got {seed!r}.", "seed")


def _seed_a_row(seed: int | list[int], rows: int) -> Tensor:
    firsts = [seed] if isinstance(seed, int) else seed
    if rows % len(firsts):
        raise ParameterError(f"There are {len(firsts)} seeds for {rows} row(s): give one a prompt.", "seed")
    samples = rows // len(firsts)
    numbers = [first + sample for first in firsts for sample in range(samples)]
    if not all(map(is_whole, numbers)):
        raise ParameterError(f"seed must leave room for {samples} samples below 2**63, got {seed!r}.", "seed")
    return torch.tensor(numbers, dtype=torch.int64)


def _a_row(values: Tensor, rows: int, name: str) -> Tensor:
    """One value a prompt as one a row, each as often as there are samples."""
    if not len(values) or rows % len(values):
        raise ParameterError(f"{name} is for {len(values)} prompt(s), but generate has {rows} row(s).", name)
    return values.repeat_interleave(rows // len(values))


def _continues(before: Tensor, now: Tensor) -> bool:
    return (
        before.shape == (now.shape[0], now.shape[1] - 1)
        and before.device == now.device
        and bool(torch.equal(before, now[:, :-1]))
    )


def _refuse_beams(scores: Tensor) -> None:
    """A beam search hands its processors log-probabilities; a model's logits sum to something else."""
    sums = torch.logsumexp(scores.float(), dim=-1)
    if len(scores) > 1 and bool((sums.abs() < NORMALISED).all()):
        raise ParameterError(
            f"These scores are log-probabilities, as a beam search has them: {BEAMS} If the model itself gives "
            "log-probabilities, use custom_generate, which knows the number of beams.",
            "num_beams",
        )
