"""The ONNX target: a folder that ONNX Runtime GenAI loads.

target     plans the folder: which tensors, in which types, where in model.onnx.data
recipes    the type of each, by what was asked for
decoder    builds the graph from the family's structure
graph      an ONNX graph as it grows, whose weights lie in another file
genai      genai_config.json, and the files of the tokenizer
"""
