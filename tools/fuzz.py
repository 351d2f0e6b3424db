"""Gives neurogen's parsers inputs that nobody wrote, and counts them: each must be read, or refused by an error.

    python tools/fuzz.py                           every target, 1,200,000 inputs together
    python tools/fuzz.py --target spec --runs 9000 one target
    python tools/fuzz.py --engine mutation         without atheris, whatever is installed

Where atheris is installed (pip install atheris) inputs are found by coverage; else known good inputs are altered at
random, by a seed, so that a run can be repeated. An input that makes a parser raise anything but an error of
neurogen's, or take more than 20 seconds, is written to a file and ends with exit code 1. Not part of the test suite.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

SECONDS_AN_INPUT = 20
LONGEST = 4096
TOKENS = (
    b"(", b")", b"+", b"=", b",", b'"', b"\\u", b"\\", b"[", b"]", b"{", b"}", b":", b"\n", b"\x00", b"\xff",
    b"\xef\xbb\xbf", b"1e999", b"-1", b"0", b"9" * 25, b"NaN", b"Infinity", b"null", b"true", b"__class__",
    b"\xed\xa0\x80", b"\\ud800",
    b"[" * 40, b"'''", b"#", b".", b"_", b"-", b"topk", b"k", b"p", b"plugins", b"tool.neurogen", b"\xf0\x9f\x98\x80",
)  # fmt: skip

Parser = Callable[[bytes], object]


@dataclass(frozen=True)
class Target:
    """A parser.

    Attributes:
        make: makes the function that takes an input, in a folder of its own.
        seeds: inputs that it reads.
        share: of a run's inputs; slow parsers get few.
        modules: whose branches atheris follows.
    """

    make: Callable[[Path], Parser]
    seeds: Sequence[bytes]
    share: int
    modules: Sequence[str]


def spec_parser(folder: Path) -> Parser:
    from neurogen.contract.spec import parse_spec, spelled

    def parse(data: bytes) -> None:
        links = parse_spec(data.decode("utf-8", "surrogateescape"))
        assert parse_spec(spelled(links)) == links or "NaN" in spelled(links)

    return parse


def prompts_parser(folder: Path) -> Parser:
    from neurogen.registry.registry import load_sampler
    from neurogen.text.prompts import parse_lines

    sampler = load_sampler("topk")

    def parse(data: bytes) -> None:
        prompts, broken = parse_lines(data.splitlines(keepends=True), sampler, "fuzz")
        for prompt in prompts:
            prompt.text.encode()
        assert all(str(line).count("\n") == 0 for line in broken)

    return parse


def in_file(folder: Path, name: str, read: Callable[[Path], object]) -> Parser:
    path = folder / name

    def parse(data: bytes) -> None:
        path.write_bytes(data)
        read(path)

    return parse


def results_parser(folder: Path) -> Parser:
    from neurogen.cli.results import ResultsFile

    def read(path: Path) -> None:
        with ResultsFile(path) as file:
            assert file.seed is None or isinstance(file.seed, int)
            file.resume(lambda key: {"prompt": "once", "run": {"seed": 1}})

    return in_file(folder, "results.jsonl", read)


def configuration_parser(folder: Path) -> Parser:
    from neurogen.cli.configuration import parse_configuration

    def parse(data: bytes) -> None:
        for within in ((), ("tool", "neurogen")):
            parse_configuration(data, Path("neurogen.toml"), within)

    return parse


def safetensors_parser(folder: Path) -> Parser:
    from neurogen.models.weights import safetensors_header

    return in_file(folder, "model.safetensors", safetensors_header)


def logits_parser(folder: Path) -> Parser:
    from neurogen.diagnosis.input import load_logits

    return in_file(folder, "logits.safetensors", load_logits)


def recording_parser(folder: Path) -> Parser:
    from neurogen.diagnosis.recording import read_recording

    return in_file(folder, "recording.jsonl", read_recording)


def state_parser(folder: Path) -> Parser:
    from neurogen.models.checkpoints import STATE_FILE
    from neurogen.training.checkpoint import read_state

    return in_file(folder, STATE_FILE, lambda path: read_state(path.parent))


def gguf_parser(folder: Path) -> Parser:
    from neurogen.models.tokenizer import load_tokenizer
    from neurogen.models.weights import quiet_transformers

    def read(path: Path) -> None:
        with quiet_transformers():
            load_tokenizer(path)

    return in_file(folder, "model.gguf", read)


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def gguf() -> bytes:
    """A file with a few values and no tensor, as the gguf package writes it."""
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "seed.gguf"
        writer = gguf.GGUFWriter(str(path), "llama")
        writer.add_context_length(64)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("smollm")
        writer.add_token_list(["a", "b", "ab"])
        writer.add_token_merges(["a b"])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path.read_bytes()


RESULT = b'{"index": 0, "sample": 0, "prompt": "once", "text": " upon", "run": {"seed": 1, "model": "starter"}}'
TENSOR = {"dtype": "F32", "shape": [1, 2], "data_offsets": [0, 8]}
TARGETS = {
    "spec": Target(
        spec_parser,
        [
            b"topk(k=50)+topp(p=0.9)",
            b"neurogen-topk:topk(k=1, temperature=0)",
            b'bias(bias="[12: -1.5, \\"a b\\"]", x=true)',
        ],
        6,
        ["neurogen.contract.spec"],
    ),
    "prompts": Target(
        prompts_parser,
        [
            b'"once"\n{"prompt": "upon", "seed": 90, "params": {"k": 1}}\n{"text": "a time", "max_new_tokens": 3}\n',
            b'{"prompt": "a", "stop": ["x", "y"], "processors": "no-repeat-ngram(size=3)"}\n',
        ],
        5,
        ["neurogen.text.prompts", "neurogen.contract.spec", "neurogen.contract.parameters"],
    ),
    "results": Target(
        results_parser, [RESULT + b"\n", RESULT + b"\n" + RESULT[:40], RESULT], 2, ["neurogen.cli.results"]
    ),
    "configuration": Target(
        configuration_parser,
        [
            b'[run]\nsampler = "topk"\n[run.samplers.topk]\nk = 3\n',
            b'[tool.neurogen.plugins]\nallow = ["a"]\ndisable = []\n',
        ],
        5,
        ["neurogen.cli.configuration"],
    ),
    "safetensors": Target(
        safetensors_parser,
        [safetensors({"a": TENSOR, "__metadata__": {"format": "pt"}}, bytes(8)), safetensors({})],
        3,
        ["neurogen.models.weights"],
    ),
    "logits": Target(
        logits_parser,
        [
            safetensors(
                {"logits": TENSOR, "targets": {"dtype": "I64", "shape": [1], "data_offsets": [8, 16]}}, bytes(16)
            )
        ],
        1,
        ["neurogen.diagnosis.input"],
    ),
    "recording": Target(
        recording_parser,
        [
            b'{"neurogen_recording": 1, "model": "starter"}\n'
            b'{"index": 0, "sample": 0, "token": 3, "logits": {}, "top": []}\n{"end": true}\n'
        ],
        2,
        ["neurogen.diagnosis.recording"],
    ),
    "state": Target(
        state_parser,
        [b'{"chunk": 1, "step": 2, "optimizer": {"state": {}, "param_groups": []}}'],
        2,
        ["neurogen.training.checkpoint"],
    ),
    "gguf": Target(gguf_parser, [], 0, ["neurogen.models.tokenizer"]),
}
GGUF_INPUTS = 20_000
"""Each of them takes transformers milliseconds."""


def main() -> None:
    arguments = _arguments()
    names = arguments.target or list(TARGETS)
    if arguments.child:
        _child(names[0], arguments.runs, arguments.engine, arguments.seed)
        return
    total, failed = 0, False
    shares = sum(TARGETS[name].share for name in names) or 1
    for name in names:
        runs = GGUF_INPUTS if name == "gguf" else -(-arguments.runs * TARGETS[name].share // shares)
        count, seconds, done = _run(name, runs, arguments.engine, arguments.seed)
        total += count
        failed |= not done
        print(f"{name:14} {count:>9,} inputs {seconds:6.0f} s  {'nothing found' if done else 'FAILED, see above'}")  # noqa: T201
        sys.stdout.flush()
    print(f"{total:,} inputs by {arguments.engine}, {len(names)} parsers.")  # noqa: T201
    sys.exit(failed)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", action="append", choices=TARGETS, help="A parser; repeat for several.")
    parser.add_argument("--runs", type=int, default=1_200_000, help="Inputs together, apart from those of gguf.")
    found = "atheris" if importlib.util.find_spec("atheris") else "mutation"
    parser.add_argument("--engine", choices=("atheris", "mutation"), default=found)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(name: str, runs: int, engine: str, seed: int) -> tuple[int, float, bool]:
    """Run one target in a process of its own: a crash of it is a finding too."""
    started = time.perf_counter()
    command = [sys.executable, __file__, "--child", "--target", name, "--runs", str(runs)]
    command += ["--engine", engine, "--seed", str(seed)]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, errors="replace")
    counts = re.findall(r"Done (\d+) (?:runs|inputs)", done.stderr) or re.findall(r"^#(\d+)", done.stderr, re.MULTILINE)
    if done.returncode:
        sys.stderr.write(done.stderr[-4000:])
    return int(counts[-1]) if counts else 0, time.perf_counter() - started, done.returncode == 0


def _child(name: str, runs: int, engine: str, seed: int) -> None:
    target = TARGETS[name]
    seeds = [gguf()] if name == "gguf" else target.seeds
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        if engine == "atheris":
            _by_coverage(target, seeds, runs, seed, Path(folder))
        else:
            _by_mutation(checked(target.make(Path(folder))), seeds, runs, seed)


def checked(parse: Parser) -> Parser:
    """The parser, for which an error of neurogen's is as good as a result."""
    from neurogen.errors import NeurogenError

    def one(data: bytes) -> None:
        try:
            parse(data)
        except NeurogenError as error:
            message = str(error)
            assert message, "an error says something"

    return one


