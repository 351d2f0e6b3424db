"""Prompts for short simple stories, no two alike: the first step of making the starter model's text.

    python tools/starter/prompts.py --count 20000 --seed 1 > prompts.jsonl

Each prompt combines a hero, a place, a thing, a feeling and an event at random. The words are our own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import sys

HEROES = (
    "a little girl named {name}", "a little boy named {name}", "a small cat named {name}", "a brown dog named {name}",
    "a shy rabbit named {name}", "a young bear named {name}", "a tiny mouse named {name}",
    "a kind old woman named {name}",
    "a farmer named {name}", "a duck named {name}", "a curious fox named {name}", "a baby bird named {name}",
    "two friends named {name} and {other}", "a girl named {name} and her brother {other}", "a frog named {name}",
    "a pony named {name}", "a little robot named {name}", "a puppy named {name}", "a turtle named {name}",
)  # fmt: skip
NAMES = (
    "Anna", "Ben", "Lucy", "Tom", "Mia", "Sam", "Lily", "Max", "Ella", "Jack", "Rosie", "Tim", "Nora", "Leo", "Daisy",
    "Oscar", "Zoe", "Finn", "Molly", "Toby", "Amy", "Billy", "Sara", "Pip", "Coco", "Buddy", "Fay", "Gus", "Ruby",
    "Hugo",
)  # fmt: skip
PLACES = (
    "in the park", "in the forest", "at the beach", "in the garden", "on a farm", "at school", "in a small house",
    "by the river", "on a hill", "in the kitchen", "at the zoo", "in the snow", "at the market", "by the lake",
    "in a big tree", "in the rain", "on a boat", "at grandma's house", "in the barn", "at the playground",
)  # fmt: skip
THINGS = (
    "a red ball", "a blue kite", "a shiny stone", "a warm hat", "a big cake", "a lost key", "a little boat",
    "an old book",
    "a yellow flower", "a soft blanket", "a wooden box", "a round apple", "a toy car", "a bell", "a bright lamp",
    "a drum",
    "a basket of berries", "a broken cup", "a green umbrella", "a paper plane", "a bag of seeds", "a ladder", "a spoon",
)  # fmt: skip
EVENTS = (
    "gets lost and finds the way home", "makes a new friend", "learns to share", "helps someone who is sad",
    "finds something and gives it back", "is afraid at first and then brave", "breaks something and says sorry",
    "tries again and again until it works", "plans a surprise", "has to wait and learns to be patient",
    "hears a strange noise and finds out what it is", "wants to fly", "learns to tell the truth", "builds something",
    "shares the last piece", "takes care of a small animal", "wins by being kind", "learns to ask for help",
)  # fmt: skip
FORMS = (
    "Write a short story for small children about {hero} {place}. The story has {thing} in it. The hero {event}. "
    "Use very simple words and short sentences.",
    "Tell a very simple story of two paragraphs for a child of four: {hero} is {place}, sees {thing} and {event}.",
    'Write a short bedtime story with simple words. It starts with "Once upon a time". It is about {hero} who '
    "{event}. There is {thing}, and it happens {place}.",
    "Write a little story with easy words and some talking. {hero} is {place} with {thing}. In the end the "
    "hero {event}.",
)  # fmt: skip


OPENINGS = (
    "Once upon a time, there was {hero}.", "Once upon a time, in a small house, there lived {hero}.",
    "One day, {hero} found {thing} {place}.", "One sunny day, {hero} went for a walk.", "{hero} was {place}.",
    "Once there was {hero}. Every day they played {place}.", "One day, {hero} wanted to play with {thing}.",
    "It was a cold day. {hero} had {thing}.", "{hero} was very happy.", "{hero} was sad today.",
    "There was once {hero} who liked {thing}.", "Every morning, {hero} looked out of the window.",
)  # fmt: skip
KINDS = {"tasks": FORMS, "openings": OPENINGS}


def prompts(count: int, seed: int, forms: tuple[str, ...] = FORMS) -> list[str]:
    """Different prompts in an order that depends on the seed alone."""
    chance = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        name, other = chance.sample(NAMES, 2)
        text = chance.choice(forms).format(
            hero=chance.choice(HEROES).format(name=name, other=other),
            place=chance.choice(PLACES),
            thing=chance.choice(THINGS),
            event=chance.choice(EVENTS),
        )
        found[text[0].upper() + text[1:]] = None
    return list(itertools.islice(found, count))


def main() -> None:
    """Write one JSON string a line: what `neurogen run --prompts` reads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kind", choices=list(KINDS), default="tasks", help="for a chat model, or to be continued")
    options = parser.parse_args()
    for text in prompts(options.count, options.seed, KINDS[options.kind]):
        sys.stdout.write(json.dumps(text) + "\n")


if __name__ == "__main__":
    main()
