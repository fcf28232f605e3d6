"""`mlflow models serve`: `serving_mlflow.py PORT`. Saves a model as MLflow has them, and serves it as MLflow does.

Runs in the peers' environment, whose packages are the model's: no other environment is made for it.
"""

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import torch
from serving_network import BareNetwork, forecast


class Forecasts(mlflow.pyfunc.PythonModel):
    def load_context(self, context: Any) -> None:  # noqa: ANN401, ARG002
        torch.set_num_threads(1)
        self.network = BareNetwork()

    def predict(self, context: Any, model_input: Any, params: Any = None) -> list[dict[str, Any]]:  # noqa: ANN401, ARG002
        return forecast(self.network, model_input.tolist())


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp(dir=os.environ["SERVING_FOLDER"]))
    here = Path(__file__).parent
    mlflow.pyfunc.save_model(
        folder / "model",
        python_model=Forecasts(),
        pip_requirements=[],
        code_paths=[str(here / "serving_network.py")],
    )
    command = ["models", "serve", "-m", str(folder / "model"), "-p", sys.argv[1], "-h", "127.0.0.1"]
    # MLflow finds uvicorn by its name.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.execv(  # noqa: S606
        sys.executable, [sys.executable, "-m", "mlflow", *command, "--env-manager", "local", "--workers", "1"]
    )
