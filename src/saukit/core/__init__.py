"""Artefacts, configuration, devices and the console: what every other room stands on."""
