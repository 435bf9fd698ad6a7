"""BentoML: an engine in batches."""
import os

import bentoml
from engine_session import Embedder


@bentoml.service(traffic={"timeout": 60})
class Engine:
    """Token ids to an embedding."""

    def __init__(self) -> None:
        self.embed = Embedder()

    @bentoml.api(batchable=True, max_batch_size=int(os.environ["BATCH"]), max_latency_ms=int(os.environ["GOAL"]))
    def infer(self, x: list[list[int]]) -> list[list[float]]:
        """One batch."""
        found: list[list[float]] = self.embed(x).tolist()
        return found
