"""LitServe with batching: `serving_litserve.py PORT`. Runs in the peers' environment."""

import sys
from typing import Any

import litserve
import torch
from serving_network import BareNetwork, forecast


class Forecasts(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002  (LitServe's signature)
        torch.set_num_threads(1)
        self.network = BareNetwork()

    def decode_request(self, request: dict[str, Any]) -> list[float]:
        history: list[float] = request["series"][0]["y"]
        return history

    def batch(self, inputs: list[list[float]]) -> list[list[float]]:
        return inputs

    def predict(self, histories: list[Any]) -> list[Any]:
        return forecast(self.network, histories)

    def unbatch(self, output: list[Any]) -> list[Any]:
        return output

    def encode_response(self, output: dict[str, Any]) -> dict[str, Any]:
        return {"forecasts": [output]}


if __name__ == "__main__":
    server = litserve.LitServer(
        Forecasts(max_batch_size=64, batch_timeout=0.0), accelerator="cpu", workers_per_device=1, fast_queue=True
    )
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="error")
