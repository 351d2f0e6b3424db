"""Prompts through vLLM with a sampler of neurogen's, in this process: the results are those of `neurogen.runner`.

vLLM and the package neurogen-vllm are imported when they are needed; without them there is a clear error. Batching,
memory and devices are vLLM's.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurogen.errors import ModelError, NeurogenError, ParameterError
from neurogen.generation import FinishReason, Prompt, Result, RunOptions
from neurogen.registry import load_sampler
from neurogen.runner import prompt_ids
from neurogen.spec import parse_spec

if TYPE_CHECKING:
    from neurogen.sampler import Sampler
    from neurogen.tokenizer import Tokenizer

__all__ = ["check_installed", "generate", "load_engine"]

NEEDED = {"vllm": "vllm", "neurogen_vllm": "neurogen-vllm"}


def check_installed() -> None:
    """Make sure that vLLM and neurogen's package for it are there.

    Raises:
        NeurogenError: one is not; the message says how to install it.
    """
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise NeurogenError(
            f"The engine vllm needs {' and '.join(missing)}, which this Python does not have. Install vLLM as its "
            "documentation says for your GPU or CPU, in an environment of its own, and there "
            "`pip install neurogen neurogen-vllm` with the samplers you use."
        )


def load_engine(model: str, **options: Any) -> Any:
    """A `vllm.LLM` for a model.

    Args:
        model: as `neurogen.models.load_model` takes it, but no GGUF file.
        **options: vLLM's, such as dtype, max_model_len, tensor_parallel_size.

    Raises:
        NeurogenError: vLLM is not installed, or refuses the model or an option.
        ModelError: there is no such model.
    """
    check_installed()
    from neurogen.models import locate_model

    path = locate_model(model)
    if not path.is_dir():
        raise ModelError(f"{path} is a GGUF file, which is not given to vLLM here. Use a folder with safetensors.")
    vllm = importlib.import_module("vllm")
    try:
        return vllm.LLM(str(path), **options)
    except Exception as error:  # vLLM raises whatever its parts raise, down to its worker processes
        reason = " ".join(str(error).split())[:500]
        raise NeurogenError(f"vLLM cannot run {model!r}: {type(error).__name__}: {reason}") from error


def generate(
    model: Any,
    prompts: Sequence[str | Prompt],
    sampler: str,
    options: RunOptions | None = None,
    *,
    params: Mapping[str, Any] | None = None,
    **engine: Any,
) -> list[Result]:
    """Continue prompts.

    Args:
        model: a name or folder, see `load_engine`, or what that returned, to be used again.
        prompts: texts, or prompts with seeds, parameters and lengths of their own.
        sampler: a name or a chain, such as "topk(k=50)".
        options: as for `neurogen.runner.Runner`; `batch_size` is vLLM's matter.
        params: values for the sampler's parameters.
        **engine: options of vLLM, where `model` is a name.

    Returns:
        the results, in the order of prompts and samples; `seconds` is the time of the whole call.

    Raises:
        NeurogenError: vLLM is not installed, or refuses the model or a request.
        PluginError: the sampler cannot be found or loaded.
        ParameterError: a value outside its domain; processors, which vLLM has its own of.
    """
    check_installed()
    options = options or RunOptions()
    if options.processors or any(isinstance(prompt, Prompt) and prompt.processors for prompt in prompts):
        raise ParameterError("Processors of neurogen's do not run in vLLM; leave them out.", "processors")
    asked = [prompt if isinstance(prompt, Prompt) else Prompt(i, prompt) for i, prompt in enumerate(prompts)]
    samplers = [load_sampler(sampler, **{**(params or {}), **prompt.params}) for prompt in asked]
    name = "+".join(link.name for link in parse_spec(sampler))
    llm = load_engine(model, **engine) if isinstance(model, str) else model
    return _run(llm, asked, name, samplers, options)


def _run(
    llm: Any, prompts: Sequence[Prompt], name: str, samplers: Sequence[Sampler], options: RunOptions
) -> list[Result]:
    from neurogen.tokenizer import load_tokenizer

    tokenizer = load_tokenizer(Path(llm.llm_engine.model_config.model))
    # A request a sample: vLLM refuses several at its temperature of 0, and equal prompts share their keys and values.
    wanted = [
        (prompt, own, sample) for prompt, own in zip(prompts, samplers, strict=True) for sample in range(options.n)
    ]
    asked = [_sampling_params(prompt, name, own, sample, options, tokenizer) for prompt, own, sample in wanted]
    ids = [{"prompt_token_ids": _encoded(tokenizer, prompt, options)} for prompt, _, _ in wanted]
    started = time.perf_counter()
    try:
        outputs = llm.generate(ids, asked, use_tqdm=False)
    except (ValueError, _client_error()) as error:
        raise NeurogenError(f"vLLM refuses a request: {' '.join(str(error).split())}") from error
    seconds = time.perf_counter() - started
    return [
        _result(prompt, own, sample, request, output, tokenizer, seconds)
        for (prompt, own, sample), request, output in zip(wanted, asked, outputs, strict=True)
    ]


def _client_error() -> type[Exception]:
    """What vLLM raises for a request that it refuses; ValueError in older versions."""
    error: type[Exception] = getattr(importlib.import_module("vllm.exceptions"), "VLLMClientError", ValueError)
    return error


def _encoded(tokenizer: Tokenizer, prompt: Prompt, options: RunOptions) -> list[int]:
    """The ids that the runner would give the model."""
    chat = tokenizer.has_chat_template if options.chat is None else options.chat
    return prompt_ids(tokenizer, prompt, chat=chat, parse_special=options.parse_special)


def _sampling_params(
    prompt: Prompt, name: str, sampler: Sampler, sample: int, options: RunOptions, tokenizer: Tokenizer
) -> Any:
    vllm = importlib.import_module("vllm")
    first = options.seed + prompt.index * options.n if prompt.seed is None else prompt.seed
    return vllm.SamplingParams(
        temperature=0.0,  # one token is left: vLLM need not draw
        max_tokens=options.max_new_tokens if prompt.max_new_tokens is None else prompt.max_new_tokens,
        stop=list(options.stop if prompt.stop is None else prompt.stop),
        stop_token_ids=sorted(tokenizer.eos_ids),
        logprobs=options.logprobs,
        extra_args={
            "neurogen_sampler": name,
            "neurogen_params": sampler.params.model_dump(),
            "neurogen_seed": first + sample,
        },
    )


def _result(
    prompt: Prompt, sampler: Sampler, sample: int, request: Any, output: Any, tokenizer: Tokenizer, seconds: float
) -> Result:
    (one,) = output.outputs
    reason = _finish_reason(one)
    tokens = list(one.token_ids)
    if reason == "eos":
        tokens.pop()
    return Result(
        index=prompt.index,
        sample=sample,
        prompt=prompt.text,
        text=one.text,
        token_ids=tokens,
        sampler=sampler.name,
        params=sampler.params.model_dump(),
        seed=request.extra_args["neurogen_seed"],
        finish_reason=reason,
        prompt_tokens=len(output.prompt_token_ids),
        new_tokens=len(tokens),
        seconds=seconds,
        tokens_per_second=len(tokens) / seconds if seconds > 0 else 0.0,
        logprobs=_logprobs(one.logprobs, tokens, request.logprobs, tokenizer),
    )


def _finish_reason(one: Any) -> FinishReason:
    """vLLM says "stop" for end-of-sequence, with the id or nothing as the reason, and for a stop string, with that."""
    if one.finish_reason == "length":
        return "length"
    return "stop" if isinstance(one.stop_reason, str) else "eos"


def _logprobs(
    listed: Any, tokens: Sequence[int], count: int | None, tokenizer: Tokenizer
) -> list[dict[str, Any]] | None:
    if listed is None or count is None:
        return None

    def entry(token: int, value: float) -> dict[str, Any]:
        return {"token_id": token, "text": tokenizer.token_text(token), "logprob": value}

    result = []
    for token, values in zip(tokens, listed, strict=False):  # a token that ended the sequence is listed, and is none
        ranked = sorted((-info.logprob, other) for other, info in values.items() if info.rank <= count)
        top = [entry(other, -negative) for negative, other in ranked[:count]]
        result.append({**entry(token, values[token].logprob), "top": top})
    return result
