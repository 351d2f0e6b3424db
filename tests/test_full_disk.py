"""Disks that are really full, and a limit on the size of files: one error, nothing half-written, the old intact."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import neurogen
from neurogen import DataError, ModelError
from neurogen.cli.results import ResultsFile
from neurogen.files import write_text
from neurogen.models.checkpoints import checkpoints_of
from neurogen.models.known import CONVERTED_FILES, KnownModel, resolve_known_model
from neurogen.registry.scaffold import new_sampler
from neurogen.training.run import TrainingOptions, TrainingRun

LARGE = "x" * 3_000_000


def fill(folder: Path, leave: int = 0) -> Path:
    """Fill the disk of `folder` but for so many bytes."""
    filler = folder / "filler"
    filler.write_bytes(bytes(max(0, shutil.disk_usage(folder).free - leave)))
    return filler


@pytest.fixture
def options(tmp_path: Path, tiny_model_dir: Path) -> TrainingOptions:
    data, config = tmp_path / "data.jsonl", tmp_path / "config.json"
    data.write_text("".join(json.dumps({"text": f"the red ball in the park {n}"}) + "\n" for n in range(99)))
    values = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config.write_text(json.dumps({"model_type": "llama", **values}))
    return TrainingOptions(
        data=(str(data),), tokenizer=str(tiny_model_dir / "tokenizer.model"), config=str(config), device="cpu",
        tokens_per_chunk=64, context=16, max_chunks=6, save_every=2, hold_out=0,
    )  # fmt: skip


def test_a_checkpoint_that_does_not_fit_leaves_the_last_one_and_the_run_goes_on(
    full_disk: Path, options: TrainingOptions
) -> None:
    folder = full_disk / "run"
    run = TrainingRun(folder, options)
    chunks = run.chunks()
    while run.chunk < 3:
        next(chunks)
    filler = fill(full_disk, leave=30_000)
    told = r"The checkpoint cannot be written to .*chunk-000004: No space left on device \(about .* are needed, 0.0 MB"
    with pytest.raises(DataError, match=rf"{told}.*chunk-000002, is intact: --resume goes on from it"):
        list(chunks)
    run.close()
    assert [one.name for one in checkpoints_of(folder)] == ["chunk-000002"]
    assert not list(folder.rglob("*.tmp"))
    filler.unlink()
    draft = folder / "checkpoints" / ".chunk-000004.99999999.tmp"  # of a process that was killed
    draft.mkdir()
    resumed = TrainingRun(folder, resume=True)
    assert [report.chunk for report in resumed.chunks()] == [3, 4, 5, 6]
    resumed.close()
    assert not draft.exists()
    metrics = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["chunk"] for line in metrics] == [1, 2, 3, 4, 5, 6]


def test_a_tokenizer_that_does_not_fit_is_told_by_the_folder_it_is_for(
    full_disk: Path, options: TrainingOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("neurogen.data.tokenizer_training._learn", lambda *_: bytes(100_000))
    fill(full_disk, leave=30_000)
    with pytest.raises(DataError, match=r"The tokenizer cannot be written to \S*/run/tokenizer: No space left"):
        TrainingRun(full_disk / "run", replace(options, tokenizer=None))
    assert not (full_disk / "run").exists()


def test_a_report_that_does_not_fit_leaves_whole_lines(full_disk: Path, options: TrainingOptions) -> None:
    folder = full_disk / "run"
    run = TrainingRun(folder, options)
    next(run.chunks())
    metrics = folder / "metrics.jsonl"
    with metrics.open("a") as file:  # up to the end of a block of the file system, beyond which none is left
        file.write(" " * (4095 - metrics.stat().st_size % 4096) + "\n")
    before = metrics.read_bytes()
    fill(full_disk)
    with pytest.raises(DataError, match=r"cannot be written to .*metrics\.jsonl: No space left on device"):
        list(run.chunks())
    run.close()
    assert metrics.read_bytes() == before


@pytest.mark.parametrize("limited", ["full_disk", "size_limit"])
def test_a_conversion_that_does_not_fit_is_told_and_leaves_nothing(
    limited: str, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache: Path = request.getfixturevalue(limited)
    package = tmp_path / "package_with_weights"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "model.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("NEUROGEN_CACHE", str(cache))
    known = KnownModel("fake", "", "neurogen-no-such-package", package.name, "1.0", "nobody/fake")

    def convert(gguf: Path, folder: Path) -> None:
        for name in CONVERTED_FILES:
            save_file({"weight": torch.ones(750_000)}, folder / name)  # 3 MB; its errors are no OSError

    def fetch(repository: str) -> Path:
        raise AssertionError(repository)

    told = "No space left on device" if limited == "full_disk" else "File too large"
    with pytest.raises(ModelError, match=rf"Cannot write the converted weights of 'fake' to .*: {told}.*are free"):
        resolve_known_model(known, fetch=fetch, convert=convert)
    assert [path.suffix for path in (cache / "models").iterdir()] == [".lock"]


def test_a_conversion_is_refused_before_it_begins_where_there_is_no_room(
    full_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from neurogen.models.known import KNOWN_MODELS

    monkeypatch.setenv("NEUROGEN_CACHE", str(full_disk))
    monkeypatch.setattr("neurogen.models.known.find_gguf", lambda known: Path("weights.gguf"))
    with pytest.raises(ModelError, match=r"about 273\.0 MB are needed"):
        resolve_known_model(KNOWN_MODELS["smollm2-135m"], fetch=lambda name: Path(name), convert=lambda gguf, to: None)


def _page(path: Path) -> None:
    write_text("The page", path, LARGE)


def _results(path: Path) -> None:
    with ResultsFile(path) as file:
        file.resume(lambda key: {})
        file.append({"index": 0, "sample": 0, "prompt": LARGE})


def _tokenizer(path: Path) -> None:
    from neurogen.data.tokenizer_training import _write

    _write(path, LARGE.encode(), force=True)


def _picture(path: Path) -> None:
    from matplotlib.figure import Figure

    from neurogen.pages.pictures import save_picture

    figure = Figure(figsize=(20, 20))
    figure.figimage(torch.rand(2000, 2000, generator=torch.Generator().manual_seed(0)).numpy())
    save_picture(figure, path, dpi=100)


@pytest.mark.parametrize("limited", ["full_disk", "size_limit"])
@pytest.mark.parametrize("write", [_page, _results, _tokenizer, _picture])
def test_what_does_not_fit_leaves_nothing_half_written(
    write: Callable[[Path], None], limited: str, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(limited)
    path = folder / "file"
    old = b""
    if write is not _results:
        path.write_bytes(old := b"old")
    problem = "No space left on device" if limited == "full_disk" else "File too large"
    with pytest.raises(DataError, match=rf"cannot be written.*: {problem}.*MB are"):
        write(path)
    assert path.read_bytes() == old
    assert list(folder.iterdir()) == [path]


def test_a_package_that_does_not_fit_is_not_begun(full_disk: Path) -> None:
    fill(full_disk, leave=5000)
    with pytest.raises(DataError, match="neurogen-mine cannot be written: No space left on device"):
        new_sampler("mine", full_disk, neurogen.Registry([]))
    assert [path.name for path in full_disk.iterdir()] == ["filler"]


def test_a_history_that_cannot_be_kept_stops_no_conversation(tmp_path: Path) -> None:
    from neurogen.cli.chat_input import KeptHistory

    history = KeptHistory("/dev/full")
    history.store_string("hello")
    folder = KeptHistory(str(tmp_path))
    folder.store_string("hello")
    assert folder.load_history_strings() == []
    kept = KeptHistory(str(tmp_path / "history"))
    kept.store_string("hello")
    assert kept.load_history_strings() == ["hello"]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "neurogen", *arguments], capture_output=True, text=True, timeout=300)


@pytest.mark.slow
def test_a_recording_on_a_full_disk_is_named(full_disk: Path, tiny_model_dir: Path) -> None:
    recording, rest = full_disk / "run.rec", fill(full_disk, leave=8000)
    done = command(
        "run", "--model", str(tiny_model_dir), "--sampler", "greedy", "--prompt", "once", "--max-new-tokens", "60",
        "--record", str(recording),
    )  # fmt: skip
    assert done.returncode == 1
    assert "Error: The recording cannot be written to" in done.stderr
    assert str(recording) in done.stderr
    assert "bug" not in done.stderr
    assert recording.read_bytes().endswith(b"\n")
    rest.unlink()
    assert command("replay", str(recording), "--quiet").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [("samplers",), ("samplers", "--json"), ("completion", "bash")])
def test_a_standard_output_that_cannot_be_written_is_named(arguments: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "neurogen", *arguments], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "Error: Standard output cannot be written: No space left on device.\n")
