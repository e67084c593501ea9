"""Networks that were saved as graphs of operations: ONNX, TorchScript, and what torch.export writes."""
