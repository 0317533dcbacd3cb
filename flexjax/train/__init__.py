"""Trains a causal language model of any family on text that is on any machine with Python.

`corpus` finds the text, `tokenizer` learns its byte-level BPE, `data` packs batches, `loop` runs
`optimizer` over them, `checkpoint` makes a kill harmless, `evaluate` counts bits per byte.
"""
