"""The chain's state as it was some blocks ago, worked out from what it included since. A pure function.

What an endpoint that lags or stands still tells its callers. Sequences, balances, transactions, inferences and
registrations are exact; scores, the gas price and the emissions version are those of today.
"""

from __future__ import annotations

from dataclasses import replace

from forecastd.localnet.state import Account, State, TxRecord


def past(state: State, height: int) -> State:
    """The state after block `height`; the state itself when that is not past. The heights before 1 are 1."""
    height = max(1, height)
    if height >= state.height:
        return state
    later = [record for record in state.txs.values() if record.height > height]
    registered = {(one.topic_id, one.sender) for one in later if one.kind == "register" and one.code == 0}
    accounts = dict(state.accounts)
    for record in later:
        account = accounts.get(record.sender)
        if account is not None:
            accounts[record.sender] = _before(state, account, record)
    then = replace(
        state,
        height=height,
        accounts=accounts,
        workers=state.workers - registered,
        txs={},
        payloads={},
        inferences={},
        latest={},
        evicted={},
    )
    for record in state.txs.values():
        if record.height <= height:
            then.note(record)
    for stored in (state.inferences, state.evicted):
        for by_worker in stored.values():
            for one in by_worker.values():
                if one.height <= height:  # since when an evicted one is out is not kept: it counts as out
                    then.keep(one)
    return then


def _before(state: State, account: Account, record: TxRecord) -> Account:
    charged = {"payload": state.fees.data_sending, "register": state.fees.registration}.get(record.kind, 0)
    paid = record.fee + (charged if record.code == 0 else 0)
    return replace(account, sequence=account.sequence - 1, balance=account.balance + paid)
