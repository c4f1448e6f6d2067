"""`localnet`: a local Allora node in the foreground."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from cli.options import ParsedParam, setting_option
from forecastd.chain.networks import LOCAL_CHAIN_ID
from forecastd.clock import SystemClock
from forecastd.localnet.chain import ChainBlock, ChainConfig
from forecastd.localnet.faults import FAULTS, NodeFault
from forecastd.localnet.foreground import EndpointSpec, NodeStartup, run_node
from forecastd.localnet.store import delete_chain
from forecastd.localnet.topics import TopicSpec, parse_topic
from forecastd.settings import load_settings


def _list_faults(ctx: click.Context, param: click.Parameter, enabled: bool) -> None:
    """Print the table of faults and exit."""
    del param
    if not enabled or ctx.resilient_parsing:
        return
    console = Console(highlight=False)
    for title, is_endpoint_fault in (("Faults of an endpoint", True), ("Faults of the chain", False)):
        table = Table(box=None, title=title, title_justify="left", show_header=False, pad_edge=False)
        for name, kind in FAULTS.items():
            if kind.is_endpoint_fault is is_endpoint_fault:
                value = f"={kind.value:g}" if isinstance(kind.value, float) else f"={kind.value}" if kind.value else ""
                table.add_row(f"{name}{value}", kind.description + (f" ({kind.unit})" if kind.unit else ""))
        console.print(table)
        console.print()
    ctx.exit()


PORT_TYPE = click.IntRange(0, 65535)
GRPC_PORT, WEBSOCKET_PORT = 9090, 26657  # where allora_sdk's AlloraNetworkConfig.local() looks


@click.command(name="localnet")
@click.option("--port", type=PORT_TYPE, default=GRPC_PORT, show_default=True,
              help="gRPC port on 127.0.0.1; 0 selects a free one.")  # fmt: skip
@click.option("--ws-port", type=PORT_TYPE, default=WEBSOCKET_PORT, show_default=True,
              help="Websocket port; 0 selects a free one.")  # fmt: skip
@click.option("--rest-port", type=PORT_TYPE, default=None, help="Serve REST too, on this port; 0 selects a free one.")
@click.option(
    "--block-time", type=click.FloatRange(min=0.01), default=5.0, show_default=True, help="Seconds per block."
)
@click.option("--topic", "topics", type=ParsedParam("topic", parse_topic), multiple=True, metavar="ID[:EPOCH[:WINDOW]]",
              help="A topic, lengths in blocks; may be repeated. Default: those of the stored chain; "
              "67:720:720 for a new one.")  # fmt: skip
@click.option("--emissions", type=click.Choice(["v9", "v10"]), default="v10", show_default=True,
              help="Testnet uses v10, mainnet v9.")  # fmt: skip
@click.option("--seal-at-once/--seal-on-time", default=False, show_default=True,
              help="Make a block as soon as a transaction arrives, or only when the block is due.")  # fmt: skip
@click.option("--faucet/--no-faucet", default=True, show_default=True, help="Fund an address when it first appears.")
@click.option("--fault", "faults", type=ParsedParam("fault", NodeFault.parse), multiple=True, metavar="FAULT",
              help="A fault of the main endpoint or of the chain, NAME[=VALUE][@first=N]...; may be repeated.")  # fmt: skip
@click.option("--endpoint", "endpoints", type=ParsedParam("endpoint", EndpointSpec.parse), multiple=True,
              metavar="[rest:]FAULT[,FAULT...]",
              help="Add an endpoint on a free port with these faults, or `ok` for none; may be repeated.")  # fmt: skip
@click.option("--faults", "list_faults", is_flag=True, is_eager=True, expose_value=False, callback=_list_faults,
              help="List the faults and exit.")  # fmt: skip
@setting_option("--state-dir")
@click.option("--reset", is_flag=True, help="Delete the stored chain and start a new one.")
@click.pass_obj
def command(
    shared: dict[str, Any] | None, /, topics: tuple[TopicSpec, ...], emissions: Any, block_time: float, faucet: bool,
    state_dir: Path | None, reset: bool, **options: Any,
) -> None:  # fmt: skip
    """Run a local Allora node in the foreground, until Ctrl-C.

    It serves the gRPC and websocket interfaces of a real node on loopback, verifies what a real chain verifies, and stores
    its chain in the state directory. A cycle with --network local discovers it.
    """
    console = Console(highlight=False)
    state = load_settings(**{**(shared or {}), **({"state_dir": state_dir} if state_dir else {})}).state_path
    if reset and delete_chain(state, LOCAL_CHAIN_ID):
        console.print("Deleted the old chain.")
    rules = ChainConfig(version=emissions, topics=topics or None, block_time=block_time, faucet=faucet)
    run_node(state, SystemClock(), rules, on_started=lambda node: _print_banner(console, node, rules.block_time),
             on_block=lambda block: _print_block(console, block), **options)  # fmt: skip
    console.print("stopped")


def _print_banner(console: Console, node: NodeStartup, block_time: float | None) -> None:
    state = node.state
    console.print(f"chain      {state.chain_id}, height {state.height}, one block every {block_time:g} s")
    console.print(f"emissions  {state.version}")
    console.print(f"gRPC       {node.endpoint}")
    console.print(f"websocket  {node.websocket}")
    if node.rest is not None:
        console.print(f"REST       {node.rest}")
    for fault in node.faults:
        console.print(f"fault      {fault}", markup=False)
    for url, faults in node.extra_endpoints:
        console.print(f"endpoint   {url} ({faults})", soft_wrap=True, markup=False)
    for topic in state.topics:
        window = f"epoch {topic.epoch_length} blocks, window {topic.worker_submission_window}"
        console.print(f"topic      {topic.id}: {window}")
    console.print("Ctrl-C stops the node; the chain stays on disk.")


def _print_block(console: Console, block: ChainBlock) -> None:
    """Print one line per transaction of the block."""
    for record in block.records:
        description = f"{record.kind} topic {record.topic_id}" + (
            f" nonce {record.nonce}" if record.kind == "payload" else ""
        )
        result = "ok" if record.code == 0 else f"{record.codespace} {record.code}: {record.log}"
        console.print(
            f"{record.height:>8}  {record.sender[:9]}..{record.sender[-4:]}  {description}  {result}", markup=False
        )
