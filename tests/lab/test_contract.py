"""The fake guest keeps the contract; and the real one, when LAB_REAL says so."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from tests.lab.contract import Contract, TracingContract
from tests.lab.fake_guest import FakeMaker

if TYPE_CHECKING:
    from collections.abc import Callable

    from lab.seam import Maker


class TestFake(Contract):
    """The fake."""

    @pytest.fixture
    def maker(self) -> FakeMaker:
        """Of the fakes."""
        return FakeMaker()

    @pytest.fixture
    def now_ns(self, maker: FakeMaker) -> Callable[[], int]:
        """The fake's."""
        return maker.clock.now_ns


# Not a test that is passed over: booting a guest takes minutes, and is asked for.
if "LAB_REAL" in os.environ:

    @pytest.mark.timeout(600)
    class TestReal(TracingContract):
        """A guest of qemu, from the lab's cache."""

        @pytest.fixture
        def maker(self) -> Maker:
            """Of the real ones."""
            from lab.__main__ import make_machines

            maker: Maker = make_machines()
            return maker

        @pytest.fixture
        def now_ns(self) -> Callable[[], int]:
            """The host's."""
            return time.monotonic_ns
