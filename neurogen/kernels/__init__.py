"""What sampler kernels share, one source for CPU and CUDA.

    numerics    scalar functions of both targets: monotone keys, integer masses, Philox
    cpu         the toolkit on the CPU: rows, what is kept of them, drawing, threads
    cuda        the same under the same names on CUDA, and how kernels are launched on torch's stream
    host        what the functions of a backend module do around a kernel
    loss        cross-entropy and health from one softmax, for the trainer

docs/kernels.md has a worked example.

Importing this package imports none of them; numba is loaded by the module that is needed.
"""
