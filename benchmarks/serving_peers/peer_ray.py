"""Ray Serve: the model that gives back what it is given."""
import sys
import time
from typing import Any

from ray import serve
from starlette.requests import Request


@serve.deployment
class Noop:
    """Outputs are inputs."""

    async def __call__(self, request: Request) -> Any:
        """The input again."""
        return await request.json()


if __name__ == "__main__":
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Noop.bind())
    while True:
        time.sleep(60)
