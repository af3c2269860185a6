"""``python -m mlx_vlm_moxin.evals.pope``: POPE, questions about objects that may be absent.

The options and the output are like those of ``mlx_vlm.evals``. Every question is answered
greedily with a short text, from which POPE's rule reads a yes or a no.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterable
from pathlib import Path

from mlx_vlm_moxin.checkpoints.messages import print_error
from mlx_vlm_moxin.evals.pope_questions import Question, load_questions
from mlx_vlm_moxin.evals.pope_scores import predicted_label, print_scores, score

DATASET = "lmms-lab/POPE"
# The text that TRI-ML/vlm-evaluation (Prismatic's harness) and lmms-eval add to each question.
PROMPT_SUFFIX = "\nAnswer the question using a single word or phrase."
COLUMNS = ("question_id", "category", "question", "answer", "image_source", "prediction", "score")


def build_parser() -> argparse.ArgumentParser:
    """The options, with the names of ``mlx_vlm.evals``."""
    parser = argparse.ArgumentParser(
        prog="python -m mlx_vlm_moxin.evals.pope",
        description="POPE: yes/no questions about objects in pictures",
    )
    parser.add_argument("--model", help="Model path or Hub id")
    parser.add_argument("--adapter-path", help="Adapter weights and config")
    parser.add_argument(
        "--dataset",
        default=DATASET,
        help="POPE's question files (a file or their directory), or a data set with the "
        "columns question, answer, category, image (a directory or a Hub id)",
    )
    parser.add_argument("--split", default="test", help="Split of such a data set")
    parser.add_argument(
        "--image-folder", type=Path, help="Pictures of POPE's question files, if not next to them"
    )
    parser.add_argument("--streaming", action="store_true", help="Stream a data set from the Hub")
    parser.add_argument("--max-samples", type=int, help="Ask at most this many questions")
    parser.add_argument("--prompt-suffix", default=PROMPT_SUFFIX, help="Added to each question")
    parser.add_argument("--max-tokens", type=int, default=16, help="Longest answer")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--resize-shape", type=int, nargs=2, help="Resize pictures first")
    parser.add_argument("--verbose", action="store_true", help="Print each answer")
    parser.add_argument("--prediction-file", type=Path, help="Score this file, ask nothing")
    parser.add_argument("--output-dir", type=Path, default=Path("results/pope"))
    parser.add_argument("--seed", type=int, default=42, help="Random seed")
    return parser


def _answer_all(args: argparse.Namespace, questions: Iterable[Question], file: Path) -> None:
    """Write a row immediately after each answer, so that an interruption loses none."""
    import mlx.core as mx
    from mlx_vlm.evals.utils import inference
    from mlx_vlm.utils import load_image
    from tqdm import tqdm

    from mlx_vlm_moxin.library.load import load

    mx.random.seed(args.seed)
    model, processor = load(args.model, adapter_path=args.adapter_path)
    options = (args.max_tokens, args.temperature, args.resize_shape)
    with file.open("w", newline="", encoding="utf-8") as output:
        writer = csv.DictWriter(output, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for question in tqdm(questions, desc="POPE"):
            image = question.image
            image = load_image(image) if isinstance(image, Path) else image.convert("RGB")
            prompt = question.question + args.prompt_suffix
            prediction = inference(model, processor, prompt, [image], *options)
            correct = predicted_label(prediction) == question.answer
            if args.verbose:
                tqdm.write(f"{question.question} ({question.answer}) {prediction}")
            row = {**vars(question), "prediction": prediction, "score": int(correct)}
            writer.writerow(row)
            output.flush()


def _score_file(file: Path) -> None:
    """Print the scores of a predictions file and write them next to it."""
    with file.open(newline="", encoding="utf-8") as rows:
        scores = score(csv.DictReader(rows))
    print_scores(scores)
    target = file.with_name(file.stem + "_score.json")
    values = {name: category.to_dict() for name, category in scores.items()}
    target.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    print(f"Written: {file} and {target}")


def main() -> None:
    """Run the command; bad input ends it with one line and status 1.

    ``MLX_VLM_MOXIN_TRACEBACK=1`` shows the traceback.
    """
    parser = build_parser()
    args = parser.parse_args()
    if args.model is None and args.prediction_file is None:
        parser.error("--model or --prediction-file is needed")
    try:
        file = args.prediction_file
        if file is None:
            questions = load_questions(
                args.dataset,
                args.split,
                image_folder=args.image_folder,
                streaming=args.streaming,
                max_samples=args.max_samples,
            )
            args.output_dir.mkdir(parents=True, exist_ok=True)
            names = (Path(args.model).name, Path(args.dataset).stem, args.split)
            file = args.output_dir / f"{'_'.join(names)}_predictions.csv"
            _answer_all(args, questions, file)
        _score_file(file)
    except (OSError, ValueError) as error:
        sys.exit(print_error(error))


if __name__ == "__main__":
    main()
