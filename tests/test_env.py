"""The environment is read in one place, strictly."""
from dataclasses import fields
from pathlib import Path

import pytest

from ingot.env import _PARSE, Env, cache_folder, read
from ingot.errors import IngotError


def test_nothing_set_gives_the_defaults():
    assert read({"PATH": "/bin", "INGOTS": "5"}) == Env()


def test_a_typo_is_an_error_with_the_nearest_name():
    with pytest.raises(IngotError, match="did you mean INGOT_DUMP"):
        read({"INGOT_DMUP": "x"})


def test_an_unknown_name_near_to_nothing_lists_what_is_known():
    with pytest.raises(IngotError, match="known: INGOT_DUMP, INGOT_LOG"):
        read({"INGOT_QQQQQQQQQ": "x"})


@pytest.mark.parametrize(("key", "value"), [("INGOT_THREADS", "two"), ("INGOT_THREADS", "-1"), ("INGOT_LOG", "loud")])
def test_a_bad_value_says_what_to_write(key, value):
    with pytest.raises(IngotError, match="mend:  write "):
        read({key: value})


def test_values_are_typed():
    assert read({"INGOT_THREADS": "3", "INGOT_DUMP": "d", "INGOT_LOG": "info"}) == Env(dump="d", log="info", threads=3)


def test_every_field_has_a_parser():
    assert {f.name for f in fields(Env)} == set(_PARSE)


def test_the_cache_folder_follows_the_variable_then_xdg_then_home():
    assert cache_folder({"INGOT_CACHE": "/a"}) == Path("/a")
    assert cache_folder({"XDG_CACHE_HOME": "/b", "HOME": "/h"}) == Path("/b/ingot")
    assert cache_folder({"HOME": "/h"}) == Path("/h/.cache/ingot")
