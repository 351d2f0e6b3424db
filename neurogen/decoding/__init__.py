"""The loop from requests to tokens: admit, forward, process, sample, emit, retire.

`engine` is the loop, `request` what it is asked, `batch` its rows, `forward` what runs the model; beams and drafts use
the same parts. Knows ids and logits, never text.
"""
