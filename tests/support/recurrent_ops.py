"""What is checked alike of every op over sequences with a fixed-size state (flexjax/kernels/recurrent.py)."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import bodies
import jax
import jax.numpy as jnp
import numpy as np


@dataclasses.dataclass(frozen=True)
class RecurrentOp:
    """An op whose last four arguments are states, query_starts, state_slots and fresh, with its dense form."""

    op: Callable[..., Any]
    dense: Callable[..., Any]
    of_rows: tuple[int, ...]  # Which arguments have a line for each row.

    def check_what_belongs_to_nobody_may_be_nan(self, spec: Any, body: str) -> None:
        """Padding rows, slots that no sequence owns, and those of sequences that begin with zeros."""
        *before, states, starts, slots, fresh = spec.arguments()
        live = jnp.arange(spec.batch.num_rows) < starts[-1]
        spoil = lambda x, good: jnp.where(jnp.expand_dims(good, range(1, x.ndim)), x, jnp.nan)
        before = self._each_of_rows(before, lambda x: spoil(x, live))
        owned = np.asarray(slots)[: len(spec.batch.rows)]
        read = np.isin(np.arange(len(states)), owned[~np.array(spec.batch.fresh)])
        out, after = bodies.call(self.op, spec, body, (*before, spoil(states, read), starts, slots, fresh))
        want, want_after = bodies.call(self.op, spec, body)
        np.testing.assert_array_equal(out, want)
        np.testing.assert_array_equal(after[owned], want_after[owned])

    def check_chunked_equals_whole(self, spec: Any, body: str, *, atol: float, state_atol: float) -> None:
        """Of one sequence of twelve rows."""
        *before, states, _, slots, fresh = spec.arguments()
        whole, want = bodies.call(self.op, spec, body)
        outs, done = [], 0
        for rows in (2, 1, 9):
            part = self._each_of_rows(before, lambda x, part=slice(done, done + rows): x[part])
            batch = (jnp.array([0, rows], jnp.int32), slots, fresh & (done == 0))
            op = bodies.jitted(self.op, body, **spec.options | dict(max_query_len=rows))
            out, states = op(*part, states, *batch)
            outs, done = [*outs, out], done + rows
        np.testing.assert_allclose(np.concatenate(outs), whole, atol=atol)
        np.testing.assert_allclose(states, want, atol=state_atol, rtol=0)

    def check_dense_equals_ragged(
        self, spec: Any, body: str, *, state_atol: float, atol: float, beside: str | None = None
    ) -> None:
        """Of sequences of one length that all go on from a state; the ragged form by the body `beside`, or the same."""
        *before, states, _, slots, _ = spec.arguments()
        want, want_states = bodies.call(self.op, spec, beside or body)
        out, last = self.dense(*self._batched(spec, before), states[slots], body=body)
        np.testing.assert_allclose(out.reshape(want.shape), want, atol=atol)
        np.testing.assert_allclose(last, want_states[slots], atol=state_atol, rtol=0)

    def check_gradients_of_the_dense_form(self, spec: Any, *, from_a_state: bool, atol: float, rtol: float) -> None:
        """By every argument: of the body for gradients, and of the formula."""
        *before, states, _, slots, _ = spec.arguments()
        arguments = (*self._batched(spec, before), *([states[slots]] if from_a_state else []))

        def loss(body, *arguments):
            out, last = self.dense(*arguments, body=body)
            return jnp.sum(jnp.sin(out)) + jnp.sum(last**2)

        got, want = (
            jax.jit(jax.grad(functools.partial(loss, body), argnums=range(len(arguments))))(*arguments)
            for body in ("xla", "base")
        )
        for g, w in zip(got, want, strict=True):
            np.testing.assert_allclose(g, w, atol=atol, rtol=rtol)

    def check_donated_states_are_not_copied(self, spec: Any, max_query_len: int) -> None:
        """By the body that serves here, of a pool beside which everything else is small."""
        *before, states, starts, slots, fresh = spec.arguments()
        pool = jax.ShapeDtypeStruct((8192, *states.shape[1:]), states.dtype)
        run = lambda states, before: self.op(*before, states, starts, slots, fresh, max_query_len=max_query_len)
        memory = jax.jit(run, donate_argnums=0).lower(pool, tuple(before)).compile().memory_analysis()
        assert memory is not None and memory.alias_size_in_bytes >= pool.size * 4
        assert memory.temp_size_in_bytes <= 0.01 * pool.size * 4

    def _each_of_rows(self, arguments: list[Any], change: Callable[[Any], Any]) -> list[Any]:
        return [change(x) if n in self.of_rows else x for n, x in enumerate(arguments)]

    def _batched(self, spec: Any, arguments: list[Any]) -> list[Any]:
        """Rows as [B, T, ...]."""
        return self._each_of_rows(arguments, lambda x: x.reshape(len(spec.batch.rows), -1, *x.shape[1:]))
