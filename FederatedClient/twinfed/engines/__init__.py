"""The same sites and the same aggregation under an existing engine of federated learning."""
