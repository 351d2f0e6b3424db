"""The neurogen processor `cooldown`."""

from collections import deque

import neurogen


class Cooldown(neurogen.Processor):
    """Bans a token for some steps after it was chosen."""

    name = "cooldown"
    api_version = 1

    class Params(neurogen.SamplerParams):
        steps: int = neurogen.Param(3, ge=1, description="So many tokens pass before one may come again.")

    def start(self, history):
        return deque(maxlen=self.params.steps)

    def process(self, logits, history, memory):
        logits[list(memory)] = float("-inf")

    def accept(self, token_id, history, memory):
        memory.append(token_id)


@neurogen.hookimpl
def neurogen_processors():
    return [Cooldown]
