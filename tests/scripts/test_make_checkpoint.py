"""The checkpoint that the scripts unpack is what transformers and tokenizers make of the same file."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"

HARD_STRINGS = [
    "",
    " ",
    "Hello world",
    "  leading, trailing  ",
    "I've told he'll, WE'RE 'D'you",
    "1234567890 12.5e-10 3x٣³½Ⅷ",
    "a1b22c333 x=1;y=22",
    "\n\n\t \r\n  \n",
    "def f(x):\n    return x**2  # squared\n",
    "naïve café e\u0301 ﬁ Ω≈ç√",
    "Привет, мир! Γειά σου Κόσμε",
    "你好，世界。こんにちは 안녕하세요",
    "مرحبا بالعالم שלום हिन्दी ไทย ភាសាខ្មែរ",
    "🚀 👩‍👩‍👧‍👦 🇩🇪 😶‍🌫️",
    "zero\u200bwidth\ufeffbom\u00a0nbsp\u3000wide",
    "<|im_start|>user\nhi<|im_end|>\n<|endoftext|>",
    "<|im_start |> <file_sep><repo_name>x/y",
    "\x00\x01\x7f\u0085",
    "……———''“”„",
]


@pytest.fixture(scope="session")
def exact(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "SmolLM2-135M-Instruct"
    _run("make_checkpoint.py", "--dtype", "f32", "--gguf", str(smollm2_gguf), str(folder))
    return folder


@pytest.mark.slow
def test_weights_equal_those_that_transformers_unpacks(
    exact: Path, smollm2_checkpoint: Path, smollm2_gguf: Path
) -> None:
    import torch
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, GgufConfig

    model = AutoModelForCausalLM.from_pretrained(
        smollm2_gguf.parent, gguf_file=smollm2_gguf.name, quantization_config=GgufConfig(dequantize=True)
    )
    reference = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    weights = load_file(exact / "model.safetensors")
    rounded = load_file(smollm2_checkpoint / "model.safetensors")
    assert weights.keys() == rounded.keys() == reference.keys()
    for name, tensor in reference.items():
        assert tensor.dtype == weights[name].dtype == torch.float32
        assert torch.equal(tensor, weights[name]), name
        assert torch.equal(tensor.to(torch.bfloat16), rounded[name]), name


def test_config_is_what_transformers_reads_from_the_packed_file(smollm2_checkpoint: Path, smollm2_gguf: Path) -> None:
    from transformers import AutoConfig

    ours = AutoConfig.from_pretrained(smollm2_checkpoint).to_dict()
    theirs = AutoConfig.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name).to_dict()
    assert np.float32(ours.pop("rms_norm_eps")) == np.float32(theirs.pop("rms_norm_eps"))
    # Names, paths and what a packed file does not say.
    for key in ("architectures", "initializer_range", "dtype", "_name_or_path", "_model_name_or_path", "unk_token_id"):
        ours.pop(key, None)
        theirs.pop(key, None)
    assert ours == theirs


@pytest.mark.parametrize("text", HARD_STRINGS)
def test_tokens_equal_those_of_transformers(
    tokenizer: Any, packed_tokenizer: Any, checkpoint_tokenizer: Any, text: str
) -> None:
    ids = tokenizer.encode(text).ids
    assert ids == packed_tokenizer.encode(text)
    assert ids == checkpoint_tokenizer.encode(text)


@pytest.mark.parametrize("text", HARD_STRINGS)
def test_tokens_equal_those_of_llama_cpp_on_the_packed_file(tokenizer: Any, llama_vocabulary: Any, text: str) -> None:
    assert tokenizer.encode(text).ids == llama_vocabulary.tokenize(text.encode(), add_bos=False, special=True)


@pytest.fixture(scope="session")
def tokenizer(smollm2_checkpoint: Path) -> Any:
    """The checkpoint's tokenizer.json in the tokenizers library."""
    from tokenizers import Tokenizer

    return Tokenizer.from_file(str(smollm2_checkpoint / "tokenizer.json"))


@pytest.fixture(scope="session")
def checkpoint_tokenizer(smollm2_checkpoint: Path) -> Any:
    """The tokenizer that transformers makes of the whole folder."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2_checkpoint)


@pytest.fixture(scope="session")
def packed_tokenizer(smollm2_gguf: Path) -> Any:
    """The tokenizer that transformers builds from the packed file, with digits taken one by one as upstream's."""
    from tokenizers import pre_tokenizers
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_gguf.parent, gguf_file=smollm2_gguf.name)
    # transformers does not read `tokenizer.ggml.pre`; llama.cpp's 'smollm' splits digits before the byte level.
    backend = tokenizer.backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), backend.pre_tokenizer]
    )
    return tokenizer


@pytest.fixture(scope="session")
def llama_vocabulary(smollm2_gguf: Path) -> Iterator[Any]:
    from llama_cpp import Llama

    with closing(Llama(str(smollm2_gguf), vocab_only=True, verbose=False)) as vocabulary:
        yield vocabulary


