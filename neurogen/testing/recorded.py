"""100,000 recorded tokens, and the check that a device chooses them all: `python -m neurogen.testing.recorded`.

The file beside this module holds, for rows of logits and parameters, seed and position, the token that the float64
reference chooses. It knows nothing of kernels, so that engines in other languages can be checked with it too: the
logits come from integers alone, and docs/reproducibility.md describes every step. tools/record_cases.py makes the file.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray

from neurogen.registry.registry import load_sampler

__all__ = [
    "DTYPES",
    "FILE",
    "KINDS",
    "PARAMETERS",
    "Cases",
    "Choose",
    "RecordedRow",
    "WrongToken",
    "check_recorded",
    "check_with",
    "load_cases",
    "make_logits",
    "words",
]

FILE = Path(__file__).with_name("recorded_cases.jsonl.gz")
FORMAT, VERSION = "neurogen-recorded-cases", 1

KINDS = ("normal", "peaked", "flat", "ties", "removed", "bimodal", "saturated", "zeros", "wide")
DTYPES = ("float32", "float16", "bfloat16")
PARAMETERS = {"greedy": (), "topk": ("k", "temperature"), "topp": ("p", "temperature")}
"""The parameters of each sampler that the file uses."""

Floats = NDArray[np.float32]
Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

# Logits: integers and powers of two, so that they are the same bits everywhere.

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
WORDS_A_TOKEN = 4
KEPT_BITS = {"float32": 0xFFFFFFFF, "float16": 0xFFFFE000, "bfloat16": 0xFFFF0000}
"""The leading bits of a float32 that a dtype can hold: the others are cleared, so that every logit is exact in it."""


def words(seed: int, first: int, count: int) -> Words:
    """Outputs `first` to `first + count - 1` of SplitMix64 (Steele et al., 2014) started with the state `seed`."""
    z = np.arange(first + 1, first + 1 + count, dtype=np.uint64) * GOLDEN + np.array([seed % 2**64], dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def make_logits(kind: str, seed: int, vocab: int, dtype: str = "float32") -> Floats:
    """One row of logits, the same bits on every platform, as float32 that `dtype` holds exactly.

    Token i has words 4i to 4i + 3 of its seed. The twelve 16-bit pieces of the first three, less their mean, sum to the
    integer n, which is bell-shaped with a standard deviation of 2**16 and never beyond 6 times that; w is the fourth.
    The special token is word 4 * vocab modulo vocab.

    | kind | logit |
    |---|---|
    | normal | 3n / 2**16 |
    | peaked | n / 2**16; the special token 10 |
    | flat | n / 2**24 |
    | ties | floor(3n / 2**15) / 2 |
    | removed | as normal; -inf where w is odd and the token is not the special one |
    | bimodal | n / 2**18, plus 8 where w is a multiple of 16, else minus 8 |
    | saturated | n / 2**16; the special token 24 |
    | zeros | -1 where w mod 8 is 7; else -0 where w is odd, else +0 |
    | wide | 3n / 2**7 |

    Args:
        kind: one of `KINDS`.
        seed: of 64 bits.
        vocab: >= 1.
        dtype: one of `DTYPES`; of a narrower one the low bits of the float32 are cleared (rounded towards zero).
    """
    stream = words(seed, 0, WORDS_A_TOKEN * vocab + 1)
    special = int(stream[-1] % np.uint64(vocab))
    by_token = stream[:-1].reshape(vocab, WORDS_A_TOKEN)
    w = by_token[:, 3]
    row = _row_of(kind, _bell(by_token[:, :3]), w, special)
    return (row.view(np.uint32) & np.uint32(KEPT_BITS[dtype])).view(np.float32)


def _bell(three_words: Words) -> Integers:
    """Per token the sum of twelve 16-bit pieces less its mean: an integer with a standard deviation of 2**16."""
    pieces = [(three_words >> np.uint64(shift)) & np.uint64(0xFFFF) for shift in (0, 16, 32, 48)]
    total = np.sum(pieces, axis=(0, 2), dtype=np.uint64).astype(np.int64)
    return np.asarray(total - 12 * 0xFFFF // 2)


def _row_of(kind: str, n: Integers, w: Words, special: int) -> Floats:
    odd = w % np.uint64(2) == 1
    if kind == "normal":
        return _scaled(3 * n, 16)
    if kind == "peaked":
        return _with_special(_scaled(n, 16), special, 10.0)
    if kind == "flat":
        return _scaled(n, 24)
    if kind == "ties":
        return _scaled((3 * n) // 2**15, 1)
    if kind == "removed":
        kept = _scaled(3 * n, 16)
        return _with_special(np.where(odd, np.float32(-np.inf), kept), special, float(kept[special]))
    if kind == "bimodal":
        return _scaled(n + np.where(w % np.uint64(16) == 0, 8, -8) * 2**18, 18)
    if kind == "saturated":
        return _with_special(_scaled(n, 16), special, 24.0)
    if kind == "zeros":
        zeros = np.where(odd, np.float32(-0.0), np.float32(0.0))
        return np.where(w % np.uint64(8) == 7, np.float32(-1.0), zeros)
    if kind == "wide":
        return _scaled(3 * n, 7)
    raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")


def _scaled(integers: Integers, bits: int) -> Floats:
    """integers / 2**bits, exact: the integers are below 2**24."""
    return integers.astype(np.float32) * np.float32(2.0**-bits)


def _with_special(row: Floats, special: int, logit: float) -> Floats:
    row[special] = logit
    return row


# The file.


@dataclass(frozen=True)
class RecordedRow:
    """What the cases of one line of the file share: a row of logits, its dtype, and the sampler."""

    kind: str
    logits_seed: int
    vocab: int
    dtype: str
    sampler: str

    def logits(self) -> Floats:
        return make_logits(self.kind, self.logits_seed, self.vocab, self.dtype)


@dataclass(frozen=True)
class Cases:
    """The recorded cases as columns, all of one length but `rows`; case c uses `rows[row[c]]`.

    A parameter that the sampler of a case does not have is 0.
    """

    rows: tuple[RecordedRow, ...]
    row: Integers
    k: Integers
    p: NDArray[np.float64]
    temperature: NDArray[np.float64]
    seed: Integers
    position: Integers
    id: Integers

    def __len__(self) -> int:
        return len(self.row)


@dataclass(frozen=True)
class WrongToken:
    """A case whose token was not the recorded one."""

    case: int
    row: RecordedRow
    parameters: dict[str, float]
    seed: int
    position: int
    expected: int
    got: int

    def __str__(self) -> str:
        row, given = self.row, ", ".join(f"{name}={value!r}" for name, value in self.parameters.items())
        return (
            f"case {self.case}: {row.sampler}({given}) seed {self.seed} position {self.position} on {row.dtype} "
            f"{row.kind} logits (seed {row.logits_seed}, vocab {row.vocab}): expected {self.expected}, got {self.got}"
        )


def read_lines(path: Path = FILE) -> Iterator[dict[str, Any]]:
    """The objects of the file, its header first."""
    with gzip.open(path, "rt", encoding="ascii") as file:
        for line in file:
            yield json.loads(line)


@cache
def load_cases(path: Path = FILE) -> Cases:
    """All recorded cases.

    Raises:
        ValueError: the file has another format or version.
    """
    header, *lines = read_lines(path)
    if (header.get("format"), header.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{path} is not a file of {FORMAT}, version {VERSION}.")
    rows = tuple(RecordedRow(**{name: line[name] for name in RecordedRow.__dataclass_fields__}) for line in lines)
    counts = [len(line["id"]) for line in lines]

    def column(name: str, dtype: type) -> NDArray[Any]:
        parts = [line.get(name, [0] * count) for line, count in zip(lines, counts, strict=True)]
        return np.concatenate([np.array(part, dtype=dtype) for part in parts])

    cases = Cases(
        rows=rows,
        row=np.repeat(np.arange(len(rows)), counts),
        k=column("k", np.int64),
        p=column("p", np.float64),
        temperature=column("temperature", np.float64),
        seed=column("seed", np.int64),
        position=column("position", np.int64),
        id=column("id", np.int64),
    )
    if len(cases) != header["cases"]:
        raise ValueError(f"{path} is incomplete: {len(cases)} of {header['cases']} cases.")
    return cases


# The check.

LOGITS_A_CALL = 1 << 22

Choose = Callable[[RecordedRow, Floats, dict[str, NDArray[Any]]], Sequence[int] | Integers]
"""(row, logits, arguments) -> one token a row.

