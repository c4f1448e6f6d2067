"""One frozen `Settings` of groups, built at the command line: defaults < `.env` < environment < options.

A field reads one variable: the name of the field in upper case, with the group's prefix, or the name in its
`variable(...)`. Each variable is documented in `.env.example`; a test compares the two.

Invariant: nothing else in the project reads the environment.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from dotenv import dotenv_values
from platformdirs import user_state_path
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
)

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


def _split_list(value: object) -> object:
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


def _normalize_symbol(value: str) -> str:
    """Normalize `BTC/USD` and `BTC-USD` to `btcusd`."""
    text = re.sub(r"[\s/_:.-]", "", value).lower()
    if not re.fullmatch(r"[a-z0-9]+", text):
        raise ValueError("must be letters and digits, such as btcusd")
    return text


def _require_absolute(value: Path) -> Path:
    """Require an absolute path: files in it are used as secrets without a check of their mode."""
    if not value.is_absolute():
        raise ValueError("must be an absolute path; systemd sets it, leave it unset elsewhere")
    return value


def _to_utc(value: datetime) -> datetime:
    """Convert to UTC; a time without an offset is UTC already."""
    return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


TextList = Annotated[tuple[str, ...], BeforeValidator(_split_list)]
Symbol = Annotated[str, AfterValidator(_normalize_symbol)]
AbsolutePath = Annotated[Path, AfterValidator(_require_absolute)]
UtcTime = Annotated[datetime, AfterValidator(_to_utc)]


class SettingsGroup(BaseModel):
    """Settings that belong together, read from the variables of any. Frozen; secrets print as asterisks."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @field_validator("*", mode="before")
    @classmethod
    def _refuse_nul(cls, value: object) -> object:
        if isinstance(value, str) and "\0" in value:
            raise ValueError("contains a NUL byte")
        return value


def variable(name: str, default: Any, **limits: Any) -> Any:
    """A field whose variable has another name than the field."""
    return Field(default=default, validation_alias=name.lower(), **limits)


class ChainSettings(SettingsGroup):
    """The network, and its nodes."""

    network: NetworkName = variable("ALLORA_NETWORK", "local")
    rpc_endpoints: TextList = ()
    event_endpoints: TextList = ()


class FeeSettings(SettingsGroup):
    """What a transaction may cost."""

    tier: FeeTier = variable("FEE_TIER", "standard")
    max_uallo: int | None = variable("MAX_FEE_UALLO", None, ge=0)


class WalletSettings(SettingsGroup):
    """The key that signs."""

    mnemonic: SecretStr | None = None
    mnemonic_file: Path | None = None
    address: str | None = variable("ALLORA_WALLET_ADDR", None)


class TopicSettings(SettingsGroup):
    """The topic to submit to, or the file with several."""

    id: int = variable("TOPIC_ID", 67, ge=1)
    horizon_hours: float | None = Field(default=None, gt=0)
    file: Path | None = variable("TOPICS_FILE", None)


class SourceSettings(SettingsGroup):
    """Where the candles come from."""

    name: str = variable("DATA_SOURCE", "sample")
    symbol: Symbol = "btcusd"
    tiingo_api_key: SecretStr | None = None
    tiingo_url: str = "https://api.tiingo.com"


class ModelSettings(SettingsGroup):
    """The market bundle, and the features that it gets."""

    bundle: Path | None = variable("MODEL", None)
    features: Path | None = None

    @property
    def features_path(self) -> Path:
        """The feature list: `FEATURES`, or the project's own `features.json`."""
        return self.features or DEFAULT_FEATURES


class SupervisionSettings(SettingsGroup):
    """The limits of the model's processes, in seconds but for the last three."""

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


class DaemonSettings(SettingsGroup):
    """When the daemon works, and what it reports."""

    submission_interval: int = Field(default=3600, ge=1, le=7 * 86_400)
    submission_deadline: UtcTime | None = None
    heartbeat_interval: Seconds = 3600.0
    health_port: int | None = Field(default=None, ge=0, le=65_535)


