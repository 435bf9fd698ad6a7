"""LitServe: an engine in batches."""
import os
import sys
from typing import Any

import litserve
from engine_session import model


class Engine(litserve.LitAPI):
    """Token ids to an embedding."""

    def setup(self, device: str) -> None:
        """Load the engine."""
        self.run = model()

    def decode_request(self, request: dict[str, Any]) -> Any:
        """The token ids, or the image."""
        return request["x"][0]

    def batch(self, inputs: list[Any]) -> list[Any]:
        """Rows of different lengths stay a list."""
        return inputs

    def predict(self, x: list[Any]) -> Any:
        """One batch."""
        return self.run(x)

    def unbatch(self, output: Any) -> list[Any]:
        """Row by row."""
        return list(output)

    def encode_response(self, output: Any) -> dict[str, Any]:
        """The embedding, or the scores."""
        return {"embedding": output.tolist()}


if __name__ == "__main__":
    api = Engine(max_batch_size=int(os.environ["BATCH"]), batch_timeout=float(os.environ["DELAY"]) / 1e3)
    litserve.LitServer(api, accelerator="cpu").run(port=int(sys.argv[1]), generate_client_file=False,
                                                   log_level="warning")
