"""Numbers as people read them: bytes, counts, durations, losses."""

from __future__ import annotations

import math
import time

from ui.i18n import Translator

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB")
_DECIMAL = ("", " k", " M", " B")
NOTHING = "–"


def bytes_text(count: float) -> str:
    """1536 -> '1.5 KiB'."""
    power = 0 if count < 1 else min(len(_BINARY) - 1, int(math.log(count, 1024)))
    value = count / 1024**power
    return f"{value:.0f} {_BINARY[power]}" if power == 0 or value >= 100 else f"{value:.1f} {_BINARY[power]}"


def count_text(count: float) -> str:
    """134515008 -> '134.5 M'; below ten thousand every digit is shown."""
    if abs(count) < 10_000:
        return f"{count:,.0f}"
    power = min(len(_DECIMAL) - 1, int(math.log10(abs(count)) // 3))
    return f"{count / 1000**power:.1f}{_DECIMAL[power]}"


def share_text(share: float, digits: int = 0) -> str:
    """0.256 -> '26 %'; what is short of the whole is never '100 %'."""
    percent = 100 * share if share >= 1 else min(100 * share, 100 - 10.0**-digits)
    return f"{percent:.{digits}f} %"


def loss_text(value: float | None) -> str:
    """A loss with four decimals; a dash when there is none yet."""
    return NOTHING if value is None else "NaN" if math.isnan(value) else f"{value:.4f}"


def speed_text(value: float | None) -> str:
    """Tokens per second, whole from ten upwards."""
    return NOTHING if value is None else f"{value:,.0f}" if value >= 10 else f"{value:.1f}"


def duration_text(seconds: float | None, t: Translator) -> str:
    """194 -> '3 min 14 s'; a dash for an unknown duration."""
    if seconds is None or not math.isfinite(seconds):
        return NOTHING
    whole = max(0, round(seconds))
    if whole < 60:
        return t("time.seconds", s=whole)
    if whole < 3600:
        return t("time.minutes", m=whole // 60, s=whole % 60)
    if whole < 86_400:
        return t("time.hours", h=whole // 3600, m=whole % 3600 // 60)
    return t("time.days", d=whole // 86_400, h=whole % 86_400 // 3600)


def day_text(timestamp: float) -> str:
    """A local date."""
    return time.strftime("%Y-%m-%d", time.localtime(timestamp))


def moment_text(timestamp: float | None) -> str:
    """A local date and time, to the minute."""
    return NOTHING if timestamp is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(timestamp))