class AlertSettings(SettingsGroup):
    """Where alerts go."""

    model_config = ConfigDict(alias_generator="alert_{}".format)

    webhook: SecretStr | None = None  # such an address is a secret: anyone who knows it can post there
    command: str | None = None
    repeat_interval: Seconds = 3600.0

    def without_receivers(self) -> Self:
        """The same, but alerts go only to the log."""
        return self.model_copy(update={"webhook": None, "command": None})


class FileSettings(SettingsGroup):
    """The directories of state and logs, and the format of the log."""

    state_dir: Path | None = None
    log_dir: Path | None = None
    log_format: LogFormat = "text"


class SystemdSettings(SettingsGroup):
    """What systemd sets for a service."""

    credentials_directory: AbsolutePath | None = None  # for LoadCredential=
    state_directory: Path | None = None  # for StateDirectory=
    logs_directory: Path | None = None  # for LogsDirectory=
    notify_socket: str | None = None  # for Type=notify
    watchdog_usec: int | None = Field(default=None, ge=1)  # for WatchdogSec=
    watchdog_pid: int | None = Field(default=None, ge=1)  # with it


class FleetSettings(SettingsGroup):
    """The fleet's server."""

    model_config = ConfigDict(alias_generator="fleet_{}".format)

    host: str = "127.0.0.1"
    port: int = Field(default=8080, ge=0, le=65_535)
    step: int = Field(default=5, ge=1, le=3600)
    model: Path | None = None
    models_dir: Path | None = None
    engine: FleetEngine = "auto"
    api_keys: SecretStr | None = None
    api_keys_file: Path | None = None
    cors_origins: TextList = ()
    rate_limit: int = Field(default=6000, ge=0)
    max_body_mb: int = Field(default=8, ge=1, le=256)
    max_servers: int = Field(default=5000, ge=1, le=100_000)
    max_clock_skew: Seconds = 30.0
    history_hours: float = Field(default=48.0, gt=0, le=8784)
    history_mb: int = Field(default=2048, ge=16)
    thresholds: Path | None = None
    scrape: TextList = ()

    @property
    def model_path(self) -> Path:
        """The fleet bundle to run: `FLEET_MODEL`, or the embedded demo."""
        return self.model or DEMO_FLEET_MODEL


class Settings(BaseModel):
    """All settings of a user, in groups. Frozen; `load_settings` makes one."""

    model_config = ConfigDict(frozen=True)

    chain: ChainSettings
    fees: FeeSettings
    wallet: WalletSettings
    topic: TopicSettings
    source: SourceSettings
    model: ModelSettings
    supervision: SupervisionSettings
    daemon: DaemonSettings
    alerts: AlertSettings
    files: FileSettings
    systemd: SystemdSettings
    fleet: FleetSettings

    @classmethod
    def from_values(cls, values: Mapping[str, object]) -> Self:
        """The settings with these values, by variable name in lower case, and defaults for the rest.

        Raises:
            ValidationError: values are invalid; the last part of an error's `loc` is the name of the variable.
        """
        return cls.model_validate(dict.fromkeys(cls.model_fields, values))

    def values(self) -> dict[str, object]:
        """All values by variable name in lower case."""
        return {name: getattr(getattr(self, group), field) for name, group, field in _variables()}

    def with_values(self, **values: object) -> Self:
        """A copy with other values, by variable name in lower case. Raises ValidationError like `from_values`."""
        return self.from_values({**self.values(), **values})

    @property
    def state_path(self) -> Path:
        """The state directory: `STATE_DIR`, systemd's `STATE_DIRECTORY`, or the user's XDG state directory."""
        return self.files.state_dir or self.systemd.state_directory or user_state_path("forecastd", appauthor=False)

    @property
    def log_path(self) -> Path:
        """The log directory: `LOG_DIR`, systemd's `LOGS_DIRECTORY`, the checkout's `logs/`, or one below the state."""
        configured_path = self.files.log_dir or self.systemd.logs_directory
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
        if self.model.bundle is not None:
            return self.model.bundle
        if self.chain.network == "local":
            return DEMO_MODEL
        raise NeedsHuman(
            f"No model is set for {self.chain.network}; the embedded demo model is for the local network only. "
            "Train one with `forecastd train`, then pass --model PATH or set MODEL."
        )

    @property
    def secret_values(self) -> tuple[str, ...]:
        """Every secret that is set; used to redact output and logs."""
        return tuple(value.get_secret_value() for value in self.values().values() if isinstance(value, SecretStr))

    @property
    def fleet_state_path(self) -> Path:
        """The directory of the fleet's window, models and lock."""
        return self.state_path / "fleet"

    @property
    def fleet_models_path(self) -> Path:
        """The directory that holds the bundles that `/admin/reload-model` can load."""
        return self.fleet.models_dir or self.fleet_state_path / "models"


