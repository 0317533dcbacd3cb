"""The standard library as a corpus: deterministic, documented, and split so that nothing leaks."""

import ast

import pytest

from flexjax.data import corpus
from flexjax.data.corpus import Document


@pytest.fixture(scope="module")
def train() -> list[Document]:
    return corpus.train_documents()


@pytest.fixture(scope="module")
def held_out() -> list[Document]:
    return corpus.held_out_documents()


def test_every_held_out_module_is_found(held_out):
    assert {d.name.removesuffix(".py") for d in held_out} == set(corpus.HELD_OUT)


def test_held_out_is_three_to_five_percent_of_the_bytes(train, held_out):
    share = sum(len(d.text) for d in held_out) / sum(len(d.text) for d in train)
    assert 0.03 < share < 0.05


def test_no_held_out_docstring_is_in_a_training_document(train, held_out):
    text = "\n".join(" ".join(d.text.split()) for d in train)
    docstrings = {
        " ".join(doc.split())
        for d in held_out
        for node in ast.walk(ast.parse(d.text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (doc := ast.get_docstring(node))
    }
    long = {doc for doc in docstrings if len(doc) > 100}
    assert len(long) > 150
    # The short ones ("Return the hash of self.") are common property.
    assert [doc for doc in sorted(long) if doc in text] == []


def test_no_held_out_module_is_a_training_document(train):
    names = {d.name for d in train}
    for module in corpus.HELD_OUT:
        assert names.isdisjoint({f"{module}.py", f"help({module})", f"help(_{module})", f"topic({module})"})


def test_same_corpus_every_time(train):
    corpus._sources.cache_clear()
    assert corpus.fingerprint(corpus.train_documents()) == corpus.fingerprint(train)


def test_fingerprint_sees_every_change():
    documents = [Document("a", "x"), Document("b", "y")]
    changed = [
        documents[::-1],
        documents[:1],
        [Document("a", "x"), Document("b", "z")],
        [Document("ax", ""), documents[1]],
    ]
    assert len({corpus.fingerprint(d) for d in [documents, *changed]}) == 5


def test_help_is_signatures_and_docstrings_in_order():
    source = Document(
        "shop/till.py",
        '"""Sells things."""\n'
        "class Till(Box):\n"
        '    """A box with money."""\n'
        "    def open(self, code: int = 0) -> bool:\n"
        '        """Opens it."""\n'
        "        return bool(code)\n"
        "    def rattle(self): ...\n"
        'def main():\n    """Runs."""\n',
    )
    assert corpus.help_document(source) == Document(
        "help(shop.till)",
        "Help on module shop.till:\n\nSells things.\n\n"
        "class Till(Box)\n    A box with money.\n\n"
        "    def open(self, code: int=0) -> bool\n        Opens it.\n\n"
        "def main()\n    Runs.\n",
    )


def test_undocumented_module_has_no_help():
    assert corpus.help_document(Document("bare.py", "def f(x):\n    return x\n")) is None


def test_documentation_is_a_good_part(train):
    documentation = sum(len(d.text) for d in train if d.name.startswith(("help(", "topic(")))
    assert documentation > 0.2 * sum(len(d.text) for d in train)
