"""MLServer: an engine in batches. It joins tensors of one width, so rows come padded to the longest there is."""
import numpy as np
from engine_session import model
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Engine(MLModel):
    """Token ids to an embedding."""

    async def load(self) -> bool:
        """Load the engine."""
        self.run = model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One batch: rows end at their zeros; images are texts in base 64."""
        if payload.inputs[0].datatype == "BYTES":
            found = self.run(StringCodec.decode_input(payload.inputs[0]))
        else:
            ids = NumpyCodec.decode_input(payload.inputs[0])
            found = self.run([row[:max(1, np.count_nonzero(row))].tolist() for row in ids])
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("found", found)])
