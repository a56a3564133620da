"""One thin module a command: build a config, call one stage, print."""
