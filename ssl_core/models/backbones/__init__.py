"""Backbones of the target network: ResNets with batch norm by route, and timm's vision transformers."""
