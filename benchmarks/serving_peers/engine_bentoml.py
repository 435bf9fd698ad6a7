"""BentoML: an engine in batches."""
import os

import bentoml
from engine_session import model

Row = str if os.environ["MODEL"] == "images" else list[int]


@bentoml.service(traffic={"timeout": 60})
class Engine:
    """Rows of token ids to embeddings, or images to scores."""

    def __init__(self) -> None:
        self.run = model()

    @bentoml.api(batchable=True, max_batch_size=int(os.environ["BATCH"]),
                 max_latency_ms=int(os.environ["DELAY"]) or 60000)
    def infer(self, x: list[Row]) -> list[list[float]]:
        """One batch."""
        found: list[list[float]] = self.run(x).tolist()
        return found
