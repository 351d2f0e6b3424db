"""Fields of a prompts file that look like options but are not: names of other programs, misspellings. What to write
instead is a hint, once a file and field; other fields of a data set are no matter.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from neurogen.contract.parameters import option_of

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler

__all__ = ["FIELDS", "advice_for", "field_hints", "other_fields"]

FIELDS = ("prompt", "text", "seed", "max_new_tokens", "stop", "stop_ids", "params", "processors")
"""What a line may have."""

CONVERSATION = '"prompt", what the user says: a line is no conversation; in Python neurogen.Prompt has messages'
NAMED_OTHERWISE = {
    **dict.fromkeys(
        ("max_tokens", "max_length", "max_completion_tokens", "n_predict", "num_predict"), "max_new_tokens"
    ),
    **dict.fromkeys(("stop_sequences", "stop_strings", "stop_words", "stop_sequence", "antiprompt"), "stop"),
    **dict.fromkeys(("stop_token_ids", "eos_token_id", "stop_tokens"), "stop_ids"),
    **dict.fromkeys(("random_seed", "seed_value"), "seed"),
    **dict.fromkeys(("parameters", "sampling_params", "sampler_params", "generation_config"), "params"),
    **dict.fromkeys(("logits_processors", "logits_processor"), "processors"),
    **dict.fromkeys(("input", "inputs", "instruction", "question", "query", "content"), "prompt"),
}
"""What other programs call a field."""

OF_THE_RUN = {
    **dict.fromkeys(("n", "num_samples", "num_return_sequences", "n_probs"), "-n"),
    **dict.fromkeys(("logprobs", "top_logprobs"), "--logprobs"),
    **dict.fromkeys(("beams", "num_beams", "beam_width", "use_beam_search"), "--beams"),
    **{name: f"--{name.replace('_', '-')}" for name in ("best_of", "length_penalty", "early_stopping", "batch_size")},
    **{name: f"--{name}" for name in ("sampler", "model", "stream", "chat", "engine", "profile")},
}
OF_PROCESSORS = {
    **dict.fromkeys(("repetition_penalty", "repeat_penalty"), "repetition-penalty(penalty=1.2)"),
    "presence_penalty": "presence-penalty(penalty=0.5)",
    "frequency_penalty": "frequency-penalty(penalty=0.5)",
    "logit_bias": 'logit-bias(bias="5:-2")',
    "no_repeat_ngram_size": "no-repeat-ngram(size=3)",
    **dict.fromkeys(("min_tokens", "min_new_tokens", "min_length"), "min-new-tokens(tokens=8)"),
    **dict.fromkeys(("bad_words", "bad_words_ids", "banned_tokens", "ban_tokens"), 'banned-tokens(tokens="5")'),
    **dict.fromkeys(
        ("grammar", "regex", "json_schema", "response_format", "guided_json", "guided_regex"), 'grammar(regex="[a-z]+")'
    ),
    "dry_multiplier": "dry(multiplier=0.8)",
}
OF_SAMPLERS = (
    "temperature", "top_k", "top_p", "min_p", "typical_p", "typical", "tfs_z", "top_n_sigma", "xtc_probability",
    "xtc_threshold", "mirostat", "mirostat_tau", "mirostat_eta", "epsilon_cutoff", "eta_cutoff", "dynatemp_range",
)  # fmt: skip
CONVERSATIONAL = ("system", "system_prompt", "messages", "message", "role", "conversation", "conversations")
CUTOFF = 0.85
"""Names less alike than this are no misspellings of each other."""


def advice_for(field: str, sampler: Sampler) -> str | None:
    """What to write instead of a field that is not an option; None if it does not look like one."""
    name = _plain(field)
    if name in FIELDS:
        return f'"{name}"'
    if name in NAMED_OTHERWISE:
        return f'"{NAMED_OTHERWISE[name]}"'
    parameters = _parameters(sampler)
    if name in parameters:
        return f'"params": {{"{parameters[name]}": ...}}'
    if name in OF_RUN_AND_OTHERS:
        return OF_RUN_AND_OTHERS[name]
    if name in OF_SAMPLERS:
        known = ", ".join(type(sampler).Params.model_fields) or "none"
        return f"nothing, or choose another --sampler: {sampler.name} has no such parameter (it has: {known})"
    near = difflib.get_close_matches(name, [*FIELDS, *parameters], n=1, cutoff=CUTOFF)
    return advice_for(near[0], sampler) if near else None


OF_RUN_AND_OTHERS = {
    **{name: f"{option} on the command line, for the whole run" for name, option in OF_THE_RUN.items()},
    **{name: f'"processors": a text such as {example}' for name, example in OF_PROCESSORS.items()},
    **dict.fromkeys(CONVERSATIONAL, CONVERSATION),
}


def other_fields(fields: Mapping[str, Any]) -> list[str]:
    """The fields of a line that are given and have no effect."""
    return [name for name, value in fields.items() if name not in FIELDS and value is not None]


def field_hints(counted: Counter[str], sampler: Sampler, source: str) -> Iterator[str]:
    """A hint for each field that looks like an option; `counted`: other field -> in how many lines it stands."""
    for name, count in counted.items():
        advice = advice_for(name, sampler)
        if advice is not None:
            lines = "1 line" if count == 1 else f"{count:,} lines"
            yield f"{source}: the field {name!r} of {lines} has no effect. Write {advice}."


def _parameters(sampler: Sampler) -> dict[str, str]:
    """Name or option of a sampler's parameter -> its name."""
    fields = type(sampler).Params.model_fields
    options = {option_of(name, field).lstrip("-").replace("-", "_"): name for name, field in fields.items()}
    return {**options, **{name: name for name in fields}}


def _plain(field: str) -> str:
    """In lower case with underscores, as options are written here: `maxNewTokens` and `max-new-tokens` too."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", field.strip()).replace("-", "_").replace(" ", "_").lower()
