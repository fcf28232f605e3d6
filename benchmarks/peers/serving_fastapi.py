"""Two FastAPI endpoints to compare with: `serving_fastapi.py empty|forward PORT`.

empty: takes the body as raw bytes, looks at none of them, and returns bytes made beforehand, of the size of a
forecast. forward: what one writes first, a typed body and a forward pass in FastAPI's thread pool.
"""

import json
import sys
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from pydantic import BaseModel
from serving_network import HORIZON, BareNetwork, forecast


class Series(BaseModel):
    unique_id: str
    start: str
    y: list[float]


class Asked(BaseModel):
    model: str
    h: int
    level: list[float]
    series: list[Series]


def build_empty() -> FastAPI:
    app = FastAPI()
    column = [20.123456789012345 + i for i in range(HORIZON)]
    ds = ["2024-01-05T00:00:00Z"] * HORIZON
    names = ("mean", "lo-80", "hi-80", "lo-95", "hi-95")
    said = json.dumps({"forecasts": [{"unique_id": "pump-1", "ds": ds, **dict.fromkeys(names, column)}]}).encode()

    @app.post("/forecast")
    async def empty(request: Request) -> Response:
        await request.body()
        return Response(said, media_type="application/json")

    return app


def build_forward() -> FastAPI:
    app, network = FastAPI(), BareNetwork()

    @app.post("/forecast")
    def forward(asked: Asked) -> dict[str, Any]:
        said = forecast(network, [one.y for one in asked.series])
        names = [one.unique_id for one in asked.series]
        return {"forecasts": [{"unique_id": name, **columns} for name, columns in zip(names, said, strict=True)]}

    return app


if __name__ == "__main__":
    torch.set_num_threads(1)
    app = {"empty": build_empty, "forward": build_forward}[sys.argv[1]]()
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error", access_log=False)
