"""What `convert` and `quantize` share: options that say how to quantise, and what is printed of a plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

import click

from llmkit.arguments import parse_bytes
from llmkit.conversion import DEFAULT_MEMORY, ConversionResult
from llmkit.errors import LlmkitError
from llmkit.progress import format_bytes, say

if TYPE_CHECKING:
    from llmkit.convert.verify import Verification

TYPES: Final = (
    "f32 f16 bf16 q8_0 q6_k q5_k_m q5_k_s q5_1 q5_0 q4_k_m q4_k_s q4_1 q4_0 iq4_nl iq4_xs mxfp4_moe q3_k_l q3_k_m "
    "q3_k_s q2_k q2_k_s"
)


def checked(parse: Callable[[str], Any]) -> Callable[[click.Context, click.Parameter, Any], Any]:
    """A click callback: a value that `parse` refuses is a usage error."""

    def check(ctx: click.Context, param: click.Parameter, value: Any) -> Any:
        try:
            for text in value if isinstance(value, tuple) else (value,):
                if text is not None:
                    parse(text)
        except LlmkitError as error:
            raise click.BadParameter(str(error)) from error
        return value

    return check


def _parse_type(text: str) -> object:
    from llmkit.quantize.recipes import parse_type

    return parse_type(text)


def _parse_tensor_type(text: str) -> object:
    from llmkit.convert.onnx.recipes import is_onnx_type
    from llmkit.quantize.recipes import parse_tensor_type

    if is_onnx_type(text.rpartition("=")[2]):
        return text  # of ONNX: the target tells whether it fits
    return parse_tensor_type(text)


_OPTIONS: Final = (
    click.option("-o", "--output", type=click.Path(),
                 help="Output file or folder.  [default: <model>-<TYPE>.gguf here]"),
    click.option("--imatrix", type=click.Path(exists=True, dir_okay=False), metavar="FILE",
                 help="Importance matrix of the model, GGUF or llama.cpp's older form: columns that count for more get "
                 "the smaller errors."),
    click.option("--pure", is_flag=True, help="Give every tensor that is quantised the main type, not a mixture."),
    click.option("--tensor-type", "tensor_types", multiple=True, metavar="REGEX=TYPE",
                 callback=checked(_parse_tensor_type),
                 help="Type of the tensors whose names the expression is found in, such as attn_v=q8_0; may be given "
                 "several times, the first that fits counts."),
    click.option("--output-type", metavar="TYPE", callback=checked(_parse_type),
                 help="Type of the matrix that computes the logits."),
    click.option("--token-embedding-type", metavar="TYPE", callback=checked(_parse_type),
                 help="Type of the token embedding."),
    click.option("--fallback/--no-fallback", default=True,
                 help="Whether a tensor whose rows a type does not divide gets another one, which is the default, or "
                 "ends the work."),
    click.option("--split-size", metavar="SIZE", callback=checked(parse_bytes),
                 help="Split the model: begin the next file before its tensors take more than this, such as 2GB."),
    click.option("--verify/--no-verify", default=None,
                 help="Read back what was written and compare it with the source before it gets its name.  [default: "
                 "where that is cheap: at least half of the weights get types whose scales are searched for (q2_k to "
                 "q6_k, iq4; with --imatrix also q4_0 to q5_1), or there are at most 500 million]"),
    click.option("--dry-run", is_flag=True, help="Show what would be written; read no weights, write nothing."),
    click.option("--overwrite", is_flag=True, help="Replace the output if it exists."),
    click.option("--threads", type=click.IntRange(1, 1024), help="Worker threads.  [default: one per CPU]"),
    click.option("--memory", default=DEFAULT_MEMORY, show_default=True, callback=checked(parse_bytes),
                 help="Bound on the buffers of all threads."),
    click.option("--allow-nonfinite", is_flag=True, help="Take NaN and infinite weights too."),
    click.option("-v", "--verbose", is_flag=True, help="Show the error of every tensor that was verified."),
    click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
)  # fmt: skip


def conversion_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a click command, which passes all but `as_json` and `verbose` on to the API."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def print_result(result: ConversionResult, *, quiet: bool, verbose: bool, as_json: bool) -> None:
    """Notes on stderr; on stdout the result, of a dry run with the table of tensors."""
    if not quiet:
        _print_notes(result)
    if as_json:
        click.echo(json.dumps(result.to_dict(), indent=2))
        return
    if result.dry_run:
        _print_tensors(result)
    plan = result.plan
    parts = f" in {len(result.paths)} files" if len(result.paths) > 1 else ""
    if not result.dry_run:
        verb, seconds = "is", f", {result.seconds:.1f} s"
    else:
        verb, seconds = "would be" if plan.assembly is None else "would be made from", ""
    click.echo(
        f"{result.path} {verb} {format_bytes(result.total_bytes)}{parts}: {plan.n_params / 1e6:,.1f} M parameters, "
        f"{result.bits_per_weight:.2f} bits per weight{seconds}"
    )
    if result.verification is not None:
        _print_verification(result.verification, verbose)


def _print_notes(result: ConversionResult) -> None:
    plan = result.plan
    for note in result.notes:
        say(f"note: {note}")
    for f in plan.fallbacks:
        share = 100 * f.n_elements / max(1, plan.n_params)
        n_weights = max(1, f.n_elements)
        say(
            f"fallback: {f.n_tensors} tensors ({share:.1f} % of the weights) get {f.type.name} instead of "
            f"{f.wanted.name}, {f.n_bits / n_weights:.2f} instead of {f.n_bits_wanted / n_weights:.2f} bits per "
            f"weight: {f.reason}"
        )
    if plan.fallbacks:
        say(
            f"fallback: the file has {plan.bits_per_weight:.2f} bits per weight; without fallbacks "
            f"it would have {plan.bits_per_weight_wanted:.2f}"
        )


def _print_tensors(result: ConversionResult) -> None:
    tensors = result.plan.tensors
    width = max((len(t.name) for t in tensors), default=0)
    click.echo(f"{'tensor':<{width}}  {'shape':>16}  {'from':>7}  {'type':<7}  {'bytes':>14}  importance")
    for t in tensors:
        source = t.source_type.name if t.is_stored else "-"
        shape = " x ".join(str(n) for n in t.shape)
        fallback = f"  (not {t.wanted.name}: {t.reason})" if t.wanted is not t.type else ""
        importance = "yes" if t.importance is not None else "no"
        line = f"{t.name:<{width}}  {shape:>16}  {source:>7}  {t.type.name:<7}  {t.nbytes:>14,}  {importance}{fallback}"
        click.echo(line)


def _print_verification(found: Verification, verbose: bool) -> None:
    worst = ", ".join(f"{t.name} {t.relative:.4f} ({t.type.name})" for t in found.worst(3))
    click.echo(f"verified in {found.seconds:.1f} s: relative error {found.relative:.4f}; largest {worst}")
    width = max((len(t.name) for t in found.tensors), default=0)
    for t in found.tensors if verbose else ():
        click.echo(f"{t.name:<{width}}  {t.type.name:<7}  relative error {t.relative:.5f}")
