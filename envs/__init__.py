"""Choosing attacks as a Gymnasium problem: the environments `ASTrA/BatchAttack-v0` and `ASTrA/ViewAttack-v0`."""
