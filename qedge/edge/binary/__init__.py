"""The binary rung: networks whose weights and activations are +1 or -1, trained as such and run on whole words of bits."""
