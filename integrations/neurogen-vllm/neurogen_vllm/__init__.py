"""neurogen's samplers in vLLM: a request names one in `extra_args`, and it chooses that request's tokens.

`request` reads and checks what a request asks for, `rows` lets samplers choose, `processor` is what vLLM loads.
"""

from neurogen_vllm.request import SamplerRequest, sampler_request

__all__ = ["SamplerRequest", "sampler_request"]
