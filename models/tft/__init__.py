"""The Temporal Fusion Transformer: sizes, parameters, forward pass in numpy, ONNX graphs, the library's network."""
