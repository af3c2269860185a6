"""A run: measures one after another, printed and saved as they are done."""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from functools import partial

from tqdm import tqdm

from mlx_vlm_moxin.bench.machine import Machine
from mlx_vlm_moxin.bench.models import bytes_of

from . import report
from .models import Models
from .report import Measures
from .rounds import Measure, Result, Side, measure_rounds
from .sizes import Sizes

Group = tuple[Sizes, list[Measure]]


def remaining(
    groups: Sequence[Group], done: Measures, texts: Sequence[str] = ("",)
) -> Iterator[Group]:
    """What is left to measure: first all sides that start at once, then those that compile.

    So whatever ends a run early, every row has its quick sides.

    Args:
        groups: sizes and their measures.
        done: what is complete.
        texts: only sides with one of these in their name.
    """
    for compiled in (False, True):
        for sizes, measures in groups:

            def is_left(measure: Measure, side: Side, compiled: bool = compiled) -> bool:
                known = {result.side for result in report.stored_results(done, measure.name)}
                is_named = any(text in side.name for text in texts)
                return side.compiled == compiled and side.name not in known and is_named

            left = [measure.only(partial(is_left, measure)) for measure in measures]
            yield sizes, [measure for measure in left if measure.sides]


def decode_limit(measure: Measure, models: Models, machine: Machine) -> float | None:
    """Tokens per second if only reading weights and key-values took time."""
    if measure.decode is None:
        return None
    batch, name, context = measure.decode
    language_model = models[name].language_model
    text = models.sizes.config.text_config
    # An embedding is one row; the rest of the decoder is read in every step.
    weights = bytes_of(language_model) - bytes_of(language_model.model.embed_tokens)
    row = 2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * 2
    return batch * machine.bandwidth / (weights + batch * context * row)


def run(
    measures: Sequence[Measure],
    sizes: Sizes,
    machine: Machine,
    options: argparse.Namespace,
    deadline: float,
    done: Measures,
) -> None:
    """Measure and print one after another; the file of ``--json`` always holds the results so far.

    Args:
        measures: in this order.
        sizes: those of all models.
        machine: its limits.
        options: of the command line.
        deadline: by ``time.monotonic()``, when the run ends.
        done: what is complete; the new results are added to it.
    """
    models = Models(sizes)

    def save(measured: Measures) -> None:
        if options.json:
            report.save_json(options.json, machine, options.small, measured)

    total = sum(len(measure.sides) for measure in measures) * (1 + options.rounds)
    with tqdm(total=total, unit="round", disable=None) as bar:
        for index, measure in enumerate(measures):
            if time.monotonic() > deadline:
                return
            bar.set_description(measure.name)
            start = time.perf_counter()
            models.keep({name for later in measures[index:] for name in later.needs})
            earlier = report.stored_results(done, measure.name)

            def note(line: str) -> None:
                bar.write(line, file=sys.stderr)

            def each(results: list[Result], measure: Measure = measure) -> None:
                all_results = [*report.stored_results(done, measure.name), *results]
                unfinished = {measure.name: report.to_dict(measure, all_results, None)}
                save({**done, **unfinished})

            results = measure_rounds(
                measure,
                models,
                options.rounds,
                bar.update,
                note,
                each,
                options.limit,
                deadline,
            )
            ours_ran = any(result.is_ours and result.values for result in results)
            limit = decode_limit(measure, models, machine) if ours_ran else None
            if earlier and limit is None:
                limit = done[measure.name]["limit"]
            results = [*earlier, *results]
            lines = report.text(measure, results, limit)
            bar.write(f"{lines}\n  ({time.perf_counter() - start:.0f} s)", file=sys.stdout)
            sys.stdout.flush()
            done[measure.name] = report.to_dict(measure, results, limit)
            save(done)
