"""From a trained model to accuracies per class and shot group."""
