"""Labels from scores: the class with the highest, where there are several to choose from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from earmark.errors import HostError


def top(scores: NDArray[Any]) -> NDArray[np.int64]:  # Any: any real type
    """Return the labels of the highest scores; a sample with NaN gets -1.

    Args:
        scores: (samples, classes).

    Raises:
        HostError: There is one score a sample, so that every label would be 0.

    Example:
        >>> top(np.array([[0.1, 0.9], [np.nan, 0.0]])).tolist()
        [1, -1]
    """
    need_classes(scores.shape)
    values = scores.astype(np.float64)
    bad = np.isnan(values).any(axis=1)
    best: NDArray[np.int64] = np.where(np.isnan(values), -np.inf, values).argmax(axis=1)
    best[bad] = -1
    return best


def need_classes(shape: Sequence[int], least: int = 2) -> None:
    """Refuse scores that cannot tell so many classes apart.

    Args:
        shape: Shape of the scores.
        least: Number of classes.

    Raises:
        HostError: They are no (samples, classes) scores of that many classes.

    Example:
        >>> need_classes((5, 2))
        >>> need_classes((5, 1))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        earmark.errors.HostError: E404  The model gives one score a sample, of shape (5, 1). ...
    """
    if len(shape) == 2 and shape[1] >= least:
        return
    wanted = f"(samples, classes) with {least} classes or more."
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        raise HostError(
            f"The model gives one score a sample, of shape {tuple(shape)}.",
            expected=wanted,
            hint="Give a `forward` that makes two scores of one logit z, such as "
            "torch.cat([-z, z], dim=1).",
        )
    raise HostError(
        f"The model's scores are of shape {tuple(shape)}.",
        expected=wanted,
        hint="Give a `forward` that returns such scores, or make a key for fewer classes.",
    )
