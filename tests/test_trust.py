"""What comes with a model, a checkpoint, a configuration or a parameter is data: nothing in it is ever run.

Every trap here leaves a mark when it is run. Plugins are code, and are loaded only where the lists allow it.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st

from neurogen import NeurogenError, Registry
from neurogen.cli import main
from neurogen.cli.results import ResultsFile
from neurogen.registry.registry import ENTRY_POINT_GROUP, load_sampler
from neurogen.text.prompts import parse_lines

PROMPT = ("--prompt", "once upon a time")
FEW = ("--max-new-tokens", "2")


class Bomb:
    """Leaves the mark when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, str]]:
        return open, (str(self.mark), "w")


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "it-was-run"


@pytest.fixture
def bomb(mark: Path) -> bytes:
    content = pickle.dumps(Bomb(mark))
    pickle.loads(content).close()
    assert mark.exists(), "the trap works"
    mark.unlink()
    return content


@pytest.fixture
def code(mark: Path) -> str:
    return f"open({str(mark)!r}, 'w').close()\n"


@pytest.fixture
def model(tiny_model_dir: Path, tmp_path: Path) -> Path:
    """A model's folder that a test may spoil."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model_dir, folder)
    return folder


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))


def neurogen_command(*arguments: str) -> Result:
    result = CliRunner().invoke(main, arguments)
    assert "This is a bug" not in result.stderr
    assert "Traceback" not in result.stderr
    return result


def run(model: Path, *arguments: str) -> Result:
    return neurogen_command("run", "--sampler", "greedy", "--model", str(model), *PROMPT, *FEW, *arguments)


def edit(file: Path, **values: object) -> None:
    content = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(content | values))


# Models


@pytest.mark.parametrize("kind", ["llama", "homemade"])
def test_code_beside_a_model_is_not_run(kind: str, model: Path, code: str, mark: Path) -> None:
    names = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoTokenizer")
    edit(
        model / "config.json",
        model_type=kind,
        auto_map=dict.fromkeys(names, "evil.Evil"),
        custom_pipelines={"text-generation": {"impl": "evil.Evil", "pt": ["AutoModelForCausalLM"]}},
    )
    edit(model / "generation_config.json", custom_generate="custom_generate")
    (model / "custom_generate").mkdir()
    for file in ("evil.py", "__init__.py", "modeling_llama.py", "custom_generate/generate.py", "sitecustomize.py"):
        (model / file).write_text(code)
    result = run(model)
    assert result.exit_code == (0 if kind == "llama" else 1)
    if kind == "homemade":
        assert "brings code of its own, which neurogen never runs" in result.stderr
    assert not mark.exists()


def test_code_beside_a_tokenizer_is_not_run(model: Path, code: str, mark: Path) -> None:
    (model / "tokenizer.model").unlink()
    (model / "evil.py").write_text(code)
    edit(
        model / "tokenizer_config.json",
        tokenizer_class="Evil",
        auto_map={"AutoTokenizer": ["evil.Evil", "evil.Evil"]},
        added_tokens_decoder={"0": {"__class__": "evil.Evil", "content": "x"}},
    )
    assert run(model).exit_code == 1
    assert not mark.exists()


@pytest.mark.parametrize(
    "template",
    [
        "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}",
        "{{{{ cycler.__init__.__globals__.os.system('touch {mark}') }}}}",
        "{{{{ self.__init__.__globals__.__builtins__.open('{mark}', 'w') }}}}",
        "{{% include '/etc/passwd' %}}",
    ],
)
def test_a_chat_template_cannot_leave_its_sandbox(template: str, stories_dir: Path, mark: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    from neurogen.errors import ModelError
    from neurogen.models.tokenizer import HFTokenizer

    source = next((path.parent for path in stories_dir.parent.glob("*/tokenizer.json")), None)
    if source is None:
        source = tmp_path / "tokenizer"
        _small_tokenizer(source)
    inner = AutoTokenizer.from_pretrained(str(source), local_files_only=True)
    inner.chat_template = template.format(mark=mark)
    with pytest.raises(ModelError):
        HFTokenizer(inner).encode_chat([{"role": "user", "content": "hello"}])
    assert not mark.exists()


def _small_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(BPE({"a": 0, "b": 1}, []))).save_pretrained(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "model.pth", "model.ckpt", "weights.pkl"])
def test_pickled_weights_are_refused_unopened(name: str, model: Path, bomb: bytes, mark: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / name).write_bytes(bomb)
    result = run(model)
    assert result.exit_code == 1
    assert "pickle" in result.stderr
    assert not mark.exists()


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.model", "config.json", "generation_config.json"])
def test_a_pickle_under_another_name_is_not_unpickled(name: str, model: Path, bomb: bytes, mark: Path) -> None:
    (model / name).write_bytes(bomb)
    assert run(model).exit_code == (0 if name == "generation_config.json" else 1)  # without that one a model is whole
    assert not mark.exists()


def test_a_pickle_that_calls_itself_gguf_is_not_unpickled(bomb: bytes, mark: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.gguf"
    file.write_bytes(bomb)
    assert run(file).exit_code == 1
    file.write_bytes(b"GGUF" + bomb)
    assert run(file).exit_code == 1
    assert not mark.exists()


def test_pickles_beside_good_weights_stay_closed(model: Path, bomb: bytes, mark: Path) -> None:
    for name in ("optimizer.pt", "training_args.bin", "scheduler.pt", "rng_state.pth", "adapter_model.bin"):
        (model / name).write_bytes(bomb)
    run(model)
    assert not mark.exists()


def test_pickled_logits_are_refused(bomb: bytes, mark: Path, tmp_path: Path) -> None:
    file = tmp_path / "logits.safetensors"
    file.write_bytes(bomb)
    result = neurogen_command("diagnose", "--logits", str(file))
    assert result.exit_code == 1
    assert "safetensors" in result.stderr
    assert not mark.exists()


# Checkpoints


@pytest.fixture(scope="module")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("training")
    data = base / "data.jsonl"
    data.write_text("".join(json.dumps({"text": f"once upon a time there was number {i}"}) + "\n" for i in range(200)))
    tokenizer = base / "small.model"
    made = neurogen_command("tokenizer", "train", str(data), "--vocab-size", "300", "--out", str(tokenizer), "--quiet")
    assert made.exit_code == 0, made.stderr
    config = base / "small.json"
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    config.write_text(json.dumps({"model_type": "llama", "num_key_value_heads": 2, **sizes}))
    options = ("--context", "16", "--tokens-per-chunk", "64", "--max-chunks", "2", "--save-every", "1", "--quiet")
    folder = base / "run"
    done = neurogen_command(
        "train", str(data), "--out", str(folder), "--tokenizer", str(tokenizer), "--config", str(config), *options
    )
    assert done.exit_code == 0, done.stderr
    return folder


@pytest.fixture
def trained(_trained: Path, tmp_path: Path) -> Path:
    """The folder of a run of two chunks, which a test may spoil."""
    return Path(shutil.copytree(_trained, tmp_path / "run"))


def resumed(folder: Path) -> Result:
    return neurogen_command("train", "--resume", "--out", str(folder), "--max-chunks", "3", "--quiet")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["optimizer.safetensors", "model.safetensors", "config.json", "trainer.json"])
def test_a_pickle_in_a_checkpoint_is_refused(name: str, trained: Path, bomb: bytes, mark: Path) -> None:
    (max((trained / "checkpoints").iterdir()) / name).write_bytes(bomb)
    result = resumed(trained)
    assert result.exit_code == 1
    assert str(trained) in result.stderr
    assert not mark.exists()


@pytest.mark.slow
def test_pickles_beside_a_checkpoint_stay_closed(trained: Path, bomb: bytes, mark: Path) -> None:
    for name in ("optimizer.pt", "optimizer.bin", "random_states_0.pkl", "pytorch_model.bin", "scheduler.bin"):
        (max((trained / "checkpoints").iterdir()) / name).write_bytes(bomb)
    result = resumed(trained)
    assert result.exit_code == 0, result.stderr
    assert not mark.exists()


@pytest.mark.slow
@pytest.mark.parametrize("state", ["[]", "3", "null", "{}", "[" * 100_000, '{"optimizer": 3}', "\xff"])
def test_a_damaged_state_is_told_in_a_paragraph(state: str, trained: Path) -> None:
    (max((trained / "checkpoints").iterdir()) / "trainer.json").write_text(state, encoding="latin-1")
    result = resumed(trained)
    assert result.exit_code == 1
    assert "trainer.json" in result.stderr
    assert result.stderr.strip().count("\n") == 0


@pytest.mark.slow
def test_a_damaged_position_in_the_data_is_told_in_a_paragraph(trained: Path) -> None:
    edit(max((trained / "checkpoints").iterdir()) / "trainer.json", data=[1])
    result = resumed(trained)
    assert result.exit_code == 1
    assert "The position in the data" in result.stderr


def test_a_recording_with_odd_numbers_is_refused(tiny_model_dir: Path) -> None:
    line = {"index": [0], "sample": {}, "token": 3, "logits": {}, "top": []}
    Path("record.jsonl").write_text(json.dumps({"neurogen_recording": 1}) + "\n" + json.dumps(line) + "\n")
    result = neurogen_command("replay", "record.jsonl", "--model", str(tiny_model_dir))
    assert result.exit_code == 1
    assert "line 2" in result.stderr


def test_a_header_of_nothing_but_brackets_is_refused(model: Path) -> None:
    header = b"[" * 200_000
    (model / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header)
    result = run(model)
    assert result.exit_code == 1
    assert "no safetensors file" in result.stderr
    (model / "config.json").write_bytes(header)
    assert "config.json cannot be read" in run(model).stderr


@pytest.mark.slow
def test_a_damaged_state_of_the_optimizer_is_told_in_a_paragraph(trained: Path) -> None:
    file = max((trained / "checkpoints").iterdir()) / "trainer.json"
    for wrong in ({}, {"state": [], "param_groups": []}, {"state": {"a": 1}, "param_groups": [3]}):
        edit(file, optimizer=wrong)
        result = resumed(trained)
        assert result.exit_code == 1
        assert "cannot be used" in result.stderr


# Texts


CODE = [
    "__import__('os').system('touch {mark}')",
    "open('{mark}', 'w')",
    "{{{{ open('{mark}', 'w') }}}}",
    "!!python/object/apply:os.system ['touch {mark}']",
    "$(touch {mark})",
    "`touch {mark}`",
    "lambda: open('{mark}', 'w')",
]


@pytest.mark.parametrize("text", CODE)
def test_code_in_parameters_prompts_and_configuration_is_text(text: str, tiny_model_dir: Path, mark: Path) -> None:
    payload = text.format(mark=mark)
    quoted = json.dumps(payload)
    run(tiny_model_dir, "--sampler", f"topk(k={payload})")
    run(tiny_model_dir, "--sampler", f"topk(k={quoted})")
    run(tiny_model_dir, "--sampler", "topk", "--top-k", payload)
    run(tiny_model_dir, "--processor", f"logit-bias(bias={quoted})")
    run(tiny_model_dir, "--processor", payload)
    run(tiny_model_dir, "--stop", payload, "--prompt", payload)
    fields = {"prompt": payload, "params": {"k": payload}, "processors": payload, "stop": payload}
    Path("prompts.jsonl").write_text(f"{payload}\n{quoted}\n{json.dumps(fields)}\n")
    common = ("run", "--model", str(tiny_model_dir), *FEW)
    neurogen_command(*common, "--sampler", "topk", "--prompts", "prompts.jsonl")
    for content in (payload, f"[run]\nsampler = {quoted}\n", f"[run.samplers.topk]\nk = {quoted}\n"):
        Path("neurogen.toml").write_text(content)
        neurogen_command(*common, *PROMPT)
        neurogen_command("config")
    assert not mark.exists()


def test_a_conversation_is_data(tiny_model_dir: Path, bomb: bytes, mark: Path) -> None:
    Path("talk.json").write_bytes(bomb)
    assert neurogen_command("chat", "--model", str(tiny_model_dir), "--load", "talk.json").exit_code == 1
    Path("record.jsonl").write_bytes(bomb)
    assert neurogen_command("replay", "record.jsonl").exit_code == 1
    assert not mark.exists()


def test_nothing_in_the_working_directory_is_imported(tiny_model_dir: Path, code: str, mark: Path) -> None:
    """By the command `neurogen`; `python -m neurogen` puts the directory before all packages, as Python does."""
    for name in ("torch", "numba", "rich", "transformers", "neurogen_topk", "sitecustomize", "tomllib", "conftest"):
        Path(f"{name}.py").write_text(code)
    Path("evil-1.0.dist-info").mkdir()
    Path("evil-1.0.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
    Path("evil-1.0.dist-info/entry_points.txt").write_text(f"[{ENTRY_POINT_GROUP}]\nevil = torch\n")
    script = Path(sys.executable).parent / "neurogen"
    common = [str(script), "run", "--sampler", "topk", "--model", str(tiny_model_dir), *PROMPT, *FEW]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    for command in (common, [str(script), "samplers"], [str(script), "plugins"]):
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert "evil" not in done.stdout
    assert not mark.exists()


# Plugins


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str) -> Registry:
    """The first samplers, and one whose import leaves the mark."""
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / "marking_plugin.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    monkeypatch.delitem(sys.modules, "marking_plugin", raising=False)
    first = [entry for entry in entry_points(group=ENTRY_POINT_GROUP) if entry.name in ("greedy", "topk", "topp")]
    own = Registry([*first, EntryPoint("marking", "marking_plugin", ENTRY_POINT_GROUP)])
    monkeypatch.setattr("neurogen.registry.registry._default", own)
    return own


def configure(tmp_path: Path, *, user: str = "", here: str = "") -> None:
    (tmp_path / "config" / "neurogen").mkdir(parents=True, exist_ok=True)
    (tmp_path / "config" / "neurogen" / "config.toml").write_text(user)
    Path("neurogen.toml").write_text(here)


def usable() -> dict[str, str | None]:
    """Sampler -> why it cannot be used."""
    entries = json.loads(neurogen_command("samplers", "--json").stdout)
    return {entry["name"]: entry["error"] for entry in entries if entry["status"] != "failed"}


@pytest.mark.usefixtures("registry")
def test_a_plugin_that_nothing_forbids_is_imported(mark: Path) -> None:
    """Else the next test could not fail."""
    neurogen_command("samplers")
    assert mark.exists()


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("user", "here"),
    [
        ('[plugins]\nallow = ["neurogen-topk", "greedy"]', ""),
        ("", '[plugins]\nallow = ["neurogen-topk", "greedy"]'),
        ('[plugins]\ndisable = ["marking"]', ""),
        ("", '[plugins]\ndisable = ["marking"]'),
        ('[plugins]\nallow = ["topk"]', '[plugins]\nallow = ["marking", "topk", "topp"]'),
        ('[plugins]\ndisable = ["marking"]', '[plugins]\nallow = ["marking"]\ndisable = []'),
    ],
)
def test_lists_keep_plugins_out_whatever_the_folder_says(user: str, here: str, tmp_path: Path, mark: Path) -> None:
    configure(tmp_path, user=user, here=here)
    for arguments in (
        ["samplers"],
        ["plugins"],
        ["bench", "--help"],
        ["config"],
        ["run", "--sampler", "marking", *PROMPT],
    ):
        neurogen_command(*arguments)
    assert neurogen_command("run", "--sampler", "marking", *PROMPT).exit_code == 1
    assert not mark.exists()


@pytest.mark.usefixtures("registry")
def test_a_file_in_the_folder_restricts_and_never_widens(tmp_path: Path) -> None:
    configure(tmp_path, user='[plugins]\nallow = ["topk", "topp"]', here='[plugins]\nallow = ["topp", "greedy"]')
    states = usable()
    assert states["topp"] is None
    assert states["topk"] == "not among plugins.allow of neurogen.toml"
    assert states["greedy"] is not None
    assert states["greedy"].endswith("config.toml")


@pytest.mark.usefixtures("registry")
def test_the_option_restricts_and_never_widens(tmp_path: Path) -> None:
    configure(tmp_path, user='[plugins]\nallow = ["topk"]')
    result = neurogen_command("--only-plugins", "greedy,topk", "run", "--sampler", "greedy", *PROMPT)
    assert result.exit_code == 1
    assert "is disabled: not among plugins.allow of" in result.stderr


# Parsers, whatever they are given; tools/fuzz.py gives them a million inputs. That of specs: contract/test_spec.py


@settings(max_examples=500, deadline=None)
@given(
    st.lists(
        st.binary(max_size=80) | st.text(st.sampled_from('{}[]":,promtexsdk 019.e\\u'), max_size=60).map(str.encode)
    )
)
def test_any_lines_are_prompts_or_named(lines: list[bytes]) -> None:
    prompts, broken = parse_lines(lines, load_sampler("topk"), "lines")
    assert len(prompts) + len(broken) <= len(lines)
    for prompt in prompts:
        prompt.text.encode()


@settings(max_examples=500, deadline=None)
@given(
    content=st.binary(max_size=200)
    | st.text(st.sampled_from('{}[]":, indexsamplrunbo019\n'), max_size=80).map(str.encode)
)
def test_any_file_is_a_file_of_results_or_left_alone(content: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any-results.jsonl"
    path.write_bytes(content)
    try:
        with ResultsFile(path) as file:
            file.resume(lambda key: None)
    except NeurogenError:
        assert path.read_bytes() == content
