"""vLLM as the engine below `neurogen run`: prompts go there with the sampler's name, and results come back whole.

Batching, memory and devices are vLLM's. Imports vLLM when a model is loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from neurogen.integrations.vllm import continued, load_engine
from neurogen.text.generation import Event, Failure, Prompt, RunOptions, TextDelta

if TYPE_CHECKING:
    from neurogen.contract.sampler import Sampler

__all__ = ["VllmModel", "VllmRunner", "load_vllm_model"]


@dataclass(frozen=True)
class VllmModel:
    """A model that vLLM has loaded.

    Attributes:
        name: the name or path it was asked for by.
        llm: the `vllm.LLM`.
    """

    name: str
    llm: Any

    def runner(self, sampler: Sampler, options: RunOptions) -> VllmRunner:
        """What runs prompts with a sampler."""
        return VllmRunner(self, sampler, options)


class VllmRunner:
    """Runs prompts like `neurogen.text.runner.Runner`, all at once: vLLM decides what is decoded together."""

    def __init__(self, model: VllmModel, sampler: Sampler, options: RunOptions) -> None:
        self._model = model
        self._sampler = sampler
        self._options = options

    def run(self, prompts: Iterable[Prompt], *, skip: Callable[[int, int], bool] | None = None) -> Iterator[Event]:
        """Continue prompts; a prompt of which some samples are left out is run whole.

        Raises:
            NeurogenError: the only prompt of a list cannot be run, or its only sample; see `text.runner.Runner`.
        """
        alone = isinstance(prompts, Sequence) and len(prompts) == 1
        left_out = skip or (lambda index, sample: False)
        asked = [one for one in prompts if not all(left_out(one.index, i) for i in range(self._options.n))]
        if not asked:
            return
        params = self._sampler.params.model_dump()
        for ended in continued(self._model.llm, asked, self._sampler.name, self._options, params=params):
            if isinstance(ended, Failure):
                if alone and (ended.sample is None or self._options.n == 1):
                    raise ended.error
                yield ended
            elif not left_out(ended.index, ended.sample):
                if ended.text:
                    yield TextDelta(ended.index, ended.sample, ended.text)
                yield ended


def load_vllm_model(name: str, *, dtype: str, options: Mapping[str, str] | None = None) -> VllmModel:
    """Load a model into vLLM.

    Args:
        name: as `neurogen.models.load_model` takes it, but no GGUF file.
        dtype: "auto", "float32", "bfloat16" or "float16".
        options: of vLLM's own, as its command line takes them: {"max_model_len": "4096"}.

    Raises:
        NeurogenError: vLLM or the package neurogen-vllm is not installed, or refuses the model.
        ParameterError: vLLM has no such option, or refuses its value.
    """
    return VllmModel(name, load_engine(name, as_texts=options, dtype=dtype))
