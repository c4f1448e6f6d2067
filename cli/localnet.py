"""`localnet`: a local Allora node in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console

    from forecastd.localnet.chain import Block
    from forecastd.localnet.foreground import Started
    from forecastd.localnet.topics import TopicSpec


class Topic(click.ParamType[Any]):
    """`ID[:EPOCH[:WINDOW]]`."""

    name = "topic"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        from forecastd.localnet.topics import parse_topic

        try:
            return parse_topic(value)
        except ValueError as error:
            self.fail(f"{error}.", param, ctx)


PORT = click.IntRange(0, 65535)


@click.command(name="localnet")
@click.option("--port", type=PORT, default=9090, show_default=True, help="gRPC port on 127.0.0.1; 0 takes a free one.")
@click.option("--ws-port", type=PORT, default=26657, show_default=True, help="Websocket port; 0 takes a free one.")
@click.option("--block-time", type=click.FloatRange(min=0.01), default=5.0, show_default=True, help="Seconds a block.")
@click.option("--topic", "topics", type=Topic(), multiple=True, metavar="ID[:EPOCH[:WINDOW]]",
              help="A topic, lengths in blocks; may be given again. Default: those it has, 67:720:720 at first.")  # fmt: skip
@click.option("--emissions", type=click.Choice(["v9", "v10"]), default="v10", show_default=True,
              help="v10 is what testnet speaks, v9 mainnet.")  # fmt: skip
@click.option("--seal-at-once/--seal-on-time", default=False, show_default=True,
              help="Make a block as soon as a transaction arrives, or when it is due.")  # fmt: skip
@click.option("--faucet/--no-faucet", default=True, show_default=True, help="Fund an address when it is first seen.")
@click.option("--state-dir", type=click.Path(path_type=Path), metavar="DIR", help="Where state is kept.  [STATE_DIR]")
@click.option("--reset", is_flag=True, help="Forget the chain so far and begin a new one.")
@click.pass_obj
def command(
    shared: dict[str, Any] | None, /, topics: tuple[TopicSpec, ...], emissions: Any, block_time: float, faucet: bool,
    state_dir: Path | None, reset: bool, **ports: Any,
) -> None:  # fmt: skip
    """Run a local Allora node in the foreground, until Ctrl-C.

    It speaks a real node's gRPC and websocket on loopback, verifies what a real chain verifies, and keeps its chain under
    the state directory. A cycle with --network local finds it by itself.
    """
    from rich.console import Console

    from forecastd.chain.networks import LOCAL_CHAIN_ID
    from forecastd.clock import SystemClock
    from forecastd.localnet.chain import Rules
    from forecastd.localnet.foreground import run_node
    from forecastd.localnet.store import delete_chain
    from forecastd.settings import load_settings

    console = Console(highlight=False)
    state = load_settings(**{**(shared or {}), **({"state_dir": state_dir} if state_dir else {})}).state
    if reset and delete_chain(state, LOCAL_CHAIN_ID):
        console.print("The old chain is deleted.")
    rules = Rules(version=emissions, topics=topics or None, block_time=block_time, faucet=faucet)
    run_node(state, SystemClock(), rules, started=lambda told: _banner(console, told, rules.block_time),
             block_made=lambda block: _lines(console, block), **ports)  # fmt: skip
    console.print("stopped")


def _banner(console: Console, told: Started, block_time: float | None) -> None:
    state = told.state
    console.print(f"chain      {state.chain_id}, height {state.height}, a block every {block_time:g} s")
    console.print(f"emissions  {state.version}")
    console.print(f"gRPC       {told.endpoint}")
    console.print(f"websocket  {told.websocket}")
    for topic in state.topics:
        window = f"epoch {topic.epoch_length} blocks, window {topic.worker_submission_window}"
        console.print(f"topic      {topic.id}: {window}")
    console.print("Ctrl-C stops it; the chain is kept.")


def _lines(console: Console, block: Block) -> None:
    """One line a transaction; a block without any is silent."""
    for one in block.records:
        what = f"{one.kind} topic {one.topic_id}" + (f" nonce {one.nonce}" if one.kind == "payload" else "")
        result = "ok" if one.code == 0 else f"{one.codespace} {one.code}: {one.log}"
        console.print(f"{one.height:>8}  {one.sender[:9]}..{one.sender[-4:]}  {what}  {result}", markup=False)
