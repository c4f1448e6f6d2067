"""The ledger's epochs and verdicts as lines that read well in 80 columns and in a log."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from cli.screen import console, row
from forecastd.audit import Audit, Verdict
from forecastd.bookkeeping import MEANING, Epoch
from forecastd.clock import iso

VALUE = 12  # characters of a value in a list; `show` has all of them


def print_list(found: list[Epoch]) -> None:
    """A line an epoch under a heading for each chain, topic and wallet, and its reason below it where there is one."""
    groups: dict[tuple[str, int, str], list[Epoch]] = {}
    for epoch in found:
        chain_id, topic_id, _, wallet = epoch.entry.key
        groups.setdefault((chain_id, topic_id, wallet), []).append(epoch)
    screen = console()
    for (chain_id, topic_id, wallet), epochs in groups.items():
        click.echo(f"{chain_id}, topic {topic_id}, {wallet}")
        click.echo(f"{'nonce':>10}  {'state':<8} {'value':<{VALUE}} {'tx':<8} {'height':>10} sigs  first (UTC)")
        for epoch in epochs:
            click.echo(_line(epoch))
            if epoch.entry.row.reason:
                screen.print(row("", Text(epoch.entry.row.reason)))


def _line(epoch: Epoch) -> str:
    entry, last = epoch.entry, epoch.last
    value = "" if entry.value is None else entry.value[:VALUE]
    height = "" if entry.row.height is None else entry.row.height
    tx = "" if last is None else last.tx_hash[:8]
    when = iso(entry.first_at)[:16].replace("T", " ")
    return (
        f"{entry.nonce:>10}  {entry.row.state:<8} {value:<{VALUE}} {tx:<8} {height:>10} {entry.row.attempts:>4}  {when}"
    )


def print_epoch(epoch: Epoch) -> None:
    """Everything that is known of an epoch."""
    entry, screen = epoch.entry, console()
    chain_id, topic_id, nonce, wallet = entry.key
    state = entry.row.state
    lines = [
        ("epoch", f"{nonce} of topic {topic_id} on {chain_id}"),
        ("wallet", wallet),
        ("state", f"{state}: {MEANING[state]}"),
        ("value", "none" if entry.value is None else entry.value),
        ("block", "none known" if entry.row.height is None else str(entry.row.height)),
        ("begun", iso(entry.first_at)),
        ("settled", "not yet" if entry.settled_at is None else iso(entry.settled_at)),
    ]
    lines += [("reason", entry.row.reason)] if entry.row.reason else []
    for number, one in enumerate(epoch.signatures, start=1):
        told = one.submission
        text = f"{number} of {len(epoch.signatures)}, {iso(one.at)}, sequence {told.sequence}, value {told.value}"
        lines += [("signed", text), ("", told.tx_hash)]
        lines += [("", f"gas {told.gas}, fee {told.fee_uallo} uallo, dead after block {told.timeout_height}")]
    lines += [] if epoch.signatures else [("signed", "nothing by this ledger")]
    for label, text in lines:
        screen.print(row(label, Text(text)))


def print_verdict(verdict: Verdict) -> None:
    """A line for an epoch that is not simply right."""
    if verdict.said != "agrees":
        entry = verdict.entry
        label, style = ("open", "yellow") if verdict.said == "open" else ("differs", "bold red")
        text = f"topic {entry.key[1]} nonce {entry.nonce}: the ledger says {entry.row.state}; {verdict.why}"
        console().print(row(label, Text(text, style=style)))


def print_audit(audit: Audit) -> None:
    """The sums, and what is wrong beside the epochs."""
    screen = console()
    screen.print(row("chain", Text(f"{audit.chain_id}, height {audit.height}")))
    sums = f"{audit.count('agrees')} agree, {audit.count('open')} open, {audit.count('disagrees')} disagree"
    screen.print(row("epochs", Text(sums)))
    for chain_id, number in audit.elsewhere.items():
        screen.print(row("not asked", Text(f"{number} of {chain_id}, another chain")))
    for account in audit.accounts:
        begun = "not seen yet" if account.known_from is None else f"known from {account.known_from} on"
        screen.print(row("account", Text(f"{account.wallet}: next sequence {account.sequence}, {begun}")))
    own = [told for told in audit.disagreements if not told.startswith("topic ")]
    for told in own:
        screen.print(row("wrong", Text(f"{told}.", style="bold red")))
    good = Text("the ledger and the chain agree", style="bold green")
    number = len(audit.disagreements)
    bad = Text(f"{number} disagreement{'' if number == 1 else 's'}", style="bold red")
    screen.print(row("verdict", bad if number else good))


def audit_json(audit: Audit) -> dict[str, Any]:
    """The audit as one JSON object."""
    return {
        "agrees": not audit.disagreements,
        "chain_id": audit.chain_id,
        "height": audit.height,
        "checked": len(audit.verdicts),
        "open": audit.count("open"),
        "not_asked": audit.elsewhere,
        "disagreements": audit.disagreements,
        "epochs": [
            {"topic_id": one.entry.key[1], "nonce": one.entry.nonce, "wallet": one.entry.key[3],
             "state": one.entry.row.state.value, "said": one.said, "why": one.why}
            for one in audit.verdicts
        ],
        "accounts": [
            {"wallet": one.wallet, "sequence": one.sequence, "known_from": one.known_from, "unknown": list(one.unknown)}
            for one in audit.accounts
        ],
    }  # fmt: skip
