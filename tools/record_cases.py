"""Makes the file of recorded cases with the float64 reference: the same content at every run.

    python tools/record_cases.py                # writes neurogen/testing/recorded_cases.jsonl.gz, in under a minute

A case is left out where it is ambiguous, that is, where a sampler with masses precise to 1e-6 could rightly choose
another token: where p lies that near to a step of the cumulative distribution, or the random number within 2e-6 of
either end of the token's interval. How many were left out stands in the header.
"""

from __future__ import annotations

import gzip
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from neurogen import reference
from neurogen.kernels.numerics import random_bits
from neurogen.testing.recorded import DTYPES, FILE, FORMAT, KINDS, PARAMETERS, VERSION, RecordedRow, words

CASES = 100_000
NUCLEUS_MARGIN = 1e-6
DRAW_MARGIN = 2e-6

METHODS = ("greedy", "topk", "topp", "temperature")  # the last is topk with k = 0
LARGE = {32_000: (108, 6), 128_256: (36, 4), 262_144: (36, 3)}  # vocab -> lines, draws a line
# Their number has no factor in common with 4 methods, 9 kinds and 3 dtypes, so that each meets all.
SMALL = (1, 2, 3, 5, 7, 16, 31, 64, 65, 100, 127, 256, 257, 300, 500, 511, 777, 1000, 1023, 1024, 1500, 2047, 2048)
SMALL += (3000, 4096)
SMALL_DRAWS = 36

KS = (1, 2, 3, 5, 10, 20, 40, 50, 64, 100, 0)
PS = (0.5, 0.8, 0.9, 0.92, 0.95, 0.99, 0.999, 1.0, 1e-9)
TEMPERATURES = (1.0, 0.8, 0.7, 1.0, 0.5, 0.2, 1.3, 2.0, 0.05, 5.0, 30.0, 1e-6, 1e6, 0.0)
EDGES = (0, 1, -1, 2**63 - 1, -(2**63), 2**32, 2**32 - 1, -(2**32), 1_234_567_890_123_456_789)


@dataclass(frozen=True)
class Attempt:
    """What one line of the file is made of, before ambiguous cases are left out."""

    row: RecordedRow
    method: str
    k: list[int]
    p: list[float]
    temperature: list[float]
    seed: list[int]
    position: list[int]


class Choices:
    """A stream of choices that is the same on every platform: the words of one seed."""

    def __init__(self, line: int) -> None:
        self._words = iter(words(2**40 + line, 0, 4096).tolist())

    def below(self, bound: int) -> int:
        return int(next(self._words) % bound)

    def one_of(self, values: tuple[Any, ...]) -> Any:
        return values[self.below(len(values))]

    def int64(self) -> int:
        return int(next(self._words)) - 2**63


def attempts() -> Iterator[Attempt]:
    """Without end: large vocabularies first, then small ones in turn."""
    line = 0
    for vocab, (lines, draws) in LARGE.items():
        for _ in range(lines):
            yield attempt(line, vocab, draws)
            line += 1
    while True:
        yield attempt(line, SMALL[line % len(SMALL)], SMALL_DRAWS)
        line += 1


