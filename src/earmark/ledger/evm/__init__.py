"""The log on an EVM chain: one small contract that nobody owns, on any chain that a user brings.

============  ====================================================================================
`court.vy`    the contract's source (Vyper); ``scripts/contract`` compiles it bit for bit
`court.json`  its ABI and bytecode, as shipped
`chain`       a connection: what is final, what was entered, sending a transaction
`ledger`      `EvmLedger`: the `earmark.ledger.port.Ledger` over it, finalised blocks only
`proof`       a block's proof that a record was entered, checked without the chain
============  ====================================================================================

Needs the extra ``evm``; nothing here is imported before it is used.
"""
