"""The ledger's epochs and verdicts as lines that fit 80 columns and a log."""

from __future__ import annotations

from typing import Any

import click
from rich.text import Text

from cli.rows import console, row
from forecastd.clock import to_iso
from forecastd.ledger.export import STATE_MEANINGS, LedgerEpoch
from forecastd.runtime.formatting import format_count
from forecastd.submission.verify import EntryVerdict, VerificationReport

VALUE_WIDTH = 12  # characters of a value in a list; `show` prints all of them


def print_epochs(ledger_epochs: list[LedgerEpoch]) -> None:
    """One line per epoch under a heading for each chain, topic and wallet; below it the reason, if there is one."""
    groups: dict[tuple[str, int, str], list[LedgerEpoch]] = {}
    for epoch in ledger_epochs:
        chain_id, topic_id, _, wallet = epoch.entry.key
        groups.setdefault((chain_id, topic_id, wallet), []).append(epoch)
    output = console()
    for (chain_id, topic_id, wallet), epochs in groups.items():
        click.echo(f"{chain_id}, topic {topic_id}, {wallet}")
        click.echo(f"{'nonce':>10}  {'state':<9} {'value':<{VALUE_WIDTH}} {'tx':<8} {'height':>10} sigs  first (UTC)")
        for epoch in epochs:
            click.echo(_epoch_line(epoch))
            if epoch.entry.row.reason:
                output.print(row("", Text(epoch.entry.row.reason)))


def _epoch_line(epoch: LedgerEpoch) -> str:
    entry, submission = epoch.entry, epoch.last_submission
    value = "" if entry.value is None else entry.value[:VALUE_WIDTH]
    height = "" if entry.row.height is None else entry.row.height
    tx = "" if submission is None else submission.tx_hash[:8]
    first_time = to_iso(entry.first_at)[:16].replace("T", " ")
    return (
        f"{entry.nonce:>10}  {entry.row.state:<9} {value:<{VALUE_WIDTH}} {tx:<8} {height:>10} {entry.row.attempts:>4}  "
        f"{first_time}"
    )


def print_epoch(epoch: LedgerEpoch) -> None:
    """Everything that the ledger has about an epoch."""
    entry, screen = epoch.entry, console()
    chain_id, topic_id, nonce, wallet = entry.key
    state = entry.row.state
    lines = [
        ("epoch", f"{nonce} of topic {topic_id} on {chain_id}"),
        ("wallet", wallet),
        ("state", f"{state}: {STATE_MEANINGS[state]}"),
        ("value", "none" if entry.value is None else entry.value),
        ("block", "unknown" if entry.row.height is None else str(entry.row.height)),
        ("started", to_iso(entry.first_at)),
        ("settled", "not yet" if entry.settled_at is None else to_iso(entry.settled_at)),
    ]
    lines += [("reason", entry.row.reason)] if entry.row.reason else []
    for index, attempt in enumerate(epoch.attempts, start=1):
        submission = attempt.submission
        text = (
            f"{index} of {len(epoch.attempts)}, {to_iso(attempt.signed_at)}, sequence {submission.sequence}, "
            f"value {submission.value}"
        )
        cost = f"gas {submission.gas}, fee {submission.fee_uallo} uallo"
        lines += [("signed", text), ("", submission.tx_hash)]
        lines += [("", f"{cost}, expires after block {submission.timeout_height}")]
    lines += [] if epoch.attempts else [("signed", "nothing by this ledger")]
    for label, text in lines:
        screen.print(row(label, Text(text)))


def print_verdict(verdict: EntryVerdict) -> None:
    """One line for an epoch that is open or disagrees with the chain."""
    if verdict.agreement != "agrees":
        entry = verdict.entry
        label, style = ("open", "yellow") if verdict.agreement == "open" else ("differs", "bold red")
        text = f"topic {entry.key[1]} nonce {entry.nonce}: the ledger has {entry.row.state}; {verdict.reason}"
        console().print(row(label, Text(text, style=style)))


def print_report(report: VerificationReport) -> None:
    """The totals, and the disagreements that are not about an epoch."""
    screen = console()
    screen.print(row("chain", Text(f"{report.chain_id}, height {report.height}")))
    totals = f"{report.count('agrees')} agree, {report.count('open')} open, {report.count('disagrees')} disagree"
    screen.print(row("epochs", Text(totals)))
    for chain_id, count in report.other_chains.items():
        screen.print(row("skipped", Text(f"{count} of {chain_id}, another chain")))
    for account in report.accounts:
        origin = "not seen yet" if account.known_from is None else f"tracked from {account.known_from}"
        screen.print(row("account", Text(f"{account.wallet}: next sequence {account.sequence}, {origin}")))
    other_lines = [line for line in report.disagreements if not line.startswith("topic ")]
    for line in other_lines:
        screen.print(row("wrong", Text(f"{line}.", style="bold red")))
    agreement = Text("the ledger and the chain agree", style="bold green")
    count = len(report.disagreements)
    disagreement = Text(format_count(count, "disagreement"), style="bold red")
    screen.print(row("verdict", disagreement if count else agreement))


def report_json(report: VerificationReport) -> dict[str, Any]:
    """The report as one JSON object."""
    return {
        "agrees": not report.disagreements,
        "chain_id": report.chain_id,
        "height": report.height,
        "checked": len(report.verdicts),
        "open": report.count("open"),
        "other_chains": report.other_chains,
        "disagreements": report.disagreements,
        "epochs": [
            {"topic_id": verdict.entry.key[1], "nonce": verdict.entry.nonce, "wallet": verdict.entry.key[3],
             "state": verdict.entry.row.state.value, "verdict": verdict.agreement, "reason": verdict.reason}
            for verdict in report.verdicts
        ],
        "accounts": [
            {"wallet": account.wallet, "sequence": account.sequence, "known_from": account.known_from,
             "unexplained": list(account.unexplained)}
            for account in report.accounts
        ],
    }  # fmt: skip
