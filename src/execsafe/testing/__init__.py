"""What tests of trading code need: a simulated venue, virtual time, fault plans, a hidden ledger.

The modules are ``venue``, ``adapter``, ``faults``, ``ledger``, ``loop`` and ``clock``; ``http`` serves the
same venue to the real ccxt client over loopback.
"""
