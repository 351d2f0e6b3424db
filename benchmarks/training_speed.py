"""Training beside transformers' Trainer, and what measuring costs: same model, batch, precision, optimizer, in one run.

    python benchmarks/training_speed.py --preset tiny --steps 12 --rounds 5

Steps of three loops are timed in turn, in one process; medians and ratios of the same round are printed:

- neurogen: `Trainer.train_step`, with greedy accuracy and health of every step;
- transformers: `transformers.Trainer` on the same sequences, measuring nothing but the loss;
- plain: neurogen's step with torch's own cross-entropy and no measuring at all.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as functional
from transformers import Trainer as HFTrainer
from transformers import TrainerCallback, TrainingArguments

from neurogen.training.options import PRESETS
from neurogen.training.presets import model_config, new_model
from neurogen.training.trainer import Trainer

CONTEXT = 256


def sequences(vocab: int, count: int) -> torch.Tensor:
    """int64 [count, CONTEXT + 1]."""
    return torch.randint(vocab, (count, CONTEXT + 1), generator=torch.Generator().manual_seed(0))


def neurogen_loop(model: Any, precision: str, rate: float, batch: int) -> Callable[[torch.Tensor], None]:
    """`Trainer.train_step` over the sequences."""
    from accelerate import Accelerator

    trainer = Trainer(
        model, learning_rate=rate, accelerator=Accelerator(mixed_precision="bf16" if precision == "bf16" else "no")
    )

    def loop(ids: torch.Tensor) -> None:
        for part in ids.split(batch):
            trainer.train_step(part[:, :-1], part[:, 1:])

    return loop


def plain_loop(model: Any, precision: str, rate: float, batch: int) -> Callable[[torch.Tensor], None]:
    """The same step with nothing measured."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    model.train()

    def loop(ids: torch.Tensor) -> None:
        for part in ids.split(batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                logits = model(input_ids=part[:, :-1], use_cache=False).logits
            loss = functional.cross_entropy(logits.float().reshape(-1, logits.shape[-1]), part[:, 1:].reshape(-1))
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()

    return loop


def transformers_loop(
    model: Any, precision: str, rate: float, batch: int, folder: str
) -> Callable[[torch.Tensor], float]:
    """`transformers.Trainer`; returns the seconds from its first step to its last, without its set-up."""

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.begin = getattr(self, "begin", time.perf_counter())

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.end = time.perf_counter()

    def loop(ids: torch.Tensor) -> float:
        clock = Clock()
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=batch, num_train_epochs=1, learning_rate=rate, weight_decay=0.1,
            adam_beta2=0.95, optim="adamw_torch_fused", bf16=precision == "bf16", use_cpu=True, report_to=[],
            save_strategy="no", logging_strategy="no", disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        rows = [{"input_ids": row[:-1], "labels": row[:-1]} for row in ids]
        HFTrainer(model=model, args=arguments, train_dataset=rows, callbacks=[clock]).train()
        return clock.end - clock.begin

    return loop


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="tiny", choices=list(PRESETS))
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=12, help="steps of each loop a round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", default="float32", choices=["float32", "bf16"])
    options = parser.parse_args()

    preset = PRESETS[options.preset]
    tokenizer: Any = SimpleNamespace(vocab_size=preset.vocab_size, bos_id=1, eos_ids=frozenset({2}))
    model = new_model(model_config(tokenizer, context=CONTEXT, preset=options.preset), seed=0)
    models = [copy.deepcopy(model) for _ in range(3)]
    ids = sequences(preset.vocab_size, options.batch_size * options.steps)
    shared = (options.precision, preset.learning_rate, options.batch_size)
    own, plain = neurogen_loop(models[0], *shared), plain_loop(models[1], *shared)
    with tempfile.TemporaryDirectory() as folder:
        theirs = transformers_loop(models[2], *shared, folder)
        for loop in (own, plain, theirs):  # compiles kernels, warms caches
            loop(ids[: 2 * options.batch_size])
        times: dict[str, list[float]] = {"neurogen": [], "plain": [], "transformers": []}
        for _ in range(options.rounds):
            for name, loop in (("neurogen", own), ("plain", plain)):
                begin = time.perf_counter()
                loop(ids)
                times[name].append(time.perf_counter() - begin)
            times["transformers"].append(theirs(ids))
    tokens = ids.shape[0] * CONTEXT
    shape = f"batch {options.batch_size} x {CONTEXT}"
    print(f"{options.preset}, {shape}, {options.precision}, {torch.get_num_threads()} threads")
    for name, seconds in times.items():
        print(f"{name:13} {tokens / statistics.median(seconds):9,.0f} tokens/s (median of {options.rounds} rounds)")
    for other in ("transformers", "plain"):
        ratios = sorted(b / a for a, b in zip(times["neurogen"], times[other], strict=True))
        print(f"neurogen / {other}: {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
