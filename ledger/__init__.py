"""The ledger: what was observed and when it became known, what was forecast, and how right it was (SQL).

Observations and issued forecasts are append-only. Everything else is derived from them or says why something was
done: scores, decisions, runs.
"""
