import jaxtyping
import pytest


@pytest.fixture
def unchecked():
    """Runs a test as production runs, without the run-time type checks, to see what our own checks say."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
