"""Inspection, against gguf-py and safetensors as oracles, and the command that prints it."""

from __future__ import annotations

import json
import random
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner, Result
from safetensors import safe_open

from llmkit import hubcache
from llmkit.cli import cli
from llmkit.commands.inspect import printable, render, short_count
from llmkit.errors import FormatError, LlmkitError, ModelNotFoundError, UnsupportedError
from llmkit.inspection import Inspection, inspect_path
from llmkit.inspection.gguf import FILE_TYPES
from tests.tinymodels import TinyLlama, write_json


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubcache.hub_constants(), "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def write_gguf(path: Path, n_tensors: int = 2, **extra: object) -> Path:
    """A small valid file by gguf-py, with a template and a vocabulary."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny \x1b[31mred")
    writer.add_context_length(512)
    writer.add_block_count(2)
    writer.add_head_count([4, 8])
    writer.add_head_count_kv([2, 2])
    writer.add_file_type(7)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", b"\xff", "c"])
    writer.add_chat_template([{"name": "default", "template": "{{ 1 }}\n" * 7}, {"name": "tool_use", "template": "t"}])
    writer.add_float32("x.not_a_number", float("nan"))
    writer.add_string("x.bytes", "ok")
    for key, value in extra.items():
        writer.add_uint32(key, int(str(value)))
    for number in range(n_tensors):
        writer.add_tensor(f"blk.{number}.weight", np.ones((3, 64), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_split(folder: Path) -> list[Path]:
    """A model in two parts, as llama.cpp's gguf-split makes them: all metadata in the first."""
    paths = []
    for number in (0, 1):
        path = folder / f"tiny-{number + 1:05d}-of-00002.gguf"
        writer = gguf.GGUFWriter(path, "llama")
        if number == 0:
            writer.add_name("Tiny")
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 2)
        writer.add_tensor(f"t{number}", np.ones(8, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        paths.append(path)
    return paths


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, ["inspect", *args], obj={"quiet": False}, catch_exceptions=False)


class TestGGUF:
    def test_real_file_equals_what_gguf_py_reads(self, smollm2_gguf: Path) -> None:
        reader = gguf.GGUFReader(smollm2_gguf)
        found = inspect_path(smollm2_gguf)
        assert [(t.name, t.dtype, t.shape, t.nbytes, t.offset) for t in found.tensors] == [
            (t.name, t.tensor_type.name, tuple(map(int, reversed(t.shape))), t.n_bytes, t.data_offset)
            for t in reader.tensors
        ]
        assert found.n_params == sum(int(t.n_elements) for t in reader.tensors) == 134_515_008
        assert found.n_bytes == smollm2_gguf.stat().st_size
        tensor_bytes = sum(int(t.n_bytes) for t in reader.tensors)
        assert found.bits_per_weight == pytest.approx(8 * tensor_bytes / 134_515_008)
        assert [(t.type, t.n_tensors) for t in found.types] == [("Q4_1", 210), ("Q8_0", 1), ("F32", 61)]
        h = found.hyperparameters
        assert (h.n_context, h.n_layers, h.n_embd, h.n_ff) == (8192, 30, 576, 1536)
        assert (h.n_heads, h.n_kv_heads, h.n_vocab, h.rope_base) == (9, 3, 49152, 100_000.0)
        assert found.tokenizer is not None
        assert (found.tokenizer.model, found.tokenizer.pre, found.tokenizer.n_tokens) == ("gpt2", "smollm", 49152)
        template = reader.fields["tokenizer.chat_template"].contents()
        assert [(t.name, t.text) for t in found.templates] == [("default", template)]
        assert found.gguf is not None
        assert (found.gguf.version, found.gguf.file_type, found.gguf.n_parts) == (3, "Q4_1", 1)
        expected = {k for k in reader.fields if not k.startswith(("GGUF.", "tokenizer.chat_template"))}
        assert set(found.metadata) == expected
        assert found.metadata["tokenizer.ggml.tokens"] == {"array": "STRING", "length": 49152}

    def test_file_type_names_are_those_of_gguf_py(self) -> None:
        theirs = {t.value: t.name.removeprefix("MOSTLY_").removeprefix("ALL_") for t in gguf.LlamaFileType}
        shared = set(theirs) & set(FILE_TYPES)
        assert {n: FILE_TYPES[n] for n in shared} == {n: theirs[n] for n in shared}
        assert len(shared) > 25

    def test_odd_values(self, tmp_path: Path) -> None:
        found = inspect_path(write_gguf(tmp_path / "tiny.gguf"))
        assert found.hyperparameters.n_heads == (4, 8)
        assert found.hyperparameters.n_kv_heads == 2
        assert found.hyperparameters.n_vocab == 3
        assert [t.name for t in found.templates] == ["default", "tool_use"]
        assert found.metadata["x.not_a_number"] == "nan"
        json.loads(json.dumps(found.to_dict(), allow_nan=False))

    def test_split_model_from_any_part(self, tmp_path: Path) -> None:
        first, second = write_split(tmp_path)
        for path in (first, second):
            found = inspect_path(path)
            assert found.name == "Tiny"
            assert [t.name for t in found.tensors] == ["t0", "t1"]
            assert found.n_bytes == first.stat().st_size + second.stat().st_size
            assert found.gguf is not None
            assert (found.gguf.n_parts, found.gguf.missing_parts, found.notes) == (2, (), ())
        assert inspect_path(tmp_path).path == first

    def test_split_model_with_a_part_missing(self, tmp_path: Path) -> None:
        first, second = write_split(tmp_path)
        second.unlink()
        found = inspect_path(first)
        assert found.gguf is not None
        assert (found.gguf.n_parts, found.gguf.missing_parts) == (2, (second.name,))
        assert found.notes == (f"part {second.name} is not here: its tensors do not count",)

    def test_damaged_file(self, tmp_path: Path, smollm2_gguf: Path) -> None:
        (tmp_path / "short.gguf").write_bytes(smollm2_gguf.read_bytes()[:2_000_000])
        with pytest.raises(FormatError, match=r"short\.gguf"):
            inspect_path(tmp_path / "short.gguf")
        (tmp_path / "not.gguf").write_bytes(b"<!DOCTYPE html>" * 10)
        with pytest.raises(FormatError, match="web page"):
            inspect_path(tmp_path / "not.gguf")

    def test_damage_raises_nothing_but_our_errors(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "tiny.gguf")
        data = path.read_bytes()
        rng = random.Random(0)
        outcomes = {True: 0, False: 0}
        for _ in range(400):
            damaged = bytearray(data)
            for _ in range(rng.choice((1, 1, 3))):
                damaged[rng.randrange(4, len(data) - 1536)] = rng.choice((*range(13), 128, 255))
            path.write_bytes(damaged)
            try:
                found = inspect_path(path)
                json.dumps(found.to_dict(with_tensors=True), allow_nan=False).encode()
                "\n".join(render(found, tensors=True)).encode()
                outcomes[True] += 1
            except LlmkitError:
                outcomes[False] += 1
        assert min(outcomes.values()) > 50


class TestSafetensors:
    def test_file_equals_what_safetensors_reads(self, tmp_path: Path) -> None:
        path = TinyLlama(n_layers=1).write(tmp_path / "tiny") / "model.safetensors"
        found = inspect_path(path)
        with safe_open(path, "np") as file:
            names, metadata = list(file.keys()), file.metadata()
            expected = {n: (file.get_slice(n).get_dtype(), tuple(file.get_slice(n).get_shape())) for n in names}
        assert found.kind == "safetensors"
        assert {t.name: (t.dtype, t.shape) for t in found.tensors} == expected
        assert found.metadata == metadata
        assert found.bits_per_weight == 16

    def test_checkpoint(self, tmp_path: Path) -> None:
        model = TinyLlama(n_layers=3, n_shards=2, dtype="F16", config={"rope_scaling": {"rope_type": "llama3"}})
        folder = model.write(tmp_path / "tiny")
        (folder / "chat_template.jinja").write_text("{{ messages }}")
        found = inspect_path(folder)
        shapes = model.shapes()
        assert (found.kind, found.name) == ("checkpoint", "tiny")
        assert (found.architecture, found.model_class) == ("llama", "LlamaForCausalLM")
        assert {t.name: t.shape for t in found.tensors} == shapes
        assert found.n_params == sum(int(np.prod(s)) for s in shapes.values())
        assert found.n_bytes == sum(f.stat().st_size for f in folder.glob("*.safetensors"))
        assert [(t.type, t.bits_per_weight) for t in found.types] == [("F16", 16)]
        h = found.hyperparameters
        assert (h.n_layers, h.n_embd, h.n_ff, h.n_heads, h.n_kv_heads, h.n_vocab) == (3, 256, 512, 4, 2, 320)
        assert (h.n_context, h.rope_base, h.rope_scaling) == (512, 10000.0, "llama3")
        assert found.tokenizer is not None
        assert (found.tokenizer.model, found.tokenizer.file, found.tokenizer.n_tokens) == ("BPE", "tokenizer.json", 320)
        assert (found.tokenizer.bos, found.tokenizer.eos) == ("<s>", "</s>")
        assert [(t.name, t.text) for t in found.templates] == [("default", "{{ messages }}")]

    def test_both_generations_of_rope_settings(self, tmp_path: Path) -> None:
        rope = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "yarn"}, "rope_theta": ...}
        found = inspect_path(TinyLlama(n_layers=1, config=rope).write(tmp_path / "tiny"))
        assert (found.hyperparameters.rope_base, found.hyperparameters.rope_scaling) == (5e5, "yarn")

    def test_checkpoint_with_an_unreadable_tokenizer(self, tmp_path: Path) -> None:
        folder = TinyLlama(n_layers=1).write(tmp_path / "tiny")
        (folder / "tokenizer.json").write_text("{")
        found = inspect_path(folder)
        assert found.tokenizer is None
        assert "tokenizer not readable" in found.notes[0]
        (folder / "tokenizer.json").unlink()
        assert inspect_path(folder).notes == ("no tokenizer.json and no tokenizer.model",)

    def test_folder_without_config(self, tmp_path: Path) -> None:
        folder = TinyLlama(n_layers=1, n_shards=2).write(tmp_path / "tiny")
        (folder / "config.json").unlink()
        found = inspect_path(folder)
        assert (found.kind, len(found.files), found.architecture) == ("safetensors-folder", 2, None)
        assert len(found.tensors) == len(TinyLlama(n_layers=1).shapes())

    def test_quantised_checkpoint_is_noted(self, tmp_path: Path) -> None:
        folder = TinyLlama(n_layers=1, config={"quantization_config": {"quant_method": "gptq"}}).write(
            tmp_path / "tiny"
        )
        assert "the weights are quantised already (gptq)" in inspect_path(folder).notes

    def test_missing_shard(self, tmp_path: Path) -> None:
        folder = TinyLlama(n_layers=1, n_shards=2).write(tmp_path / "tiny")
        (folder / "model-00002-of-00002.safetensors").unlink()
        with pytest.raises(FormatError, match="model-00002-of-00002"):
            inspect_path(folder)


