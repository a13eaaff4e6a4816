"""The error tree."""

import pickle

import pytest

from qwen_vl_utils import errors
from qwen_vl_utils.errors import DecodeError, NotAVideoError, PixelBudgetError, VideoError


def family(kind=VideoError):
    return [kind, *(k for sub in kind.__subclasses__() for k in family(sub))]


def test_every_class_has_a_code_of_its_own_and_stands_in_the_tree():
    own = [k for k in family() if "code" in vars(k)]
    assert len({k.code for k in own}) == len(own)
    for kind in family():
        assert issubclass(kind, ValueError)
        assert kind.__name__ in errors.__doc__


@pytest.mark.parametrize("kind", family(), ids=lambda k: k.__name__)
def test_errors_survive_pickling(kind):
    error = kind("detail", file="/secret/folder/a.mp4", stage="decode", cause=RuntimeError("why"))
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert type(again) is kind
    assert (again.file, again.stage, again.detail, again.cause) == ("a.mp4", "decode", "detail", "RuntimeError: why")
    assert str(again) == str(error) == "a.mp4: decode: detail (RuntimeError: why)"


def test_folders_are_not_told():
    error = NotAVideoError("x", cause=OSError("cannot open '/srv/secret/uploads/a.mp4' for reading"))
    assert "secret" not in str(error)
    assert "a.mp4" in str(error)


def test_a_file_is_named_once():
    error = PixelBudgetError("too small")
    named = error.with_file("/a/b.mp4")
    assert isinstance(named, PixelBudgetError)
    assert str(named) == "b.mp4: resize: too small"
    assert named.with_file("/c.mp4") is named
    assert DecodeError("x").stage == "decode"
