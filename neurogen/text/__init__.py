"""Text to text: prompts become ids, the decoding loop continues them, and the new ids become text again.

Knows nothing of how a result is shown, and of training.
"""
