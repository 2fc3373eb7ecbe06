"""A small recorded search that the store's tests share."""

import pytest
from recorded_search import make_events, make_started

from evomerge.store.events import Event, RunFinished, RunStarted


@pytest.fixture
def started() -> RunStarted:
    return make_started()


@pytest.fixture
def events() -> list[Event]:
    return [*make_events(), RunFinished("budget", 1_700_000_200.0)]
