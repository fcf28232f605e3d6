"""The training loop of Darts' BlockRNNModel, timed. Runs in the peers' environment; see `answering`."""

import logging
from typing import Any

import numpy as np
import torch
from answering import answer_orders
from clock import Clock
from darts import TimeSeries
from darts.models import BlockRNNModel

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)


def work(order: dict[str, Any]) -> dict[str, Any]:
    torch.set_num_threads(order["threads"])
    series = [TimeSeries.from_values(y_T.astype(np.float32)) for y_T in np.load(order["values"])]
    model = BlockRNNModel(
        input_chunk_length=order["input_size"],
        output_chunk_length=order["horizon"],
        model="LSTM",
        hidden_dim=order["hidden_size"],
        n_rnn_layers=1,
        batch_size=order["batch_size"],
        n_epochs=1000,
        loss_fn=torch.nn.L1Loss(),
        random_state=order["seed"],
        pl_trainer_kwargs={
            "max_steps": order["steps"],
            "accelerator": "cpu",
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "callbacks": [Clock()],
        },
    )
    model.fit(series)
    return {"seconds": Clock.seconds}


if __name__ == "__main__":
    answer_orders(work, ("darts",))
