"""MLServer: the model that gives back what it is given."""
from mlserver import MLModel
from mlserver.types import InferenceRequest, InferenceResponse, ResponseOutput


class Noop(MLModel):
    """Outputs are inputs."""

    async def load(self) -> bool:
        """Nothing to load."""
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The first input again."""
        x = payload.inputs[0]
        return InferenceResponse(model_name=self.name, outputs=[
            ResponseOutput(name="y", shape=x.shape, datatype=x.datatype, data=x.data)])
