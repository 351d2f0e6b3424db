"""What the engine costs beside the model: time of `engine.generate` a token against the time inside `model.forward`.

Batch 1, samplers interleaved within each repeat, all in one process. The overhead is everything that is not the model's
forward pass, the sampler's own kernel included:

    python benchmarks/runner_overhead.py --model smollm2-135m --tokens 64 --repeats 7
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from dataclasses import replace
from typing import Any

import torch

import neurogen
from neurogen.decoding.engine import Engine, Request
from neurogen.models.language_model import LanguageModel, load_model

SAMPLERS: dict[str, dict[str, Any]] = {"greedy": {}, "topk": {"k": 50}, "topp": {"p": 0.9}}


class Clock:
    """A model whose `forward` adds up the time spent in it."""

    def __init__(self, model: LanguageModel) -> None:
        self.model = replace(model)
        self.seconds = 0.0
        inner = self.model.forward
        wait = torch.cuda.synchronize if model.device.type == "cuda" else lambda: None

        def forward(*arguments: Any) -> Any:
            wait()
            begin = time.perf_counter()
            result = inner(*arguments)
            wait()
            self.seconds += time.perf_counter() - begin
            return result

        self.model.forward = forward  # type: ignore[method-assign]


def measure(engine: Engine, clock: Clock, request: Request) -> tuple[float, float]:
    """Milliseconds a token of the whole loop and of the model in it, prefill left out."""
    steps = engine.generate([request])
    next(steps)
    clock.seconds = 0.0
    gc.collect()
    begin = time.perf_counter()
    count = sum(1 for _ in steps)
    whole = time.perf_counter() - begin
    return whole / count * 1e3, clock.seconds / count * 1e3


def spread(values: list[float], unit: str) -> str:
    """Median and range."""
    return f"{statistics.median(values):7.2f} {unit} ({min(values):.2f} to {max(values):.2f})"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a folder, a .gguf file or a known name")
    parser.add_argument("--tokens", type=int, default=64, help="new tokens a repeat, at least 2")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    options = parser.parse_args()
    if options.tokens < 2 or options.repeats < 1:
        parser.error("--tokens must be at least 2 and --repeats at least 1")

    clock = Clock(load_model(options.model, device=options.device, dtype=options.dtype))
    model = clock.model
    prompt = tuple(model.tokenizer.encode("Once upon a time, there was a little girl"))
    engines = {name: Engine(model, neurogen.load_sampler(name, **values)) for name, values in SAMPLERS.items()}
    request = Request(prompt, options.tokens, seed=1)
    for engine in engines.values():  # compiles kernels, fills caches
        list(engine.generate([replace(request, max_new_tokens=4)]))

    times: dict[str, list[tuple[float, float]]] = {name: [] for name in SAMPLERS}
    for _ in range(options.repeats):
        for name, engine in engines.items():
            times[name].append(measure(engine, clock, request))

    print(f"{options.model}, {model.dtype}, {model.device}, {torch.get_num_threads()} threads, {model.vocab_size} ids,")
    print(f"{options.tokens} tokens x {options.repeats} repeats, batch 1; median (range)")
    for name, pairs in times.items():
        print(f"{name:8} loop     {spread([whole for whole, _ in pairs], 'ms/token')}")
        print(f"{'':8} model    {spread([inside for _, inside in pairs], 'ms/token')}")
        print(f"{'':8} overhead {spread([(whole / inside - 1) * 100 for whole, inside in pairs], '%')}")


if __name__ == "__main__":
    main()
