"""Serving: engines over the Open Inference Protocol, with batches whose cost is known, in processes of their own."""
