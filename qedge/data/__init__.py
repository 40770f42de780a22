"""Whose rows they are: tables, built-in data sets, their fingerprints."""
