"""Frozen words of the domain. Layer 0: attrs and the standard library only."""
