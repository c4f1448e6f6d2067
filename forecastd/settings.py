"""One frozen `Settings`, built at the command line: defaults < `.env` < environment < options.

A field's name is its environment variable in lower case. Each one is documented in `.env.example`; a test compares the
two.

Invariant: nothing else in the project reads the environment.
"""

from __future__ import annotations

import json
import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from dotenv import dotenv_values
from platformdirs import user_state_path
from pydantic import Field, SecretStr, ValidationError, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from forecastd.errors import NeedsHuman
from forecastd.runtime.files import read_text_file

NetworkName = Literal["local", "testnet", "mainnet"]
FeeTier = Literal["eco", "standard", "priority"]
LogFormat = Literal["text", "json"]
FleetEngine = Literal["auto", "library", "fused", "stream", "onnx"]
Seconds = Annotated[float, Field(gt=0, le=86_400)]

ENV_FILE = Path(".env")  # in the working directory
# Variables of the numeric libraries: which GPUs, how many threads, where their files are. None is a secret.
NUMERIC_PREFIXES = ("CUDA_", "CUBLAS_", "CUDNN_", "NVIDIA_", "HIP_", "ROCR_", "HSA_", "OMP_", "KMP_", "GOMP_",
                    "MKL_", "OPENBLAS_", "TORCH_", "PYTORCH_", "LD_LIBRARY_PATH", "TMPDIR")  # fmt: skip
PROJECT_ROOT = Path(__file__).resolve().parent.parent
DEMO_MODEL = PROJECT_ROOT / "models" / "demo"
DEFAULT_FEATURES = PROJECT_ROOT / "features.json"
DEMO_FLEET_MODEL = PROJECT_ROOT / "models" / "fleet-demo"
RENAMED_VARIABLES = {  # old name: new name; a variable that is still set under its old name is an error
    "SILENCE_TIMEOUT": "CHILD_HEARTBEAT_TIMEOUT",
    "ALERT_INTERVAL": "ALERT_REPEAT_INTERVAL",
    "FLEET_MAX_SKEW": "FLEET_MAX_CLOCK_SKEW",
}


