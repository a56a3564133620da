"""Where images come from: one file per kind of source, and the table that names them all."""
