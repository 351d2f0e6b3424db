"""Samplers beside their peers: plain torch, transformers, llama.cpp, FlashInfer, and one read of the memory.

    cells       what is measured: kind of logits, dtype, vocab, batch
    logits      the logits of a cell: normal, flat, equal, or a real model's
    peers       what a sampler is measured beside, with the same parameters
    clock       alternating turns, so that noise of the machine affects all alike
    results     times and ratios, as JSON; machine where they come from
    measure     a sampler and its peers on one cell
    plot        time against the number of logits, as a picture
    check       `python -m neurogen.bench.check`: ratios against committed ones

Machines differ, so read ratios within one run, not times. Importing this package, `cells`, `results` or `plot` loads
neither torch nor numba.
"""