`row` says sampler, vocab and dtype of the whole batch (its kind and seed are those of the first case alone); `logits`
is [batch, vocab], which the dtype holds exactly; `arguments` are the sampler's parameters, seed and position, [batch].
"""


def check_recorded(
    device: str = "cpu", *, order: Sequence[int] | Integers | None = None, logits_a_call: int = LOGITS_A_CALL
) -> list[WrongToken]:
    """Every case whose token on this device is not the recorded one: an empty list where all is well.

    Args:
        device: where to sample; "cuda" runs the CUDA kernels.
        order, logits_a_call: as for `check_with`.
    """
    samplers = {name: load_sampler(name) for name in PARAMETERS}

    def choose(row: RecordedRow, logits: Floats, arguments: dict[str, NDArray[Any]]) -> Integers:
        columns: dict[str, Any] = {name: torch.from_numpy(column).to(device) for name, column in arguments.items()}
        there = _as_stored(logits, row.dtype).to(device)
        ids: Integers = samplers[row.sampler].sample(there, check=False, **columns).cpu().numpy()
        return ids

    return check_with(choose, order=order, logits_a_call=logits_a_call)


def _as_stored(logits: Floats, dtype: str) -> torch.Tensor:
    """Logits as a CPU tensor of the dtype that holds them exactly; by NumPy, for torch's threads hang after a fork."""
    if dtype == "bfloat16":
        bits = (logits.view(np.uint32) >> np.uint32(16)).astype(np.uint16)
        return torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(logits.astype(np.float16) if dtype == "float16" else logits)


