"""Segmentation models: (B, 3, H, W) float -> logits (B, num_classes, H, W)."""
