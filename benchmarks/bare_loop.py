"""The ceiling: the plainest torch loop there can be. Gather, forward, loss, Adam; no scaling, no masks.

N series, T steps, B batch, L input_size, S steps forecasts are made at, H horizon, D hidden.
"""

from time import perf_counter
from typing import Literal

import torch
from torch import Tensor, nn

from forecasting.panel import FloatArray

Kind = Literal["mlp", "lstm windowed", "lstm every step"]


class LastStep(nn.Module):
    """An LSTM decoded to the horizon after the last step, or after every step but the first `skip`."""

    def __init__(self, hidden_size: int, horizon: int, skip: int) -> None:
        super().__init__()
        self.skip = skip
        self.lstm = nn.LSTM(1, hidden_size, batch_first=True)
        self.head = nn.Linear(hidden_size, horizon)

    def forward(self, x_BL: Tensor) -> Tensor:
        hidden_BLD, _ = self.lstm(x_BL[..., None])
        forecast_BSH: Tensor = self.head(hidden_BLD[:, self.skip :])
        return forecast_BSH


def build_bare_network(kind: Kind, input_size: int, horizon: int, hidden_size: int, skip: int) -> nn.Module:
    """Return the network of a case: what the peers and the product train, less all that is around it."""
    if kind == "mlp":
        return nn.Sequential(
            nn.Linear(input_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, horizon),
            nn.Unflatten(1, (1, horizon)),
        )
    return LastStep(hidden_size, horizon, input_size - 1 if kind == "lstm windowed" else skip)


def train_bare(
    network: nn.Module, y_NT: FloatArray, input_size: int, horizon: int, batch: int, steps: int
) -> float:
    """Train for some steps and return the seconds they took."""
    y = torch.tensor(y_NT, dtype=torch.float32).flatten()
    n, t = y_NT.shape
    length = input_size + horizon
    first_M = (torch.arange(n)[:, None] * t + torch.arange(t - length + 1)).flatten()
    offsets_L = torch.arange(length)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    started = perf_counter()
    for _ in range(steps):
        window_BL = y[first_M[torch.randint(len(first_M), (batch,))][:, None] + offsets_L]
        forecast_BSH = network(window_BL[:, :input_size])
        target_BSH = window_BL[:, 1:].unfold(1, horizon, 1)[:, -forecast_BSH.shape[1] :]
        loss = (forecast_BSH - target_BSH).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return perf_counter() - started
