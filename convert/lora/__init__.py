"""LoRA adapters as PEFT saves them: low-rank changes of some of a model's matrices.

adapter    reads an adapter's folder
merge      adds adapters to a checkpoint's weights as they are read
target     makes an adapter of its own for llama.cpp
"""
