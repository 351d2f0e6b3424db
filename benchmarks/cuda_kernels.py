"""Everything about the CUDA kernels that takes a card, in one command: `python benchmarks/cuda_kernels.py`.

It checks first and measures second: every sampler against the CPU bit for bit, the recorded cases, a CUDA graph, and
compute-sanitizer where that is installed; then `sample` beside torch, transformers and FlashInfer (where installed),
with the bytes a second that the logits are read at, beside what the card copies. Without a card it says so, and
compiles every kernel instead (`--compile-only`).

A time is the median over rounds; a round is many launches between two CUDA events, after a synchronisation. `device` is
the same launch replayed from a CUDA graph, so without what Python costs.
"""

from __future__ import annotations

import argparse
import math
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import neurogen
from neurogen.bench.clock import cuda_microseconds
from neurogen.files import to_json
from neurogen.kernels import cuda_compile, cuda_launch

SAMPLERS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "topk": {"k": 50, "temperature": 0.8},
    "topp": {"p": 0.9, "temperature": 0.8},
}
READS = {"greedy": 1, "topk": 2, "topp": 2}
"""How often a kernel reads the logits of a usual row."""

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
VOCABS = (32_000, 128_256, 262_144)
DTYPES = (torch.float32, torch.bfloat16)
ROUNDS = 15
ROUND_MS = 5.0
MOST_LAUNCHES = 500
PEERS = ("torch", "transformers", "flashinfer")
TOOLS = ("memcheck", "synccheck", "initcheck")

Draw = Callable[[], object]


# Checking.


def check_against_the_cpu() -> int:
    """Ids, probabilities and supports of every sampler on rows of every kind; how many rows were compared."""
    compared = 0
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for batch, vocab, offset in (
            (1, 1, 0),
            (5, 6, 1),
            (40, 300, 0),
            (9, 5_003, 3),
            (12, 32_000, 2),
            (4, 262_144, 0),
        ):
            rows = hard_rows(batch, vocab).to(dtype)
            there = torch.zeros(batch * vocab + offset, dtype=dtype, device="cuda")[offset:].view(batch, vocab)
            there.copy_(rows)
            for arrangement in (there, there.t().contiguous().t(), there[:, ::2]):
                for name, params in parameters(batch, vocab):
                    compare(name, params, arrangement)
                    compared += batch
    return compared


