"""Corpora, batches made of them, and tokenizers' files."""

from flexjax.data.batches import DataConfig as DataConfig
from flexjax.data.batches import PackedBatches as PackedBatches
from flexjax.data.batches import tokenize as tokenize
from flexjax.data.corpus import Document as Document
from flexjax.data.corpus import held_out_documents as held_out_documents
from flexjax.data.corpus import train_documents as train_documents
from flexjax.data.tokenizer import END_OF_TEXT as END_OF_TEXT
from flexjax.data.tokenizer import load_tokenizer as load_tokenizer
from flexjax.data.tokenizer import save_tokenizer as save_tokenizer
from flexjax.data.tokenizer import train_tokenizer as train_tokenizer
from flexjax.data.tokenizer_files import open_tokenizer as open_tokenizer
from flexjax.data.tokenizer_files import refusing_faults as refusing_faults
from flexjax.data.tokenizer_files import special_tokens as special_tokens
from flexjax.data.tokenizer_files import tokenizer_config as tokenizer_config
