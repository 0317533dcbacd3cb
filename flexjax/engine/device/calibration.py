"""The sequences that an int8 or float8 cache is scaled by, and those that its scales are tried on."""

import dataclasses
from typing import Any

import numpy as np

from flexjax.engine.tokenizer import Vocabulary

LENGTH = 128  # Tokens of a sequence, at the most.
RANDOM = 2  # Sequences of random tokens, beside the texts.

# Written for this, so that the scales of a model are the same everywhere: prose and code, other scripts, data.
SEEN = (
    """The harbour master counted the boats twice, because the fog had come in before noon and two of them carried no
lights. "Nineteen," she said, "and the ferry makes twenty, if it is there at all." Her brother did not look up from
his ledger. He had written 1,250 crowns in the left column and 1,205 in the right, and could not say which of the
numbers was wrong. Why would anybody weigh salt at night? In 1887 the company had tried to build a second pier; only
its stones are left, green below the water and grey above. Of course, nobody asked the fishermen, who knew that the
current turns there every six hours and takes with it whatever is not tied down. La nuit, tous les bateaux se
ressemblent. Im Herbst kommt der Sturm aus Nordwesten, und dann bleibt jeder zu Hause.""",
    '''import collections

class Window:
    """The last `size` values, and their mean."""

    def __init__(self, size: int = 16):
        if size <= 0:
            raise ValueError(f"size must be positive; got {size}")
        self.values = collections.deque(maxlen=size)

    def push(self, value: float) -> float:
        self.values.append(value)
        return sum(self.values) / len(self.values)

def main(path="data/readings.csv"):
    window, worst = Window(8), 0.0
    with open(path, encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            name, _, reading = line.strip().partition(",")
            mean = window.push(float(reading) * 1e-3)
            worst = max(worst, abs(mean - float(reading)))
            print(f"{number:5d}  {name:<12s}  {mean:10.4f}")
    return 0 if worst < 0.25 else 1
''',
)
HELD_OUT = (
    """Question: A train leaves at 9:40 and covers 84 km in 70 minutes. How fast is it on the average?
Answer: 70 minutes are 7/6 of an hour, so it makes 84 / (7/6) = 72 km/h. Note that the departure does not matter.

# Soup for four
1. Peel 600 g of potatoes, two carrots and an onion; cut them small.
2. Fry the onion in butter, then add 1.2 litres of water and the rest.
3. Cook for 25 minutes; season with salt, pepper and *nutmeg*. It keeps for three days in the cold.

Добрый день! Сколько стоит билет до моря? Buenos días, ¿dónde está la estación? 今天的天气很好，我们去公园散步吧。
Please answer briefly, in the language of the question, and say so if you do not know. Thank you -- best regards, M.""",
    """{"id": 4071, "items": [{"sku": "A-19", "price": 12.5, "tags": ["new", "blue"]}, {"sku": "B-02", "price": 0.99}],
 "address": {"street": "12 Mill Lane", "city": "Ely", "zip": null}, "paid": true, "note": "at the \\"back\\" door"}

static int find(const int *a, size_t n, int key) {
  size_t low = 0, high = n;
  while (low < high) {
    const size_t mid = low + (high - low) / 2;
    if (a[mid] < key) low = mid + 1; else high = mid;
  }
  return low < n && a[low] == key ? (int)low : -1;  /* not found */
}

SELECT name, COUNT(*) AS orders FROM customers JOIN orders USING (customer_id) WHERE year >= 2020 GROUP BY name
HAVING orders > 3 ORDER BY orders DESC LIMIT 10;  <p class="total">Sum: &euro; 1.024,00</p>  $ make -j4""",
)


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Both are token ids `[B, T]` of as many sequences."""

    seen: np.ndarray
    held_out: np.ndarray

    @classmethod
    def of(cls, vocabulary: Vocabulary | None, model_config: Any) -> "Calibration":
        """Texts, where there is a tokenizer, and random tokens, which reach the rare ones; the same at each call."""
        rng, length = np.random.default_rng(0), min(LENGTH, model_config.max_position)

        def sequences(texts: tuple[str, ...]) -> np.ndarray:
            found = [_ids(text, vocabulary, model_config.vocab_size) for text in texts]
            rows = [np.resize(ids, length) for ids in found if ids]  # Repeated where it is short.
            count = RANDOM + len(texts) - len(rows)
            return np.stack([*rows, *rng.integers(0, model_config.vocab_size, (count, length))])

        return cls(sequences(SEEN), sequences(HELD_OUT))


def _ids(text: str, vocabulary: Vocabulary | None, vocab_size: int) -> list[int]:
    """Those that the model has a row for."""
    return [] if vocabulary is None else [token for token in vocabulary.encode(text) if token < vocab_size]
