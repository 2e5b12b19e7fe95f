"""MODEL, whatever names it, becomes a torch network or an ONNX graph: zoos, files, exporter, simplifier."""
