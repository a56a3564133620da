"""From a split to a cache of class-conditional synthetic images."""
