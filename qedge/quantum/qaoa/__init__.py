"""QAOA: MaxCut and any QUBO, beside classical heuristics given as many evaluations."""
