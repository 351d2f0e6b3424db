"""One training step at a time: ids in, `StepResult` out. Prints nothing, reads no files, knows no text.

What the model would predict is chosen by the plugin `greedy`, through the same interface as in inference, and the
registry makes sure that it is greedy: a trainer cannot be given another. Sampling in a training step hides whether a
model learns: accuracy stays at 0 % both when the distribution is flat and when it is saturated on a wrong token.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from neurogen.contract.requirements import Contract
from neurogen.diagnosis.health import IGNORE_INDEX, Health, HealthSums, HealthVerdict, cross_entropy, judge, measure
from neurogen.errors import ModelError, ParameterError
from neurogen.models.foreign import check_causal_lm, logits_of
from neurogen.registry.registry import Registry, default_registry
from neurogen.training.document_mask import check_document_mask, positions_within_documents
from neurogen.training.optimizers import learning_rate_at, make_optimizers
from neurogen.training.options import TrainerOptions
from neurogen.training.randomness import derived_seed, seeded

if TYPE_CHECKING:
    from accelerate import Accelerator

    from neurogen.contract.sampler import Sampler

__all__ = ["MEASURED_BY", "StepResult", "Trainer", "TrainerOptions", "UnmovedWarning"]

MEASURED_BY = Contract(deterministic=True, argmax=True)
"""What the sampler that measures a training step must keep."""

TRAINABLE = (torch.float32, torch.float64)
"""Number formats in which a weight can take a small update."""

LOOKED_AT = 20
"""Steps that change weights after which those that never moved are told."""

NAMED = 5
"""Parameters that a message names at most."""

Ids = Tensor | Sequence[int] | Sequence[Sequence[int]]


class UnmovedWarning(UserWarning):
    """Some parameters have not changed in many steps."""


@dataclass(frozen=True)
class StepResult:
    """What a training step found, before it changed the weights.

    Attributes:
        health: loss, accuracy, top-5 accuracy, entropy and top-1 probability of this process's batch.
        predicted_ids: int64, shaped like the targets: the greedy token of every position, -1 where the logits are not
            finite or there is no target.
        gradient_norm: before clipping, over all processes.
        learning_rate: of this step.
        skipped: the gradient was not finite, so the weights were left alone.
        contrast_accuracy: share of positions where a token drawn by the trainer's `contrast` is the target; None
            without one.
    """

    health: Health
    predicted_ids: Tensor
    gradient_norm: float
    learning_rate: float
    skipped: bool
    contrast_accuracy: float | None = None

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats."""
        return self.health.loss

    @property
    def accuracy(self) -> float:
        """Share of positions where the greedy token is the target."""
        return self.health.accuracy

    @property
    def verdict(self) -> tuple[HealthVerdict, str]:
        """healthy, flat, saturated, worse than uniform or diverged, and why."""
        return judge(self.health, self.gradient_norm)


