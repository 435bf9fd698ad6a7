"""The architectures that Ingot is tried on, small: written out, or from configurations of `transformers`."""
