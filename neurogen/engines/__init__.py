"""Engines that run a model by another library's forward pass and choose its tokens by neurogen's samplers."""
