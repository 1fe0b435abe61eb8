"""Targets: self-supervised frameworks, each clean (without an attack) and with ACL's adversarial streams."""