def attempt(line: int, vocab: int, draws: int) -> Attempt:
    """Any 36 lines in a row have every kind with every method and every dtype; any 108 have all combinations."""
    choose = Choices(line)
    method, kind, dtype = METHODS[line % 4], KINDS[line % 9], DTYPES[(line // 4 + line // 36) % 3]
    seeds, positions = numbers(choose, draws)
    return Attempt(
        row=RecordedRow(kind, line, vocab, dtype, sampler="topk" if method == "temperature" else method),
        method=method,
        k=[0 if method == "temperature" else any_k(choose, vocab) for _ in range(draws)],
        p=[any_p(choose) for _ in range(draws)],
        temperature=[any_temperature(choose) for _ in range(draws)],
        seed=seeds,
        position=positions,
    )


def numbers(choose: Choices, draws: int) -> tuple[list[int], list[int]]:
    """Seeds and positions: counting positions of one seed, counting seeds at one position, or both anything."""
    pattern = choose.below(3)
    if pattern == 0:
        start = choose.below(5000)
        return [choose.one_of(EDGES)] * draws, list(range(start, start + draws))
    if pattern == 1:
        start = choose.below(2**31)
        return list(range(start, start + draws)), [choose.below(10_000)] * draws
    return [choose.int64() for _ in range(draws)], [choose.below(2**40) for _ in range(draws)]


def any_k(choose: Choices, vocab: int) -> int:
    if choose.below(2):
        return int(choose.one_of(KS))
    return int(choose.one_of((vocab // 2, vocab - 1, vocab, vocab + 1, 1 + choose.below(vocab))))


def any_p(choose: Choices) -> float:
    return float(choose.one_of(PS)) if choose.below(2) else (1 + choose.below(999)) / 1000


def any_temperature(choose: Choices) -> float:
    return float(choose.one_of(TEMPERATURES)) if choose.below(2) else (10 + choose.below(291)) / 100


def token_of(attempt: Attempt, logits: np.ndarray, c: int) -> int | None:
    """The reference's token for case c of an attempt, or None where it is ambiguous."""
    if attempt.row.sampler == "greedy":
        return reference.argmax(logits)
    temperature, k, p = attempt.temperature[c], attempt.k[c], attempt.p[c]
    if attempt.row.sampler == "topk":
        support = reference.topk_support(logits, k, temperature)
    elif p < 1 and reference.nucleus_margin(logits, p, temperature) <= NUCLEUS_MARGIN:
        return None
    else:
        support = reference.topp_support(logits, p, temperature)
    return token_inside(reference.probs(logits, support, temperature), attempt.seed[c], attempt.position[c])


def token_inside(probs: np.ndarray, seed: int, position: int) -> int | None:
    """The token whose interval of the cumulative distribution holds the random number, well inside; else None."""
    u = int(random_bits(seed, position, 0)) / 2**64
    token = reference.draw(probs, u)
    cumulative = np.cumsum(probs)
    upper = cumulative[token] / cumulative[-1]
    lower = cumulative[token - 1] / cumulative[-1] if token else 0.0
    return token if lower + DRAW_MARGIN < u < upper - DRAW_MARGIN else None


def record(attempt: Attempt) -> dict[str, Any]:
    """A line of the file: the cases of an attempt that are not ambiguous."""
    logits = attempt.row.logits()
    tokens = [token_of(attempt, logits, c) for c in range(len(attempt.seed))]
    kept = [c for c, token in enumerate(tokens) if token is not None]
    columns = (*PARAMETERS[attempt.row.sampler], "seed", "position")
    line: dict[str, Any] = asdict(attempt.row)
    for name in columns:
        line[name] = [getattr(attempt, name)[c] for c in kept]
    return line | {"id": [tokens[c] for c in kept]}


def record_all(progress: Any = None) -> Iterator[dict[str, Any]]:
    """The header, then the lines, `CASES` cases together."""
    lines, tried, left_out, cases = [], Counter[str](), Counter[str](), 0
    for attempt in attempts():
        if cases == CASES:
            break
        line = record(attempt)
        kept, every = len(line["id"]), len(attempt.seed)
        group = f"{attempt.method} {attempt.row.vocab if attempt.row.vocab in LARGE else 'small'}"
        tried[group] += every
        left_out[group] += every - kept
        if cases + kept > CASES:
            line = {key: value[: CASES - cases] if isinstance(value, list) else value for key, value in line.items()}
        if line["id"]:
            lines.append(line)
            cases += len(line["id"])
        if progress is not None:
            progress(cases)
    ambiguous = {group: [left_out[group], count] for group, count in tried.items()}
    margins = {"nucleus_margin": NUCLEUS_MARGIN, "draw_margin": DRAW_MARGIN}
    yield {"format": FORMAT, "version": VERSION, "cases": cases, **margins, "left_out_of": ambiguous}
    yield from lines


@click.command()
@click.argument("path", type=click.Path(path_type=Path), default=FILE)
def main(path: Path) -> None:
    """Write the recorded cases to PATH, by default where neurogen reads them."""
    with click.progressbar(length=CASES, label="recording") as bar:
        lines = list(record_all(lambda done: bar.update(done - bar.pos)))
    text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
    path.write_bytes(gzip.compress(text.encode("ascii"), compresslevel=9, mtime=0))
    click.echo(f"{path}: {lines[0]['cases']} cases, {len(lines) - 1} lines, {path.stat().st_size / 1e6:.2f} MB")
    tried = sum(every for _, every in lines[0]["left_out_of"].values())
    left_out = sum(count for count, _ in lines[0]["left_out_of"].values())
    click.echo(f"left out as ambiguous: {left_out} of {tried} ({left_out / tried:.2%})")


if __name__ == "__main__":
    main()
