"""Finding, checking, loading and running models."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from model_helpers import greedy

from neurogen.errors import DeviceError, ModelError
from neurogen.models.language_model import load_model, resolve_device
from neurogen.models.weights import DTYPES

STORY_PROMPT = "Once upon a time, there was a little girl"
STORY = (
    " named Lily. She loved to play outside in the park. One day, she saw a big, red ball. She wanted to play with it, "
    "but it was too high."
)


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
