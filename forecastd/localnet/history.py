"""Reconstructs the chain's state at an earlier height from what the chain has included since. A pure function.

An endpoint that lags or has a frozen height shows this state. Sequences, balances, transactions, inferences and
registrations are exact; scores, the gas price and the emissions version are the current ones.
"""

from __future__ import annotations

from dataclasses import replace

from forecastd.localnet.state import ChainState, LocalAccount, TxRecord


def state_at(state: ChainState, height: int) -> ChainState:
    """The state after block `height`, or the given state when that is not in the past. Heights below 1 count as 1."""
    height = max(1, height)
    if height >= state.height:
        return state
    later_records = [record for record in state.txs.values() if record.height > height]
    registered_later = {
        (record.topic_id, record.sender) for record in later_records if record.kind == "register" and record.code == 0
    }
    accounts = dict(state.accounts)
    for record in later_records:
        account = accounts.get(record.sender)
        if account is not None:
            accounts[record.sender] = _undo(state, account, record)
    past_state = replace(
        state,
        height=height,
        accounts=accounts,
        workers=state.workers - registered_later,
        txs={},
        payloads={},
        inferences={},
        latest_inferences={},
        evicted_inferences={},
    )
    for record in state.txs.values():
        if record.height <= height:
            past_state.add_transaction(record)
    for inference_sets in (state.inferences, state.evicted_inferences):
        for by_worker in inference_sets.values():
            for inference in by_worker.values():
                # the block of an eviction is not stored: evicted inferences count as evicted at any height
                if inference.height <= height:
                    past_state.put_inference(inference)
    return past_state


def _undo(state: ChainState, account: LocalAccount, record: TxRecord) -> LocalAccount:
    message_fee = {"payload": state.fees.data_sending, "register": state.fees.registration}.get(record.kind, 0)
    refund = record.fee + (message_fee if record.code == 0 else 0)
    return replace(account, sequence=account.sequence - 1, balance=account.balance + refund)
