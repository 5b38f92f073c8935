"""Models as other programs run them: ONNX, torch.export and Hugging Face folders, and what shows that they agree."""
