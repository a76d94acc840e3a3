"""What the scaling curve of a quantised cache predicts from its cheap runs: a prediction, never a measurement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokops.kvcache import Codec
from tokops.kvcache.scaling import OUTLIER_FACTOR, KvCurve, fit_kv_curve
from tokops.methods import Method, QuantizedKV

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


def effective_bits(codec: Codec, dim: int) -> float | None:
    """Bits of an element, its share of scale and zero included; None where rounding is not uniform."""
    if codec.kind == "full" or codec.is_fp8 or codec.geometry == "head":
        return None
    scales = 8 * codec.scale_dtype.itemsize * (2 if codec.has_zero else 1)
    levels = codec.levels.bit_length() - 1  # of int3, which lies in a container of 4
    return levels + scales / codec.group


def widths(methods: Sequence[Method], dim: int) -> tuple[float, float] | None:
    """Effective bits of keys and values of a plain quantised cache, None for any other store."""
    if len(methods) != 1 or not isinstance(methods[0], QuantizedKV):
        return None
    keys, values = (effective_bits(codec, dim) for codec in methods[0].codecs(dim))
    return None if keys is None or values is None else (keys, values)


def predict(
    methods: Mapping[str, Sequence[Method]], measured: Mapping[str, float], dim: int
) -> Prediction | None:
    """Fit KL over effective bits to the fine runs and predict all plain quantised ones.

    The expected loss of cross-entropy is the KL where the model's predictions are right on average, and KL has
    far less noise over a short text: a difference of losses below 0.001 cannot be seen in a thousand tokens.

    Args:
        methods: by label.
        measured: KL by label, of those that ran.
        dim: head dimension.

    Returns:
        None where fewer than two fine runs differ in bits.
    """
    bits = {label: widths(methods[label], dim) for label in measured}
    known = {label: pair for label, pair in bits.items() if pair is not None}
    fine = [label for label, (keys, values) in known.items() if keys == values and keys >= FINE_BITS]
    try:
        curve = fit_kv_curve([known[label][0] for label in fine], [measured[label] for label in fine])
    except ValueError:
        return None
    kl = {label: (curve.predict(keys) + curve.predict(values)) / 2 for label, (keys, values) in known.items()}
    ratios = {label: measured[label] / kl[label] for label in kl if label not in fine}
    flagged = {label: ratio for label, ratio in ratios.items() if ratio > OUTLIER_FACTOR}
    return Prediction(curve, tuple(fine), kl, flagged)
