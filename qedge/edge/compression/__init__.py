"""Smaller networks from trained ones: parts taken out, what is left trained on, or a small one taught by a large one."""
