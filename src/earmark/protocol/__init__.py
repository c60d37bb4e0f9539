"""Ownership without a central authority: messages, rules, and one pure function that decides.

============  ====================================================================================
`envelope`    DSSE envelopes around in-toto statements, one canonical form
`messages`    what parties sign: commit, publish, claim, challenge, votes, ...
`rules`       what a community agreed on, and the codes in which it gives its reasons
`history`     read a log's entries in order; keep what counts
`voting`      panels, phases, the count of votes
`dispute`     several owners, one suspect
`resolve`     entries and rules in, resolution out; pure
`literal`     the protocol as published, with the attack that it admits
============  ====================================================================================
"""
