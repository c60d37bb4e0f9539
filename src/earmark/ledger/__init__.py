"""The append-only log of records: Merkle trees, signed checkpoints, and the engines that keep them.

============  ====================================================================================
`merkle`      RFC 6962 trees and proofs, pure functions
`note`        signed notes and their keys (C2SP signed-note)
`checkpoint`  signed heads of a log, and witness cosignatures (C2SP tlog-checkpoint, -cosignature)
`port`        what every engine offers; `verify_receipt`, `beacon` and `Watcher` need no engine
`log`         `SqliteLedger`, the embedded engine: one SQLite file
============  ====================================================================================

`store` and `audit` are parts of the embedded engine.
"""