def _by_coverage(target: Target, seeds: Sequence[bytes], runs: int, seed: int, folder: Path) -> None:
    import atheris

    corpus = folder / "corpus"
    corpus.mkdir()
    for number, content in enumerate(seeds):
        (corpus / str(number)).write_bytes(content)
    with atheris.instrument_imports(include=list(target.modules)):
        for module in target.modules:
            importlib.import_module(module)
    parse = checked(target.make(folder))
    options = [
        f"-runs={runs}",
        f"-seed={seed}",
        f"-max_len={LONGEST}",
        f"-timeout={SECONDS_AN_INPUT}",
        "-rss_limit_mb=8192",
    ]
    atheris.Setup([sys.argv[0], *options, str(corpus)], parse)
    atheris.Fuzz()


def _by_mutation(parse: Parser, seeds: Sequence[bytes], runs: int, seed: int) -> None:
    chance = random.Random(seed)
    pool = list(seeds)
    for number in range(runs):
        data = pool[number] if number < len(seeds) else altered(chance.choice(pool), chance, pool)
        if chance.random() < 0.02:
            pool = [*pool[-200:], data]
        try:
            with _limited():
                parse(data)
        except BaseException:
            path = Path(f"crash-{seed}-{number}")
            path.write_bytes(data)
            sys.stderr.write(f"Done {number + 1} inputs; the last one, in {path}:\n")
            raise
    sys.stderr.write(f"Done {runs} inputs\n")


def altered(data: bytes, chance: random.Random, others: Sequence[bytes]) -> bytes:
    """The input with one to four changes."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randint(0, len(changed))
        upto = min(len(changed), at + chance.choice((1, 1, 2, 4, 16)))
        kind = chance.randrange(6)
        if kind == 0:
            changed[at:upto] = b""
        elif kind == 1:
            changed[at:at] = chance.choice(TOKENS)
        elif kind == 2:
            changed[at:upto] = chance.randbytes(upto - at)
        elif kind == 3:
            changed[at:at] = changed[at:upto] * chance.choice((1, 2, 50))
        elif kind == 4:
            other = chance.choice(others)
            changed[at:] = other[chance.randint(0, len(other)) :]
        elif at < len(changed):
            changed[at] ^= 1 << chance.randrange(8)
    return bytes(changed[:LONGEST])


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise TimeoutError in what takes too long."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError(f"an input took more than {SECONDS_AN_INPUT} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS_AN_INPUT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
