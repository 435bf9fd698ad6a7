"""What tests share: the instruction sets of this machine."""
import pytest

from ingot.runtime.host import LEVELS, host_target


@pytest.fixture(scope="session")
def host_isas() -> tuple[str, ...]:
    """The instruction sets this machine runs, widest first."""
    features = host_target(1).features
    return tuple(name for name, needs in LEVELS if needs <= features)
