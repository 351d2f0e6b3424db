"""What sampler kernels share, one source for CPU and CUDA.

    numerics    scalar functions of both targets: monotone keys, integer masses, Philox
    cpu         rows of logits on the CPU: decoding, masses, selection, drawing, threads
    cuda        the same for one block a row, and how kernels are launched on torch's stream

Importing this package imports none of them; numba is loaded by the module that is needed.
"""
