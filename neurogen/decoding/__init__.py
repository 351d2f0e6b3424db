"""The loop from requests to tokens: admit, forward, process, sample, emit, retire; beams and drafts use its parts.

Knows ids and logits, never text.
"""