def _variables() -> Iterator[tuple[str, str, str]]:
    """Each variable's name in lower case, its group and its field."""
    for group, group_field in Settings.model_fields.items():
        for name, field in cast(type[SettingsGroup], group_field.annotation).model_fields.items():
            yield str(field.validation_alias or name), group, name


DEFAULTS = {name.upper(): value for name, value in Settings.from_values({}).values().items()}  # of every variable


def load_settings(**options: object) -> Settings:
    """Read the settings from the environment and `.env`; options that are not None take precedence.

    Raises:
        NeedsHuman: values are invalid, or a variable has its old name. The message names them all and shows no value
        (it may be a secret).
    """
    settings, errors = load_valid_settings(**options)
    if errors:
        details = "; ".join(f"{name}: {reason}" for name, reason in errors.items())
        raise NeedsHuman(f"Invalid settings: {details}. See .env.example for the allowed values.")
    return settings


def load_valid_settings(**options: object) -> tuple[Settings, dict[str, str]]:
    """Like `load_settings`, but replace invalid values by their defaults, and return why each variable is invalid.

    `options` have the names of the variables in lower case. A blank value counts as not set.

    Raises:
        NeedsHuman: `.env` cannot be read.
    """
    set_values: dict[str, object] = {}
    for source in (_read_env_file(), os.environ):
        set_values |= {name.lower(): value for name, value in source.items() if not _is_unset(value)}
    renamed = {
        old: f"it is now called {new}; rename it" for old, new in RENAMED_VARIABLES.items() if old.lower() in set_values
    }
    set_values |= {name: value for name, value in options.items() if not _is_unset(value)}
    try:
        return Settings.from_values(set_values), renamed
    except ValidationError as error:
        invalid = {str(part["loc"][1]): str(part["msg"]) for part in error.errors(include_input=False)}
    valid_values = {name: value for name, value in set_values.items() if name not in invalid}
    return Settings.from_values(valid_values), {name.upper(): reason for name, reason in invalid.items()} | renamed


def _is_unset(value: object) -> bool:
    return value is None or (isinstance(value, str) and not value.strip())


def _read_env_file() -> dict[str, str | None]:
    """The variables of `.env`, checked to be readable first: a named pipe would block. A directory is ignored."""
    if ENV_FILE.exists() and not ENV_FILE.is_dir():
        read_text_file(ENV_FILE, "The file", "Write it as UTF-8 text with one NAME=value per line.")
    return dotenv_values(ENV_FILE) if ENV_FILE.is_file() else {}


def variable_sources() -> dict[str, str]:
    """The names (not the values) of all variables that are set, in upper case, each with the source that wins."""
    sources = {name.upper(): str(ENV_FILE) for name in dotenv_values(ENV_FILE)} if ENV_FILE.is_file() else {}
    return sources | {name.upper(): "the environment" for name in os.environ}


def numeric_environment() -> dict[str, str]:
    """The environment variables of the numeric libraries, to pass on to a training process."""
    return {name: value for name, value in os.environ.items() if name.startswith(NUMERIC_PREFIXES)}
