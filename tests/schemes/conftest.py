"""What tests of several schemes share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from earmark import training


@pytest.fixture
def interrupted_before(monkeypatch) -> Callable[[int], AbstractContextManager[None]]:
    """Return a block that expects a training in it to be interrupted before an epoch."""

    @contextmanager
    def block(last: int) -> Iterator[None]:
        run_epoch = training._Loop.epoch

        def interrupted(loop, epoch, *rest):
            if epoch == last:
                raise KeyboardInterrupt
            run_epoch(loop, epoch, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(training._Loop, "epoch", interrupted)
            with pytest.raises(KeyboardInterrupt):
                yield

    return block
