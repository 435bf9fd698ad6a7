"""Ingot: from a trained model to a verified engine as fast as the very device allows."""
