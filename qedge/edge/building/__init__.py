"""How each rung of a ladder is made from a model's FP32 graph."""