def check_with(
    choose: Choose, *, order: Sequence[int] | Integers | None = None, logits_a_call: int = LOGITS_A_CALL
) -> list[WrongToken]:
    """Every case for which `choose` gives another token than the recorded one.

    Cases of one sampler, vocab and dtype share batches in which no two rows need be alike.

    Args:
        choose: what is checked: an engine, a kernel.
        order: indices of the cases to check, in the order in which they fill the batches; all, as recorded, by default.
        logits_a_call: the most logits (rows times vocab) of one batch; 1 puts every case in a batch of its own.
    """
    cases = load_cases()
    chosen = np.arange(len(cases)) if order is None else np.asarray(order, dtype=np.int64)
    differences = []
    for group in _groups(cases, chosen):
        table, index = _table(cases, group)
        size = max(1, logits_a_call // table.shape[1])
        for start in range(0, len(group), size):
            batch = group[start : start + size]
            row = cases.rows[cases.row[batch[0]]]
            arguments = {name: getattr(cases, name)[batch] for name in (*PARAMETERS[row.sampler], "seed", "position")}
            ids = np.asarray(choose(row, table[index[start : start + size]], arguments))
            wrong = np.flatnonzero(ids != cases.id[batch])
            differences += [_difference(cases, int(batch[i]), int(ids[i])) for i in wrong]
    return sorted(differences, key=lambda difference: difference.case)


def _groups(cases: Cases, chosen: Integers) -> list[Integers]:
    """The chosen cases by sampler, vocab and dtype, each group in the order given."""
    by_batch: dict[tuple[str, int, str], list[int]] = {}
    for case in chosen.tolist():
        row = cases.rows[cases.row[case]]
        by_batch.setdefault((row.sampler, row.vocab, row.dtype), []).append(case)
    return [np.array(group) for group in by_batch.values()]


def _table(cases: Cases, group: Integers) -> tuple[Floats, Integers]:
    """Every row of logits of a group once, and for each case its row in that table."""
    rows, index = np.unique(cases.row[group], return_inverse=True)
    return np.stack([cases.rows[row].logits() for row in rows]), index


def _difference(cases: Cases, case: int, got: int) -> WrongToken:
    row = cases.rows[cases.row[case]]
    return WrongToken(
        case=case,
        row=row,
        parameters={name: getattr(cases, name)[case].item() for name in PARAMETERS[row.sampler]},
        seed=int(cases.seed[case]),
        position=int(cases.position[case]),
        expected=int(cases.id[case]),
        got=got,
    )


@click.command()
@click.option("--device", default="cpu", show_default=True, help="Where to sample: cpu or cuda.")
def main(device: str) -> None:
    """Sample every recorded case and list those whose token differs; exit code 1 if any does."""
    differences = check_recorded(device)
    for difference in differences[:20]:
        click.echo(difference)
    click.echo(f"{device}: {len(load_cases())} recorded cases, {len(differences)} differences")
    raise SystemExit(bool(differences))


if __name__ == "__main__":
    main()
