"""What a user writes for samplers and processors: read, never run, whatever it is."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neurogen.contract.spec import Link, parse_spec, spelled
from neurogen.errors import ParameterError


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("topk", [Link("topk")]),
        ("topk()", [Link("topk")]),
        (" topk ( k = 50 , temperature = .5 ) ", [Link("topk", {"k": 50, "temperature": 0.5})]),
        ("topk(k=50)+topp(p=0.9)", [Link("topk", {"k": 50}), Link("topp", {"p": 0.9})]),
        ("neurogen-topk:topk + a-b", [Link("neurogen-topk:topk"), Link("a-b")]),
        ("x(a=-1,b=+2,c=1e-5,d=1e+5,e=2.)", [Link("x", {"a": -1, "b": 2, "c": 1e-5, "d": 1e5, "e": 2.0})]),
        (
            'x(a=true,b=false,c=word,d="two, words)")',
            [Link("x", {"a": True, "b": False, "c": "word", "d": "two, words)"})],
        ),
        (r'x(a="\"\u00e9\n")', [Link("x", {"a": '"é\n'})]),
    ],
)
def test_a_spec_is_read(text: str, links: list[Link]) -> None:
    assert list(parse_spec(text)) == links


@pytest.mark.parametrize(
    ("text", "place", "wanted"),
    [
        ("", "at its end", "a name"),
        ("topk+", "at its end", "a name"),
        ("topk(k=5", "at its end", "a comma or a closing parenthesis"),
        ("topk(k)", r"at '\)'", "= and a value for k"),
        ("topk(5)", r"at '5\)'", "the name of a parameter"),
        ("topk(k=)", r"at '\)'", "a value"),
        ("topk(k=5)topp", "at 'topp'", "nothing more"),
        ("topk;topp", "at ';topp'", "nothing more"),
        ('topk(k="5)', "at '\"5\\)'", "a string with a closing quote"),
        (r'topk(k="\q")', "at ", "a number such as"),
        ("topk(k=" + "9" * 5000 + ")", "at '99999999999999999999'", "a number such as"),
        ("__import__('os')", "at \"'os'\\)\"", "the name of a parameter"),
    ],
)
def test_what_is_no_spec_is_refused_with_the_place(text: str, place: str, wanted: str) -> None:
    with pytest.raises(ParameterError, match=f"cannot be read: {place}.*{wanted}"):
        parse_spec(text)


def test_a_parameter_is_given_once() -> None:
    with pytest.raises(ParameterError, match="k is given twice"):
        parse_spec("topk(k=5, k=6)")


def test_a_very_long_name_is_refused_at_once() -> None:
    with pytest.raises(ParameterError, match="1,000,000 characters"):
        parse_spec("a" * 1_000_000)
    with pytest.raises(ParameterError, match="1,000,000 characters"):
        parse_spec(f"topk({'a' * 1_000_000}=5)")
    with pytest.raises(ParameterError, match="joins more than 100 names"):
        parse_spec("+".join(["topk"] * 1_000_000))


@pytest.mark.parametrize("value", ["x" * 3_000_000, '\\"' * 1_000_000, "\n" * 1_000_000, "[{" * 1_000_000])
def test_a_value_may_be_of_any_length_and_is_read_in_time_in_proportion(value: str) -> None:
    """A schema of some megabytes; a million characters take milliseconds, not a million times that."""
    links = (Link("grammar", {"json_schema": value, "checksum": ""}), Link("topk", {"k": 5}))
    assert parse_spec(spelled(links)) == links
    with pytest.raises(ParameterError, match="a string with a closing quote was expected"):
        parse_spec('grammar(json_schema="' + value.replace('"', ""))


def test_a_bare_value_may_be_of_any_length() -> None:
    assert parse_spec(f"grammar(regex={'a' * 1_000_000})")[0].params["regex"] == "a" * 1_000_000


NAMES = st.from_regex(r"[A-Za-z_][A-Za-z0-9_-]{0,10}", fullmatch=True)
VALUES = st.one_of(
    st.integers(-(2**70), 2**70), st.floats(allow_nan=False, allow_infinity=False), st.booleans(), st.text(max_size=20)
)
LINKS = st.builds(
    Link, NAMES, st.dictionaries(st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,8}", fullmatch=True), VALUES, max_size=4)
)


@given(st.lists(LINKS, min_size=1, max_size=4))
def test_spelling_a_spec_and_reading_it_gives_it_again(links: list[Link]) -> None:
    assert list(parse_spec(spelled(links))) == links


@given(st.text(alphabet='topk+()=,.:"\\ 0159eE-_trufalsn\n', max_size=60) | st.text(st.characters(), max_size=60))
@settings(max_examples=500)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        links = parse_spec(text)
    except ParameterError:
        return
    assert links == parse_spec(spelled(links))