class TestOtherFiles:
    def test_unknown_file(self, tmp_path: Path) -> None:
        (tmp_path / "notes.txt").write_text("just text, some of it")
        with pytest.raises(UnsupportedError, match=r"notes\.txt: neither a GGUF nor a SafeTensors file"):
            inspect_path(tmp_path / "notes.txt")

    def test_pytorch_checkpoint(self, tmp_path: Path) -> None:
        import torch

        path = tmp_path / "pytorch_model.bin"
        torch.save({"a": torch.zeros(3, 4, dtype=torch.bfloat16), "b": torch.zeros(5)}, path)
        found = inspect_path(path)
        assert (found.kind, found.n_params, found.files) == ("pytorch", 17, ((path, path.stat().st_size),))
        assert [(t.name, t.dtype, t.shape) for t in found.tensors] == [("a", "BF16", (3, 4)), ("b", "F32", (5,))]
        assert "PyTorch checkpoint" in "\n".join(render(found))
        path.write_bytes(b"PK\x03\x04" + bytes(60))
        with pytest.raises(FormatError, match="no whole ZIP archive"):
            inspect_path(path)

    def test_other_zip_archive_and_pointer(self, tmp_path: Path) -> None:
        (tmp_path / "model.zip").write_bytes(b"PK\x03\x04" + bytes(60))
        with pytest.raises(UnsupportedError, match="zip archive"):
            inspect_path(tmp_path / "model.zip")
        (tmp_path / "pytorch_model.bin").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
        with pytest.raises(UnsupportedError, match="Git LFS pointer"):
            inspect_path(tmp_path / "pytorch_model.bin")

    @pytest.mark.parametrize("name", ["model.safetensors.index.json", "config.json"])
    def test_part_of_a_checkpoint(self, tmp_path: Path, name: str) -> None:
        write_json(tmp_path / name, {"weight_map": {}})
        with pytest.raises(UnsupportedError) as caught:
            inspect_path(tmp_path / name)
        assert str(caught.value).endswith(
            f"{name} is a part of a checkpoint without weights; give the folder: {tmp_path}"
        )

    def test_folder_without_a_model(self, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        with pytest.raises(ModelNotFoundError, match=r"empty holds no model: no \.gguf and no \.safetensors file"):
            inspect_path(tmp_path / "empty")

    def test_folder_with_several_gguf_files(self, tmp_path: Path) -> None:
        for name in ("a", "b"):
            write_gguf(tmp_path / f"{name}.gguf")
        with pytest.raises(ModelNotFoundError, match=r"several GGUF files.*\n.*a\.gguf\n.*b\.gguf"):
            inspect_path(tmp_path)

    def test_nothing_there(self, tmp_path: Path) -> None:
        with pytest.raises(ModelNotFoundError, match="no such file or folder"):
            inspect_path(tmp_path / "none")


class TestCommand:
    def test_report(self, smollm2_gguf: Path) -> None:
        result = run(str(smollm2_gguf))
        assert (result.exit_code, result.stderr) == (0, "")
        lines = result.stdout.splitlines()
        facts = dict(line.split("  ", 1) for line in lines[: lines.index("")])
        assert {key: value.strip() for key, value in facts.items()} | {"path": "", "name": ""} == {
            "path": "",
            "name": "",
            "what": "GGUF file, version 3",
            "architecture": "llama",
            "parameters": "134.5 M (134,515,008) in 272 tensors",
            "file type": "Q4_1",
            "bits per weight": "5.74",
            "size": "98.4 MB (98,362,432 bytes)",
            "context": "8,192 tokens",
            "layers": "30",
            "embedding": "576",
            "feed forward": "1,536",
            "heads": "9 for queries, 3 for keys and values",
            "rope": "base 100,000",
            "vocabulary": "49,152 tokens",
            "tokenizer": "gpt2, pre-tokenizer smollm, BOS 1, EOS 2",
            "chat template": "yes",
        }
        assert "Q4_1      210  106,168,320  66,355,200         5.00" in lines
        assert any(line.startswith("  {% for message in messages %}") for line in lines)
        assert "\x1b" not in result.stdout

    def test_tensors(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "tiny.gguf", general_alignment=32)
        lines = run(str(path), "--tensors").stdout.splitlines()
        offset = inspect_path(path).tensors[0].offset
        start = lines.index("tensor        type   shape  bytes  offset") + 1
        assert lines[start].split() == ["blk.0.weight", "F32", "3", "x", "64", "768", str(offset)]
        assert lines[start + 1].split()[-1] == f"{offset + 768:,}"

    def test_json(self, tmp_path: Path) -> None:
        path = write_gguf(tmp_path / "tiny.gguf")
        value = json.loads(run(str(path), "--json").stdout)
        assert list(value) == [
            "kind", "path", "bytes", "files", "architecture", "model_class", "name", "parameters", "tensors",
            "bits_per_weight", "types", "hyperparameters", "tokenizer", "chat_templates", "gguf", "metadata", "notes",
        ]  # fmt: skip
        assert list(value["hyperparameters"]) == [
            "context_length", "layers", "embedding_length", "feed_forward_length", "heads", "kv_heads", "vocabulary",
            "experts", "experts_used", "rope_base", "rope_scaling",
        ]  # fmt: skip
        assert value["types"] == [
            {"type": "F32", "tensors": 2, "parameters": 384, "bytes": 1536, "bits_per_weight": 32.0}
        ]
        assert value["hyperparameters"]["heads"] == [4, 8]
        assert value["gguf"] == {
            "version": 3,
            "alignment": 32,
            "file_type": "Q8_0",
            "parts": 1,
            "missing_parts": [],
        }
        first = json.loads(run(str(path), "--json", "--tensors").stdout)["tensor_list"][0]
        assert (first["name"], first["type"], first["shape"], first["bytes"]) == ("blk.0.weight", "F32", [3, 64], 768)
        assert (first["file"], first["offset"]) == ("tiny.gguf", inspect_path(path).tensors[0].offset)

    def test_json_of_a_checkpoint_compares_with_that_of_a_gguf_file(self, tmp_path: Path) -> None:
        folder = TinyLlama(n_layers=1).write(tmp_path / "tiny")
        checkpoint = json.loads(run(str(folder), "--json").stdout)
        file = json.loads(run(str(write_gguf(tmp_path / "tiny.gguf")), "--json").stdout)
        assert list(checkpoint) == list(file)
        assert checkpoint["architecture"] == file["architecture"] == "llama"
        assert (checkpoint["model_class"], file["model_class"]) == ("LlamaForCausalLM", None)
        assert list(checkpoint["tokenizer"]) == ["model", "file", "pre", "tokens", "bos", "eos"]
        assert (checkpoint["tokenizer"]["model"], checkpoint["tokenizer"]["file"]) == ("BPE", "tokenizer.json")
        assert (file["tokenizer"]["model"], file["tokenizer"]["file"]) == ("gpt2", None)
        report = run(str(folder)).stdout
        assert "architecture     llama (LlamaForCausalLM)\n" in report
        assert "tokenizer        BPE (tokenizer.json), BOS <s>, EOS </s>\n" in report

    def test_text_from_the_file_cannot_steer_the_terminal(self, tmp_path: Path) -> None:
        output = run(str(write_gguf(tmp_path / "tiny.gguf"))).stdout
        assert "\x1b" not in output
        assert "Tiny \\x1b[31mred" in output
        assert printable("a\x07\x9b\u202eb é 漢") == "a\\x07\\x9b\\u202eb é 漢"

    def test_narrow_terminal(self, smollm2_gguf: Path) -> None:
        found = inspect_path(smollm2_gguf)
        assert max(map(len, render(found, tensors=True))) > 50
        narrow = render(found, tensors=True, width=50)
        assert max(map(len, narrow)) == 50
        assert len(narrow) == len(render(found, tensors=True))

    def test_named_templates(self, tmp_path: Path) -> None:
        output = run(str(write_gguf(tmp_path / "tiny.gguf"))).stdout
        assert "chat template    yes, named: tool_use" in output
        assert "  … 2 more lines" in output
        assert "heads            4 to 8 for queries, 2 for keys and values" in output

    def test_cached_repository_without_the_network(self, tmp_path: Path) -> None:
        commit = "a" * 40
        folder = hubcache.repo_folder("org/Tiny")
        TinyLlama(n_layers=1).write(folder / "snapshots" / commit)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(commit)
        result = run("org/Tiny")
        assert result.exit_code == 0
        assert "name             org/Tiny" in result.stdout
        by_word = run("tiny")
        assert by_word.stdout == result.stdout
        assert by_word.stderr == "note: 'tiny' is org/Tiny in the Hugging Face cache\n"
        with pytest.raises(ModelNotFoundError, match="no folder org/Other here"):
            run("org/Other")

    def test_a_word_that_fits_a_file_here(self, tmp_path: Path) -> None:
        (tmp_path / "sub").mkdir()
        path = write_gguf(tmp_path / "sub" / "tiny-Q8_0.gguf")
        by_word = run("tiny")
        assert by_word.stdout == run(str(path.relative_to(tmp_path))).stdout
        assert by_word.stderr == "note: 'tiny' is sub/tiny-Q8_0.gguf here\n"
        help_text = " ".join(run("--help").stdout.split())
        assert "a word that fits one model in this folder, its direct subfolders or that cache" in help_text

    def test_empty_gguf(self, tmp_path: Path) -> None:
        found = inspect_path(write_gguf(tmp_path / "tiny.gguf", n_tensors=0))
        assert found.bits_per_weight is None
        assert "parameters     0 (0) in 0 tensors" in render(found)

    def test_short_counts(self) -> None:
        assert [short_count(n) for n in (0, 999, 1000, 134_515_008, 1_080_000_000)] == [
            "0", "999", "1.0 k", "134.5 M", "1.08 B",
        ]  # fmt: skip


def test_config_values_of_the_wrong_kind_are_ignored(tmp_path: Path) -> None:
    folder = TinyLlama(n_layers=1).write(tmp_path / "tiny")
    write_json(
        folder / "config.json",
        {
            "model_type": 3,
            "architectures": "LlamaForCausalLM",
            "hidden_size": "256",
            "num_hidden_layers": True,
            "rope_parameters": [],
            "rope_scaling": "linear",
            "rope_theta": float("inf"),
            "text_config": None,
            "quantization_config": "none",
        },
    )
    found: Inspection = inspect_path(folder)
    h = found.hyperparameters
    assert (found.architecture, h.n_embd, h.n_layers, h.rope_base, h.rope_scaling) == (None, None, None, None, None)
    json.dumps(found.to_dict(), allow_nan=False)
