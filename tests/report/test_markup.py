from __future__ import annotations

import doctest
import importlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from earmark.report.markup import Markup, join, name, shorten, tag, text, visible


@pytest.mark.parametrize(
    "module",
    ["markup", "numbers", "labels", "plane", "archive", "page", "battery", "strip", "timeline"],
)
def test_the_examples_run(module):
    found = doctest.testmod(importlib.import_module(f"earmark.report.{module}"))
    assert found.failed == 0


@given(st.text())
def test_text_never_lets_a_tag_or_attribute_end(value):
    made = text(value)
    assert not set(made) & set("<>\"'")
    assert text(made) is made


@given(st.text())
def test_hidden_characters_become_visible(value):
    import unicodedata

    assert all(
        unicodedata.category(c) not in {"Cc", "Cf", "Cs", "Zl", "Zp"} for c in visible(value)
    )
    visible(value).encode()


def test_tag_escapes_what_is_no_markup_and_keeps_what_is():
    assert tag("p", "<b>", Markup("<i>")) == "<p>&lt;b&gt;<i></p>"
    assert tag("p", title='"x') == '<p title="&quot;x"></p>'
    assert tag("line", x1=1.0, y1=2.345678, class_=None) == '<line x1="1" y1="2.35"/>'
    assert tag("meta", charset="utf-8") == '<meta charset="utf-8">'
    assert join("<", Markup("<br>")) == "&lt;<br>"
    assert isinstance(Markup("a") + "<", Markup)
    assert Markup("a") + "<" == "a&lt;"


def test_an_attribute_name_cannot_be_smuggled_in():
    with pytest.raises(ValueError, match="attribute"):
        tag("p", **{'x" onload="y': "z"})


def test_names_are_isolated_and_cut():
    assert name("a" * 300, longest=10) == "<bdi>aaaaaaaaa…</bdi>"
    assert shorten("short", 10) == "short"
