"""Run by tests in an environment with vLLM: requests of many kinds in one batch, written as JSON."""

from __future__ import annotations

import contextlib
import io
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from neurogen.errors import NeurogenError
from neurogen.integrations.vllm import generate, load_engine
from neurogen.models.known import STARTER_FOLDER
from neurogen.models.tokenizer import load_tokenizer
from neurogen.text.runner import RunOptions

PROMPTS = ["Once upon a time", "The dog", "One day, a little girl named Lily found a big red"]


def asking(**extra: Any) -> dict[str, Any]:
    return {f"neurogen_{name}": value for name, value in extra.items()}


def main(target: str) -> None:
    from vllm import SamplingParams

    common: dict[str, Any] = {"max_tokens": 16, "temperature": 0.7}
    greedy: dict[str, Any] = {"max_tokens": 16, "temperature": 0.0}
    batch = [
        (PROMPTS[0], SamplingParams(**common, extra_args=asking(sampler="topk", params={"k": 50}, seed=7))),
        (PROMPTS[1], SamplingParams(**common, extra_args=asking(sampler="topk(k=5, temperature=1.5)", seed=8))),
        (PROMPTS[2], SamplingParams(**greedy, seed=9, extra_args=asking(sampler="topp", params='{"p": 0.8}'))),
        (PROMPTS[0], SamplingParams(**common, extra_args=asking(sampler="greedy"))),
        (PROMPTS[1], SamplingParams(**greedy)),
        (PROMPTS[2], SamplingParams(max_tokens=5, temperature=1.0)),
        (PROMPTS[1], SamplingParams(**common, extra_args=asking(sampler="topk(k=20)+topp(p=0.9)", seed=-5))),
        (PROMPTS[2], SamplingParams(**common, extra_args=asking(sampler="mirostat(tau=3.0)", seed=11))),
        (PROMPTS[0], SamplingParams(max_tokens=9, extra_args=asking(sampler="mirostat(tau=5.0)", seed=12))),
        (PROMPTS[1] * 9, SamplingParams(**common, extra_args=asking(sampler="mirostat(tau=2.0)", seed=13))),
    ]  # fmt: skip
    llm = load_engine(
        "starter", dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=6,
        max_num_batched_tokens=16, enable_chunked_prefill=True, logits_processors=["recorder:Recorder"],
    )  # fmt: skip
    # Alone: vLLM's own generator on the CPU, which a seed and a temperature call for, fails where prompts are cut.
    samples = SamplingParams(**common, n=2, seed=20, extra_args=asking(sampler="topp(p=0.95, temperature=1.0)"))
    encode = load_tokenizer(STARTER_FOLDER).encode  # transformers reads this tokenizer otherwise
    prompts = [{"prompt_token_ids": encode(prompt)} for prompt, _ in batch]
    outputs = llm.generate(prompts, [params for _, params in batch], use_tqdm=False)
    outputs += llm.generate(prompts[:1], samples, use_tqdm=False)
    batch.append((PROMPTS[0], samples))
    said = [
        {
            "extra": params.extra_args,
            "seed": params.seed,
            "prompt_tokens": len(output.prompt_token_ids),
            "samples": [list(one.token_ids) for one in output.outputs],
        }
        for (_, params), output in zip(batch, outputs, strict=True)
    ]
    results = generate(
        llm, PROMPTS, "topk(k=50)", RunOptions(n=2, seed=31, max_new_tokens=20, stop=("park",), logprobs=2),
        params={"temperature": 1.0},
    )  # fmt: skip
    refused = refusal(llm)
    document = documented(llm)
    report = {
        "batch": said,
        "results": [result.to_json() for result in results],
        "errors": errors(llm) | {"generate": refused, "documented": document},
        "second": second_runner(),
    }
    with open(target, "w", encoding="utf-8") as file:  # noqa: PTH123
        json.dump(report, file)


