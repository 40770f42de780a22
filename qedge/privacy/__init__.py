"""Differential privacy: mechanisms, accounting, the ledger."""
