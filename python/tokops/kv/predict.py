"""What the scaling curve of a quantised cache predicts from its cheap runs: a prediction, never a measurement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokops.kvcache import Codec
from tokops.kvcache.scaling import OUTLIER_FACTOR, KvCurve, fit_kv_curve
from tokops.methods import Method, MiKV, QuantizedKV

#: The curve is fitted where rounding is fine, and says what coarser rounding should cost.
FINE_BITS = 4


@dataclass(frozen=True)
class Prediction:
    """A fitted curve, and what it says.

    Attributes:
        curve: KL by effective bits.
        fitted: labels of the runs that it was fitted to.
        kl: prediction by label; runs that it was fitted to are among them.
        flagged: measured over predicted KL by label, where that is beyond 3: outlying channels are not handled.
    """

    curve: KvCurve
    fitted: tuple[str, ...]
    kl: dict[str, float]
    flagged: dict[str, float]


def effective_bits(codec: Codec) -> float | None:
    """Bits of an element, its share of scale and zero included; None where rounding is not uniform."""
    if codec.kind == "full":
        return 16.0
    if codec.is_fp8 or codec.geometry == "head":
        return None
    scales = 8 * codec.scale_dtype.itemsize * (2 if codec.has_zero else 1)
    levels = codec.levels.bit_length() - 1  # of int3, which lies in a container of 4
    return levels + scales / codec.group


def mixture(methods: Sequence[Method], dim: int) -> tuple[tuple[float, float], ...] | None:
    """Shares of the cached numbers and the effective bits of each; None for stores that the curve knows nothing of."""
    if len(methods) != 1:
        return None
    method = methods[0]
    if isinstance(method, QuantizedKV):
        shares, codecs = (0.5, 0.5), method.codecs(dim)
    elif isinstance(method, MiKV) and method.budget is None:
        shares = (method.ratio, 1 - method.ratio)
        codecs = method.codec(method.high, dim), method.codec(method.low, dim)
    else:
        return None
    bits = [effective_bits(codec) for codec in codecs]
    return None if None in bits else tuple(zip(shares, bits, strict=True))  # type: ignore[arg-type]


def predict(
    methods: Mapping[str, Sequence[Method]], measured: Mapping[str, float], dim: int
) -> Prediction | None:
    """Fit KL over effective bits to the fine runs and predict all that it speaks of.

    The expected loss of cross-entropy is the KL where the model's predictions are right on average, and KL has
    far less noise over a short text: a difference of losses below 0.001 cannot be seen in a thousand tokens. What
    several codecs share is predicted as the mean of the curve over the numbers that each keeps.

    Args:
        methods: by label.
        measured: KL by label, of those that ran.
        dim: head dimension.

    Returns:
        None where fewer than two fine runs of a plain quantised cache differ in bits.
    """
    mixed = {label: mixture(methods[label], dim) for label in measured}
    known = {label: parts for label, parts in mixed.items() if parts is not None}
    fine = {
        label: parts[0][1]
        for label, parts in known.items()
        if isinstance(methods[label][0], QuantizedKV) and len({bits for _, bits in parts}) == 1
        if parts[0][1] >= FINE_BITS
    }
    try:
        curve = fit_kv_curve(list(fine.values()), [measured[label] for label in fine])
    except ValueError:
        return None
    kl = {label: sum(share * curve.predict(bits) for share, bits in parts) for label, parts in known.items()}
    ratios = {label: measured[label] / kl[label] for label in kl if label not in fine}
    flagged = {label: ratio for label, ratio in ratios.items() if ratio > OUTLIER_FACTOR}
    return Prediction(curve, tuple(fine), kl, flagged)
