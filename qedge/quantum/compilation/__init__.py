"""Circuits with fewer CNOTs and less depth that do the same."""
