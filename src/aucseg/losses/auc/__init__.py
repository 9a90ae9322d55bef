"""The engine: what computes the AUC loss."""