class Settings(BaseSettings):
    """All settings of a user. Frozen; secrets are `SecretStr` and print as asterisks."""

    model_config = SettingsConfigDict(
        frozen=True, env_file=ENV_FILE, env_file_encoding="utf-8", env_ignore_empty=True, extra="ignore"
    )

    allora_network: NetworkName = "local"
    topic_id: int = Field(default=67, ge=1)
    mnemonic: SecretStr | None = None
    mnemonic_file: Path | None = None
    credentials_directory: Path | None = None  # set by systemd for LoadCredential=
    allora_wallet_addr: str | None = None
    tiingo_api_key: SecretStr | None = None
    tiingo_url: str = "https://api.tiingo.com"
    topics_file: Path | None = None
    horizon_hours: float | None = Field(default=None, gt=0)
    symbol: str = "btcusd"
    data_source: str = "sample"
    rpc_endpoints: Annotated[tuple[str, ...], NoDecode] = ()
    event_endpoints: Annotated[tuple[str, ...], NoDecode] = ()
    fee_tier: FeeTier = "standard"
    max_fee_uallo: int | None = Field(default=None, ge=0)
    model: Path | None = None
    features: Path | None = None
    state_dir: Path | None = None
    log_dir: Path | None = None
    state_directory: Path | None = None  # set by systemd for StateDirectory=
    logs_directory: Path | None = None  # set by systemd for LogsDirectory=

    starting_timeout: Seconds = 30.0
    loading_timeout: Seconds = 60.0
    warming_up_timeout: Seconds = 60.0
    predicting_timeout: Seconds = 30.0
    post_processing_timeout: Seconds = 10.0
    training_timeout: Seconds = 900.0
    stopping_timeout: Seconds = 5.0
    child_heartbeat_timeout: Seconds = 20.0
    job_attempts: int = Field(default=3, ge=1, le=100)
    standbys: int = Field(default=1, ge=0, le=16)
    model_memory_mb: int = Field(default=4096, ge=256)

    submission_interval: int = Field(default=3600, ge=1, le=7 * 86_400)
    submission_deadline: datetime | None = None
    heartbeat_interval: Seconds = 3600.0
    log_format: LogFormat = "text"
    health_port: int | None = Field(default=None, ge=0, le=65_535)
    alert_webhook: SecretStr | None = None  # such an address is a secret: anyone who knows it can post there
    alert_command: str | None = None
    alert_repeat_interval: Seconds = 3600.0
    notify_socket: str | None = None  # set by systemd for Type=notify
    watchdog_usec: int | None = Field(default=None, ge=1)  # set by systemd for WatchdogSec=
    watchdog_pid: int | None = Field(default=None, ge=1)  # set by systemd with it

    fleet_host: str = "127.0.0.1"
    fleet_port: int = Field(default=8080, ge=0, le=65_535)
    fleet_step: int = Field(default=5, ge=1, le=3600)
    fleet_model: Path | None = None
    fleet_models_dir: Path | None = None
    fleet_engine: FleetEngine = "auto"
    fleet_api_keys: SecretStr | None = None
    fleet_api_keys_file: Path | None = None
    fleet_cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    fleet_rate_limit: int = Field(default=6000, ge=0)
    fleet_max_body_mb: int = Field(default=8, ge=1, le=256)
    fleet_max_servers: int = Field(default=5000, ge=1, le=100_000)
    fleet_max_clock_skew: Seconds = 30.0
    fleet_history_hours: float = Field(default=48.0, gt=0, le=8784)
    fleet_history_mb: int = Field(default=2048, ge=16)
    fleet_thresholds: Path | None = None
    fleet_scrape: Annotated[tuple[str, ...], NoDecode] = ()

    @field_validator("rpc_endpoints", "event_endpoints", "fleet_cors_origins", "fleet_scrape", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        """Accept a comma-separated list or a JSON list."""
        if not isinstance(value, str):
            return value
        text = value.strip()
        if text.startswith("["):
            try:
                return json.loads(text)
            except json.JSONDecodeError as error:
                raise ValueError(f"not a JSON list: {error}") from error
            except RecursionError:
                raise ValueError("not a JSON list: it is nested too deeply") from None
        return [part.strip() for part in text.split(",") if part.strip()]

    @field_validator("symbol")
    @classmethod
    def _normalize_symbol(cls, value: str) -> str:
        """Normalize `BTC/USD` and `BTC-USD` to `btcusd`."""
        text = re.sub(r"[\s/_:.-]", "", value).lower()
        if not re.fullmatch(r"[a-z0-9]+", text):
            raise ValueError("must be letters and digits, such as btcusd")
        return text

    @field_validator("credentials_directory")
    @classmethod
    def _require_absolute(cls, value: Path | None) -> Path | None:
        """Require an absolute path: files in it are used as secrets without a check of their mode."""
        if value is not None and not value.is_absolute():
            raise ValueError("must be an absolute path; systemd sets it, leave it unset elsewhere")
        return value

    @field_validator("submission_deadline")
    @classmethod
    def _to_utc(cls, value: datetime | None) -> datetime | None:
        """Convert to UTC; a time without an offset is UTC already."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)

    @field_validator("*", mode="before")
    @classmethod
    def _empty_is_unset(cls, value: object, info: ValidationInfo) -> object:
        """Treat `NAME=` as not set, for every setting in `.env`, the environment and a topic of a topics.toml."""
        if isinstance(value, str) and "\0" in value:
            raise ValueError("contains a NUL byte")
        if _is_blank(value) and info.field_name is not None:
            return cls.model_fields[info.field_name].get_default()
        return value

    @property
    def state_path(self) -> Path:
        """The state directory: `STATE_DIR`, systemd's `STATE_DIRECTORY`, or the user's XDG state directory."""
        return self.state_dir or self.state_directory or user_state_path("forecastd", appauthor=False)

    @property
    def log_path(self) -> Path:
        """The log directory: `LOG_DIR`, systemd's `LOGS_DIRECTORY`, the checkout's `logs/`, or one below the state."""
        configured_path = self.log_dir or self.logs_directory
        if configured_path is not None:
            return configured_path
        checkout_logs = PROJECT_ROOT / "logs"
        in_checkout = checkout_logs.is_dir() and (PROJECT_ROOT / "pyproject.toml").is_file()
        return checkout_logs if in_checkout else self.state_path / "logs"

    @property
    def model_path(self) -> Path:
        """The market bundle to run. The embedded demo bundle is for the local network only.

        Raises:
            NeedsHuman: no model is set, and the network is not the local one.
        """
        if self.model is not None:
            return self.model
        if self.allora_network == "local":
            return DEMO_MODEL
        raise NeedsHuman(
            f"No model is set for {self.allora_network}; the embedded demo model is for the local network only. "
            "Train one with `forecastd train`, then pass --model PATH or set MODEL."
        )

    @property
    def secret_values(self) -> tuple[str, ...]:
        """Every secret that is set; used to redact output and logs."""
        values = (getattr(self, name) for name in type(self).model_fields)
        return tuple(value.get_secret_value() for value in values if isinstance(value, SecretStr))

    @property
    def features_path(self) -> Path:
        """The feature list: `FEATURES`, or the project's own `features.json`."""
        return self.features or DEFAULT_FEATURES

    @property
    def fleet_state_path(self) -> Path:
        """The directory of the fleet's window, models and lock."""
        return self.state_path / "fleet"

    @property
    def fleet_model_path(self) -> Path:
        """The fleet bundle to run: `FLEET_MODEL`, or the embedded demo."""
        return self.fleet_model or DEMO_FLEET_MODEL

    @property
    def fleet_models_path(self) -> Path:
        """The directory that holds the bundles that `/admin/reload-model` can load."""
        return self.fleet_models_dir or self.fleet_state_path / "models"


def load_settings(**options: object) -> Settings:
    """Read the settings from the environment and `.env`; options that are not None take precedence.

    Raises:
        NeedsHuman: values are invalid, or a variable has its old name. The message names them all and shows no value
        (it
            may be a secret).
    """
    settings, errors = load_valid_settings(**options)
    if errors:
        details = "; ".join(f"{name}: {reason}" for name, reason in errors.items())
        raise NeedsHuman(f"Invalid settings: {details}. See .env.example for the allowed values.")
    return settings


def load_valid_settings(**options: object) -> tuple[Settings, dict[str, str]]:
    """Like `load_settings`, but replace invalid values by their defaults, and return why each variable is invalid.

    Raises:
        NeedsHuman: `.env` cannot be read.
    """
    overrides = {name: value for name, value in options.items() if not (value is None or _is_blank(value))}
    _require_env_file()
    renamed = _renamed_variables()
    try:
        return Settings(**overrides), renamed  # type: ignore[arg-type]  # pydantic checks the types
    except ValidationError as error:
        errors = {str(part["loc"][0]).lower(): str(part["msg"]) for part in error.errors(include_input=False)}
    defaults = {name: Settings.model_fields[name].get_default() for name in errors}
    return Settings(**{**overrides, **defaults}), {name.upper(): reason for name, reason in errors.items()} | renamed


def _renamed_variables() -> dict[str, str]:
    """The variables that are set, not to an empty value, under an old name, each with the reason to show."""
    env_file = dotenv_values(ENV_FILE) if ENV_FILE.is_file() else {}
    values = {name.upper(): value for name, value in [*env_file.items(), *os.environ.items()] if value}
    return {old: f"it is now called {new}; rename it" for old, new in RENAMED_VARIABLES.items() if old in values}


def _is_blank(value: object) -> bool:
    return isinstance(value, str) and not value.strip()


def _require_env_file() -> None:
    """Check that `.env` is readable before it is read: a named pipe would block. A directory is ignored."""
    if ENV_FILE.exists() and not ENV_FILE.is_dir():
        read_text_file(ENV_FILE, "The file", "Write it as UTF-8 text with one NAME=value per line.")


def variable_sources() -> dict[str, str]:
    """The names (not the values) of all variables that are set, in upper case, each with the source that wins."""
    sources = {name.upper(): str(ENV_FILE) for name in dotenv_values(ENV_FILE)} if ENV_FILE.is_file() else {}
    return sources | {name.upper(): "the environment" for name in os.environ}


def numeric_environment() -> dict[str, str]:
    """The environment variables of the numeric libraries, to pass on to a training process."""
    return {name: value for name, value in os.environ.items() if name.startswith(NUMERIC_PREFIXES)}
