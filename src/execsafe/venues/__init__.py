"""Venues: the ccxt adapter, one table of venue profiles, one table of what their errors mean.

Nothing here imports ccxt: exchange objects are handed in, and their errors are known by class name.
"""
