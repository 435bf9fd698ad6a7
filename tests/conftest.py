"""What tests share: the instruction sets of this machine."""
from collections.abc import Generator

import pytest

from ingot.errors import UnsupportedError
from ingot.runtime.host import LEVELS, host_target


@pytest.fixture(scope="session")
def host_isas() -> tuple[str, ...]:
    """The instruction sets this machine runs, widest first."""
    features = host_target(1).features
    return tuple(name for name, needs in LEVELS if needs <= features)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None, None, None]:
    """A test that asks for an instruction set this machine lacks is skipped, with that as its reason."""
    try:
        return (yield)
    except UnsupportedError as error:
        if str(error).startswith("this machine has no "):     # nothing to run on: its own code would end the process
            pytest.skip(str(error).splitlines()[0])
        raise
