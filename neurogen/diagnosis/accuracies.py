"""The accuracy that each sampler would have reported on the same positions: exact expectations, without drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from neurogen.contract.sampler import Sampler
from neurogen.diagnosis.measures import Measures
from neurogen.registry.registry import load_sampler

__all__ = ["SETTINGS", "SamplerAccuracy", "SamplerSetting", "accuracies", "load_samplers"]


@dataclass(frozen=True)
class SamplerSetting:
    """A sampler and its parameters, by which accuracy could have been measured.

    Attributes:
        sampler: name of the plugin.
        params: its parameters.
        role: what this setting is used for.
    """

    sampler: str
    params: Mapping[str, Any]
    role: str

    @property
    def label(self) -> str:
        """Name and parameters without the temperature, such as `topk(k=50)`."""
        named = ", ".join(f"{name}={value}" for name, value in self.params.items() if name != "temperature")
        return f"{self.sampler}({named})" if named else self.sampler


TRAINING = "right in training"
MISTAKE = "the training mistake"
INFERENCE = "default in inference"

SETTINGS = (
    SamplerSetting("greedy", {}, TRAINING),
    SamplerSetting("topk", {"k": 50, "temperature": 1.0}, MISTAKE),
    SamplerSetting("topp", {"p": 0.9, "temperature": 1.0}, MISTAKE),
    SamplerSetting("topk", {"k": 50, "temperature": 0.8}, INFERENCE),
    SamplerSetting("topp", {"p": 0.9, "temperature": 0.8}, INFERENCE),
)


@dataclass(frozen=True)
class SamplerAccuracy:
    """What a sampler would have reported as accuracy.

    Attributes:
        setting: the sampler.
        accuracy: expected share of positions where it chooses the target.
        deviation: standard deviation of that share when every position is drawn once; 0 for greedy.
        never: share of positions where it cannot choose the target at all.
    """

    setting: SamplerSetting
    accuracy: float
    deviation: float
    never: float

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**vars(self.setting), **{name: value for name, value in vars(self).items() if name != "setting"}}


def load_samplers() -> tuple[Sampler, ...]:
    """The samplers of `SETTINGS`.

    Raises:
        PluginError: one of them is not installed.
    """
    return tuple(load_sampler(setting.sampler, **setting.params) for setting in SETTINGS)


def accuracies(measures: Measures) -> tuple[SamplerAccuracy, ...]:
    """What each of `SETTINGS` would have reported on the valid positions, of which there is at least one."""
    sampled = measures.sampled[measures.valid]
    columns = zip(SETTINGS, sampled.T, strict=True)
    return tuple(
        SamplerAccuracy(
            setting=setting,
            accuracy=float(chances.mean()),
            # independent draws: the variance of their sum is the sum of p (1 - p)
            deviation=float(np.sqrt(np.sum(chances * (1 - chances))) / len(chances)),
            never=float(np.mean(chances == 0)),
        )
        for setting, chances in columns
    )
