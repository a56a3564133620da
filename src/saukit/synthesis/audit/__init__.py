"""What is known of the kept images: figures, distances, pictures."""
