"""Several topics and wallets in one process, from a `topics.toml`.

Each `[[topic]]` overrides some of the common settings. Network, endpoints and state are shared by all.

    [[topic]]
    id = 67
    model = "models/btc"
    source = "tiingo:btcusd"

    [[topic]]
    id = 69
    model = "models/eth"
    source = "exchange:kraken:ETH/USD"
    symbol = "ethusd"
    mnemonic_file = "/etc/forecastd/second.phrase"
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from forecastd.errors import NeedsHuman
from forecastd.runtime.files import read_text_file
from forecastd.settings import Settings

# The keys of a topic: its name in the file -> the setting it overrides, and its type.
TOPIC_KEYS: Mapping[str, tuple[str, type]] = {
    "id": ("topic_id", int),
    "model": ("model", str),
    "features": ("features", str),
    "source": ("data_source", str),
    "symbol": ("symbol", str),
    "mnemonic_file": ("mnemonic_file", str),
    "wallet": ("allora_wallet_addr", str),
    "horizon_hours": ("horizon_hours", int),
    "fee_tier": ("fee_tier", str),
    "max_fee_uallo": ("max_fee_uallo", int),
}
_PATH_KEYS = {"model", "features", "mnemonic_file"}


def load_topics(path: Path, common: Settings) -> list[Settings]:
    """The settings of each topic, in the file's order. Relative paths are relative to the file.

    Raises:
        NeedsHuman: the file cannot be read or is invalid; the message names the topic's position and the key.
    """
    text = read_text_file(path, "The file", "Check --topics.")
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise NeedsHuman(f"{path} is not valid TOML: {error}.") from error
    except RecursionError:
        raise NeedsHuman(f"{path} is nested too deeply. It must contain one [[topic]] or more.") from None
    tables = document.get("topic")
    if set(document) != {"topic"} or not isinstance(tables, list) or not tables:
        raise NeedsHuman(f"{path} must contain one [[topic]] or more, and nothing else at the top level.")
    topics = [_topic_settings(path, position, entry, common) for position, entry in enumerate(tables, start=1)]
    identities: set[tuple[object, ...]] = set()
    for position, settings in enumerate(topics, start=1):
        identity = (settings.topic.id, settings.wallet.mnemonic_file)
        if identity in identities:
            raise NeedsHuman(
                f"{path}, topic {position}: topic {settings.topic.id} appears twice with the same wallet. Remove one."
            )
        identities.add(identity)
    return topics


def _topic_settings(path: Path, position: int, entry: object, common: Settings) -> Settings:
    if not isinstance(entry, dict) or "id" not in entry:
        raise NeedsHuman(f"{path}, topic {position}: the key `id` is missing.")
    update: dict[str, Any] = {}
    for key, value in entry.items():
        if key not in TOPIC_KEYS:
            raise NeedsHuman(f"{path}, topic {position}: unknown key {key!r}. Valid keys: {', '.join(TOPIC_KEYS)}.")
        setting, value_type = TOPIC_KEYS[key]
        if not isinstance(value, value_type) or isinstance(value, bool):
            raise NeedsHuman(f"{path}, topic {position}: {key} must be {'a number' if value_type is int else 'text'}.")
        if isinstance(value, str) and not value.strip():
            continue  # an empty value counts as unset, as in the environment
        update[setting] = path.parent / str(value) if key in _PATH_KEYS else value
    if "mnemonic_file" in update:
        update["mnemonic"] = None  # the topic's own wallet replaces the common one
    try:
        return common.with_values(**update)
    except ValidationError as error:
        reasons = "; ".join(f"{detail['loc'][-1]}: {detail['msg']}" for detail in error.errors(include_input=False))
        raise NeedsHuman(f"{path}, topic {position}: {reasons}") from None
