"""What tokens cost: the rented hardware's hourly price over the tokens that it made. Always an estimate."""

import dataclasses

from flexjax.hardware.chips import Price, Running


@dataclasses.dataclass(frozen=True)
class Cost:
    """The price per token of a run, were it kept up for an hour on hardware rented at list price."""

    usd_per_hour: float  # Of all units together.
    usd_per_million_output_tokens: float
    basis: str  # Units, and the price's date and source.
    kind: str = "estimated"


def hourly(running: Running) -> tuple[float, Price] | None:
    """Dollars an hour for what this process runs on; None where the chip table has no price for it."""
    if running.chip is None or running.chip.price is None:
        return None
    return running.units * running.chip.price.usd_per_hour, running.chip.price


def of_run(running: Running, seconds: float, output_tokens: int) -> Cost | None:
    """The cost of a run of that many seconds and tokens; None without a price or a token."""
    rent = hourly(running)
    if rent is None or output_tokens <= 0:
        return None
    usd_per_hour, price = rent
    usd_per_token = usd_per_hour * seconds / 3600 / output_tokens
    unit = running.chip.unit if running.chip else "unit"
    basis = (
        f"{running.units} {unit}{'s' if running.units > 1 else ''} at ${price.usd_per_hour:g} an hour "
        f"({price.date}: {price.source})"
    )
    return Cost(usd_per_hour, 1e6 * usd_per_token, basis)
