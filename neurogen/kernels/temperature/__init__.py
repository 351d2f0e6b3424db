"""Plain temperature sampling: the kernels below every `TruncationSampler`, which gives them logits already masked."""
