"""From a split and a cache to a trained model; never sees test data."""
