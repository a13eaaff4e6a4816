"""Text as it grows equals the text decoded at once, and stop strings hold back no more than they must."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tru_vlm.engine.hf.detokenizer import TextStream, byte_table

quick = settings(deadline=None, suppress_health_check=list(HealthCheck), max_examples=60)


@pytest.fixture(scope="module")
def table(profile):
    return byte_table(profile.tokenizer)


@quick
@given(text=st.text(max_size=60))
def test_pieces_join_to_the_text(text, profile, table):
    ids = profile.tokenizer(text)["input_ids"]
    stream = TextStream(table)
    pieces = [stream.add(token) for token in ids]
    assert "".join(pieces) + stream.flush() == profile.tokenizer.decode(ids, skip_special_tokens=True)


@quick
@given(ids=st.lists(st.integers(0, 767), max_size=40))
def test_any_tokens_decode_as_the_tokenizer_does(ids, profile, table):
    stream = TextStream(table)
    text = "".join(stream.add(token) for token in ids) + stream.flush()
    expected = profile.tokenizer.decode(ids, skip_special_tokens=True)
    # An incomplete character at the very end is dropped; the tokenizer shows a replacement character.
    assert expected.startswith(text)
    assert set(expected[len(text) :]) <= {"\ufffd"}


def test_no_piece_has_half_a_character(profile, table):
    stream = TextStream(table)
    pieces = [stream.add(token) for token in profile.tokenizer("你好 🎬 ä")["input_ids"]]
    assert "\ufffd" not in "".join(pieces)
    assert "" in pieces  # some token was only a part of a character


def test_an_id_beyond_the_tokenizer_has_no_text(table):
    assert TextStream(table).add(len(table) + 5) == ""


def feed(stream, pieces):
    """Feed characters through a table of their own."""
    out = []
    for piece in pieces:
        stream._table = [piece.encode()]
        out.append(stream.add(0))
        if stream.stopped:
            break
    return out


@quick
@given(
    text=st.text(alphabet="ab#", max_size=24),
    stop=st.lists(st.text(alphabet="ab#", min_size=1, max_size=4), min_size=1, max_size=3),
    size=st.integers(1, 5),
)
def test_stop_strings_anywhere_across_tokens(text, stop, size):
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    stream = TextStream([], tuple(stop))
    out = feed(stream, pieces)
    result = "".join(out) + stream.flush()
    starts = [text.find(s) for s in stop if s in text]
    assert stream.stopped == bool(starts)
    if not starts:
        assert result == text
        return
    assert not any(s in result for s in stop)
    assert text.startswith(result)
    assert any(text[len(result) :].startswith(s) for s in stop)


def test_only_a_possible_start_is_held_back():
    stream = TextStream([], ("END",))
    assert feed(stream, ["xE", "N", "E", "ND!", "y"]) == ["x", "", "EN", ""]
    assert stream.stopped
    assert stream.flush() == ""
    open_end = TextStream([], ("END",))
    assert feed(open_end, ["xEN"]) == ["x"]
    assert open_end.flush() == "EN"


def test_an_empty_stop_string_stops_nothing(profile, table):
    stream = TextStream(table, ("",))
    assert "".join(stream.add(token) for token in profile.tokenizer("hello")["input_ids"]) == "hello"
