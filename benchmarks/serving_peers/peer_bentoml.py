"""BentoML: the model that gives back what it is given."""
import bentoml
import numpy as np


@bentoml.service
class Noop:
    """Outputs are inputs."""

    @bentoml.api
    def infer(self, x: np.ndarray) -> np.ndarray:
        """The input again."""
        return x
