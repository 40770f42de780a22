"""Batches of small circuits as exact statevectors in torch: differentiable, and in real arithmetic so that they export to ONNX."""