def errors(llm: Any) -> dict[str, str]:
    """What is refused, by a name; each with a message, and the engine goes on."""
    from vllm import SamplingParams
    from vllm.exceptions import VLLMClientError

    requests = {
        "unknown": SamplingParams(extra_args=asking(sampler="topkk")),
        "domain": SamplingParams(extra_args=asking(sampler="topk", params={"k": -1})),
        "argument": SamplingParams(extra_args=asking(sampler="topk", sede=1)),
        "alone": SamplingParams(extra_args=asking(seed=1)),
        "samples": SamplingParams(n=2, extra_args=asking(sampler="topk", seed=1)),
        "penalty": SamplingParams(repetition_penalty=1.2, extra_args=asking(sampler="topk")),
        "broken": SamplingParams(extra_args=asking(sampler="broken")),
        "failing": SamplingParams(extra_args=asking(sampler="failing")),
    }
    said: dict[str, str] = {}
    for name, params in requests.items():
        try:
            llm.generate(["The dog"], params, use_tqdm=False)
        except VLLMClientError as error:
            said[name] = str(error)
        else:
            said[name] = "accepted"
    # Fails only when it sees more than the rows it is tried with: the sequence ends, and the engine goes on.
    ended = llm.generate(["The dog"], SamplingParams(max_tokens=8, extra_args=asking(sampler="later")), use_tqdm=False)
    said["later"] = f"{ended[0].outputs[0].finish_reason} after {len(ended[0].outputs[0].token_ids)}"
    after = llm.generate(["The dog"], SamplingParams(max_tokens=3, extra_args=asking(sampler="greedy")), use_tqdm=False)
    said["after"] = str(len(after[0].outputs[0].token_ids))
    return said


def refusal(llm: Any) -> str:
    """What `generate` makes of vLLM's refusal."""
    try:
        generate(llm, [PROMPTS[2] * 60], "greedy")
    except NeurogenError as error:
        return str(error)
    return "accepted"


def documented(llm: Any) -> str:
    """What the documentation's example prints."""
    text = (Path(__file__).parent.parent.parent / "docs/integrations.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"starter model -->\n```python\n(.*?)```", text, re.DOTALL)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(block, {"llm": llm})
    return printed.getvalue()


def second_runner() -> dict[str, Any]:
    """The processor for vLLM's second model runner, which does not run on this CPU: called as its interface says."""
    import numpy as np
    import torch
    from vllm import SamplingParams
    from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

    from neurogen_vllm.processor import NeurogenLogitsProcessor

    assert issubclass(NeurogenLogitsProcessor, LogitsProcessor)
    lengths = SimpleNamespace(np=np.array([0, 6, 9, 4]))
    states = LogitsProcRequestState(
        device=torch.device("cpu"), max_num_reqs=4, vocab_size=64, all_token_ids=None, prompt_len=lengths,
        prefill_len=lengths, total_len=None,
    )  # fmt: skip
    processor = NeurogenLogitsProcessor(SimpleNamespace(speculative_config=None), states)
    joined = [
        processor.add_request(3, SamplingParams(extra_args=asking(sampler="topk(k=9)", seed=5))),
        processor.add_request(1, SamplingParams()),
        processor.add_request(2, SamplingParams(extra_args=asking(sampler="mirostat(tau=2.0)", seed=6))),
    ]
    torch.manual_seed(0)
    steps = []
    # Slot 2's prompt of 9 tokens is read in two parts; rows change their order; the last step has two drafts of slot 3.
    for slots, sizes in [([3, 2, 1], [4, 5, 6]), ([2, 3, 1], [9, 5, 7]), ([1, 2, 3], [8, 10, 6]), ([3, 3], [7, 8])]:
        logits = torch.randn(len(slots), 64) * 2
        unique = list(dict.fromkeys(slots))
        context = LogitsContext(
            expanded_idx_mapping=torch.tensor(slots), idx_mapping=torch.tensor(unique),
            idx_mapping_np=np.array(unique), expanded_local_pos=torch.zeros(len(slots)),
            input_ids=torch.zeros(len(slots)), pos=torch.tensor(sizes) - 1,
            seq_lens_upper_bound_np=np.array(sizes[: len(unique)]),
        )  # fmt: skip
        result = processor.apply(logits.clone(), context)
        finite = [torch.isfinite(row).nonzero().flatten().tolist() for row in result]
        steps.append({"slots": slots, "sizes": sizes, "logits": logits.tolist(), "finite": finite})
    return {"joined": joined, "steps": steps}


if __name__ == "__main__":
    main(sys.argv[1])
