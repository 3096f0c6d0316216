"""Messages on a command line; old public names, which give the new object and warn at the line that uses them."""

import runpy
import sys
import types

import pytest

from probe import errors
from probe.analysis import RunOptions, TextConfig
from probe.errors import renamed


@pytest.fixture
def module(monkeypatch):
    made = types.ModuleType("a_room")
    made.total = 7
    monkeypatch.setitem(sys.modules, "a_room", made)
    made.__getattr__ = renamed("a_room", {"sum_of_all": "total"})
    return made


def test_an_old_name_gives_the_new_object_and_warns(module):
    with pytest.warns(DeprecationWarning, match=r"a_room\.sum_of_all was renamed .* use a_room\.total"):
        assert module.sum_of_all == 7
    with pytest.warns(DeprecationWarning, match="renamed"):
        from a_room import sum_of_all
    assert sum_of_all == 7


def test_a_name_that_moved_is_found_in_its_new_module(monkeypatch):
    for name in ("a_room", "a_room.closet"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    room, closet = sys.modules["a_room"], sys.modules["a_room.closet"]
    closet.shelf = 3
    room.__getattr__ = renamed("a_room", {"board": "closet.shelf", "plank": "a_room.closet.shelf"})
    for old in ("board", "plank"):
        with pytest.warns(DeprecationWarning, match=rf"a_room\.{old} was renamed .* use a_room\.closet\.shelf$"):
            assert getattr(room, old) == 3


def test_the_warning_points_at_the_line_that_uses_the_old_name(module):
    # read anew, without the tests' shape checks, which put a frame of their own around each function
    module.__getattr__ = runpy.run_path(errors.__file__)["renamed"]("a_room", {"sum_of_all": "total"})
    with pytest.warns(DeprecationWarning, match="renamed") as caught:
        _ = module.sum_of_all
    assert [warning.filename for warning in caught] == [__file__]


def test_a_new_name_does_not_warn_and_an_unknown_one_is_refused(module):
    assert module.total == 7
    with pytest.raises(AttributeError, match="'a_room' has no attribute 'nothing'"):
        _ = module.nothing
    assert not hasattr(module, "nothing")


def test_names_that_a_module_loads_on_first_use_are_still_found(module):
    lazily = {"later": 8, "newest": 9}
    module.__getattr__ = renamed("a_room", {"oldest": "newest"}, lazily.__getitem__)
    assert module.later == 8
    with pytest.warns(DeprecationWarning, match=r"use a_room\.newest"):
        assert module.oldest == 9


@pytest.mark.guards(
    "a message names arguments of Python",
    when="a sentence is said",
    gives="the options of the command line",
)
@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("layers must lie between 0 and 3", "layers must lie between 0 and 3"),
        ("window_length= must be at least 2", "--window-length must be at least 2"),
        ("pass window_length=64, or out='a b'", "pass --window-length 64, or --out a b"),
        ("pass fresh=True, or quiet=False.", "pass --fresh, or --no-quiet."),
        ("in the cell stream-seed=3 of my_seed=4", "in the cell stream-seed=3 of my_seed=4"),
        ("pass either layers= or device=", "pass either --layers or --device"),
        ("tokenizer= is no option", "tokenizer= is no option"),
    ],
)
def test_messages_say_options_as_they_are_typed(said, typed):
    assert errors.as_typed(said, (TextConfig, RunOptions)) == typed
    assert errors.as_typed(said, ()) == said
