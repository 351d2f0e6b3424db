"""The recorded cases: that their file is what it says, and that every device chooses their tokens.

No case may differ: those for which the reference alone does not settle the token are not in the file.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import itertools
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from neurogen.testing import recorded
from neurogen.testing.recorded import (
    DTYPES,
    KINDS,
    Cases,
    RecordedRow,
    check_recorded,
    check_with,
    load_cases,
    make_logits,
)

ROOT = Path(__file__).parents[2]
METHODS = ("greedy", "topk", "topp", "temperature")


@pytest.fixture(scope="module")
def cases() -> Cases:
    return load_cases()


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def recorder() -> ModuleType:
    """tools/record_cases.py, which is not part of a package."""
    spec = importlib.util.spec_from_file_location("record_cases", ROOT / "tools" / "record_cases.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rows_of(cases: Cases) -> list[RecordedRow]:
    """The row of every case."""
    return [cases.rows[row] for row in cases.row.tolist()]


def shuffled(cases: Cases, seed: int, count: int | None = None) -> list[int]:
    return np.random.default_rng(seed).permutation(len(cases))[:count].tolist()


# Logits.


def test_words_are_those_of_splitmix64() -> None:
    published = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert recorded.words(1234567, 0, 4).tolist() == published
    assert recorded.words(1234567, 2, 2).tolist() == published[2:]
    assert recorded.words(-1, 0, 3).tolist() == recorded.words(2**64 - 1, 0, 3).tolist()


def test_logits_are_the_same_bits_as_when_they_were_recorded() -> None:
    digest = hashlib.sha256()
    for kind, dtype, vocab in itertools.product(KINDS, DTYPES, (1, 2, 257)):
        digest.update(make_logits(kind, 7, vocab, dtype).astype("<f4").tobytes())
    assert digest.hexdigest() == "1d3fe82119c17e48666b62476250f5b768bc637088c7abddc6033ccf36163f17"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_every_dtype_holds_its_logits_exactly(kind: str, dtype: str) -> None:
    row = torch.from_numpy(make_logits(kind, 11, 20_000, dtype))
    there_and_back = row.to(getattr(torch, dtype)).float()
    assert torch.equal(there_and_back.view(torch.int32), row.view(torch.int32))
    assert row.max() < torch.inf


def test_kinds_are_what_they_are_called() -> None:
    vocab = 4096
    row = {kind: make_logits(kind, 3, vocab).astype(np.float64) for kind in KINDS}
    probs = {kind: np.exp(x - x.max()) / np.exp(x - x.max()).sum() for kind, x in row.items()}
    assert row["normal"].std() == pytest.approx(3, rel=0.05)
    assert 0.5 < probs["peaked"].max() < 0.9
    assert probs["flat"].max() < 1.02 / vocab
    assert len(set(row["ties"])) < 60
    assert np.isneginf(row["removed"]).mean() == pytest.approx(0.5, abs=0.05)
    assert (row["bimodal"] > 0).mean() == pytest.approx(1 / 16, rel=0.3)
    assert probs["saturated"].max() > 0.999
    zeros = row["zeros"] == 0
    assert np.signbit(row["zeros"][zeros]).mean() == pytest.approx(3 / 7, abs=0.05)
    assert row["wide"].max() > 3000


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"kind must be one of normal, peaked, .*, got 'odd'"):
        make_logits("odd", 0, 4)


# The file.


def test_the_file_is_small_and_needs_no_pickle(cases: Cases) -> None:
    assert recorded.FILE.stat().st_size < 2_000_000
    assert len(cases) == 100_000
    assert cases.id.min() >= 0
    assert (cases.id < [row.vocab for row in rows_of(cases)]).all()


def test_the_file_covers_every_kind_dtype_and_method_at_small_and_large_vocabularies(cases: Cases) -> None:
    seen: Counter[tuple[str, ...]] = Counter()
    vocabs: Counter[int] = Counter()
    for row, k in zip(rows_of(cases), cases.k.tolist(), strict=True):
        method = "temperature" if row.sampler == "topk" and k == 0 else row.sampler
        seen[row.kind, row.dtype, method] += 1
        vocabs[row.vocab] += 1
    assert set(seen) == set(itertools.product(KINDS, DTYPES, METHODS))
    assert min(seen.values()) > 500
    assert {1, 2, 3} < set(vocabs)
    assert vocabs[32_000] >= 500
    assert min(vocabs[128_256], vocabs[262_144]) >= 50


def test_the_file_covers_edges_of_parameters_and_numbers(cases: Cases) -> None:
    methods = np.array([row.sampler for row in rows_of(cases)])
    vocab = np.array([row.vocab for row in rows_of(cases)])
    topk, topp = methods == "topk", methods == "topp"
    for edge in (cases.k == 0, cases.k == 1, cases.k == vocab, cases.k > vocab, cases.temperature == 0):
        assert (edge & topk).sum() > 200
    for edge in (cases.p == 1, cases.p < 1e-6, cases.temperature == 0, cases.temperature > 1e3):
        assert (edge & topp).sum() > 200
    for edge in (cases.seed < 0, cases.seed == 2**63 - 1, cases.seed == -(2**63), cases.position > 2**32):
        assert edge.sum() > 200


def test_few_cases_were_left_out_as_ambiguous() -> None:
    header = next(recorded.read_lines())
    left_out, tried = map(sum, zip(*header["left_out_of"].values(), strict=True))
    assert 0 < left_out / tried < 0.01


def test_recording_again_gives_the_same_lines(recorder: ModuleType) -> None:
    stored = {line["logits_seed"]: line for line in itertools.islice(recorded.read_lines(), 1, 700)}
    attempts = list(itertools.islice(recorder.attempts(), 640))
    some = [*attempts[0:108:29], attempts[120], attempts[170], *attempts[200::13]]
    for attempt in some:
        assert json.loads(json.dumps(recorder.record(attempt))) == stored[attempt.row.logits_seed]


def test_ambiguous_cases_are_not_recorded(recorder: ModuleType) -> None:
    u = int(recorder.random_bits(5, 0, 0)) / 2**64
    assert recorder.token_inside(np.array([u - 1e-5, 1 - u + 1e-5]), 5, 0) == 1
    assert recorder.token_inside(np.array([u + 1e-5, 1 - u - 1e-5]), 5, 0) == 0
    for near in (-1.9e-6, 0.0, 1.9e-6):
        assert recorder.token_inside(np.array([u + near, 1 - u - near]), 5, 0) is None
    quarters = recorder.Attempt(
        RecordedRow("zeros", 0, 4, "float32", "topp"), "topp", [0] * 2, [0.5, 0.6], [1.0] * 2, [5] * 2, [0] * 2
    )
    logits = np.zeros(4, np.float32)  # p = 0.5 falls on the step of the second token
    assert recorder.token_of(quarters, logits, 0) is None
    assert recorder.token_of(quarters, logits, 1) is not None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([{"format": "something", "version": 1}], "not a file of neurogen-recorded-cases, version 1"),
        ([{"format": "neurogen-recorded-cases", "version": 2}], "not a file of"),
        ([{"format": "neurogen-recorded-cases", "version": 1, "cases": 3}, None], "incomplete: 2 of 3"),
    ],
)
def test_another_file_is_refused(lines: list[dict[str, object] | None], message: str, tmp_path: Path) -> None:
    row = {"kind": "flat", "logits_seed": 1, "vocab": 9, "dtype": "float32", "sampler": "greedy"}
    row |= {"seed": [0, 1], "position": [0, 0], "id": [1, 1]}
    path = tmp_path / "cases.jsonl.gz"
    with gzip.open(path, "wt") as file:
        file.writelines(json.dumps(line or row) + "\n" for line in lines)
    with pytest.raises(ValueError, match=message):
        load_cases(path)


# Devices.


def assert_no_difference(differences: list[recorded.WrongToken]) -> None:
    assert not differences, f"{len(differences)} differences, such as:\n" + "\n".join(map(str, differences[:5]))


def test_the_cpu_chooses_every_recorded_token_on_one_thread(set_threads: Callable[[int], None]) -> None:
    set_threads(1)
    assert_no_difference(check_recorded("cpu"))


def test_the_cpu_chooses_every_recorded_token_in_another_order_on_several_threads(
    cases: Cases, set_threads: Callable[[int], None]
) -> None:
    set_threads(3)
    assert_no_difference(check_recorded("cpu", order=shuffled(cases, 1), logits_a_call=1 << 20))


def test_the_cpu_chooses_recorded_tokens_one_row_at_a_time(cases: Cases) -> None:
    assert_no_difference(check_recorded("cpu", order=shuffled(cases, 2, 2000), logits_a_call=1))


def test_rows_that_share_one_memory_give_the_recorded_tokens(cases: Cases) -> None:
    """Many draws of one row without copying it, as a benchmark or a speculative decoder makes them."""
    from neurogen import load_sampler

    samplers = {name: load_sampler(name) for name in recorded.PARAMETERS}
    for line in range(200, len(cases.rows), 9):
        row, here = cases.rows[line], cases.row == line
        logits = torch.from_numpy(row.logits()).to(getattr(torch, row.dtype)).expand(int(here.sum()), -1)
        names = (*recorded.PARAMETERS[row.sampler], "seed", "position")
        ids = samplers[row.sampler].sample(logits, **{n: torch.from_numpy(getattr(cases, n)[here]) for n in names})
        assert ids.tolist() == cases.id[here].tolist()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device")
@pytest.mark.parametrize("logits_a_call", [1 << 24, 1 << 19])
def test_cuda_chooses_every_recorded_token(cases: Cases, logits_a_call: int) -> None:
    assert_no_difference(check_recorded("cuda", order=shuffled(cases, 3), logits_a_call=logits_a_call))


def simulated_sample(cases: Cases) -> list[int]:
    """Some cases of every sampler and dtype at two vocabularies: few launches, since the simulator is slow."""
    by_launch: dict[tuple[str, str, int], list[int]] = {}
    for case, row in enumerate(rows_of(cases)):
        if row.vocab in (65, 257):
            by_launch.setdefault((row.sampler, row.dtype, row.vocab), []).append(case)
    rng = np.random.default_rng(4)
    return [int(case) for group in by_launch.values() for case in rng.choice(group, 4, replace=False)]


def test_the_cuda_simulator_chooses_recorded_tokens(cases: Cases) -> None:
    sample = simulated_sample(cases)
    assert len(sample) == 4 * 18
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parents[1].joinpath("helpers", "simulate_recorded.py")), *map(str, sample)],
        capture_output=True,
        text=True,
        timeout=540,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout) == []


# The check itself.


def test_a_wrong_token_is_reported_with_all_that_led_to_it(cases: Cases, monkeypatch: pytest.MonkeyPatch) -> None:
    case = next(c for c, row in enumerate(rows_of(cases)) if row.sampler == "topp" and row.vocab == 100)
    right = int(cases.id[case])
    wrong = cases.id.copy()
    wrong[case] += 1
    monkeypatch.setattr(recorded, "load_cases", lambda: replace(cases, id=wrong))
    (difference,) = check_recorded("cpu", order=range(case - 5, case + 5))
    assert (difference.case, difference.expected, difference.got) == (case, right + 1, right)
    assert set(difference.parameters) == {"p", "temperature"}
    assert str(difference).startswith(f"case {case}: topp(p={cases.p[case].item()!r}, temperature=")
    assert str(difference).endswith(f"expected {right + 1}, got {right}")


def test_any_engine_can_be_held_against_the_cases(cases: Cases) -> None:
    shapes = []

    def choose(row: RecordedRow, logits: np.ndarray, arguments: dict[str, np.ndarray]) -> np.ndarray:
        shapes.append(logits.shape)
        assert set(arguments) == {*recorded.PARAMETERS[row.sampler], "seed", "position"}
        assert all(len(column) == len(logits) for column in arguments.values())
        return np.full(len(logits), -1)

    order = shuffled(cases, 5, 300)
    differences = check_with(choose, order=order, logits_a_call=2000)
    assert [difference.case for difference in differences] == sorted(order)
    assert {difference.got for difference in differences} == {-1}
    assert all(batch == 1 or batch * vocab <= 2000 for batch, vocab in shapes)


@pytest.mark.parametrize(("wrong", "exit_code", "said"), [(0, 0, "2 recorded cases, 0 diff"), (1, 1, "expected")])
def test_the_command_counts_differences(
    cases: Cases, monkeypatch: pytest.MonkeyPatch, wrong: int, exit_code: int, said: str
) -> None:
    two = {name: getattr(cases, name)[:2] for name in recorded.Cases.__dataclass_fields__ if name != "rows"}
    few = replace(cases, **(two | {"id": two["id"] + wrong}))
    monkeypatch.setattr(recorded, "load_cases", lambda: few)
    result = CliRunner().invoke(recorded.main, [])
    assert result.exit_code == exit_code
    assert said in result.output
