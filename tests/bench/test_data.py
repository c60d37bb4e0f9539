"""Data sets are what their packages hold."""

from __future__ import annotations

import importlib.util

import numpy as np

from earmark.bench import data


def test_the_digits_are_those_of_sklearn_read_either_way(monkeypatch):
    from sklearn.datasets import load_digits

    asked = load_digits()
    for hidden in (False, True):
        if hidden:
            monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        images, target = data._digits_of_sklearn()
        assert images.dtype == asked.images.dtype
        assert np.array_equal(images, asked.images)
        assert np.array_equal(target, asked.target)
