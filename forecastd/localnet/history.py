"""The chain's state as it was some blocks ago, worked out from what it included since. A pure function.

What an endpoint that lags or stands still tells its callers. Sequences, balances, transactions, inferences and
registrations are exact; scores, the gas price and the emissions version are those of today.
"""

from __future__ import annotations

from dataclasses import replace

from forecastd.localnet.state import ChainState, LocalAccount, TxRecord


def state_at(state: ChainState, height: int) -> ChainState:
    """The state after block `height`; the state itself when that is not past. The heights before 1 are 1."""
    height = max(1, height)
    if height >= state.height:
        return state
    later_records = [record for record in state.txs.values() if record.height > height]
    registered_later = {(one.topic_id, one.sender) for one in later_records if one.kind == "register" and one.code == 0}
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
            for one in by_worker.values():
                if one.height <= height:  # since when an evicted one is out is not kept: it counts as out
                    past_state.put_inference(one)
    return past_state


def _undo(state: ChainState, account: LocalAccount, record: TxRecord) -> LocalAccount:
    message_fee = {"payload": state.fees.data_sending, "register": state.fees.registration}.get(record.kind, 0)
    refund = record.fee + (message_fee if record.code == 0 else 0)
    return replace(account, sequence=account.sequence - 1, balance=account.balance + refund)
