"""What every server of the comparison runs but Hindcast, which runs its own network around the same LSTM.

An LSTM of 64 units over 96 values and a linear layer to 24 steps of 13 quantiles, of which five columns are
answered as Hindcast does. From its seed, so that each server can be checked. It needs torch alone, for it is
imported in the peers' environment too.
"""

import torch
from torch import Tensor, nn

INPUT_SIZE, HORIZON, HIDDEN, QUANTILES = 96, 24, 64, 13
COLUMNS = {"mean": 6, "lo-80": 2, "hi-80": 10, "lo-95": 0, "hi-95": 12}


class BareNetwork(nn.Module):
    """Histories `(B, L)` in, columns `(B, 5, H)` out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.lstm = nn.LSTM(1, HIDDEN, batch_first=True)
        self.head = nn.Linear(HIDDEN, HORIZON * QUANTILES)
        self.eval().requires_grad_(requires_grad=False)

    def forward(self, y_BL: Tensor) -> Tensor:
        level_B1 = y_BL[:, -1:]
        hidden_BLD, _ = self.lstm((y_BL - level_B1)[..., None])
        quantiles_BHQ: Tensor = (
            self.head(hidden_BLD[:, -1]).unflatten(-1, (HORIZON, QUANTILES)) + level_B1[..., None]
        )
        return quantiles_BHQ[..., list(COLUMNS.values())].transpose(1, 2)


@torch.inference_mode()
def forecast(network: BareNetwork, histories: list[list[float]]) -> list[dict[str, list[float]]]:
    """Return the columns of each history."""
    columns_BCH = network(torch.tensor(histories, dtype=torch.float32)).tolist()
    return [dict(zip(COLUMNS, columns, strict=True)) for columns in columns_BCH]
