"""A trained model at work: predictions for image files, exports, the Hub."""