def hard_rows(batch: int, vocab: int) -> Tensor:
    """Normal rows, and in turn: rounded, removed, flat, saturated, equal, with NaN, with +inf, with nothing left."""
    rows = torch.randn(batch, vocab, generator=torch.Generator().manual_seed(batch + vocab)) * 3
    for r in range(batch):
        kind = r % 9
        if kind == 1:
            rows[r].round_()
        elif kind == 2:
            rows[r, ::2] = -torch.inf
        elif kind == 3:
            rows[r] *= 1e-3
        elif kind == 4:
            rows[r, vocab // 2] = 60
        elif kind == 5:
            rows[r] = 0
        elif kind in (6, 7):
            rows[r, vocab // 3] = torch.nan if kind == 6 else torch.inf
        elif kind == 8:
            rows[r] = -torch.inf
    return rows


def parameters(batch: int, vocab: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Row parameters of each sampler: from the narrowest to what keeps all, some rows at temperature 0."""
    steps = torch.arange(batch, dtype=torch.float64)
    temperature = torch.where(steps % 7 == 6, 0.0, 0.3 + steps % 5 / 2)
    yield "greedy", {}
    for k in (1, 50, 700, 1500, vocab - 1):
        yield "topk", {"k": torch.full((batch,), max(k, 0), dtype=torch.int64), "temperature": temperature}
    for p in (0.1, 0.9, 0.999, 1.0):
        yield "topp", {"p": torch.full((batch,), p, dtype=torch.float64), "temperature": temperature}


def compare(name: str, params: dict[str, Tensor], logits: Tensor) -> None:
    sampler = neurogen.load_sampler(name)
    seed = torch.arange(len(logits)) * 1_000_003 - 7
    position = torch.arange(len(logits)) * 3
    there = {key: value.cuda() for key, value in params.items()}
    here = logits.cpu()
    expected = sampler.sample(here, seed=seed, position=position, check=False, **params)
    for pieces in cuda_launch.POSSIBLE_PIECES:
        with rows_in(pieces):
            ids = sampler.sample(logits, seed=seed.cuda(), position=position.cuda(), check=False, **there).cpu()
        same = ids == expected
        if not same.all():
            row = int((~same).nonzero()[0])
            which = f"{name}: row {row} of {describe(logits)} in {pieces} pieces"
            raise SystemExit(f"{which}: {ids[row]} on CUDA, {expected[row]} on the CPU")
    for call in ("probs", "support"):
        got = getattr(sampler, call)(logits, check=False, **there).cpu()
        if not torch.equal(got, getattr(sampler, call)(here, check=False, **params)):
            raise SystemExit(f"{name}: {call} of {describe(logits)} differ from the CPU's")


@contextmanager
def rows_in(pieces: int) -> Iterator[None]:
    """All rows are split into so many pieces meanwhile."""
    before, cuda_launch.PIECES = cuda_launch.PIECES, pieces
    try:
        yield
    finally:
        cuda_launch.PIECES = before


def describe(logits: Tensor) -> str:
    return f"{list(logits.shape)} {logits.dtype} with strides {logits.stride()}"


def check_recorded_cases() -> str:
    try:
        from neurogen.testing.recorded import check_recorded
    except ImportError:
        return "recorded cases: none in this version"
    differences = check_recorded("cuda")
    if differences:
        raise SystemExit("\n".join(map(str, differences[:10])))
    return "recorded cases: all tokens as recorded"


def capture(sampler: neurogen.Sampler, logits: Tensor, seed: Tensor, position: Tensor) -> tuple[Any, Tensor]:
    """A CUDA graph of one call, and the ids that a replay writes."""
    sampler.sample(logits, seed=seed, position=position, check=False)  # compiles
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        sampler.sample(logits, seed=seed, position=position, check=False)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        ids = sampler.sample(logits, seed=seed, position=position, check=False)
    return graph, ids


def check_graphs() -> None:
    """A replay takes what stands in logits, seed and position then."""
    for name, params in SAMPLERS.items():
        sampler = neurogen.load_sampler(name, **params)
        logits = torch.randn(7, 32_000, device="cuda")
        seed, position = (torch.zeros(7, dtype=torch.int64, device="cuda") for _ in range(2))
        graph, ids = capture(sampler, logits, seed, position)
        for step in range(5):
            logits.normal_()
            seed.fill_(step - 2)
            position.add_(1)
            graph.replay()
            eager = sampler.sample(logits, seed=seed, position=position, check=False)
            if not torch.equal(ids, eager):
                raise SystemExit(f"{name}: a CUDA graph gives {ids.tolist()}, a launch {eager.tolist()}")


def run_sanitizer() -> str:
    if shutil.which("compute-sanitizer") is None:
        return "compute-sanitizer: not installed"
    for tool in TOOLS:
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", sys.executable, __file__]
        done = subprocess.run([*command, "--check-only", "--no-sanitizer"], capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"compute-sanitizer --tool {tool}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    return f"compute-sanitizer: {', '.join(TOOLS)} found nothing"


# Measuring.


def microseconds(call: Draw) -> float:
    """The median over rounds of many calls between two events."""
    call()
    estimate = cuda_microseconds(call, 3)
    launches = max(1, min(MOST_LAUNCHES, math.ceil(ROUND_MS * 1000 / max(estimate, 1.0))))
    return statistics.median(cuda_microseconds(call, launches) for _ in range(ROUNDS))


def copy_rate() -> float:
    """Bytes a second that the card reads (and writes as many) when it copies 1 GiB."""
    source = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / microseconds(lambda: target.copy_(source)) * 1e6


def peers_of(sampler: neurogen.Sampler, batch: int) -> dict[str, Callable[[Tensor], Tensor]]:
    from neurogen.bench.peers import peers_for
    from neurogen.bench.rule import rule_of

    return {name: draw for name, (draw, _) in peers_for(rule_of(sampler), batch, torch.device("cuda"), PEERS).items()}


def measure(name: str, batch: int, vocab: int, dtype: torch.dtype, rate: float) -> dict[str, Any]:
    sampler = neurogen.load_sampler(name, **SAMPLERS[name])
    generator = torch.Generator(device="cuda").manual_seed(0)
    logits = (torch.randn(batch, vocab, device="cuda", generator=generator) * 3).to(dtype)
    seed, position = (torch.arange(batch, device="cuda") for _ in range(2))
    graph, _ = capture(sampler, logits, seed, position)
    device = microseconds(graph.replay)
    with rows_in(1):
        graph, _ = capture(sampler, logits, seed, position)
        whole = microseconds(graph.replay)
    read = logits.numel() * logits.element_size()
    result: dict[str, Any] = {
        "sampler": name,
        "dtype": str(dtype).removeprefix("torch."),
        "vocab": vocab,
        "batch": batch,
        "device": device,
        "whole rows": whole,
        "neurogen": microseconds(lambda: sampler.sample(logits, seed=seed, position=position, check=False)),
        "reads": READS[name],
        "bytes_per_second": read * READS[name] / device * 1e6,
        "of_copy_rate": read * READS[name] / device * 1e6 / rate,
    }
    for peer, draw in peers_of(sampler, batch).items():
        try:
            result[peer] = microseconds(partial(draw, logits))
        except torch.OutOfMemoryError:
            result[peer] = None
    return result


def print_table(results: list[dict[str, Any]]) -> None:
    columns = ("sampler", "dtype", "vocab", "batch", "device", "whole rows", "neurogen", *PEERS, "of_copy_rate")
    print(
        "microseconds a call; device: replayed from a CUDA graph; whole rows: the same without rows split over blocks; "
        "of_copy_rate: bytes read a second, by the copy rate"
    )
    print(" ".join(f"{column:>12}" for column in columns))
    for result in results:
        cells = [result.get(column) for column in columns]
        print(
            " ".join(
                f"{'-' if cell is None else f'{cell:.2f}' if isinstance(cell, float) else cell:>12}" for cell in cells
            )
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile-only", action="store_true", help="compile every kernel; needs no card")
    parser.add_argument("--check-only", action="store_true", help="do not measure")
    parser.add_argument("--no-sanitizer", action="store_true", help="do not run compute-sanitizer")
    parser.add_argument("--quick", action="store_true", help="batch 1 and 64, vocab 128256")
    parser.add_argument("--json", type=Path, help="write the measurements to this file")
    arguments = parser.parse_args()
    if arguments.compile_only:
        return cuda_compile.main()
    if not torch.cuda.is_available():
        print(
            "There is no CUDA device here: nothing can be checked or measured on one. Compiling every kernel instead."
        )
        return cuda_compile.main()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(f"against the CPU: {check_against_the_cpu():,} rows equal bit for bit")
    check_graphs()
    print("CUDA graphs: replays give what launches give")
    if not arguments.no_sanitizer:
        print(check_recorded_cases())
        print(run_sanitizer())
    if not arguments.check_only:
        rate = copy_rate()
        print(f"copy rate: {rate / 1e12:.2f} TB/s, reading and writing")
        batches, vocabs = ((1, 64), (128_256,)) if arguments.quick else (BATCHES, VOCABS)
        results = [
            measure(name, batch, vocab, dtype, rate)
            for name in SAMPLERS
            for dtype in DTYPES
            for vocab in vocabs
            for batch in batches
        ]
        print_table(results)
        if arguments.json:
            arguments.json.write_text(
                to_json({"card": torch.cuda.get_device_name(), "copy_rate": rate, "results": results}, indent=1)
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
