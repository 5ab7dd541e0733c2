"""Decisions: pure functions and tables of the shape ``(record, observation, now) -> decision``.

Nothing here waits, reads a clock, draws a random number, logs, or knows ccxt.
"""
