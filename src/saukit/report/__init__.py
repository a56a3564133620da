"""One page of HTML about a workspace: its split, its synthetic images, its runs and how they compare."""
