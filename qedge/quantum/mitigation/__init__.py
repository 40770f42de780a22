"""Error mitigation: what a noisy backend measures, brought nearer to the ideal with more circuits and shots, and what that cost."""
