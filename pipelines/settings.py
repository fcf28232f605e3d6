"""Settings of the command line and the worker: from the environment (`HINDCAST_...`) or from flags."""

from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class PipelineSettings(BaseSettings):
    """Where training keeps its things. Every field can be set as `HINDCAST_<FIELD>`."""

    model_config = SettingsConfigDict(env_prefix="HINDCAST_", frozen=True, extra="ignore")

    home: Path = Field(Path(".hindcast"), description="Folder for everything Hindcast keeps on this machine.")
    tracking_uri: str = Field(
        "",
        description="MLflow store of runs: sqlite:///, postgresql:// or http://. Default: SQLite in home.",
    )
    registry_uri: str = Field(
        "", description="Model registry: an MLflow URI, or file:/// for a directory. Default: tracking_uri."
    )
    artifact_root: str = Field(
        "",
        description="Where artefacts of a database store go. Default: beside a SQLite file.",
    )
    scheduler_db: str = Field(
        "", description="Database of the scheduler (sqlite:/// or postgresql://). Default: SQLite in home."
    )
    ledger_url: str = Field(
        "",
        description="Ledger of observations and forecasts (sqlite:/// or postgresql://). Default: SQLite in home.",
    )
    mqtt_password: SecretStr | None = Field(None, description="Password of the user in the MQTT broker's address.")
    jobs_dir: Path = Field(Path("jobs"), description="Folder of the job files the worker schedules.")
    worker_id: str = Field(
        "worker",
        pattern=r"^[A-Za-z0-9_.-]{1,64}$",
        description="Name of this worker; workers that share a database differ in it.",
    )
    round_seconds: float = Field(
        60.0,
        ge=0,
        le=86_400,
        description="Seconds between two rounds of the worker in which it issues, scores and judges; 0 for none.",
    )
    retries: int = Field(
        8,
        ge=0,
        le=100,
        description="How often the worker tries a step again after a source or store did not answer.",
    )
    retry_seconds: float = Field(
        2.0,
        gt=0,
        le=3600,
        description="Seconds before the first of these tries; doubled every time, up to a minute.",
    )
    fan_out: int = Field(
        1, ge=0, le=1024, description="Tasks at a time: 1 in this process, more in processes; 0 is one a core."
    )
    ray_address: str = Field(
        "", description="Ray cluster that tasks run on (host:port, or auto); 1 in fan_out is then all its CPUs."
    )
    training_threads: int = Field(
        0,
        ge=0,
        le=1024,
        description="CPU threads training uses; 0 is one a core, and one in each of several processes.",
    )

    @property
    def tracking(self) -> str:
        """Return the tracking URI in force."""
        return self.tracking_uri or f"sqlite:///{self.home.absolute()}/mlflow.db"

    @property
    def registry(self) -> str:
        """Return the registry URI in force."""
        return self.registry_uri or self.tracking

    @property
    def scheduler(self) -> str:
        """Return the scheduler's database in force."""
        return self.scheduler_db or f"sqlite:///{self.home.absolute()}/scheduler.db"

    @property
    def ledger(self) -> str:
        """Return the ledger's database in force."""
        return self.ledger_url or f"sqlite:///{self.home.absolute()}/ledger.db"

    @property
    def in_turn(self) -> bool:
        """Return whether tasks run one after the other, in this process."""
        return self.fan_out == 1 and not self.ray_address

    @property
    def alone(self) -> "PipelineSettings":
        """Return the settings of a task that is one of many: they hold anywhere, and it fans out no further."""
        return self.model_copy(update={"home": self.home.absolute(), "fan_out": 1, "ray_address": ""})

    @property
    def cache_dir(self) -> Path:
        """Return the folder sources may keep fetched data in."""
        return self.home / "cache"