class Trainer:
    """Trains a causal language model of transformers, measuring every step greedily.

    Args:
        model: with float32 weights: in half precision, updates smaller than the rounding of a weight are lost. For
            matrix products in half precision give an accelerator with `mixed_precision`. It is put on the
            accelerator's device.
        options: how weights are changed; single ones may be given as keywords instead.
        accelerator: of `accelerate`: device, precision, processes. By default one process on the best device.
        registry: where the sampler `greedy` comes from.
        contrast: a sampler whose draws are counted beside the greedy tokens, to show what they would hide. It has no
            say in anything.

    Attributes:
        step: how many steps have been made.
        greedy: the sampler that measures.

    Raises:
        PluginError: there is no sampler `greedy`.
        ContractError: it does not choose the argmax, whatever it declares; training does not start.
        ModelError: the model is no causal language model, has weights in half precision or none to train, or cannot
            keep attention within documents where `options.document_separator` asks for it.
        ParameterError: an option outside its domain.

    Warns:
        UnmovedWarning: once, after 20 steps, if parameters that are to be trained have not changed in any.

    Example:
        trainer = Trainer(model, learning_rate=1e-3)
        result = trainer.train_step([5, 17, 3], [17, 3, 9])
        print(result.loss, result.accuracy)
    """

    def __init__(
        self,
        model: Any,
        options: TrainerOptions | None = None,
        *,
        accelerator: Accelerator | None = None,
        registry: Registry | None = None,
        contrast: Sampler | None = None,
        **values: Any,
    ) -> None:
        if options is not None and values:
            raise ParameterError("Give either options or single values, not both.", "options")
        self.options = TrainerOptions(**values) if options is None else options
        self.vocab_size = check_causal_lm(model, "Trainer")
        _check_trainable(model)
        registry = default_registry() if registry is None else registry
        self.greedy: Sampler = registry.load_sampler("greedy", require=MEASURED_BY)
        if accelerator is None:
            from accelerate import Accelerator

            accelerator = Accelerator()
        self.accelerator = accelerator
        self.contrast = contrast
        self.step = 0
        optimizers = make_optimizers(
            model,
            self.options.optimizer,
            learning_rate=self.options.learning_rate,
            weight_decay=self.options.weight_decay,
        )
        model.train()
        self.model, *self.optimizers = accelerator.prepare(model, *optimizers)
        if self.options.document_separator is not None:
            check_document_mask(accelerator.unwrap_model(self.model), self.options.document_separator, self.vocab_size)
        self._moves = 0
        self._marks: dict[str, Tensor] = {}

    def train_step(self, context_ids: Ids, target_ids: Ids, *, joint_targets: int | None = None) -> StepResult:
        """Predict, measure, and change the weights once.

        Args:
            context_ids: ids [positions] of one sequence, or [batch, positions]; lists or an int64 tensor.
            target_ids: of the same shape: the token that follows each position, or `IGNORE_INDEX` (-100) where there is
                none; such positions count nowhere.
            joint_targets: how many targets all processes have together in this step, where they do not have equally
                many; every target has the same weight.

        Raises:
            ParameterError: shapes that differ, no position or no target, or an id outside the vocabulary.
            ModelError: the logits are probabilities, or no gradient can come from them.
        """
        contexts, targets = self._checked(context_ids, target_ids)
        mine, processes = int((targets != IGNORE_INDEX).sum()), int(self.accelerator.num_processes)
        joint = mine * processes if joint_targets is None else joint_targets
        if joint < 1:
            raise ParameterError(
                "target_ids must hold at least one target, got none that is not ignored.", "target_ids"
            )
        if self._moves == 0:
            self._marks = self._marks_now()
        rate = self._set_learning_rate()
        with seeded(self._seed_of_step(), self.accelerator.device):
            sums, predicted, drawn = self._gradients(contexts, targets, joint)
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.options.max_gradient_norm))
        skipped = not math.isfinite(norm)
        for optimizer in self.optimizers:
            if not skipped:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._look_for_unmoved(0 if skipped else 1)
        correct = (predicted == targets).sum().item()
        shape = target_ids.shape if isinstance(target_ids, Tensor) else torch.tensor(target_ids).shape
        share = drawn.item() / max(mine, 1) if self.contrast is not None else None
        return StepResult(sums.health(correct), predicted.reshape(shape), norm, rate, skipped, share)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Health:
        """Loss and greedy accuracy over batches of (context_ids, target_ids), without changing the weights.

        With several processes, each gives its own batches and all get the health of all.
        """
        self.model.eval()
        total = torch.zeros(6, dtype=torch.float64, device=self.accelerator.device)
        for context_ids, target_ids in batches:
            contexts, targets = self._checked(context_ids, target_ids)
            logits, flat, _ = _where_targets(self._logits(contexts), targets.reshape(-1))
            total[:5] += measure(logits, flat).sums
            total[5] += (self.greedy.sample(logits, check=False) == flat).sum()
        self.model.train()
        total = self.accelerator.reduce(total, "sum")
        return HealthSums(total[:5], self.vocab_size).health(total[5].item())

    def _gradients(self, contexts: Tensor, targets: Tensor, joint: int) -> tuple[HealthSums, Tensor, Tensor]:
        """Add up the gradient of the batch, part by part: of the mean over the `joint` targets of all processes, of
        whose gradients the mean is taken.

        Returns:
            its measures, the greedy ids [batch, positions], and how many draws of `contrast` are right.
        """
        predicted = []
        drawn = torch.zeros((), dtype=torch.int64, device=targets.device)
        sums: Tensor | None = None
        parts = list(_parts(len(contexts), self.options.accumulation))
        for number, part in enumerate(parts):
            with self._synchronised(number == len(parts) - 1):
                logits, wanted, places = _where_targets(self._logits(contexts[part]), targets[part].reshape(-1))
                _check_differentiable(logits)
                loss, measured = cross_entropy(logits, wanted)
                share = len(wanted) * int(self.accelerator.num_processes) / joint
                self.accelerator.backward(loss if share == 1 else loss * share)
            ids = self.greedy.sample(logits.detach(), check=False)
            predicted.append(_spread(ids, places).reshape(targets[part].shape))
            if self.contrast is not None:
                drawn += self._right_draws(logits.detach(), wanted, first=part.start)
            sums = measured.sums if sums is None else sums + measured.sums
        assert sums is not None
        return HealthSums(sums, self.vocab_size), torch.cat(predicted), drawn

    def _look_for_unmoved(self, moves: int) -> None:
        """Warn of the parameters that no step has changed, once there have been enough of them."""
        self._moves += moves
        if self._moves != LOOKED_AT or not self._marks:
            return
        now = self._marks_now()
        unmoved = [name for name, mark in self._marks.items() if torch.equal(mark, now[name])]
        self._marks = {}
        if unmoved and self.accelerator.is_main_process:
            warnings.warn(_unmoved(unmoved, len(now)), UnmovedWarning, stacklevel=3)

    def _marks_now(self) -> dict[str, Tensor]:
        return _marks(self.accelerator.unwrap_model(self.model, keep_torch_compile=False))

    def _right_draws(self, logits: Tensor, targets: Tensor, *, first: int) -> Tensor:
        """How many tokens drawn by `contrast` are the target; every position of every step has numbers of its own."""
        assert self.contrast is not None
        positions = torch.arange(len(targets), device=targets.device) + first * len(targets)
        drawn = self.contrast.sample(logits, seed=self._seed_of_step(), position=positions, check=False)
        return (drawn == targets).sum()

    def _seed_of_step(self) -> int:
        """Of dropout and of the draws of `contrast`: other numbers in every step and process."""
        return derived_seed(self.options.seed, self.step, int(self.accelerator.process_index))

    def _synchronised(self, last: bool) -> Any:
        """Processes exchange gradients once a step, behind the last part."""
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def _logits(self, contexts: Tensor) -> Tensor:
        """[batch * positions, vocab]."""
        separator = self.options.document_separator
        positions = {} if separator is None else {"position_ids": positions_within_documents(contexts, separator)}
        logits: Tensor = logits_of(self.model(input_ids=contexts, use_cache=False, **positions), self.model, "Trainer")
        return logits.reshape(-1, logits.shape[-1])

    def _set_learning_rate(self) -> float:
        options = self.options
        rate = learning_rate_at(
            self.step, peak=options.learning_rate, warmup=options.warmup_steps, total=options.total_steps
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        return rate

    def _checked(self, context_ids: Ids, target_ids: Ids) -> tuple[Tensor, Tensor]:
        """Both as int64 [batch, positions] on the device."""
        contexts = _as_ids("context_ids", context_ids, self.vocab_size)
        targets = _as_ids("target_ids", target_ids, self.vocab_size, ignored=IGNORE_INDEX)
        if contexts.shape != targets.shape:
            raise ParameterError(
                f"context_ids and target_ids must have the same shape, got {list(contexts.shape)} and "
                f"{list(targets.shape)}: the target of a position is the token that follows it.",
                "target_ids",
            )
        return contexts.to(self.accelerator.device), targets.to(self.accelerator.device)


def _check_trainable(model: torch.nn.Module) -> None:
    """Refuse weights that training would leave as they are, without a word."""
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    if not trained:
        raise ModelError(
            "Trainer needs weights to train: of this model none requires a gradient. Call model.requires_grad_(True), "
            "or leave at least one of its parameters unfrozen."
        )
    for name, weight in trained:
        if weight.dtype not in TRAINABLE:
            raise ModelError(
                f"Trainer changes weights in float32, and {name} is {str(weight.dtype).removeprefix('torch.')}: there "
                "an update that is small beside its weight is rounded away, and the weights of norms, which are near "
                "1, would never move. Call model.float(), or load the model with neurogen.models.load_model(name, "
                'dtype="float32"). For matrix products in half precision give Trainer an accelerator, '
                'Accelerator(mixed_precision="bf16").'
            )


def _check_differentiable(logits: Tensor) -> None:
    """Refuse logits that no gradient can come from."""
    if not logits.requires_grad:
        raise ModelError(
            "The logits depend on no weight that is trained, so that there is no gradient. Call train_step outside "
            "torch.no_grad() and torch.inference_mode(), and look for detach() or no_grad() in the model's forward."
        )


@torch.no_grad()
def _marks(model: torch.nn.Module) -> dict[str, Tensor]:
    """For each parameter to be trained a sum of the bits of its values, which another value changes."""
    bits = {torch.float32: torch.int32, torch.float64: torch.int64}
    return {
        name: weight.detach().contiguous().view(bits[weight.dtype]).sum(dtype=torch.int64)
        for name, weight in model.named_parameters()
        if weight.requires_grad and weight.dtype in bits
    }


def _unmoved(names: Sequence[str], count: int) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return (
        f"{len(names)} of {count} parameters have not changed in {LOOKED_AT} steps: {', '.join(names[:NAMED])}{more}. "
        "Either the loss does not depend on them, or the learning rate is too small beside them. Freeze them with "
        "requires_grad_(False) if that is meant."
    )


def _as_ids(name: str, ids: Ids, vocab_size: int, *, ignored: int | None = None) -> Tensor:
    try:
        tensor = ids if isinstance(ids, Tensor) else torch.tensor(ids)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ParameterError(f"{name} must be ids, a list of integers or lists of one length: {error}.", name) from None
    if tensor.dtype != torch.int64 or tensor.ndim not in (1, 2) or tensor.numel() == 0:
        raise ParameterError(
            f"{name} must be integers [positions] or [batch, positions], at least one, got {tensor.dtype} "
            f"{list(tensor.shape)}.",
            name,
        )
    checked = tensor if ignored is None else tensor[tensor != ignored]
    if checked.numel() and not 0 <= int(checked.min()) <= int(checked.max()) < vocab_size:
        raise ParameterError(
            f"{name} must be in [0, {vocab_size - 1}], the model's vocabulary, got {int(checked.min())} to "
            f"{int(checked.max())}.",
            name,
        )
    return tensor.reshape(-1, tensor.shape[-1])


def _where_targets(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [positions, vocab] and targets [positions] without the positions to ignore, and whether each is kept."""
    kept = targets != IGNORE_INDEX
    if bool(kept.all()):
        return logits, targets, kept
    return logits[kept], targets[kept], kept


def _spread(ids: Tensor, kept: Tensor) -> Tensor:
    """Ids of the positions that were kept at their places [positions], and -1 at the others."""
    if len(ids) == len(kept):
        return ids
    spread = torch.full(kept.shape, -1, dtype=ids.dtype, device=ids.device)
    spread[kept] = ids
    return spread


def _parts(rows: int, count: int) -> Iterator[slice]:
    """Up to `count` nearly equal parts of so many rows."""
    edges = [rows * i // min(count, rows) for i in range(min(count, rows) + 1)]
    return (slice(a, b) for a, b in pairwise(edges))
