"""Checks the declaration of a plugin's class before the class is used, and says in words what is wrong with it."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from typing import Any

from neurogen.contract.parameters import NUMBERS, SamplerParams
from neurogen.contract.processor import Processor
from neurogen.contract.sampler import API_VERSION, DTYPES, Sampler, TruncationSampler
from neurogen.errors import NeurogenError

__all__ = ["RUN_OPTIONS", "processor_problem", "sampler_problem"]

RESERVED_PARAMETERS = frozenset({"self", "name", "logits", "seed", "position", "check", "state", "require"})
RUN_OPTIONS = frozenset(
    """
    --allow --allow-end --ban --ban-texts --ban-tokens --batch-size --beams --best-of --chat --debug --device --draft
    --draft-tokens --dry-allowed-length --dry-base --dry-last-n --dry-multiplier --dry-sequence-breakers --dtype
    --early-stopping --engine --engine-option --frequency-penalty --grammar --json --json-schema --length-penalty
    --logit-bias --logprobs --max-new-tokens --min-new-tokens --model --no-allow-end --no-chat --no-repeat-ngram
    --no-repetition-prompt --no-stream --output --parse-special --presence-penalty --processor --profile --prompt
    --prompts --quiet --record --regex --repetition-last-n --repetition-penalty --repetition-prompt --sampler --seed
    --stop --stop-id --stream --threads -n -q -s
    """.split()  # noqa: SIM905
)
"""The options of `neurogen run` itself, which no parameter of a sampler may have; a test compares them with it."""
PARAMETER_TYPES = (*NUMBERS, bool, str)


def sampler_problem(cls: Any) -> str | None:
    """What is wrong with a sampler class's declaration, or None."""
    if not (inspect.isclass(cls) and issubclass(cls, Sampler)):
        return f"{cls!r} is not a subclass of neurogen.Sampler"
    if not isinstance(cls.deterministic, bool) or not isinstance(cls.stateful, bool):
        return f"{cls.__name__}.deterministic and .stateful must be True or False"
    if not isinstance(cls.dtypes, Collection) or not cls.dtypes or not DTYPES.issuperset(cls.dtypes):
        return f"{cls.__name__}.dtypes must be some of {', '.join(sorted(DTYPES))}, got {cls.dtypes!r}"
    return _name_problem(cls) or _missing_method(cls) or _schema_problem(cls)


def processor_problem(cls: Any) -> str | None:
    """What is wrong with a processor class's declaration, or None."""
    if not (inspect.isclass(cls) and issubclass(cls, Processor)):
        return f"{cls!r} is not a subclass of neurogen.Processor"
    if cls.process is Processor.process:
        return f"{cls.__name__} does not implement process()"
    return _name_problem(cls) or _schema_problem(cls)


def _name_problem(cls: Any) -> str | None:
    name = getattr(cls, "name", None)
    if not isinstance(name, str) or not all(part.replace("-", "_").isidentifier() for part in name.split("+")):
        return f"{cls.__name__}.name must be letters, digits, - and _, got {name!r}"
    version = getattr(cls, "api_version", None)
    if version != API_VERSION:
        return (
            f"{cls.__name__}.api_version is {version!r} and this neurogen speaks {API_VERSION}; "
            "install a release of the plugin, or of neurogen, that fits"
        )
    return None


def _missing_method(cls: type[Sampler]) -> str | None:
    if issubclass(cls, TruncationSampler) and cls.keep is TruncationSampler.keep:
        return f"{cls.__name__} does not implement keep()"
    if cls.stateful and cls.new_state is Sampler.new_state:
        return f"{cls.__name__} is stateful and does not implement new_state()"
    if cls.backends:
        return None
    for method in ("_sample", "_probs", "_support"):
        if getattr(cls, method) is getattr(Sampler, method):
            return f"{cls.__name__} names no backends and does not implement {method}()"
    return None


def _schema_problem(cls: type[Sampler] | type[Processor]) -> str | None:
    schema = cls.Params
    if not (inspect.isclass(schema) and issubclass(schema, SamplerParams)):
        return f"{cls.__name__}.Params must be a subclass of neurogen.SamplerParams, got {schema!r}"
    for name, parameter in schema.model_fields.items():
        if name in RESERVED_PARAMETERS:
            return f"the parameter {name!r} has a name that neurogen uses itself"
        if parameter.annotation not in PARAMETER_TYPES:
            return f"the parameter {name!r} must be an int, float, bool or str, got {parameter.annotation!r}"
        if parameter.is_required():
            return f"the parameter {name!r} has no default"
        if not parameter.description:
            return f"the parameter {name!r} has no description"
    try:
        schema()
    except (ValueError, NeurogenError) as error:
        return f"the defaults of its parameters do not fit their bounds: {error}"
    if issubclass(cls, TruncationSampler) and "temperature" not in schema.model_fields:
        return f"{cls.__name__}.Params must have a temperature"
    return None
