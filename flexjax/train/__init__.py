"""Trains a causal language model of any family on text that is on any machine with Python.

`corpus` finds the text, `tokenizer` learns its byte-level BPE, `data` packs batches, `step` states what `optimizer`
does with one on a mesh, `loop` repeats it, `checkpoint` makes a kill harmless, `form` makes a checkpoint any mesh's,
`evaluate` counts bits per byte.
"""
