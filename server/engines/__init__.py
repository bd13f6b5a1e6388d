"""Engines that generate: one protocol, one folder per engine, independent of HTTP."""
