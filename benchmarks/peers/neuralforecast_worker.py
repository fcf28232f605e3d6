"""neuralforecast's own training loop, timed. Runs in the peers' environment; see `answering`."""

import logging
from typing import Any

import numpy as np
import pandas as pd
import torch
from answering import answer_orders
from clock import Clock
from neuralforecast import NeuralForecast
from neuralforecast.losses.pytorch import MAE
from neuralforecast.models import LSTM, MLP

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def build(order: dict[str, Any]) -> LSTM | MLP:
    common: dict[str, Any] = {
        "h": order["horizon"],
        "input_size": order["input_size"],
        "max_steps": order["steps"],
        "windows_batch_size": order["batch_size"],
        "loss": MAE(),
        "random_seed": order["seed"],
        "accelerator": "cpu",
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
        "logger": False,
        "callbacks": [Clock()],
        "alias": "model",
    }
    size = order["hidden_size"]
    if order["kind"] == "mlp":
        return MLP(num_layers=2, hidden_size=size, **common)
    return LSTM(encoder_n_layers=1, encoder_hidden_size=size, decoder_layers=1, decoder_hidden_size=size, **common)


def work(order: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(order["threads"])
    y_NT = np.load(order["values"])
    n, t = y_NT.shape
    ds = pd.date_range("2020-01-01", periods=t, freq="h")
    frame = pd.DataFrame(
        {"unique_id": np.repeat([f"s{i}" for i in range(n)], t), "ds": np.tile(ds, n), "y": y_NT.ravel()}
    )
    forecaster = NeuralForecast(models=[build(order)], freq="h")
    if not order["validation_size"]:
        forecaster.fit(frame)
        return {"seconds": Clock.seconds}
    said = forecaster.cross_validation(
        frame, n_windows=None, test_size=order["validation_size"], step_size=order["validation_step"]
    )
    (name,) = set(said.columns) - {"unique_id", "ds", "cutoff", "y"}
    error = float((said[name] - said["y"]).abs().mean())
    return {"seconds": Clock.seconds, "mae": error, "n_forecasts": len(said) // order["horizon"]}


if __name__ == "__main__":
    answer_orders(work, ("neuralforecast", "pytorch-lightning"))
