"""Text to text: prompts become ids, the decoding loop continues them, and the new ids become text again.

Knows nothing about how a result is shown, and nothing about training.
"""
