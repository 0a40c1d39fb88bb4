"""Whatever stands in a message, it is one line that can be shown."""

from __future__ import annotations

from hypothesis import given, strategies as st

from homojl.errors import MAX_MESSAGE, ConfigError, DataError, HomoJLError, SolveError, one_line

ANY_TEXT = st.text(st.characters(), max_size=300)  # surrogates, control characters and all


@given(ANY_TEXT)
def test_a_message_is_one_printable_line(text):
    for error in (HomoJLError(text), ConfigError(text), DataError(text), SolveError(text, None)):
        message = str(error)
        assert message.isprintable()
        message.encode()
        assert error.args == (message,)


@given(st.text(st.characters(exclude_categories=["C", "Z"], include_characters=" "), max_size=100))
def test_what_can_be_shown_is_shown_as_it_is(text):
    assert one_line(text) == text


def test_a_terminal_is_not_steered():
    assert one_line("a\x1b[2Jb\nc\tüλ") == r"a\x1b[2Jb c üλ"
    assert one_line("caf\udce9") == r"caf\udce9"


def test_of_a_long_message_the_middle_is_left_out():
    text = "start " + "x" * 10**6 + " end"
    shown = one_line(text)
    assert len(shown) <= MAX_MESSAGE
    assert shown.startswith("start x")
    assert shown.endswith("x end")
