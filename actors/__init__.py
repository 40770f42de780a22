"""Thin Ray shells over the plain classes of qedge."""
