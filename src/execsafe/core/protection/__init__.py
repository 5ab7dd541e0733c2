"""Decisions about the protection of positions: the record, the plan, and what is told of it."""
