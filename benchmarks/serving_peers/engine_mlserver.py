"""MLServer: an engine in batches. It joins tensors of one width, so rows come padded to the longest there is."""
import numpy as np
from engine_session import Embedder
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Engine(MLModel):
    """Token ids to an embedding."""

    async def load(self) -> bool:
        """Load the engine."""
        self.embed = Embedder()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One batch: rows end at their zeros."""
        ids = NumpyCodec.decode_input(payload.inputs[0])
        rows = [row[:max(1, np.count_nonzero(row))].tolist() for row in ids]
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("embedding",
                                                                                         self.embed(rows))])
