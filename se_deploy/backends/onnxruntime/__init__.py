"""ONNX Runtime: runs ONNX files, and plans them for its CPU provider."""
