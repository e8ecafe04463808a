"""Networks that read whole inputs: classifiers, embeddings, process reward models, ONNX."""
