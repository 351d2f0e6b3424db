"""Parts of decoding strategies: rejection of drafted tokens, and keys and values taken back row by row.

Importing this package does not import torch.
"""
