"""The model as an ONNX file, for programs that do not use Python or torch."""
