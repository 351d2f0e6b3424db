"""Several processes that train together: they end, stop and fail alike, at once, and see what one process sees."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from training_helpers import arguments, lines, train, wait_for_chunk

from neurogen import DataError
from neurogen.models.checkpoints import latest_checkpoint
from neurogen.models.tokenizer import Tokenizer, load_tokenizer
from neurogen.training import processes
from neurogen.training.processes import all_or_none, peers_lost, same_in_all

LIMIT = 240
CONTEXT, BATCH = 16, 2


def launched(*given: str, folders: list[Path]) -> list[subprocess.Popen[str]]:
    """The processes of a launch, as torchrun starts them, a folder each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": str(len(folders)), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared = {**os.environ, **world, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "neurogen", *given],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, folder in enumerate(folders)
    ]


def ended(ranks: list[subprocess.Popen[str]]) -> tuple[list[int], list[str]]:
    """Exit codes and what was said; a rank that waits for ever fails the test."""
    try:
        errors = [rank.communicate(timeout=LIMIT)[1] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    return [rank.returncode for rank in ranks], errors


def document(folder: Path, tokenizer: Tokenizer, tokens: int) -> Path:
    """A document of so many tokens, its EOS included."""
    words = " ".join(["the"] * tokens)
    while len(tokenizer.encode(words, add_bos=False)) + 1 > tokens:
        words = words[:-1]
    file = folder / f"{tokens}.jsonl"
    file.write_text(json.dumps({"text": words}) + "\n")
    return file


# What is decided together, without processes


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Any]]:
    """What another process gives, and what it has been given by this one."""
    said: dict[str, list[Any]] = {"gives": [], "got": []}

    def gather(own: list[Any]) -> list[Any]:
        said["got"] += own
        return [*own, said["gives"].pop(0)]

    monkeypatch.setattr(processes, "gather_object", gather)
    return said


def test_a_failure_of_another_process_ends_this_one(peer: dict[str, list[Any]]) -> None:
    peer["gives"] = [True, False]
    with pytest.raises(DataError, match="Another process of this run has failed"), all_or_none():
        pass
    with all_or_none():
        pass


def test_a_failure_of_this_process_is_told_to_the_others(peer: dict[str, list[Any]]) -> None:
    peer["gives"] = [False]
    with pytest.raises(DataError, match="disk"), all_or_none():
        raise DataError("The disk is full.")
    assert peer["got"] == [True]


def test_values_are_compared_over_all_processes(peer: dict[str, list[Any]]) -> None:
    peer["gives"] = [[1, 2], [1, 3]]
    assert same_in_all([1, 2])
    assert not same_in_all([1, 2])


def test_a_lost_connection_is_one_sentence_and_other_errors_stay() -> None:
    with pytest.raises(DataError, match="Another process of this run has ended"), peers_lost():
        raise RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    with pytest.raises(RuntimeError, match="shape"), peers_lost():
        raise RuntimeError("wrong shape")


# Real processes


@pytest.mark.slow
@pytest.mark.parametrize(("world", "rest"), [(2, BATCH * CONTEXT), (3, 2 * CONTEXT + 3), (3, 5)])
def test_processes_train_on_all_of_the_data_and_end_alike(
    tmp_path: Path, options: dict[str, Any], stories_dir: Path, world: int, rest: int
) -> None:
    """The rest fills a batch of rank 0 and none of rank 1; or it is a sequence for all but the last, which has less; or
    it is less than a sequence, so that two of three have no target.
    """
    full = world * BATCH * CONTEXT
    file = document(tmp_path, load_tokenizer(stories_dir), full + rest)
    options |= {"data": (str(file),), "tokenizer": str(stories_dir / "tokenizer.model"), "tokens_per_chunk": full}
    del options["max_chunks"]
    one = train(tmp_path / "one", {**options, "batch_size": world * BATCH})
    assert [line["tokens"] for line in one] == [full, full + rest]
    given = arguments(tmp_path / "all", {**options, "batch_size": BATCH})
    codes, errors = ended(launched(*given, folders=[tmp_path] * world))
    assert codes == [0] * world, errors
    several = lines(tmp_path / "all")
    assert [line["tokens"] for line in several] == [full, full + rest]
    for a, b in zip(one, several, strict=True):
        for name in ("loss", "accuracy", "entropy_share", "gradient_norm"):
            assert b[name] == pytest.approx(a[name], rel=2e-4, abs=1e-6), (a["chunk"], name)
    weights = [load_file(tmp_path / name / "checkpoints/chunk-000002/model.safetensors") for name in ("one", "all")]
    for name, weight in weights[0].items():
        assert torch.allclose(weights[1][name], weight, atol=1e-4), name


@pytest.mark.slow
def test_processes_with_different_data_are_all_refused(tmp_path: Path, data: Path, options: dict[str, Any]) -> None:
    folders = [tmp_path / "0", tmp_path / "1"]
    for number, folder in enumerate(folders):
        folder.mkdir()
        (folder / "data.jsonl").write_text(data.read_text().replace("girl", "boys", number))
    codes, errors = ended(launched(*arguments(tmp_path / "run", {**options, "data": ("data.jsonl",)}), folders=folders))
    assert codes == [1, 1]
    assert all("do not read the same data" in error for error in errors)


@pytest.mark.slow
def test_a_signal_to_one_process_ends_all_with_a_checkpoint(tmp_path: Path, options: dict[str, Any]) -> None:
    given = arguments(tmp_path / "run", {**options, "max_chunks": 100_000})
    ranks = launched(*given, folders=[tmp_path] * 2)
    wait_for_chunk(tmp_path / "run", 3, ranks[0])
    ranks[1].send_signal(signal.SIGTERM)
    codes, errors = ended(ranks)
    assert codes == [130, 143], errors
    checkpoint = latest_checkpoint(tmp_path / "run")
    assert checkpoint is not None
    assert f"Stopped after chunk {len(lines(tmp_path / 'run'))}; saved {checkpoint}" in errors[0]


@pytest.mark.slow
def test_a_process_that_is_killed_ends_the_others(tmp_path: Path, options: dict[str, Any]) -> None:
    ranks = launched(*arguments(tmp_path / "run", {**options, "max_chunks": 100_000}), folders=[tmp_path] * 2)
    wait_for_chunk(tmp_path / "run", 3, ranks[0])
    ranks[1].kill()
    codes, errors = ended(ranks)
    assert codes[0] == 1
    assert "Error: Another process of this run has ended" in errors[0]
    assert "Traceback" not in errors[0]
