"""What a request asks for: its sampler, parameters and seed, read from vLLM's `SamplingParams` and checked.

Knows the names of the arguments and neurogen's public interface; imports nothing of vLLM, so that it can be tried
without it.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import neurogen

__all__ = ["PREFIX", "SamplerRequest", "check_request", "sampler_request"]

PREFIX = "neurogen_"
SAMPLER, PARAMS, SEED = "neurogen_sampler", "neurogen_params", "neurogen_seed"
ARGUMENTS = (SAMPLER, PARAMS, SEED)
SEEDS = range(-(2**63), 2**63)
PENALTIES = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0}
KEPT_SAMPLERS = 256
PROBE_VOCAB = 16


@dataclass(frozen=True)
class SamplerRequest:
    """A checked request.

    Attributes:
        sampler: with the request's parameters.
        seed: of 64 bits.
    """

    sampler: neurogen.Sampler
    seed: int


def sampler_request(sampling_params: Any) -> SamplerRequest | None:
    """Read a request.

    Args:
        sampling_params: vLLM's `SamplingParams`; of them `extra_args` and `seed` are looked at.

    Returns:
        what is asked for, or None where no sampler of neurogen's is.

    Raises:
        PluginError: the sampler cannot be found or loaded.
        ParameterError: an unknown argument or parameter, or a value outside its domain.
    """
    extra = getattr(sampling_params, "extra_args", None) or {}
    given = {name: value for name, value in extra.items() if str(name).startswith(PREFIX)}
    if not given:
        return None
    for name in given:
        if name not in ARGUMENTS:
            raise neurogen.ParameterError(f"There is no argument {name!r}; there are {', '.join(ARGUMENTS)}.", name)
    if SAMPLER not in given:
        raise neurogen.ParameterError(
            f"{', '.join(given)} is given without {SAMPLER}. Name the sampler, such as "
            f'"{SAMPLER}": "topk(k=50, temperature=0.8)".',
            SAMPLER,
        )
    params = _params(given.get(PARAMS))
    return SamplerRequest(_sampler(given[SAMPLER], json.dumps(params, sort_keys=True)), _seed(given, sampling_params))


def check_request(sampling_params: Any) -> None:
    """Check a request before it is accepted, its sampler's first choice included.

    Raises:
        PluginError, ParameterError: as `sampler_request`.
        ContractError, PluginError: the sampler cannot choose even from a small row.
        ParameterError: it asks for something that would have no effect beside a sampler of neurogen's, or for several
            samples with one seed.
    """
    request = sampler_request(sampling_params)
    if request is None:
        return
    for name, neutral in PENALTIES.items():
        value = getattr(sampling_params, name, neutral)
        if value != neutral:
            raise neurogen.ParameterError(
                f"{name} is {value} and {SAMPLER} is given: vLLM may apply its penalties after the sampler has chosen, "
                f"where they change nothing. Set {name} to {neutral:g} (it may come from the model's "
                "generation_config.json, which --generation-config vllm leaves out).",
                name,
            )
    if (getattr(sampling_params, "n", 1) or 1) > 1:
        _check_samples(sampling_params)
    _probe(type(request.sampler))


def _check_samples(sampling_params: Any) -> None:
    if SEED in sampling_params.extra_args or sampling_params.seed is None:
        raise neurogen.ParameterError(
            f"n is {sampling_params.n}: give vLLM's own seed, which becomes seed + i for sample i, and not {SEED}, "
            "which is the same for all.",
            SEED,
        )


def _params(value: Any) -> dict[str, Any]:
    """The parameters as a mapping; a text is read as a JSON object, since vLLM's server takes no nested objects."""
    if value is None:
        return {}
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            value = json.loads(value)
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise neurogen.ParameterError(
            f'{PARAMS} must be a mapping of parameters, or such a JSON object as a text, {{"k": 50}}; got {value!r}.',
            PARAMS,
        )
    for name, one in value.items():
        if not isinstance(one, int | float | str | bool):
            raise neurogen.ParameterError(f"{PARAMS}: {name} must be one number or text, got {one!r}.", name)
    return dict(value)


@lru_cache(maxsize=KEPT_SAMPLERS)
def _loaded(spec: str, params: str) -> neurogen.Sampler:
    return neurogen.load_sampler(spec, **json.loads(params))


def _sampler(spec: Any, params: str) -> neurogen.Sampler:
    if not isinstance(spec, str):
        raise neurogen.ParameterError(f'{SAMPLER} must be a name such as "topk(k=50)", got {spec!r}.', SAMPLER)
    return _loaded(spec, params)


def _seed(given: Mapping[str, Any], sampling_params: Any) -> int:
    value = given.get(SEED)
    if value is None:
        value = getattr(sampling_params, "seed", None)
    if value is None:
        return 0
    if not isinstance(value, int) or isinstance(value, bool) or value not in SEEDS:
        raise neurogen.ParameterError(f"{SEED} must be an integer of 64 bits, got {value!r}.", SEED)
    return value


@lru_cache(maxsize=KEPT_SAMPLERS)
def _probe(cls: type[neurogen.Sampler]) -> None:
    """Let a sampler choose once from equal logits, on the CPU; passed over where it does not run there."""
    import torch

    if cls._sample is neurogen.Sampler._sample and "cpu" not in cls.backends:
        return
    sampler = cls()
    sampler.sample(torch.zeros(1, PROBE_VOCAB), state=sampler.new_state(1) if cls.stateful else None)
