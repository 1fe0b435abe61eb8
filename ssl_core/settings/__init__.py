"""Typed records of settings."""
