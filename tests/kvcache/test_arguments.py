"""Each error that kv_append and kv_transfer document, provoked, and its message read."""

import pytest
import torch

from tokops.kvcache import Codec, kv_append, kv_transfer

from .pools import pool

INT4, CHANNEL, FULL = Codec("int4", group=32), Codec("int8", "channel", 4), Codec("full")
POOLS = ("k_codes", "k_scale", "k_zero", "v_codes", "v_scale", "v_zero")
TABLE = torch.randperm(12)[:10].view(2, 5).int()


def append_arguments(k=INT4, v=INT4):
    """Two sequences of up to 20 slots in pages of 4, three heads of dimension 64, four new rows."""
    tensors = [*pool(k, 12, 3, 4, 64), *pool(v, 12, 3, 4, 64)]
    return {
        **dict(zip(POOLS, tensors, strict=True)),
        "block_table": TABLE,
        "seq_lens": torch.tensor([8, 20]).int(),
        "k": torch.randn(2, 4, 3, 64),
        "v": torch.randn(2, 4, 3, 64),
        "k_codec": k.write_code,
        "v_codec": v.write_code,
    }


def bytes_of(*shape):
    return torch.zeros(shape, dtype=torch.uint8)


def halves(*shape):
    return torch.ones(shape, dtype=torch.float16)


def ints(*values):
    return torch.tensor(values).int()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_codec": 7}, r"k_codec must be 0\.\.6, got 7"),
        ({"v_codec": -1}, r"v_codec must be 0\.\.6, got -1"),
        ({"k_codes": bytes_of(12, 3, 4)}, "k_codes must have 4 dimensions, got 3"),
        ({"k_codes": torch.zeros(12, 3, 4, 32)}, "k_codes must be uint8, got float32"),
        ({"k_codec": 0}, "k_codes must be float32 or bfloat16 or float16, got uint8"),
        ({"v_codes": bytes_of(12, 3, 32, 4).mT}, "v_codes must have a contiguous last dimension"),
        ({"v_codes": bytes_of(12, 3, 4, 0)}, r"v_codes must hold 1\.\.256 elements per row, got 0"),
        ({"v_codes": bytes_of(12, 3, 4, 160)}, r"v_codes must hold 1\.\.256 elements per row, got 320"),
        ({"v_codes": bytes_of(12, 3, 4, 24)}, "v_codes must hold whole blocks of 32 elements per row, got 48"),
        ({"k_codec": 3}, r"k must be \[B, T, Hkv, D\] = \[2, 4, 3, 128\], got \[2, 4, 3, 64\]"),
        ({"k_scale": halves(12, 3, 4, 3)}, r"k_scale must be .* N 12, H 3, P 4, D 64, got \[12, 3, 4, 3\]"),
        ({"k_scale": halves(12, 3, 3, 64)}, r"k_scale must be .*got \[12, 3, 3, 64\]"),
        ({"k_scale": halves(12, 2, 4, 2)}, r"k_scale must be .*got \[12, 2, 4, 2\]"),
        ({"k_codes": bytes_of(12, 3, 0, 32), "k_scale": halves(12, 3, 1, 64)}, r"k_scale must be .*P 0, D 64"),
        ({"k_scale": halves(2, 3, 1, 1)}, r"k_scale must be .*got \[2, 3, 1, 1\]"),
        ({"k_scale": halves(0)}, "k_scale must have 4 dimensions, got 1"),
        ({"k_scale": halves(12, 3, 4, 2).double()}, "k_scale must be float16 or float32, got float64"),
        ({"k_zero": halves(12, 3, 4, 1)}, r"k_zero must be the shape of the scale = \[12, 3, 4, 2\], got"),
        ({"k_zero": halves(0)}, r"k_zero must be the shape of the scale = \[12, 3, 4, 2\], got \[0\]"),
        ({"k_zero": halves(12, 3, 4, 2).float()}, "k_zero must be float16, got float32"),
        ({"v_codes": bytes_of(12, 3, 2, 32), "v_scale": halves(12, 3, 2, 2), "v_zero": halves(12, 3, 2, 2)},
         r"v_codes must have the N, H and P of k_codes \[12, 3, 4, 32\], got \[12, 3, 2, 32\]"),
        ({"block_table": TABLE.long()}, "block_table must be int32, got int64"),
        ({"block_table": TABLE[0]}, "block_table must have 2 or 3 dimensions, got 1"),
        ({"block_table": TABLE[:, None].expand(2, 3, 5)}, "needs one head per page, got 3"),
        ({"seq_lens": torch.tensor([8, 20])}, "seq_lens must be int32, got int64"),
        ({"seq_lens": ints(8, 20, 4)}, r"seq_lens must be \[B\] = \[2\], got \[3\]"),
        ({"seq_lens": ints(8, 21)}, r"seq_lens must be 0\.\.20 \(pages \* page size\), got .*21"),
        ({"seq_lens": ints(3, 20)}, "seq_lens must count the 4 new tokens"),
        ({"block_table": TABLE + 8}, r"block_table entries must be 0\.\.11 for pages in use"),
        ({"k": torch.zeros(2, 4, 3, 64).double()}, "k must be float32 or bfloat16 or float16, got float64"),
        ({"k": torch.zeros(2, 4, 192)}, "k must have 4 dimensions, got 3"),
        ({"k": torch.zeros(2, 4, 2, 64)}, r"k must be \[B, T, Hkv, D\] = \[2, 4, 3, 64\], got \[2, 4, 2, 64\]"),
        ({"v": torch.zeros(2, 5, 3, 64)}, r"v must be \[B, T, Hkv, D\] = \[2, 4, 3, 64\], got \[2, 5, 3, 64\]"),
        ({"v": torch.zeros(2, 4, 3, 64).half()}, "v must be float32, got float16"),
        ({"q_lens": ints(1, 5)}, r"q_lens must be 0\.\.4 and at most seq_lens, got .*5"),
        ({"q_lens": ints(4)}, r"q_lens must be \[B\] = \[2\], got \[1\]"),
        ({"starts": ints(-1, 4)}, "starts must be >= 0, got .*-1"),
        ({"starts": torch.tensor([1, 1])}, "starts must be int32, got int64"),
    ],
)  # fmt: skip
def test_bad_arguments_of_append(change, message):
    args = {**append_arguments(), **change}
    before = {n: args[n].clone() for n in POOLS}
    with pytest.raises(RuntimeError, match="kv_append: .*" + message):
        kv_append(**args)
    assert all(torch.equal(args[n], t) for n, t in before.items())


