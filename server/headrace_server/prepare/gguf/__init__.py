"""GGUF files of llama-architecture models, turned into decoder folders; no training framework is needed.

reader      the file: metadata and tensor table, every count, offset and size checked before it is used
blocks      a tensor's quantized blocks as f32
llama       what the metadata and the tensors must be; rows of queries and keys in the order graphs use
linear      one linear layer in each precision
decoder     the graph, in the shared-buffer cache contract of docs/generation-models.md
onnx_file   writes it weight by weight: memory for one weight at a time, whatever the model's size
tokenizer   tokenizer.json, tokenizer_config.json with the chat template
convert     all of it into a folder
"""
