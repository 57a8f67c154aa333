"""LiteRT-LM (.litertlm): the model of `litert` with tokenizer, chat template, and the tokens that begin and end a text.

Format: sections behind a FlatBuffer, by LiteRT-LM's own builder. LiteRT-LM renders the template, to which it gives no
`bos_token`, and puts the start token before what it rendered; of messages it gives the contents as lists of parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from llmkit.convert.frameworks.base import Built, Workshop
from llmkit.convert.frameworks.litert import MODEL, write_model
from llmkit.errors import UnsupportedError
from llmkit.formats.chattemplates import read_chat_templates
from llmkit.formats.silence import silence
from llmkit.formats.strictjson import read_json_object

BUNDLE: Final = "model.litertlm"
_TOKENIZER: Final = "tokenizer.json"
_MAX_BYTES: Final = 256 << 20
# Templates of models for text alone expect contents to be texts.
_PLAIN: Final = (
    "{%- set plain = namespace(messages=[]) -%}{%- for message in messages -%}"
    "{%- set plain.messages = plain.messages + [{'role': message.role, 'content': message.content "
    "if message.content is string else message.content | map(attribute='text') | join('')}] -%}"
    "{%- endfor -%}{%- set messages = plain.messages -%}"
)


def build(shop: Workshop) -> Built:
    """Write the model, and pack it with what is in the folder. Raises UnsupportedError without tokenizer.json."""
    tokenizer = shop.folder / _TOKENIZER
    if not tokenizer.is_file():
        raise UnsupportedError(f"{shop.settings['source']['name']} has no {_TOKENIZER}, which LiteRT-LM needs")
    config = _read(shop.folder / "tokenizer_config.json")
    template = read_chat_templates(shop.folder, config).get("default", "")
    begins = _first(shop.settings["token_ids"].get("bos"))
    if begins is not None and not (_adds(config, _read(tokenizer), begins) or "bos_token" in template):
        begins = None
    settings = write_model(shop)
    shop.say("packing")
    metadata = shop.folder / "metadata.pb"
    with silence():
        from litert_lm_builder import litertlm_builder as builder

        metadata.write_bytes(_metadata(shop, begins, template))
        bundle = builder.LitertLmFileBuilder()
        bundle.add_system_metadata(builder.Metadata(key="Authors", value="llmkit", dtype=builder.DType.STRING))
        bundle.add_llm_metadata(str(metadata))
        bundle.add_hf_tokenizer(str(tokenizer))
        bundle.add_tflite_model(str(shop.folder / MODEL), builder.TfLiteModelType.PREFILL_DECODE)
        with (shop.folder / BUNDLE).open("wb") as file:
            bundle.build(file)
    metadata.unlink()
    (shop.folder / MODEL).unlink()
    notes = () if template else ("the model has no chat template: LiteRT-LM continues texts with it",)
    return Built({**settings, "model": BUNDLE}, notes)


def _metadata(shop: Workshop, begins: int | None, template: str) -> bytes:
    """An LlmMetadata message."""
    from litert_lm_builder.runtime.proto import llm_metadata_pb2, llm_model_type_pb2

    found = llm_metadata_pb2.LlmMetadata()
    if begins is not None:
        found.start_token.token_ids.ids.append(begins)
    ends = shop.settings["token_ids"].get("eos", [])
    for id in ends if isinstance(ends, list) else [ends]:
        found.stop_tokens.add().token_ids.ids.append(id)
    found.max_num_tokens = shop.network.n_context
    if template:
        found.jinja_prompt_template = _PLAIN + template
    generic = llm_model_type_pb2.LlmModelType(generic_model=llm_model_type_pb2.GenericModel())
    found.llm_model_type.CopyFrom(generic)
    content: bytes = found.SerializeToString()
    return content


def _read(path: Path) -> dict[str, Any]:
    return read_json_object(path, max_bytes=_MAX_BYTES) if path.is_file() else {}


def _first(ids: Any) -> int | None:
    found = ids[0] if isinstance(ids, list) and ids else ids
    return found if isinstance(found, int) else None


def _adds(config: Mapping[str, Any], tokenizer: Mapping[str, Any], begins: int) -> bool:
    """Whether the tokenizer puts the token before every text."""
    if config.get("add_bos_token"):
        return True
    processor = tokenizer.get("post_processor") or {}
    for one in processor.get("processors", [processor]):
        first = (one.get("single") or [{}])[0].get("SpecialToken", {}).get("id")
        if one.get("special_tokens", {}).get(first, {}).get("ids") == [begins]:
            return True
    return False
