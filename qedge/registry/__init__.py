"""MLflow as the model registry: versions, runs, and what mirrors them."""