@pytest.mark.parametrize(
    ("k", "v", "change", "message"),
    [
        (FULL, INT4, {"k_zero": halves(2)}, "k_scale and k_zero must be empty for codec 0"),
        (FULL, INT4, {"k_codes": torch.zeros(12, 3, 4, 64).half()}, "k must have the dtype of the full pool float16"),
        (Codec("fp8_e4m3"), INT4, {"k_zero": torch.ones(12, 3, 4, 1)}, r"k_zero must be empty for fp8, got \[12"),
        (INT4, CHANNEL, {"seq_lens": ints(8, 19)}, "multiples of the channel group 4, got 15 and 4 for sequence 1"),
        (CHANNEL, INT4, {"q_lens": ints(4, 2)}, "multiples of the channel group 4, got 18 and 2 for sequence 1"),
    ],
)  # fmt: skip
def test_bad_arguments_of_append_by_codec(k, v, change, message):
    with pytest.raises(RuntimeError, match="kv_append: .*" + message):
        kv_append(**{**append_arguments(k, v), **change})


@pytest.mark.parametrize("name", ["k", "v"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_rows_are_refused_when_asked(monkeypatch, name, bad):
    args = append_arguments()
    args[name][1, 2, 0, 5] = bad
    kv_append(**args)
    monkeypatch.setenv("TOKOPS_CHECK", "1")
    with pytest.raises(RuntimeError, match=f"kv_append: {name} must be finite where it is written"):
        kv_append(**args)
    kv_append(**args, q_lens=ints(4, 1))  # the last row is the only one of sequence 1
    args["q_lens"] = ints(4, 4)
    kv_append(**args, starts=ints(0, 19))  # slot 18 is padding


def transfer_arguments(source=INT4, target=INT4):
    sides = {
        of: [*pool(c, 12, 3, 4, 64), *pool(c, 12, 3, 4, 64), TABLE]
        for of, c in (("source", source), ("target", target))
    }
    slots = torch.arange(4).int().expand(2, 3, 4)
    return {
        **sides,
        "slots_from": slots,
        "slots_to": slots + 10,
        "counts": torch.full((2, 3), 4).int(),
        "source_codecs": (source.write_code,) * 2,
        "target_codecs": (target.write_code,) * 2,
    }


def slots_with(value, at=(1, 2, 3)):
    slots = torch.arange(4).int().repeat(2, 3, 1)
    slots[at] = value
    return slots


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source_codecs": (9, 2)}, r"source_k_codec must be 0\.\.6, got 9"),
        ({"target_codecs": (2, 1)}, "target_v_codes must hold 64 elements per row like the source, got 32"),
        ({"slots_from": slots_with(20)}, r"slots_from must be 0\.\.19 .*got 20 for sequence 1, head 2"),
        ({"slots_to": slots_with(-1)}, r"slots_to must be 0\.\.19 .*got -1 for sequence 1, head 2"),
        ({"counts": torch.full((2, 3), 5).int()}, r"counts must be 0\.\.4, got 5 for sequence 0, head 0"),
        ({"counts": torch.full((2, 3), -1).int()}, r"counts must be 0\.\.4, got -1 for sequence 0, head 0"),
        ({"counts": torch.full((2, 3), 4)}, "counts must be int32, got int64"),
        ({"counts": torch.full((2, 2), 4).int()}, r"counts must be \[B, Hkv\] = \[2, 3\], got \[2, 2\]"),
        ({"slots_from": slots_with(0)[:, :2]}, r"slots_from must be \[B, Hkv, n\] = \[2, 3, 4\], got \[2, 2, 4\]"),
        ({"slots_to": slots_with(0)[..., :2]}, r"slots_to must be the shape of slots_from = \[2, 3, 4\]"),
        ({"slots_to": slots_with(0).long()}, "slots_to must be int32, got int64"),
    ],
)  # fmt: skip
def test_bad_arguments_of_transfer(change, message):
    args = {**transfer_arguments(), **change}
    before = [t.clone() for t in args["target"]]
    with pytest.raises(RuntimeError, match="kv_transfer: .*" + message):
        kv_transfer(**args)
    assert all(torch.equal(a, b) for a, b in zip(args["target"], before, strict=True))