# The step is the first float16 of every block of 32 weights: 20 bytes in Q4_1, 34 in Q8_0.
@pytest.mark.parametrize(
    ("packed", "name", "block_bytes"),
    [
        ("blk.7.ffn_down.weight", "model.layers.7.mlp.down_proj.weight", 20),
        ("token_embd.weight", "model.embed_tokens.weight", 34),
    ],
)
def test_dither_stays_inside_the_quantisation_cells(
    exact: Path, exact_dithered: Path, packed_tensors: dict[str, Any], packed: str, name: str, block_bytes: int
) -> None:
    blocks = packed_tensors[packed].data.reshape(-1, block_bytes)
    steps = np.abs(blocks[:, :2].copy().view(np.float16).astype(np.float32))
    plain = _tensor(exact, name)
    noise = (_tensor(exact_dithered, name) - plain).reshape(-1, 32)
    rounding = np.spacing(np.abs(plain).max())
    assert (np.abs(noise) <= steps / 2 + rounding).all()
    share = np.abs(noise[steps[:, 0] > 0]) / steps[steps[:, 0] > 0]
    assert 0.24 < share.mean() < 0.26  # a quarter of a step on average: uniform


def test_dither_leaves_norms_alone_and_changes_permuted_rows(exact: Path, exact_dithered: Path) -> None:
    norm, query = "model.norm.weight", "model.layers.0.self_attn.q_proj.weight"
    assert np.array_equal(_tensor(exact, norm), _tensor(exact_dithered, norm))
    change = _tensor(exact_dithered, query) - _tensor(exact, query)
    assert (change != 0).mean() > 0.99


@pytest.fixture(scope="session")
def exact_dithered(tmp_path_factory: pytest.TempPathFactory, smollm2_gguf: Path) -> Path:
    folder = tmp_path_factory.mktemp("dithered") / "SmolLM2-135M-Instruct"
    _run("make_checkpoint.py", "--dtype", "f32", "--dither", "--gguf", str(smollm2_gguf), str(folder))
    return folder


@pytest.fixture(scope="session")
def packed_tensors(smollm2_gguf: Path) -> dict[str, Any]:
    from gguf import GGUFReader

    return {tensor.name: tensor for tensor in GGUFReader(smollm2_gguf).tensors}


def test_shards_hold_the_same_tensors(tmp_path: Path, smollm2_checkpoint: Path, smollm2_gguf: Path) -> None:
    folder = tmp_path / "sharded"
    _run("make_checkpoint.py", "--shards", "3", "--gguf", str(smollm2_gguf), str(folder))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    names = sorted({*index["weight_map"].values()})
    assert names == [f"model-0000{i}-of-00003.safetensors" for i in (1, 2, 3)]
    whole = _raw(smollm2_checkpoint / "model.safetensors")
    parts = {name: _raw(folder / name) for name in names}
    assert {tensor: parts[file][tensor] for tensor, file in index["weight_map"].items()} == whole
    assert sum(map(len, parts.values())) == len(whole)
    assert index["metadata"]["total_size"] == sum(len(data) for _, _, data in whole.values())


def test_random_checkpoint_loads_in_transformers(tiny_checkpoint: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        assert 0.009 < float(model.model.layers[0].mlp.down_proj.weight.std()) < 0.031
        assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


@pytest.mark.parametrize("layout", [[], ["--joined"]], ids=["each", "joined"])
def test_a_random_mixture_loads_in_transformers(layout: list[str], tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "mixture"
    _run(
        "make_random_checkpoint.py", str(folder), "--shape", "mixtral-tiny", "--experts", "3", "--layers", "2", *layout
    )
    model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not any(info.values()), info
    assert model.model.layers[1].mlp.experts.gate_up_proj.shape == (3, 512, 64)
    with torch.inference_mode():
        assert 0.009 < float(model.model.layers[1].mlp.experts.down_proj.std()) < 0.031
        assert torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all()


def test_a_shape_without_experts_refuses_their_options(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPTS / "make_random_checkpoint.py", tmp_path / "m", "--shape", "llama-tiny"]
    result = subprocess.run([*command, "--experts", "4"], capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "llama-tiny has no experts" in result.stderr


def test_nothing_of_an_earlier_folder_is_overwritten(tmp_path: Path, smollm2_gguf: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    command = [sys.executable, str(SCRIPTS / "make_checkpoint.py"), "--gguf", str(smollm2_gguf), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "exists already" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


def _run(script: str, *arguments: str) -> None:
    subprocess.run([sys.executable, str(SCRIPTS / script), *arguments], check=True)


def _tensor(folder: Path, name: str) -> NDArray[np.float32]:
    from safetensors import safe_open

    with safe_open(folder / "model.safetensors", "np") as file:
        values: NDArray[np.float32] = file.get_tensor(name)
        return values


def _raw(path: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """name -> (dtype, shape, bytes), read by the safetensors library."""
    from safetensors import deserialize

    return {name: (v["dtype"], tuple(v["shape"]), bytes(v["data"])) for name, v in deserialize(path.read_bytes())}
