"""From one ONNX graph to a smaller and faster one of the same meaning, and the proof that it is one.

working_graph   a graph in memory that is rewritten node by node
layers          which nodes hold weights that can be quantized, and which of them --exclude names
combinations    what each target runs in which mode, and why not the rest
calibrate       ranges of activations, found by running the user's inputs
dynamic, static, blocks, narrow_floats      the rewritings, one a family of modes
operators       what really was quantized, counted
invariance      whether a row's answer is its own, asked of the real engine
search          which layers to leave out
version         the new version's folder, whole or not at all
run             all of it in order
"""
