"""One training step at a time: ids in, `StepResult` out. Prints nothing, reads no files, knows no text.

What the model would predict is chosen by the plugin `greedy`, through the same interface as in inference, and the
registry makes sure that it is greedy: a trainer cannot be given another. Sampling in a training step hides whether a
model learns: accuracy stays at 0 % both when the distribution is flat and when it is saturated on a wrong token.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from neurogen.contract.requirements import Contract
from neurogen.contract.sampler import Sampler
from neurogen.diagnosis.health import IGNORE_INDEX, Health, HealthSums, HealthVerdict, cross_entropy, judge, measure
from neurogen.errors import ParameterError
from neurogen.models.foreign import check_causal_lm, logits_of
from neurogen.registry.registry import Registry, default_registry
from neurogen.training.document_mask import check_document_mask, positions_within_documents
from neurogen.training.optimizers import learning_rate_at, make_optimizers
from neurogen.training.options import TrainerOptions
from neurogen.training.randomness import derived_seed, seeded
from neurogen.training.trainer_checks import (
    Ids,
    UnmovedParameters,
    UnmovedWarning,
    check_differentiable,
    check_trainable,
    checked_ids,
)

__all__ = ["MEASURED_BY", "StepResult", "Trainer", "TrainerOptions", "UnmovedWarning"]

MEASURED_BY = Contract(deterministic=True, argmax=True)
"""The contract that the sampler that measures a training step must keep."""


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
        contrast: a sampler whose draws are counted beside the greedy tokens, to show what they would hide. It does
            not influence the training.

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
        check_trainable(model)
        registry = default_registry() if registry is None else registry
        self.greedy: Sampler = registry.load_sampler("greedy", require=MEASURED_BY)
        self.accelerator = Accelerator() if accelerator is None else accelerator
        self.contrast = contrast
        self.step = 0
        optimizers = make_optimizers(
            model,
            self.options.optimizer,
            learning_rate=self.options.learning_rate,
            weight_decay=self.options.weight_decay,
        )
        model.train()
        self.model, *self.optimizers = self.accelerator.prepare(model, *optimizers)
        plain_model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if self.options.document_separator is not None:
            check_document_mask(plain_model, self.options.document_separator, self.vocab_size)
        self._unmoved = UnmovedParameters(plain_model)

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
        # 1. Check the ids.
        contexts, targets = self._on_device(context_ids, target_ids)
        own_targets = int((targets != IGNORE_INDEX).sum())
        joint = own_targets * self.accelerator.num_processes if joint_targets is None else joint_targets
        if joint < 1:
            raise ParameterError(
                "target_ids must hold at least one target, got none that is not ignored.", "target_ids"
            )
        self._unmoved.before_step()

        # 2. Forward and backward: loss and gradient, measures, greedy tokens.
        with seeded(self._seed_of_step(), self.accelerator.device):
            sums, predicted, right_draws = self._forward_backward(contexts, targets, joint)

        # 3. Clip the gradient and change the weights, unless it is not finite.
        rate = self._set_learning_rate()
        norm = float(self.accelerator.clip_grad_norm_(self.model.parameters(), self.options.max_gradient_norm))
        skipped = not math.isfinite(norm)
        for optimizer in self.optimizers:
            if not skipped:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        if not skipped:
            self._unmoved.after_step(warn=self.accelerator.is_main_process)

        # 4. Return the result.
        correct = (predicted == targets).sum().item()
        share = right_draws.item() / max(own_targets, 1) if self.contrast is not None else None
        predicted = predicted.reshape(torch.as_tensor(target_ids).shape)
        return StepResult(sums.health(correct), predicted, norm, rate, skipped, share)

    @torch.no_grad()
    def evaluate(self, batches: Iterable[tuple[Tensor, Tensor]]) -> Health:
        """Loss and greedy accuracy over batches of (context_ids, target_ids), without changing the weights.

        With several processes, each gives its own batches and all get the health of all.
        """
        self.model.eval()
        total = torch.zeros(6, dtype=torch.float64, device=self.accelerator.device)
        for context_ids, target_ids in batches:
            contexts, targets = self._on_device(context_ids, target_ids)
            logits, targets, _ = self._logits_of_targets(contexts, targets)
            total[:5] += measure(logits, targets).sums
            total[5] += (self.greedy.sample(logits, check=False) == targets).sum()
        self.model.train()
        total = self.accelerator.reduce(total, "sum")
        return HealthSums(total[:5], self.vocab_size).health(total[5].item())

    def _forward_backward(self, contexts: Tensor, targets: Tensor, joint: int) -> tuple[HealthSums, Tensor, Tensor]:
        """Add up the gradient of the mean loss over the `joint` targets of all processes, some rows at a time.

        accelerate takes the mean of the processes' gradients, so that each weighs its loss with its share of targets.

        Returns:
            the measures of this process's batch, its greedy ids [batch, positions], -1 where there is no target, and
            how many draws of `contrast` are right.
        """
        predicted = torch.full_like(targets, -1)
        sums = torch.zeros(5, dtype=torch.float64, device=targets.device)
        right_draws = torch.zeros((), dtype=torch.int64, device=targets.device)
        parts = min(len(contexts), self.options.accumulation)
        edges = [len(contexts) * i // parts for i in range(parts + 1)]
        for first, end in pairwise(edges):
            is_last = end == len(contexts)
            # Processes exchange gradients once a step, after the last part.
            with nullcontext() if is_last else self.accelerator.no_sync(self.model):
                logits, wanted, kept = self._logits_of_targets(contexts[first:end], targets[first:end])
                check_differentiable(logits)
                loss, measured = cross_entropy(logits, wanted)
                share = len(wanted) * self.accelerator.num_processes / joint
                self.accelerator.backward(loss if share == 1 else loss * share)
            logits = logits.detach()
            predicted[first:end][kept] = self.greedy.sample(logits, check=False)
            right_draws += self._right_draws(logits, wanted, first)
            sums += measured.sums
        return HealthSums(sums, self.vocab_size), predicted, right_draws

    def _logits_of_targets(self, contexts: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits [positions, vocab] and targets [positions] where there is a target, and where that is."""
        separator = self.options.document_separator
        positions = {} if separator is None else {"position_ids": positions_within_documents(contexts, separator)}
        output = self.model(input_ids=contexts, use_cache=False, **positions)
        logits: Tensor = logits_of(output, self.model, "Trainer")
        kept = targets != IGNORE_INDEX
        if bool(kept.all()):  # as a rule, which then takes no copy of the logits
            return logits.flatten(0, 1), targets.flatten(), kept
        return logits[kept], targets[kept], kept

    def _right_draws(self, logits: Tensor, targets: Tensor, first: int) -> Tensor | int:
        """How many tokens drawn by `contrast` are the target; every position of every step has numbers of its own."""
        if self.contrast is None:
            return 0
        positions = torch.arange(len(targets), device=targets.device) + first * len(targets)
        drawn = self.contrast.sample(logits, seed=self._seed_of_step(), position=positions, check=False)
        return (drawn == targets).sum()

    def _seed_of_step(self) -> int:
        """Seed of dropout and of `contrast`'s draws, different in every step and process."""
        return derived_seed(self.options.seed, self.step, self.accelerator.process_index)

    def _set_learning_rate(self) -> float:
        options = self.options
        rate = learning_rate_at(
            self.step, peak=options.learning_rate, warmup=options.warmup_steps, total=options.total_steps
        )
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        return rate

    def _on_device(self, context_ids: Ids, target_ids: Ids) -> tuple[Tensor, Tensor]:
        """Contexts and targets as int64 [batch, positions] on the device, checked."""
        contexts, targets = checked_ids(context_ids, target_ids, self.vocab_size)
        return contexts.to(self.accelerator.device), targets.to(self.accelerator.device)
