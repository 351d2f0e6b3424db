"""Tokens per second of the engine llamacpp, as a ratio to llama.cpp's own loop with its own sampler chain.

    python benchmarks/llamacpp_engine.py [--turns 20] [--tokens 64] [--threads 1] [--torch]

Loops take turns, so that what else the machine does meets all of them alike; a ratio is of two loops of one turn. Each
decodes as many tokens behind the same prompt with top-k 40 at temperature 0.8.
Above 1 is faster than llama.cpp's own loop.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from collections.abc import Callable

import llama_cpp

import neurogen
from neurogen.decoding.engine import engine_for
from neurogen.decoding.request import Request
from neurogen.integrations.llamacpp import LlamaCppModel, load_llamacpp_model
from neurogen.models.language_model import load_model
from neurogen.text.runner import Runner

NAME, PROMPT, K, TEMPERATURE, SEED = "smollm2-135m", "Tell me a story about a dog and a river.", 40, 0.8, 7


def own_loop(model: LlamaCppModel, ids: list[int], tokens: int) -> None:
    """Context, prompt and tokens by llama.cpp alone, called as its own simple example does."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = len(ids) + tokens
    params.n_threads = params.n_threads_batch = model.threads
    context = llama_cpp.llama_init_from_model(model.weights.pointer, params)
    chain = llama_cpp.llama_sampler_chain_init(llama_cpp.llama_sampler_chain_default_params())
    for link in (
        llama_cpp.llama_sampler_init_top_k(K),
        llama_cpp.llama_sampler_init_temp(TEMPERATURE),
        llama_cpp.llama_sampler_init_dist(SEED),
    ):
        llama_cpp.llama_sampler_chain_add(chain, link)
    new = (ctypes.c_int32 * len(ids))(*ids)
    for _ in range(tokens):
        llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(new, len(new)))
        new = (ctypes.c_int32 * 1)(llama_cpp.llama_sampler_sample(chain, context, -1))
    llama_cpp.llama_sampler_free(chain)
    llama_cpp.llama_free(context)


def loops(threads: int, tokens: int, with_torch: bool) -> dict[str, Callable[[], object]]:
    """The loops by name, llama.cpp's own first."""
    model = load_llamacpp_model(NAME, device="cpu", threads=threads)
    sampler = neurogen.load_sampler("topk", k=K, temperature=TEMPERATURE)
    runner = Runner(model, sampler, max_new_tokens=tokens, seed=SEED)
    ids = runner.encode(PROMPT)
    request = Request(tuple(ids), tokens, SEED)
    made: dict[str, Callable[[], object]] = {
        "llama.cpp": lambda: own_loop(model, ids, tokens),
        "engine": lambda: list(model.engine(sampler).generate([request])),
    }
    if with_torch:
        torchs = load_model(NAME, device="cpu")
        made["torch"] = lambda: list(engine_for(torchs, sampler).generate([request]))
    return made


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("turns", 20), ("tokens", 64), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--torch", action="store_true", help="the engine torch too")
    given = parser.parse_args()
    made = loops(given.threads, given.tokens, given.torch)
    seconds: dict[str, list[float]] = {name: [] for name in made}
    for turn in range(given.turns + 1):
        for name in list(made) if turn % 2 else reversed(list(made)):
            began = time.perf_counter()
            made[name]()
            if turn:  # the first one warms up
                seconds[name].append(time.perf_counter() - began)
    first, *others = seconds
    print(f"{first}: best {given.tokens / min(seconds[first]):.1f} tokens/s")
    for name in others:
        ratios = [own / ours for own, ours in zip(seconds[first], seconds[name], strict=True)]
        best = min(seconds[first]) / min(seconds[name])
        print(
            f"{name} / {first}: of the best {best:.3f}, median of {given.turns} turns {statistics.median(ratios):.3f}"
        )


if __name__ == "__main__":
    main()