@pytest.mark.parametrize("name", ["k", "v"])
@pytest.mark.parametrize("target", [FULL, INT4])
def test_non_finite_rows_are_not_moved_when_asked(monkeypatch, name, target):
    args = transfer_arguments(FULL, target)
    codes = args["source"][3 * (name == "v")]
    codes.normal_()
    codes[TABLE[1, 0].long(), 2, 3, 5] = float("nan")  # slot 3 of sequence 1
    kv_transfer(**args)
    monkeypatch.setenv("TOKOPS_CHECK", "1")
    with pytest.raises(RuntimeError, match=f"kv_transfer: {name} must be finite where it is moved"):
        kv_transfer(**args)
    args["counts"][1, 2] = 3
    kv_transfer(**args)  # the row stays where it is
    args["counts"].zero_()
    kv_transfer(**args)


@pytest.mark.parametrize(("of", "slots"), [("source", "slots_from"), ("target", "slots_to")])
def test_bad_tables_of_transfer(of, slots):
    args = transfer_arguments()
    args[of][6] = TABLE.clone()
    args[of][6][1, 1] = 12
    args[slots] = slots_with(4, (1, 0, 0))
    with pytest.raises(
        RuntimeError, match=rf"kv_transfer: {of}_table entries must be 0\.\.11 .*sequence 1 has"
    ):
        kv_transfer(**args)
    args[of][6] = TABLE[:1]
    with pytest.raises(RuntimeError, match=r"kv_transfer: target_table must have the \d rows and 3 KV heads"):
        kv_transfer(**args)


def test_bad_targets_of_transfer():
    with pytest.raises(RuntimeError, match="kv_transfer: target_k_scale must not have channel geometry"):
        kv_transfer(**transfer_arguments(INT4, CHANNEL))
    args = transfer_arguments()
    args["target"][:3] = pool(INT4, 12, 3, 4, 128)
    with pytest.raises(
        RuntimeError, match=r"kv_transfer: target_k_codes must hold 64 elements per row .*got 128"
    ):
        kv_transfer(**args)
