"""LitServe: the model that gives back what it is given."""
import sys
from typing import Any

import litserve


class Noop(litserve.LitAPI):
    """Outputs are inputs."""

    def setup(self, device: str) -> None:
        """Nothing to load."""

    def decode_request(self, request: dict[str, Any]) -> Any:
        """The input."""
        return request["input"]

    def predict(self, x: Any) -> Any:
        """The input again."""
        return x

    def encode_response(self, output: Any) -> dict[str, Any]:
        """The output."""
        return {"output": output}


if __name__ == "__main__":
    litserve.LitServer(Noop(), accelerator="cpu").run(port=int(sys.argv[1]), generate_client_file=False,
                                                      log_level="warning")
