"""Measurements of models and generations: health, diagnosis, explanation, comparison, and replay of recordings.

Gives numbers and findings as data, and knows nothing of how they are shown.
"""
